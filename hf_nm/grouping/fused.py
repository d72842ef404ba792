"""Weights on a GPU, which two kernels treat in two launches a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_nm.grouping.group import Histories, Strength, adjust_gradient, is_plain
from hf_nm.methods.fixed import zero_pruned_gradient
from hf_nm.methods.method import AdjustGradient, leave_gradient
from hf_nm.methods.sr_ste import add_decay
from hf_nm.model.state import NMState, hold_dense
from hf_nm.model.weights import SparseWeight
from hf_nm.sparsity.divergence import count_together
from hf_nm.sparsity.kernels.table import Adjust, Kind, Table

ADJUSTS: dict[AdjustGradient, Adjust] = {
    leave_gradient: Adjust.LEAVE,
    add_decay: Adjust.DECAY,
    zero_pruned_gradient: Adjust.ZERO,
}


class Fused:
    """Weights of one kind on a GPU, which two kernels treat in two launches a step.

    Args:
        weights: of one kind and method.
        kind: what they share.
        histories: count their flips.
    """

    def __init__(self, weights: list[SparseWeight], kind: Kind, histories: Histories) -> None:
        self.weights = weights
        self._kind = kind
        self._states = [w.state for w in weights]
        self._parameters: list[Tensor] = [w.weight for w in weights]
        self._table = Table(kind, [p.numel() for p in self._parameters])
        self._counters = count_together(map(histories, weights), kind.device)
        self._open: list[Tensor | None] = []
        self._is_automatic = weights[0].state.spec.is_automatic
        self._strengths_for: object = None
        self._strengths = [0.0] * len(weights)
        self._one = torch.ones(1, device=kind.device)
        self._none = torch.zeros((), device=kind.device)  # the decay of a weight without a gradient
        self._signs_for: frozenset[int] = frozenset()
        self._signs: Tensor | None = None

    @property
    def strays(self) -> dict[str, Tensor]:
        """As of all steps since they were read."""
        return {w.name: flag for w, flag in zip(self.weights, self._table.strays, strict=True)}

    def strayed(self) -> list[str]:
        """Names of weights that held a value at a pruned place; waits for the device. They are
        forgotten then."""
        flags = self._table.strays.tolist()
        self._table.strays.zero_()
        return [w.name for w, flag in zip(self.weights, flags, strict=True) if flag]

    def open(self, strength: Strength | None, *, every: bool) -> None:
        parameters, dtype = self._parameters, self._kind.dtype
        gradients = [p.grad for p in parameters]
        opened: list[Tensor | None] = [
            p if every or g is not None else None
            for p, g in zip(parameters, gradients, strict=True)
        ]
        adjust = ADJUSTS[self._states[0].method.adjust_gradient]
        if strength is None or (adjust is Adjust.DECAY and not self._has_decay(strength)):
            adjust = Adjust.LEAVE
        strengths: list[float] | Tensor = self._strengths
        scale: Tensor | None = None
        if adjust is not Adjust.LEAVE:
            assert strength is not None
            for index, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                if g is not None and not is_plain(g, dtype, p.shape):
                    adjust_gradient(self.weights[index], g, strength)
                    gradients[index] = None
            strengths, scale = self._strengths_of(strength)
        masks, asides = self._parts()
        self._table.before_step(opened, gradients, masks, asides, adjust, strengths, scale)
        hold_dense(_where(opened, self._states), True)
        self._open = opened

    def close(self, *, count: bool) -> None:
        if not self._open:
            return
        opened, update = self._open, self._states[0].updates_mask
        for index, parameter in enumerate(opened):
            if parameter is not None and not parameter.is_contiguous():  # laid out anew in the step
                w = self.weights[index]
                changed = w.state.split(parameter, update_mask=update)
                if count and changed is not None:
                    self._counters[index] += changed
                opened[index] = None
        masks, asides = self._parts()
        flips = self._counters if count else self._table.flips
        self._table.after_step(opened, masks, asides, flips, update_mask=update)
        hold_dense(_where(opened, self._states), False)
        self._open = []

    def _parts(self) -> tuple[list[Tensor], list[Tensor] | None]:
        masks = [s.parts.mask for s in self._states]  # type: ignore[union-attr]
        if not self._kind.keeps:
            return masks, None
        return masks, [s.parts.aside for s in self._states]  # type: ignore[misc, union-attr]

    def _has_decay(self, strength: Strength) -> bool:
        """Whether any of the weights has one at this step."""
        if self._is_automatic:  # none where masks are frozen
            return self._kind.keeps and any(w.name in strength.automatic for w in self.weights)
        return self._kind.keeps and bool(self._states[0].spec.fixed_decay)

    def _strengths_of(self, strength: Strength) -> tuple[list[float] | Tensor, Tensor | None]:
        """What the kernel multiplies pruned parts by: numbers, and a tensor where the scale is one; or
        a tensor of all, times one."""
        decays = []
        if self._is_automatic:
            decays = [strength.automatic.get(w.name) for w in self.weights]
            if any(isinstance(decay, Tensor) for decay in decays):
                return self._on_device(decays, strength), self._one
        on_device = isinstance(strength.scale, Tensor)
        known = (None if on_device else strength.scale, strength.ascending, decays)
        if self._strengths_for != known:
            self._strengths_for = known
            self._strengths = [float(strength.of(w, scaled=not on_device)) for w in self.weights]
        scale = None
        if isinstance(strength.scale, Tensor):
            scale = strength.scale.to(self._kind.device, torch.float32, non_blocking=True)
        return self._strengths, scale

    def _on_device(self, decays: Sequence[float | Tensor | None], strength: Strength) -> Tensor:
        """Decays that nobody has waited for, in the units of the gradients: float32 ``[weights]``."""
        found = [d if isinstance(d, Tensor) else self._none for d in decays]
        strengths = torch.stack(found) * strength.scale
        if strength.ascending != self._signs_for:
            self._signs_for = strength.ascending
            signs = [-1.0 if id(p) in strength.ascending else 1.0 for p in self._parameters]
            self._signs = self._table.sent(torch.tensor(signs)) if -1.0 in signs else None
        return strengths if self._signs is None else strengths * self._signs


def _where(opened: list[Tensor | None], states: Sequence[NMState]) -> list[NMState]:
    return [s for tensor, s in zip(opened, states, strict=True) if tensor is not None]
