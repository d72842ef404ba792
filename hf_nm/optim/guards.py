"""Acting where torch calls no hook: a failing ``step``, an optimizer's own ``load_state_dict``."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch


class StepGuard:
    """Wraps ``owner.step`` of one optimizer so that a failing step calls ``after_failure`` first.

    Args:
        owner: a torch optimizer, or accelerate's wrapper of one.
        after_failure: called without arguments; the exception goes on.
    """

    def __init__(self, owner: torch.optim.Optimizer, after_failure: Callable[[], None]) -> None:
        self.owner = owner
        self._before = {"step": owner.step} if "step" in owner.__dict__ else {}
        original = owner.step

        @functools.wraps(original)
        def step(_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except BaseException:
                after_failure()
                raise

        self._step = step
        owner.step = types.MethodType(step, owner)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Give the optimizer its own ``step`` back. What others (schedulers, accelerate) put around
        this one since keeps calling it: it then only passes calls on, nothing being open."""
        if getattr(self.owner.__dict__.get("step"), "__func__", None) is self._step:
            del self.owner.__dict__["step"]
            self.owner.__dict__.update(self._before)


class LoadGuard:
    """Wraps ``owner.load_state_dict`` where the optimizer's class has its own: that of bitsandbytes
    calls none of the hooks that torch's calls.

    Args:
        owner: a torch optimizer.
        before: called with the optimizer and a shallow copy of the state dict, which it may change.
        after: called with the optimizer when the copy was loaded.
    """

    def __init__(
        self,
        owner: torch.optim.Optimizer,
        before: Callable[[torch.optim.Optimizer, dict[str, Any]], None],
        after: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        self.owner = owner
        self._before = {
            name: own for name, own in owner.__dict__.items() if name == "load_state_dict"
        }
        original = owner.load_state_dict

        @functools.wraps(original)
        def load_state_dict(state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            copy = dict(state_dict)
            before(owner, copy)
            original(copy, *args, **kwargs)
            after(owner)

        self._load = load_state_dict
        owner.load_state_dict = load_state_dict  # type: ignore[method-assign]

    def remove(self) -> None:
        """Give the optimizer its own ``load_state_dict`` back."""
        if self.owner.__dict__.get("load_state_dict") is self._load:
            del self.owner.__dict__["load_state_dict"]
            self.owner.__dict__.update(self._before)


def load_hooks(
    optimizer: torch.optim.Optimizer,
    before: Callable[[torch.optim.Optimizer, dict[str, Any]], None],
    after: Callable[[torch.optim.Optimizer], None],
) -> list[Any]:
    """Call ``before`` and ``after`` around ``optimizer.load_state_dict``, whoever wrote that.

    Returns:
        Handles with a ``remove()``.
    """
    if type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
        return [LoadGuard(optimizer, before, after)]
    return [
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after),
    ]
