"""The card of a Trainer's run: what the Trainer writes, with our part in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_nm.environment import environment
from hf_nm.formats.manifest import KEY
from hf_nm.hub import facts, readme
from hf_nm.hub.scores import Score
from hf_nm.optim.sad_log import sad_summary
from hf_nm.replaced import Replaced


class RunCard:
    """Our part in the card that a Trainer makes, and in those of the checkpoints that it pushes.

    Args:
        trainer: transformers' Trainer or one made from it; its ``create_model_card`` is replaced.
        callback: the :class:`hf_nm.NMCallback` that trains with it.
    """

    def __init__(self, trainer: Any, callback: Any) -> None:
        self.trainer = trainer
        self.callback = callback
        self.scores: Sequence[Score] = ()
        self._written: tuple[str | None, bool] = (None, False)
        self._create = trainer.create_model_card
        Replaced(trainer, "create_model_card", lambda _: self.create)

    def create(
        self, *args: Any, scores: Score | Sequence[Score] | None = None, **kwargs: Any
    ) -> None:
        """``Trainer.create_model_card`` with our part in it.

        Args:
            *args: as for the Trainer's.
            scores: for this card and later ones.
            **kwargs: as for the Trainer's.
        """
        if scores is not None:
            self.scores = [scores] if isinstance(scores, Score) else list(scores)
        if not self.trainer.is_world_process_zero():
            return
        folder = Path(self.trainer.args.output_dir)
        before = self.present()
        generated = self._generate(folder, *args, **kwargs)
        self.write(
            folder,
            readme.renew(before, generated, self._is_edited(before)),
            self._is_edited(before),
        )

    def _generate(self, folder: Path, *args: Any, **kwargs: Any) -> str:
        """The card that the Trainer would write. It writes it elsewhere: an upload of the output
        directory may be going on, and would take it for somebody's own text."""
        trainer_args, own = self.trainer.args, self.trainer.args.output_dir
        with tempfile.TemporaryDirectory() as elsewhere:
            if (folder / readme.CARD).is_file():
                shutil.copyfile(folder / readme.CARD, Path(elsewhere) / readme.CARD)
            trainer_args.output_dir = elsewhere
            try:
                self._create(*args, **kwargs)
            finally:
                trainer_args.output_dir = own
            return readme.read_card(Path(elsewhere)) or ""

    def present(self) -> str | None:
        """The card of the run as it is, here or edited on the Hub."""
        args = self.trainer.args
        there, repo = None, self.trainer.hub_model_id
        if repo is not None:
            # Training waits for this: an outage of the Hub should not hold it up.
            there = readme.remote_card(repo, args.hub_revision, args.hub_token, retries=0)
        return readme.newest_card(readme.read_card(Path(args.output_dir)), there)

    def _is_edited(self, card: str | None) -> bool:
        written, edited = self._written
        return (
            edited if card == written else readme.is_edited(card)
        )  # not every program signs its text

    def write(self, weights: Path, card: str | None, edited: bool | None = None) -> None:
        """Write ``card`` into the output directory, with our part on the weights in a folder."""
        edited = self._is_edited(card) if edited is None else edited
        args, folder = self.trainer.args, Path(self.trainer.args.output_dir)
        if facts.holds_sparse_weights(weights):
            repo = self.trainer.hub_model_id or args.hub_model_id or folder.absolute().name
            history = self.trainer.state.log_history
            found = facts.facts_of(
                weights,
                repo,
                scores=self.scores,
                base_model=facts.base_of(self.trainer.model, repo),
                recipe=_recipe(self.trainer, self.callback),
                sad=sad_summary(history),
                revision=args.hub_revision,
            )
            if facts.draw_sad(history, folder / facts.PLOT, found.report):
                found = replace(found, plot=facts.PLOT)
            card = readme.compose(found, card, {}, edited)
        if card is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # An upload that is going on reads one or the other; the Trainer's leaves "_*" out.
            beside = folder / f"_{readme.CARD}.new"
            beside.write_text(card, encoding="utf-8", newline="")
            os.replace(beside, folder / readme.CARD)
        self._written = (card, edited)


def _recipe(trainer: Any, callback: Any) -> dict[str, Any]:
    """How a run trains, name to value."""
    args, state = trainer.args, trainer.state
    recipe: dict[str, Any] = {}
    schedule, distillation = callback.schedule, getattr(trainer, "distillation", None)
    recipe["masks"] = str(schedule)
    if schedule.decay_warmup_steps:
        recipe["decay"] = f"rising over the first {schedule.decay_warmup_steps:,} steps"
    if distillation is not None:
        recipe["distillation"] = str(distillation)
    if callback.attachment is not None:
        optimizer = callback.attachment.optimizer
        group = optimizer.param_groups[0]
        rate = group.get("initial_lr", group.get("lr"))
        recipe["optimizer"] = f"{type(optimizer).__name__}, learning rate {rate:g}"
        if group.get("weight_decay"):
            recipe["optimizer"] += f", weight decay {group['weight_decay']:g}"
        recipe["schedule"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    recipe["steps"] = f"{state.global_step:,}"
    size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    recipe["batch"] = (
        f"{size} ({args.train_batch_size} in each of {args.world_size} processes, "
        f"{args.gradient_accumulation_steps} accumulated)"
    )
    mixed = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    recipe["precision"] = (
        f"{mixed} mixed" if mixed else str(trainer.model.dtype).removeprefix("torch.")
    )
    recipe["seed"] = args.seed
    config = {KEY: getattr(trainer.model.config, KEY, None)}
    recipe["versions"] = facts.said_versions(environment()["versions"], config)
    return recipe
