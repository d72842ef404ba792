"""What a group of N:M weights does around a step; the plainest one takes them one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hf_nm.model.sharding import placed_as
from hf_nm.model.weights import SparseWeight
from hf_nm.sparsity.check import BrokenPatternError, broken_weight
from hf_nm.sparsity.divergence import MaskHistory

# What counts the flips of a weight.
Histories = Callable[[SparseWeight], MaskHistory]


def stray_write(name: str) -> BrokenPatternError:
    """The error for a weight that held values where its mask says zero when a step began."""
    return broken_weight(
        name,
        "other code wrote it between two steps (an average swapped in, a wrapper that interpolates, "
        "adapters merged)",
    )


@dataclass(frozen=True)
class Strength:
    """How much of each weight's decay goes into its gradient at a step.

    Args:
        scale: what the gradients are still multiplied by, times the warm-up of the decay.
        ascending: ids of parameters whose gradients the optimizer negates.
        automatic: by the weight's name, decays that follow the gradient, in its units without a scale.
    """

    scale: float | Tensor
    ascending: frozenset[int] = frozenset()
    automatic: Mapping[str, float | Tensor] = field(default_factory=dict)

    def of(self, w: SparseWeight, *, scaled: bool = True) -> float | Tensor:
        """The decay of one weight, in the units of its gradient; or all of it but the scale."""
        decay = self.automatic.get(w.name, w.state.spec.fixed_decay)
        decay = decay * (self.scale if scaled else 1.0)
        return decay * (-1.0 if id(w.weight) in self.ascending else 1.0)


class Group(Protocol):
    """Weights that a step treats together.

    Attributes:
        weights: of the group.
        strays: flags of pruned entries that held a value, by the weight's name; nobody has waited for
            them.
    """

    weights: list[SparseWeight]

    @property
    def strays(self) -> dict[str, Tensor]: ...

    def open(self, strength: Strength | None, *, every: bool) -> None:
        """Change gradients by each weight's method, and put dense weights into the parameters.

        Args:
            strength: of the decay; None leaves gradients as they are.
            every: whether weights without a gradient hold their dense weights, too.

        Raises:
            BrokenPatternError: on a CPU, where a pruned entry held a value.
        """

    def close(self, *, count: bool) -> None:
        """Project what is open; safe to call at any time, and more than once.

        Args:
            count: whether mask entries that change count as flips.
        """


class Separate:
    """Weights treated one by one, by the functions of their states: those that are sharded, of methods
    of their own, or large and on a CPU."""

    def __init__(self, weights: list[SparseWeight], histories: Histories) -> None:
        self.weights = weights
        self.strays: dict[str, Tensor] = {}
        self.histories = histories

    def open(self, strength: Strength | None, *, every: bool) -> None:
        """Weight by weight, so that what is aside is read from memory once."""
        for w in self.weights:
            parameter, state = w.weight, w.state
            gradient = parameter.grad
            if gradient is None and not every:
                continue
            stray = state.merge(parameter)
            if stray is not None and not stray.is_cpu:
                before = self.strays.get(w.name)
                self.strays[w.name] = stray if before is None else before | stray
            elif stray:
                raise stray_write(w.name)
            if gradient is not None and strength is not None:
                gradient = parameter.grad = placed_as(gradient, parameter)
                adjust_gradient(w, gradient, strength)

    def close(self, *, count: bool) -> None:
        """Project all, whatever a method's own code does with one of them."""
        do_all(functools.partial(self._project, w, count) for w in self.weights)

    def _project(self, w: SparseWeight, count: bool) -> None:
        changed = w.state.split(w.weight, update_mask=w.state.updates_mask)
        if count and changed is not None:
            self.histories(w).add(changed)


def do_all(actions: Iterable[Callable[[], None]]) -> None:
    """Do each of them even where one raises; the first error is raised at the end."""
    failed: Exception | None = None
    for action in actions:
        try:
            action()
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed


def adjust_gradient(w: SparseWeight, gradient: Tensor, strength: Strength) -> None:
    """Change one weight's gradient by its method."""
    w.state.adjust_gradient(w.weight, gradient, strength.of(w))


def is_plain(gradient: Tensor, dtype: torch.dtype, shape: torch.Size) -> bool:
    """Whether a gradient is an ordinary tensor, laid out as its weight is."""
    return (
        type(gradient) is Tensor
        and gradient.dtype is dtype
        and gradient.layout is torch.strided
        and gradient.shape == shape
        and gradient.is_contiguous()
    )
