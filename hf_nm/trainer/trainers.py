"""Sparse training inside transformers' Trainer: the logic in one callback, two thin trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Seq2SeqTrainer, Trainer

from hf_nm import compat
from hf_nm.trainer.callback import NMCallback, require_sparse
from hf_nm.trainer.distillation import Distillation, counted_positions

if TYPE_CHECKING:
    _Base = Trainer
else:  # it comes before Trainer or Seq2SeqTrainer
    _Base = object


class _NMTrainerMixin(_Base):
    """Trainer with an installed :class:`NMCallback` and a loss that may hear a teacher; everything else
    is the Trainer's."""

    def __init__(
        self,
        *args: Any,
        mask_interval: int = 1,
        freeze_masks_at: int | None = None,
        decay_warmup_steps: int = 0,
        compact_state: bool = False,
        distillation: Distillation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.nm_callback = NMCallback(
            mask_interval, freeze_masks_at, decay_warmup_steps, compact_state=compact_state
        )
        self.nm_callback.install(self)
        self.distillation = distillation
        self._heard: dict[str, Tensor] = {}  # sums since the last log, over `_times` micro-batches
        self._times = 0
        if distillation is not None:
            distillation.check(require_sparse(self.model))
            teacher = distillation.teacher.eval().requires_grad_(False)
            if not hasattr(teacher, "hf_device_map"):
                teacher.to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The Trainer's loss; in training with ``distillation`` joined with the teacher's."""
        heard = self.distillation
        if heard is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.get("labels")
        if heard.hidden_weight:
            inputs["output_hidden_states"] = True
        task, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        # What the student was given, without what the Trainer took out for its own loss.
        with torch.no_grad(), self.accelerator.autocast():
            teacher = heard.teacher(**inputs)
        logits, counted = outputs.get("logits"), None
        if isinstance(logits, Tensor) and (heard.weight or labels is not None):
            counted = counted_positions(logits, inputs, labels, _shifts_labels(self, model))
            self._check_divisor(task, logits, labels, num_items_in_batch)
        terms, weighted = heard.terms(outputs, teacher, inputs, counted)
        for name, term in terms.items():
            self._heard[name] = self._heard.get(name, 0.0) + term.detach()
        self._times += 1
        share = self._share(labels, counted, num_items_in_batch)
        loss = (1 - heard.weight) * task + share * weighted
        return (loss, outputs) if return_outputs else loss

    def _check_divisor(
        self, task: Tensor, logits: Tensor, labels: Tensor | None, num_items_in_batch: Any
    ) -> None:
        """Raise ``ValueError`` where a classifier's own loss is a mean whatever it is told to divide by
        (BERT's, for one): the Trainer adds these up, and the teacher's part would shrink beside them."""
        if self.compute_loss_func or self._times or num_items_in_batch is None or labels is None:
            return
        if logits.dim() != 2 or labels.dim() != 1 or labels.is_floating_point():
            return
        items, factor = (labels != -100).sum(), self._share(labels, None, num_items_in_batch)
        mean = functional.cross_entropy(logits.float(), labels).detach()
        given, right = task.detach().float(), mean * factor
        wrong = right * num_items_in_batch / items
        if torch.isclose(given, wrong, rtol=1e-3) and not torch.isclose(given, right, rtol=1e-3):
            raise ValueError(
                f"{type(self.model).__name__}'s loss ignores num_items_in_batch, so with accumulation "
                "or several processes the Trainer adds up means, and the teacher counts for less; pass "
                "compute_loss_func=, a loss summed over examples and divided by num_items_in_batch "
                "(without accumulation average_tokens_across_devices=False is enough)"
            )

    def _share(
        self, labels: Tensor | None, counted: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> Tensor | float:
        """What a mean over this micro-batch is multiplied by, so that the sum over the update's
        micro-batches and the mean over processes make the mean over the whole update, as the Trainer's
        own loss does: it divides by the items of the update where it has counted them."""
        if num_items_in_batch is None:
            scaled = compat.declares_scaled_loss(self) or self.compute_loss_func is not None
            return 1 / self.current_gradient_accumulation_steps if scaled else 1.0
        assert labels is not None  # they were counted
        items = (labels != -100).sum() if counted is None else counted.sum()
        averaged = self.args.average_tokens_across_devices
        processes = self.accelerator.num_processes // self.get_tp_size() if averaged else 1
        return items / num_items_in_batch * processes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's; a log of the training loss gets the means of the teacher's terms."""
        if "loss" in logs and self._times:
            for name, total in self._heard.items():
                mean = self.accelerator.reduce(total / self._times, "mean")
                logs[f"distillation/{name}"] = mean.item()
            self._heard, self._times = {}, 0
        super().log(logs, *args, **kwargs)


class NMTrainer(_NMTrainerMixin, Trainer):
    """transformers' ``Trainer`` for a sparsified model.

    Attaches by itself, logs ``nm/sad``, ``nm/flip_rate`` and ``nm/sad_init`` (see
    :class:`NMCallback`), saves sparse checkpoints, and resumes bit for bit. Resumed when all steps are
    taken it trains nothing; transformers' own Trainer takes one step too many there (61 of 60).
    ``train(resume_from_checkpoint=True)`` takes the newest checkpoint that is whole and warns of newer
    ones that a killed run left half-written; a path to such a one is refused with the file's name.

    Args:
        *args: as for ``transformers.Trainer``.
        mask_interval: masks are computed again at every so many optimizer steps, held in between.
        freeze_masks_at: the last optimizer step at which masks are computed; None never freezes.
        decay_warmup_steps: optimizer steps over which SR-STE's decay rises linearly to its value.
        compact_state: keep only the pruned values, and masks as bits: less memory beside N:M weights, a
            step that takes a little longer, the same numbers (see :func:`hf_nm.attach`).
        distillation: what a dense teacher adds to the training loss. Its terms are logged as
            ``distillation/divergence`` and ``distillation/hidden``; the evaluation loss is the task's.
        **kwargs: as for ``transformers.Trainer``.

    Raises:
        ValueError: the model has no N:M weight.
        TypeError: it runs under DeepSpeed or FSDP1.
    """


class NMSeq2SeqTrainer(_NMTrainerMixin, Seq2SeqTrainer):
    """transformers' ``Seq2SeqTrainer`` for a sparsified model; otherwise as :class:`NMTrainer`."""


def _shifts_labels(trainer: Trainer, model: nn.Module) -> bool:
    """Whether the logits at position t predict label t + 1, as in causal language models."""
    student = trainer.accelerator.unwrap_model(model)
    student = student.get_base_model() if hasattr(student, "get_base_model") else student
    if getattr(student.config, "is_encoder_decoder", False):
        return False
    return compat.predicts_next_token(student)
