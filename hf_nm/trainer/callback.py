"""Sparse training inside any of transformers' Trainers: one callback."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_nm import compat
from hf_nm.formats.recorded import recorded
from hf_nm.model.refused import check_trainer
from hf_nm.model.weights import sparse_weights
from hf_nm.optim import sad_log
from hf_nm.optim.attach import Attachment, attach
from hf_nm.optim.schedule import Schedule
from hf_nm.replaced import Replaced
from hf_nm.trainer.finished import train_nothing_when_finished
from hf_nm.trainer.resuming import resume_from_whole_checkpoints
from hf_nm.trainer.run_card import RunCard
from hf_nm.trainer.saved_names import load_with_conversion


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

    Installed, it also lets a finished run that is resumed train nothing, where transformers' own Trainer
    takes one step too many (step 61 of 60); and ``train(resume_from_checkpoint=True)`` takes the newest
    checkpoint that is whole, warning of half-written ones, where theirs stops at these.

    Where transformers saves a model under other names than its parameters have (Mixtral, ViT and
    others), resuming and ``load_best_model_at_end`` convert them back, which theirs do not.

    In :class:`NMTrainer` and :class:`NMSeq2SeqTrainer` it is there. In any other Trainer write
    ``NMCallback().install(trainer)``. Passed in ``callbacks=[...]`` alone it trains right too, with
    three exceptions: reporters (TensorBoard, W&B) see each log before it is added to, there is no
    card, and ``resume_from_checkpoint`` is refused, since the Trainer loads the optimizer before a
    callback can attach.

    Args:
        mask_interval: masks are computed again at every so many optimizer steps.
        freeze_masks_at: the last optimizer step at which masks are computed; None never freezes.
        decay_warmup_steps: optimizer steps over which SR-STE's decay rises linearly.

    Attributes:
        attachment: the handle of :func:`hf_nm.attach`, from the beginning of training on.
    """

    def __init__(
        self,
        mask_interval: int = 1,
        freeze_masks_at: int | None = None,
        decay_warmup_steps: int = 0,
    ) -> None:
        self.schedule = Schedule(mask_interval, freeze_masks_at, decay_warmup_steps)
        self.attachment: Attachment | None = None
        self._card: RunCard | None = None
        self._trainer: Any = None
        self._model: nn.Module | None = None  # what the trainer had when this was installed

    def install(self, trainer: Trainer) -> NMCallback:
        """Put this callback before the trainer's reporters, and attach as soon as it has an optimizer.

        Warns if the trainer compares the model with a dense one (TRL's ``ref_model``).

        Args:
            trainer: transformers' or one made from it, or setfit's around one. It trains the model that
                it holds when training starts; where that is no module with N:M weights, the one that
                it holds now.

        Returns:
            This callback.

        Raises:
            ValueError: the trainer's model has no N:M weight, or another NMCallback is installed.
            TypeError: the trainer runs DeepSpeed or FSDP1, which keep their own copies of weights.
        """
        trainer = compat.inner_trainer(trainer)
        model = getattr(trainer, "model", None)
        if model is not None:  # some make it when training starts
            require_sparse(model)
        check_trainer(trainer)
        self._trainer, self._model = trainer, model
        _warn_of_dense_reference(getattr(trainer, "ref_model", None))
        handler = trainer.callback_handler
        if any(isinstance(other, NMCallback) and other is not self for other in handler.callbacks):
            raise ValueError(
                "this trainer already has an NMCallback; pass mask_interval, freeze_masks_at and "
                "decay_warmup_steps to one place only"
            )
        handler.callbacks = [self, *(other for other in handler.callbacks if other is not self)]

        def attaching(create: Callable[..., Any]) -> Callable[..., Any]:
            def create_optimizer(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
                optimizer = create(*args, **kwargs)
                self._attach(optimizer, None)
                return optimizer

            return create_optimizer

        Replaced(trainer, "create_optimizer", attaching)
        train_nothing_when_finished(trainer)
        resume_from_whole_checkpoints(trainer)
        load_with_conversion(trainer)
        self._card = RunCard(trainer, self)
        return self

    def _attach(self, optimizer: torch.optim.Optimizer, model: Any) -> None:
        """Attach to the trainer's model; callbacks of some trainers are given another object."""
        present = getattr(self._trainer, "model", None)
        candidates = [given for given in (present, model, self._model) if given is not None]
        sparse = next((given for given in candidates if _is_sparse(given)), None)
        if sparse is None:
            sparse = require_sparse(candidates[0] if candidates else None)
        self.attachment = attach(optimizer, sparse, **asdict(self.schedule))

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
            sad_log.cut_back(args.output_dir, state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        handle = self.attachment
        if handle is None or logs is None or "loss" not in logs:
            return
        handle.raise_if_written()
        measured = sad_log.measure(handle.meter, handle.schedule.decay_factor(handle.step))
        totals = sad_log.totals(measured)
        logs.update(totals)
        # The Trainer keeps a copy of each log before it calls back.
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1].update(totals)
        if state.is_world_process_zero:
            sad_log.append(args.output_dir, state.global_step, measured)
        handle.mark()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._raise_if_written()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._raise_if_written()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._raise_if_written()

    def _raise_if_written(self) -> None:
        """Where the Trainer waits for the device anyway."""
        if self.attachment is not None:
            self.attachment.raise_if_written()

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the card of a checkpoint's push, for which the Trainer makes none."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._card is None or not state.is_world_process_zero or not checkpoint.is_dir():
            return
        try:
            self._card.write(checkpoint, self._card.present())
        except Exception as error:  # as the upload itself, a card that fails does not end training
            warnings.warn(f"the card of {checkpoint.name} was not written: {error}", stacklevel=2)


def require_sparse(model: Any) -> nn.Module:
    if not _is_sparse(model):
        raise ValueError(
            f"the model ({type(model).__name__}) has no N:M weight; call hf_nm.sparsify(model) "
            "before building the trainer, or use transformers' own Trainer for a dense run"
        )
    return model


def _is_sparse(model: Any) -> bool:
    return isinstance(model, nn.Module) and bool(sparse_weights(model))


def _warn_of_dense_reference(reference: Any) -> None:
    """Say that a sparse policy is compared with a dense model: TRL loads the reference that it is not
    given from where the policy's config says that it came from."""
    if isinstance(reference, nn.Module) and not _is_sparse(reference) and not recorded(reference):
        warnings.warn(
            "this trainer compares the N:M model with a dense reference (its ref_model): what pruning "
            "changed counts as if training had, from the first step on. To compare with the sparse "
            "model that training starts from, build the trainer with ref_model=copy.deepcopy(model), "
            "copied after hf_nm.sparsify(model)",
            stacklevel=3,
        )
