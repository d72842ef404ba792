"""Mode switches of an optimizer (schedule-free's ``train()`` and ``eval()``): they write the parameters
outside of a step, so they see dense weights, which are projected afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from hf_nm.model.weights import SparseWeight, open_weights
from hf_nm.sparsity.check import BrokenPatternError

_MODES = ("train", "eval")


class ModeGuard:
    """Wraps ``owner.train`` and ``owner.eval``, where the optimizer has them.

    Args:
        owner: a torch optimizer.
        weights: tells the N:M weights that it holds at the moment of the call.
    """

    def __init__(
        self, owner: torch.optim.Optimizer, weights: Callable[[], list[SparseWeight]]
    ) -> None:
        self.owner = owner
        self._weights = weights
        self._before: dict[str, Any] = {}
        self._wrapped: dict[str, Any] = {}
        for name in _MODES:
            original = getattr(owner, name, None)
            if callable(original):
                if name in owner.__dict__:
                    self._before[name] = original
                self._wrapped[name] = owner.__dict__[name] = self._opening(name, original)

    def _opening(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def switch(*args: Any, **kwargs: Any) -> Any:
            written = [] if self._is_in(name) else self._written()
            broken = next((w.name for w in written if w.state.breaks(w.weight)), None)
            if broken is not None:
                raise BrokenPatternError(
                    f"{broken} held values where its mask says zero when optimizer.{name}() was called: "
                    "other code wrote it after the last step. Make such writes inside `with "
                    "hf_nm.dense_weights(model):`"
                )
            with open_weights(written):
                return original(*args, **kwargs)

        return switch

    def _is_in(self, name: str) -> bool:
        """Whether the optimizer says that it is in this mode: the Trainer asks for it at every batch."""
        return all(g.get("train_mode") is (name == "train") for g in self.owner.param_groups)

    def _written(self) -> list[SparseWeight]:
        """What a switch writes: no weight before its first step, when there is nothing to switch to
        (and, under DDP, ranks need not agree on its mask yet)."""
        return [w for w in self._weights() if self.owner.state.get(w.weight)]

    def remove(self) -> None:
        """Give the optimizer its own methods back."""
        for name, switch in self._wrapped.items():
            if self.owner.__dict__.get(name) is switch:
                del self.owner.__dict__[name]
        self.owner.__dict__.update(self._before)
