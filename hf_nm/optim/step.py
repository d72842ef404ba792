"""One step of an optimizer: gradients changed, dense weights in the parameters, sparse ones again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_nm.model.sharding import local, placed_as
from hf_nm.model.weights import SparseWeight
from hf_nm.optim.schedule import automatic_decays
from hf_nm.sparsity.check import BrokenPatternError, broken_weight


def stray_write(name: str) -> BrokenPatternError:
    """The error for a weight that held values where its mask says zero when a step began."""
    return broken_weight(
        name,
        "other code wrote it between two steps (an average swapped in, a wrapper that interpolates, "
        "adapters merged)",
    )


class Step:
    """What one optimizer step does to the N:M weights that it reaches.

    Args:
        optimizer: the torch optimizer.
        weights: its N:M weights.
        decay_factor: what the decay is multiplied by at this step.

    Attributes:
        weights: all of them.
        opened: those that hold their dense weights now, or did when it was last asked to open.
        strays: by the weight's name, whether it held a value where its mask says zero: bool scalar
            tensors that nobody has waited for.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, weights: list[SparseWeight], decay_factor: float
    ) -> None:
        self.weights = weights
        self.opened: list[SparseWeight] = []
        self._optimizer = optimizer
        self._decay_factor = decay_factor
        self.strays: dict[str, Tensor] = {}
        # Where a closure moves masks in between.
        self._masks_before: list[Tensor | None] | None = None

    def open(self, loss_scale: float | Tensor) -> None:
        """Change gradients by each weight's method, and put dense weights into the parameters.

        Args:
            loss_scale: what the gradients are still multiplied by.
        """
        self.opened = [w for w in self.weights if w.weight.grad is not None]
        self._open(loss_scale)

    def open_for(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The same where the optimizer evaluates the loss inside ``step`` (LBFGS, SAM).

        Returns:
            ``closure`` as the optimizer should call it: it sees the sparse weights, and its gradients
            get each method's change.
        """
        self.opened = self.weights
        masks = [w.state.mask for w in self.opened]
        self._masks_before = [None if mask is None else mask.clone() for mask in masks]
        for w in self.opened:
            self._merge(w)

        @functools.wraps(closure)
        def evaluate() -> Any:
            with torch.no_grad():
                for w in self.opened:
                    w.state.split(w.weight, update_mask=w.state.updates_mask)
            loss = closure()
            with torch.no_grad():
                self._open(1.0)
            return loss

        return evaluate

    def _open(self, loss_scale: float | Tensor) -> None:
        """Weight by weight, so that what is aside is read from memory once."""
        ascending = {  # torch negates these gradients in the step, and the decay must still shrink
            id(parameter)
            for group in self._optimizer.param_groups
            if group.get("maximize")
            for parameter in group["params"]
        }
        scale = loss_scale * self._decay_factor
        automatic = automatic_decays(self.opened, loss_scale)
        for w in self.opened:
            self._merge(w)
            gradient, state = w.weight.grad, w.state
            if gradient is not None:
                gradient = w.weight.grad = placed_as(gradient, w.weight)
                assert state.mask is not None
                decay = automatic.get(w.name, state.spec.fixed_decay)
                strength = decay * scale * (-1.0 if id(w.weight) in ascending else 1.0)
                state.method.adjust_gradient(local(gradient), state.aside, state.mask, strength)

    def _merge(self, w: SparseWeight) -> None:
        stray = w.state.merge(w.weight)
        if stray is None:
            return
        if not stray.is_cpu:
            self.strays[w.name] = stray
        elif stray:
            raise stray_write(w.name)

    def close(self) -> dict[str, Tensor]:
        """Project what is open; safe to call at any time, and more than once.

        Returns:
            How many mask entries changed, by the weight's name: int64 scalar tensors.
        """
        flips: dict[str, Tensor] = {}
        failed: BaseException | None = None
        for index, w in enumerate(self.opened):
            try:
                changed = w.state.split(w.weight, update_mask=w.state.updates_mask)
            except (
                Exception
            ) as error:  # of a method's own code: the others are projected all the same
                failed = failed or error
                continue
            mask = w.state.mask
            before = None if self._masks_before is None else self._masks_before[index]
            if before is not None and mask is not None:  # masks moved in between: count the net
                changed = torch.count_nonzero(before != mask)
            if changed is not None:
                flips[w.name] = changed
        self.opened = []
        if failed is not None:
            raise failed
        return flips
