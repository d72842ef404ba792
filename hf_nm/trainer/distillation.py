"""What a dense teacher adds to the loss: its logits as targets, and its hidden states.

The loss is ``(1 - weight) * task + weight * T**2 * KL(teacher || student) + hidden_weight * MSE``, the
first two as in Hinton et al. 2015 (arXiv 1503.02531): logits divided by the temperature T, nats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where a model's outputs keep the states of its layers.
_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
_MULTI_LABEL = "multi_label_classification"
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, eq=False)
class Distillation:
    """Learning from a dense model while training sparse: an option of :class:`hf_nm.NMTrainer`.

    Args:
        teacher: the dense model, with the student's tokenizer and labels. It is put on the trainer's
            device and into eval mode, and its parameters stop requiring gradients.
        weight: of the divergence between the logits, 0 to 1; the task's own loss gets the rest.
        temperature: logits are divided by it; higher ones show more of how the teacher ranks the
            classes it did not choose.
        hidden_weight: of the mean squared difference of the hidden states after each layer. Both
            models need the same number of layers and width.

    With accumulation or several processes the model's loss must divide by ``num_items_in_batch``, as
    those of language models do; BERT's classifiers do not, and training says so: pass
    ``compute_loss_func`` (``recipes/classification`` has one).

    Raises:
        TypeError: the teacher is no module.
        ValueError: a number is out of range, or none of the weights is above 0.
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, nn.Module):
            raise TypeError(
                f"Distillation.teacher must be a model, but is {type(self.teacher).__name__}; load it "
                "first, for example with AutoModelForSequenceClassification.from_pretrained(...)"
            )
        ranges = {
            "weight": (0.0, 1.0),
            "temperature": (math.ulp(0.0), math.inf),
            "hidden_weight": (0.0, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"Distillation.{name} must be a number, but is {value!r}")
            if not low <= value <= high or math.isinf(value):
                least = "above 0" if name == "temperature" else "at least 0"
                most = " and at most 1" if high == 1.0 else ""
                raise ValueError(
                    f"Distillation.{name} must be {least}{most}, but is {value}; the default is "
                    f"{type(self).__dataclass_fields__[name].default}"
                )
        if not self.weight and not self.hidden_weight:
            raise ValueError(
                "Distillation with weight=0 and hidden_weight=0 changes nothing; leave it out"
            )

    def __str__(self) -> str:
        name = getattr(getattr(self.teacher, "config", None), "name_or_path", "")
        hidden = f", hidden states {self.hidden_weight:g}" if self.hidden_weight else ""
        return (
            f"from {name or type(self.teacher).__name__}, weight {self.weight:g}, temperature "
            f"{self.temperature:g}{hidden}"
        )

    def check(self, student: nn.Module) -> None:
        """Raise ``ValueError`` unless the teacher is another model with the student's labels, one of
        which is right for each example."""
        own = {id(parameter) for parameter in student.parameters()}
        if any(id(parameter) in own for parameter in self.teacher.parameters()):
            raise ValueError(
                "the teacher and the model share parameters, so the teacher would train too; load it "
                "a second time, or take copy.deepcopy(model) before hf_nm.sparsify"
            )
        ours, theirs = (getattr(model, "config", None) for model in (student, self.teacher))
        kind, classes = getattr(ours, "problem_type", None), getattr(ours, "num_labels", None)
        if self.weight and (kind == _MULTI_LABEL or (kind == "regression" and classes != 1)):
            raise ValueError(
                f"distillation compares one distribution over classes, but problem_type is {kind} with "
                f"{classes} labels; use weight=0 with a hidden_weight"
            )
        labels = [getattr(config, "id2label", None) or {} for config in (ours, theirs)]
        if self.weight and len(labels[0]) != len(labels[1]):
            raise ValueError(
                f"the teacher has {len(labels[1])} labels ({labels[1]}), the model {len(labels[0])} "
                f"({labels[0]}); take a teacher of the same task"
            )
        # LABEL_0 and so on are what a config says where nobody named them.
        named = [
            {
                i: str(name).casefold()
                for i, name in each.items()
                if not _UNNAMED.fullmatch(str(name))
            }
            for each in labels
        ]
        if self.weight and all(named) and named[0] != named[1]:
            raise ValueError(
                f"the teacher's labels are {labels[1]}, the model's {labels[0]}; both need the same "
                "names for the same numbers: train them with one id2label"
            )

    def terms(
        self,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any],
        inputs: Mapping[str, Any],
        counted: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What is compared, as means over a batch.

        Args:
            student: the outputs of the model in training: ``logits`` [batch, classes] or
                [batch, tokens, vocabulary], and hidden states where they have a weight.
            teacher: the teacher's outputs of the same inputs.
            inputs: what both were given; its masks say which tokens' hidden states count.
            counted: bool [batch, tokens], the positions whose logits count; None counts all.

        Returns:
            ``"divergence"``: ``T**2 * KL(teacher || student)``, nats per position (for one logit, a
            regression, the squared difference); ``"hidden"``: mean squared difference per
            feature. Second, the sum of both with their weights.

        Raises:
            ValueError: the outputs of the two cannot be compared.
        """
        found: dict[str, Tensor] = {}
        if self.weight:
            logits = [_logits(outputs) for outputs in (student, teacher)]
            found["divergence"] = logit_divergence(
                logits[0], logits[1], self.temperature, counted=counted
            )
        if self.hidden_weight:
            found["hidden"] = hidden_difference(student, teacher, inputs, counted)
        weights = {"divergence": self.weight, "hidden": self.hidden_weight}
        return found, torch.stack([weights[name] * term for name, term in found.items()]).sum()


def logit_divergence(
    student: Tensor, teacher: Tensor, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """Mean of ``T**2 * KL(softmax(teacher / T) || softmax(student / T))`` over positions, in nats.

    The factor ``T**2`` keeps the size of its gradient as the temperature changes (Hinton et al. 2015).

    Args:
        student: logits [..., classes]; of a regression [..., 1], where the squared difference is taken.
        teacher: the same shape.
        temperature: T.
        counted: bool [...], the positions that count; None counts all.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the teacher's logits have shape {tuple(teacher.shape)}, the model's "
            f"{tuple(student.shape)}; both need the same classes (num_labels, or one tokenizer)"
        )
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        each = (student - teacher).square().squeeze(-1)
    else:
        each = temperature**2 * F.kl_div(
            F.log_softmax(student / temperature, -1),
            F.log_softmax(teacher / temperature, -1),
            log_target=True,
            reduction="none",
        ).sum(-1)
    return each.mean() if counted is None else each[counted].sum() / counted.sum().clamp(min=1)


