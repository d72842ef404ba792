"""Sparse training inside transformers' Trainer: the logic in one callback, two thin trainers."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_nm.distillation import Distillation, counted_positions
from hf_nm.optim import Attachment, attach
from hf_nm.results import SAD_FILE
from hf_nm.run_card import RunCard
from hf_nm.schedule import Schedule
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
                "this trainer already has an NMCallback; pass mask_interval, freeze_masks_at and "
                "decay_warmup_steps to one place only"
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
        self.attachment = attach(optimizer, model, **asdict(self.schedule))

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
        distillation: Distillation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.nm_callback = NMCallback(mask_interval, freeze_masks_at, decay_warmup_steps)
        self.nm_callback.install(self)
        self.distillation = distillation
        self._heard: dict[str, Tensor] = {}  # sums since the last log, over `_times` micro-batches
        self._times = 0
        if distillation is not None:
            distillation.check(_require_sparse(self.model))
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
            # transformers up to 5.17 has no such attribute, and goes by the function alone
            declared = getattr(self, "loss_is_scaled_for_ga", None)
            scaled = declared or self.compute_loss_func is not None
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
    :class:`NMCallback`), saves sparse checkpoints, and resumes bit for bit.

    Args:
        *args: as for ``transformers.Trainer``.
        mask_interval: masks are computed again at every so many optimizer steps, held in between.
        freeze_masks_at: the last optimizer step at which masks are computed; None never freezes.
        decay_warmup_steps: optimizer steps over which SR-STE's decay rises linearly to its value.
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
    # Classes named ...LMHeadModel have no loss_type, multimodal ones another name for the same loss.
    causal = LOSS_MAPPING.get(getattr(student, "loss_type", None) or "") is ForCausalLMLoss
    return causal or type(student).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


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
