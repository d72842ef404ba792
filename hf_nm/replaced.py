"""Acting where torch and transformers call no hook: one method of one object, replaced for a while."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

_NOTHING = object()


class Replaced:
    """A method of one object that another function stands for, until :meth:`remove`.

    Args:
        owner: any object with a ``__dict__``.
        name: the method's name.
        wrap: given the method as it is now, returns what is called instead, with the same arguments.
    """

    def __init__(
        self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self.owner = owner
        self._name = name
        self._before = owner.__dict__.get(name, _NOTHING)
        original = getattr(owner, name)
        replacement = wrap(original)

        @functools.wraps(original)
        def method(_: Any, *args: Any, **kwargs: Any) -> Any:
            return replacement(*args, **kwargs)

        self._function = method
        # Bound, since torch's schedulers look for a method's function.
        owner.__dict__[name] = types.MethodType(method, owner)

    def remove(self) -> None:
        """Give the object its own method back. What others put around this one since keeps calling it:
        it then stands where it is, and has to do no harm."""
        present = self.owner.__dict__.get(self._name)
        if getattr(present, "__func__", None) is not self._function:
            return
        del self.owner.__dict__[self._name]
        if self._before is not _NOTHING:
            self.owner.__dict__[self._name] = self._before


def replace_in_all(
    modules: list[nn.Module], name: str, function: Callable[..., Any]
) -> list[Replaced]:
    """Let ``function`` stand for a method in every module that has it and no other in its place."""
    return [
        Replaced(module, name, lambda _: function)
        for module in modules
        if hasattr(module, name) and name not in module.__dict__
    ]