def hidden_difference(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    inputs: Mapping[str, Any],
    counted: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the states after each layer, over layers, tokens that are not padding
    and features.

    Args:
        student: outputs with ``hidden_states`` (or those of encoder and decoder), each
            [batch, tokens, width]; the first of them, the embeddings, is left out.
        teacher: the same of the teacher.
        inputs: with ``attention_mask`` [batch, tokens] where there is padding, and
            ``decoder_attention_mask`` for a decoder.
        counted: bool [batch, tokens], for a decoder without such a mask.

    Raises:
        ValueError: there are no hidden states, or the two models' differ in number or shape.
    """
    differences = []
    for key in _STATES:
        pair = [outputs.get(key) or () for outputs in (student, teacher)]
        if pair == [(), ()]:
            continue
        shapes = [[tuple(state.shape) for state in states] for states in pair]
        if shapes[0] != shapes[1]:
            said = [f"{len(s)} of shape {s[-1]}" if s else "none" for s in shapes]
            raise ValueError(
                f"{key}: the model has {said[0]}, the teacher {said[1]}; hidden_weight needs a teacher "
                "with the same layers and width (set it to 0 for another architecture)"
            )
        decoder = key.startswith("decoder")
        mask = inputs.get("decoder_attention_mask" if decoder else "attention_mask")
        mask = counted if mask is None and decoder else mask
        for ours, theirs in zip(pair[0][1:], pair[1][1:], strict=True):
            difference = (ours.float() - theirs.float()).square()
            if mask is not None and mask.shape == difference.shape[:2]:
                difference = difference[mask.bool()]
            differences.append(difference.mean())
    if not differences:
        raise ValueError(
            "the model's outputs have no hidden_states; hidden_weight needs a model that takes "
            "output_hidden_states=True"
        )
    return torch.stack(differences).mean()


def counted_positions(
    logits: Tensor, inputs: Mapping[str, Any], labels: Tensor | None, shifted: bool
) -> Tensor | None:
    """Which positions' logits a loss counts: bool [batch, tokens], or None for one logit vector each.

    Args:
        logits: [batch, classes], or [batch, tokens, vocabulary].
        inputs: the batch; ``shift_labels`` in it are labels that were shifted before.
        labels: [batch, tokens], -100 where nothing is predicted.
        shifted: whether position t predicts label t + 1 (causal language models).

    Raises:
        ValueError: there are no labels for logits per token, or of another shape.
    """
    if logits.dim() < 3:
        if labels is not None and labels.shape == logits.shape and logits.shape[-1] > 1:
            raise ValueError(
                f"distillation compares one distribution over classes, but labels {tuple(labels.shape)} "
                "hold several for an example; use weight=0 with a hidden_weight"
            )
        return None
    if inputs.get("shift_labels") is not None:
        labels, shifted = inputs["shift_labels"], False
    if labels is None or labels.shape != logits.shape[:-1]:
        got = None if labels is None else tuple(labels.shape)
        raise ValueError(
            f"distillation needs labels of shape {tuple(logits.shape[:-1])} for logits "
            f"{tuple(logits.shape)}, but got {got}; they say at which tokens to compare"
        )
    counted = labels != -100
    if shifted:
        counted = F.pad(counted[:, 1:], (0, 1), value=False)
    return counted


def _logits(outputs: Mapping[str, Any]) -> Tensor:
    logits: Tensor | Sequence[Tensor] | None = outputs.get("logits")
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"distillation compares `logits`, but the outputs hold {list(outputs)}; use weight=0 with "
            "a hidden_weight for such a model"
        )
    return logits
