"""Acting before an exception leaves ``optimizer.step``: torch calls no hook then."""

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
