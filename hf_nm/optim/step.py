"""One step of an optimizer: gradients changed, dense weights in the parameters, sparse ones again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_nm.grouping.group import Strength, do_all
from hf_nm.grouping.groups import Groups
from hf_nm.optim.meter import MaskMeter
from hf_nm.optim.schedule import automatic_decays


class Step:
    """What one optimizer step does to the N:M weights that it reaches.

    Args:
        optimizer: the torch optimizer.
        groups: its N:M weights.
        decay_factor: what the decay is multiplied by at this step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, groups: Groups, decay_factor: float
    ) -> None:
        self.groups = groups
        self._optimizer = optimizer
        self._decay_factor = decay_factor
        # Where a closure moves masks in between.
        self._masks_before: list[Tensor | None] | None = None

    def open(self, loss_scale: float | Tensor) -> None:
        """Change gradients by each weight's method, and put dense weights into the parameters; weights
        without a gradient are left alone.

        Args:
            loss_scale: what the gradients are still multiplied by.
        """
        self._open(self._strength(loss_scale), every=False)

    def open_for(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The same where the optimizer evaluates the loss inside ``step`` (LBFGS, SAM).

        Returns:
            ``closure`` as the optimizer should call it: it sees the sparse weights, and its gradients
            get each method's change.
        """
        masks = [w.state.mask for w in self.groups.weights]
        self._masks_before = [None if mask is None else mask.clone() for mask in masks]
        self._open(None, every=True)

        @functools.wraps(closure)
        def evaluate() -> Any:
            with torch.no_grad():
                self._close(count=False)
            loss = closure()
            with torch.no_grad():
                self._open(self._strength(1.0), every=True)
            return loss

        return evaluate

    def _strength(self, loss_scale: float | Tensor) -> Strength:
        ascending = (
            frozenset(  # torch negates these gradients in the step, and the decay must still shrink
                id(parameter)
                for group in self._optimizer.param_groups
                if group.get("maximize")
                for parameter in group["params"]
            )
        )
        automatic = automatic_decays(self.groups.automatic, loss_scale)
        return Strength(loss_scale * self._decay_factor, ascending, automatic)

    def _open(self, strength: Strength | None, *, every: bool) -> None:
        for group in self.groups.groups:
            group.open(strength, every=every)

    @torch.no_grad()
    def close(self, meter: MaskMeter | None = None) -> None:
        """Project what is open; safe to call at any time, and more than once.

        Args:
            meter: counts the mask entries that change; None where the step came to nothing.
        """
        self._close(count=meter is not None and self._masks_before is None)
        if meter is None or self._masks_before is None:
            return
        for w, before in zip(self.groups.weights, self._masks_before, strict=True):
            mask = w.state.mask  # masks moved in between: the net counts
            if before is not None and mask is not None:
                meter.history(w).add(torch.count_nonzero(before != mask))

    def _close(self, *, count: bool) -> None:
        do_all(functools.partial(group.close, count=count) for group in self.groups.groups)
