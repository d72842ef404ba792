"""The slow twin: N:M training as the paper writes it (Zhou et al. 2021, arXiv 2102.04010).

Loops and autograd, nothing of hf_nm. The parameter is the dense weight ``W``; each forward computes
``S = E*W`` with the mask of the present ``W``; the gradient at ``S`` goes straight through
to ``W`` (STE); before each optimizer step the gradient gets ``decay * (1-E)*W`` once (SR-STE).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def reference_mask(weight: Tensor, n: int, m: int, dim: int = -1) -> Tensor:
    """Bool mask: of each ``m`` consecutive entries along ``dim`` the ``n`` largest by magnitude.

    NaN counts as the largest; of equals the lowest index is kept.
    """
    rows = weight.detach().double().cpu().movedim(dim, -1)
    mask = [
        entry
        for row in rows.reshape(-1, rows.shape[-1]).tolist()
        for start in range(0, len(row), m)
        for entry in _mask_of_group(row[start : start + m], n)
    ]
    return torch.tensor(mask).reshape(rows.shape).movedim(-1, dim).to(weight.device)


def _mask_of_group(group: list[float], n: int) -> list[bool]:
    def largest_first(index: int) -> tuple[bool, float, int]:
        value = group[index]
        return (False, 0.0, index) if math.isnan(value) else (True, -abs(value), index)

    kept = sorted(range(len(group)), key=largest_first)[:n]
    return [index in kept for index in range(len(group))]


class _StraightThrough(torch.autograd.Function):
    """``E*W`` forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Reference:
    """A dense model trained N:M sparse.

    Args:
        model: holds the dense weights.
        patterns: parameter name to ``(n, m)``; of a shared parameter its first name.
        method: ``"sr-ste"``, ``"ste"`` or ``"fixed"``.
        decay: in gradient units.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: dict[str, tuple[int, int]],
        method: str = "sr-ste",
        decay: float = 2e-4,
    ) -> None:
        self.model = model
        self.method = method
        self.decay = decay if method == "sr-ste" else 0.0
        self.patterns = patterns
        parameters = dict(model.named_parameters())
        self.weights = {name: parameters[name] for name in patterns}
        self.fixed_masks: dict[str, Tensor] = {}
        if method == "fixed":
            self.freeze()

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep the present masks for good, and train as with ``"fixed"`` from now on."""
        self.fixed_masks = self.masks()
        self.method = "fixed"
        for name, weight in self.weights.items():
            weight.mul_(self.fixed_masks[name])

    def masks(self) -> dict[str, Tensor]:
        """The masks of the present dense weights."""
        return self.fixed_masks or {
            name: reference_mask(weight, *self.patterns[name])
            for name, weight in self.weights.items()
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output at the sparse weights."""
        masks = self.masks()
        sparse = {
            name: _StraightThrough.apply(weight, masks[name])
            for name, weight in self.weights.items()
        }
        return functional_call(self.model, sparse, args, kwargs, tie_weights=True)

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One effective optimizer step from the gradients that are there."""
        masks = self.masks()
        for name, weight in self.weights.items():
            if weight.grad is not None:
                pruned = ~masks[name]
                if self.method == "fixed":
                    weight.grad = torch.where(pruned, 0.0, weight.grad)
                else:  # rounded once, as a * x + y usually is
                    weight.grad = weight.grad.add(pruned * weight, alpha=self.decay)
        optimizer.step()
        if self.method == "fixed":  # momentum from before may have written pruned entries
            for name, weight in self.weights.items():
                weight.mul_(masks[name])


def patterns_of(rows: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """What :class:`Reference` needs from ``hf_nm.report(model).layers``."""
    return {row.name: (row.pattern.n, row.pattern.m) for row in rows}
