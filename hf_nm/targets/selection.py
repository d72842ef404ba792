"""What ``targets=``, ``exclude=`` and ``patterns=`` name: by globs, or by a predicate."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from hf_nm.targets.kinds import input_dims

Predicate = Callable[[str, nn.Module], bool]
Selection = str | Iterable[str] | Predicate | None


@dataclass(frozen=True, eq=False)
class Use:
    """One parameter under one name; a parameter has several where modules share it.

    Args:
        name: the parameter's full name.
        module_name: that of the module that holds it.
        module: this module.
        local_name: the parameter's name there.
        parameter: the parameter.
    """

    name: str
    module_name: str
    module: nn.Module
    local_name: str
    parameter: nn.Parameter

    @property
    def names(self) -> tuple[str, str]:
        return self.module_name, self.name

    @functools.cached_property
    def siblings(self) -> dict[str, int]:
        """The parameters of its module that can be N:M, each with its input dimension."""
        return input_dims(self.module)

    @property
    def dim(self) -> int | None:
        """Its input dimension, negative; None if it cannot be N:M."""
        return self.siblings.get(self.local_name)


def uses_of(model: nn.Module) -> Iterator[Use]:
    """Every parameter under every name of every module that holds it."""
    for module_name, module in model.named_modules(remove_duplicate=False):
        for local_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{local_name}" if module_name else local_name
            yield Use(name, module_name, module, local_name, parameter)


def matcher(selection: Selection, uses: list[Use], argument: str) -> Callable[[Use], bool]:
    """A test for one use; globs are checked against the model at once.

    Args:
        selection: what the caller wrote; None names nothing.
        uses: the whole model's.
        argument: its name, for messages.

    Raises:
        ValueError: it names no weight that can be N:M.
        TypeError: it is neither globs nor a predicate.
    """
    if selection is None:
        return lambda _: False
    able = [use for use in uses if use.dim is not None]
    if callable(selection):
        if not any(selection(use.module_name, use.module) for use in able):
            raise ValueError(
                f"the predicate in {argument}= chose none of the {len(able)} weights that can be "
                "N:M; it is called with a module's name and the module"
            )
        predicate = selection
        return lambda use: bool(predicate(use.module_name, use.module))
    globs = [selection] if isinstance(selection, str) else list(selection)
    if not globs:
        raise ValueError(f"{argument}=[] names nothing; leave the argument out, or name modules")
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(
                f"{argument}= takes globs such as '*.fc1', or one predicate (name, module) -> bool; "
                f"got {glob!r}"
            )
        if not any(_matches(glob, use) for use in able):
            raise ValueError(_nothing_matches(glob, argument, uses, able))
    return lambda use: any(_matches(glob, use) for glob in globs)


def _matches(glob: str, use: Use) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in use.names)


def _nothing_matches(glob: str, argument: str, uses: list[Use], able: list[Use]) -> str:
    message = f"{glob!r} in {argument}= matches no weight that can be N:M"
    others = [use for use in uses if _matches(glob, use)]
    if others:
        kinds = sorted({type(use.module).__name__ for use in others})
        return f"{message}: it matches only {', '.join(kinds)} ({others[0].name})"
    inside = [use for use in able if use.module_name.startswith(glob + ".")]
    if inside:
        return f"{message}, but there are {len(inside)} inside it: write {glob + '.*'!r}"
    suffix = [use for use in able if use.module_name.endswith("." + glob)]
    if suffix:
        return f"{message}; globs match whole names: write {'*.' + glob!r}"
    names = [use.module_name for use in able]
    near = difflib.get_close_matches(glob, names, n=3, cutoff=0.3) or names[:3]
    return f"{message}; near names: {', '.join(near) if near else 'the model has no linear layer'}"
