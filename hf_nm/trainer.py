"""Sparse training inside transformers' Trainer: the logic in one callback, two thin trainers."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback

from hf_nm.optim import Attachment, attach, check_schedule
from hf_nm.results import SAD_FILE
from hf_nm.run_card import RunCard
from hf_nm.weights import sparse_weights
from hf_nm.wrapping import refuse_sharded_copies


class NMCallback(TrainerCallback):
    """Attaches to the Trainer's optimizer, logs SAD, and writes it per layer to ``nm_sad.jsonl``.

    Added to every log that has a training loss, over the steps since the log before:

    - ``nm/sad``: ``sum(abs(E_now - E_at_last_log))``, mask entries.
    - ``nm/flip_rate``: flips summed step by step / (N:M weights x steps), a fraction.
    - ``nm/sad_init``: SAD against the masks at the start of training, mask entries.

    ``nm_sad.jsonl`` in the output directory gets one line per log with the same by weight. A resumed
    run cuts it back to the checkpoint's step and goes on.

    What the Trainer pushes to the Hub gets a card with the verified sparsity of the very weights, the
    recipe and SAD (see :func:`hf_nm.push_to_hub`); ``trainer.push_to_hub(scores=hf_nm.Score(...))``
    adds scores. A card that somebody has edited keeps its text.

    In :class:`NMTrainer` and :class:`NMSeq2SeqTrainer` it is there. In any other Trainer write
    ``NMCallback().install(trainer)``. Passed in ``callbacks=[...]`` alone it trains right too, with
    three exceptions: reporters (TensorBoard, W&B) see each log before it is added to, there is no
    card, and ``resume_from_checkpoint`` is refused, since the Trainer loads the optimizer before a
    callback can attach.

    Args:
        mask_interval: masks are computed again at every so many optimizer steps.
        freeze_masks_at: the last optimizer step at which masks are computed; None never freezes.

    Attributes:
        attachment: the handle of :func:`hf_nm.attach`, from the beginning of training on.
    """

    def __init__(self, mask_interval: int = 1, freeze_masks_at: int | None = None) -> None:
        check_schedule(mask_interval, freeze_masks_at)
        self.mask_interval = mask_interval
        self.freeze_masks_at = freeze_masks_at
        self.attachment: Attachment | None = None
        self._card: RunCard | None = None

    def install(self, trainer: Trainer) -> NMCallback:
        """Put this callback before the trainer's reporters, and attach as soon as it has an optimizer.

        Returns:
            This callback.

        Raises:
            ValueError: the trainer's model has no N:M weight, or another NMCallback is installed.
            TypeError: the trainer runs DeepSpeed or FSDP1, which keep their own copies of weights.
        """
        _require_sparse(trainer.model)
        refuse_sharded_copies(
            deepspeed=trainer.is_deepspeed_enabled,
            fsdp1=trainer.is_fsdp_enabled
            and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1,
        )
        handler = trainer.callback_handler
        if any(isinstance(other, NMCallback) and other is not self for other in handler.callbacks):
            raise ValueError(
                "this trainer already has an NMCallback; pass mask_interval and freeze_masks_at to "
                "one place only"
            )
        handler.callbacks = [self, *(other for other in handler.callbacks if other is not self)]
        create_optimizer = trainer.create_optimizer

        def create_attached_optimizer(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            optimizer = create_optimizer(*args, **kwargs)
            self._attach(optimizer, trainer.model)
            return optimizer

        trainer.create_optimizer = create_attached_optimizer  # type: ignore[method-assign]
        self._card = RunCard(trainer, self)
        return self

    def _attach(self, optimizer: torch.optim.Optimizer, model: nn.Module | None) -> None:
        model = _require_sparse(model)
        self.attachment = attach(
            optimizer,
            model,
            mask_interval=self.mask_interval,
            freeze_masks_at=self.freeze_masks_at,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attach(kwargs["optimizer"], kwargs["model"])
        assert self.attachment is not None
        if state.global_step > 0 and self.attachment.step == 0:
            warnings.warn(
                f"training goes on from step {state.global_step} without masks and pruned weights from "
                "its checkpoint (save_only_model, or a dense run): pruned weights start at zero and "
                "SAD anew, so the run does not continue exactly",
                stacklevel=2,
            )
        if state.is_world_process_zero:
            _cut_back(Path(args.output_dir) / SAD_FILE, state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        handle = self.attachment
        if handle is None or logs is None or "loss" not in logs:
            return
        since_start, since_log = handle.sad_per_layer("start"), handle.sad_per_layer("mark")
        flips = handle.flips_per_layer("mark")
        measured = {
            "nm/sad": sum(since_log.values()),
            "nm/flip_rate": handle.flip_rate("mark"),
            "nm/sad_init": sum(since_start.values()),
        }
        logs.update(measured)
        # The Trainer keeps a copy of each log before it calls back.
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1].update(measured)
        if state.is_world_process_zero:
            row = {
                "step": state.global_step,
                "optimizer_step": handle.step,
                "since_optimizer_step": handle.step_at_mark,
                **measured,
                "layers": {
                    name: {"sad": entries, "flips": flips[name], "sad_init": since_start[name]}
                    for name, entries in since_log.items()
                },
            }
            path = Path(args.output_dir) / SAD_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        handle.mark()

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the card of a checkpoint's push, for which the Trainer makes none."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._card is None or not state.is_world_process_zero or not checkpoint.is_dir():
            return
        try:
            self._card.write(checkpoint, self._card.present())
        except Exception as error:  # as the upload itself, a card that fails does not end training
            warnings.warn(f"the card of {checkpoint.name} was not written: {error}", stacklevel=2)


class _NMTrainerMixin:
    """Trainer with an installed :class:`NMCallback`; everything else is the Trainer's."""

    def __init__(
        self,
        *args: Any,
        mask_interval: int = 1,
        freeze_masks_at: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.nm_callback = NMCallback(mask_interval, freeze_masks_at).install(self)  # type: ignore[arg-type]


class NMTrainer(_NMTrainerMixin, Trainer):
    """transformers' ``Trainer`` for a sparsified model.

    Attaches by itself, logs ``nm/sad``, ``nm/flip_rate`` and ``nm/sad_init`` (see
    :class:`NMCallback`), saves sparse checkpoints, and resumes bit for bit.

    Args:
        *args: as for ``transformers.Trainer``.
        mask_interval: masks are computed again at every so many optimizer steps, held in between.
        freeze_masks_at: the last optimizer step at which masks are computed; None never freezes.
        **kwargs: as for ``transformers.Trainer``.

    Raises:
        ValueError: the model has no N:M weight.
        TypeError: it runs under DeepSpeed or FSDP1.
    """


class NMSeq2SeqTrainer(_NMTrainerMixin, Seq2SeqTrainer):
    """transformers' ``Seq2SeqTrainer`` for a sparsified model; otherwise as :class:`NMTrainer`."""


def _require_sparse(model: nn.Module | None) -> nn.Module:
    if model is None or not sparse_weights(model):
        raise ValueError(
            f"the model ({type(model).__name__}) has no N:M weight; call hf_nm.sparsify(model) "
            "before building the trainer, or use transformers' own Trainer for a dense run"
        )
    return model


def _cut_back(path: Path, step: int) -> None:
    """Drop the lines after ``step``: they belong to a run that this one replaces."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # half a line, from a run that was stopped while writing
            continue
    beside = path.with_suffix(".jsonl.new")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)
