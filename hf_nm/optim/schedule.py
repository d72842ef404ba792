"""At which optimizer steps masks are computed, and how strong the decay is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_nm.methods.auto_decay import DECAY, follow, mean_square
from hf_nm.model.parts import Parts
from hf_nm.model.sharding import local, placed_as, sum_tensors_over_shards
from hf_nm.model.weights import SparseWeight


@dataclass(frozen=True)
class Schedule:
    """The options of :func:`hf_nm.attach` that say when, as one value.

    Steps are effective optimizer steps, counted from 1.

    Args:
        mask_interval: masks are computed again at every so many steps, held in between.
        freeze_masks_at: the last step at which masks are computed; None never freezes them.
        decay_warmup_steps: the decay rises linearly over the first so many steps: at step k it is
            ``decay * min(1, k / decay_warmup_steps)``. 0 starts with the whole of it.

    Raises:
        ValueError: an option is out of range.
    """

    mask_interval: int = 1
    freeze_masks_at: int | None = None
    decay_warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("mask_interval", 1),
            ("freeze_masks_at", 1),
            ("decay_warmup_steps", 0),
        ):
            value = getattr(self, name)
            if value is None and name == "freeze_masks_at":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be an integer >= {least} (optimizer steps), but got {value!r}"
                )

    def moves_masks_at(self, step: int) -> bool:
        """Whether masks are computed at ``step``."""
        frozen = self.freeze_masks_at is not None and step > self.freeze_masks_at
        return not frozen and step % self.mask_interval == 0

    @property
    def last_masks_at(self) -> int | None:
        """The last step at which masks are computed, 0 for none; None where masks are never frozen."""
        end = self.freeze_masks_at
        return None if end is None else end - end % self.mask_interval

    def freezes_masks_after(self, step: int) -> bool:
        """Whether masks move no more after ``step``."""
        return self.freeze_masks_at is not None and step >= self.freeze_masks_at

    def decay_factor(self, step: int) -> float:
        """What the decay is multiplied by at ``step``: up to 1.0."""
        return min(1.0, step / self.decay_warmup_steps) if self.decay_warmup_steps else 1.0

    def __str__(self) -> str:
        every = "every step" if self.mask_interval == 1 else f"every {self.mask_interval} steps"
        until = "" if self.freeze_masks_at is None else f" up to step {self.freeze_masks_at:,}"
        return f"computed {every}{until}"


def automatic_decays(
    weights: list[SparseWeight], loss_scale: float | Tensor
) -> dict[str, float | Tensor]:
    """Bring the decays of weights with ``decay="auto"`` up to a step (:mod:`hf_nm.methods.auto_decay`).

    Where weights are sharded every process that holds parts must call it.

    Args:
        weights: that hold their sparse weights, with the gradients that the optimizer will see.
        loss_scale: what the gradients are still multiplied by.

    Returns:
        By the weight's name, for those that have one, in units of the gradient without its loss scale:
        float32 scalar tensors on the weights' devices, or numbers on a CPU, where nothing waits.
    """
    following: list[tuple[SparseWeight, Parts]] = []
    squares: list[Tensor] = []
    for w in weights:
        parts, gradient = w.state.parts, w.weight.grad
        if (
            parts is None
            or gradient is None
            or not w.state.spec.is_automatic
            or w.state.mask_frozen
        ):
            continue
        gradient = w.weight.grad = placed_as(gradient, w.weight)  # summed over processes
        entries = w.weight.numel()
        kept = entries * parts.pattern.n / parts.pattern.m
        pair = mean_square(local(gradient), entries), mean_square(local(w.weight), kept)
        following.append((w, parts))
        squares.append(torch.stack(pair))
    totals = sum_tensors_over_shards(squares, [w.weight for w, _ in following])
    by_device: dict[torch.device, list[int]] = {}
    for index, total in enumerate(totals):
        by_device.setdefault(total.device, []).append(index)
    decays: dict[str, float | Tensor] = {}
    for indices in by_device.values():
        of_gradient, of_weight = torch.stack([totals[i] for i in indices], dim=1)
        before = torch.stack([following[i][1].extras[DECAY] for i in indices])
        now = follow(before, of_gradient / loss_scale**2, of_weight)
        said = now.tolist() if now.device.type == "cpu" else now.unbind()
        for i, decay, number in zip(indices, now.unbind(), said, strict=True):
            w, parts = following[i]
            parts.extras[DECAY] = decay
            decays[w.name] = number
    return decays
