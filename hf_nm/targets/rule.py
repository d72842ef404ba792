"""Which weights of a model become N:M: one rule, and how a caller narrows or widens it.

Every matrix of the model ends in one of two lists, chosen or skipped with the reason.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import UninitializedParameter

from hf_nm.sparsity.mask import MASKABLE_DTYPES
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.blocks import transformer_blocks
from hf_nm.targets.kinds import acts_linearly, input_dims, is_convolution, is_router

Predicate = Callable[[str, nn.Module], bool]
Selection = str | Iterable[str] | Predicate | None

OUTSIDE_BLOCKS = "outside the transformer blocks"

# Tables of relative positions, by a parameter's full name. (A linear layer that projects positions, as
# in Conformers, is none, whatever it is called.)
_POSITIONS = re.compile(
    r"rel(ative)?_pos(ition)?s?_(embed|bias)|position_bias|pos_bias|rel_pos_[hw]$|emb_rel_|attention_bias"
)
_BIAS = re.compile(r"(^|_)bias(es)?(_|$)")


@dataclass(frozen=True)
class Target:
    """A weight that becomes N:M, with every module that holds it.

    Args:
        name: the parameter's first name in the model.
        shape: the weight's shape.
        dim: its input dimension, negative.
        pattern: the pattern it gets.
        owners: ``(module, local parameter name)``, more than one where modules share the weight.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    pattern: NMPattern
    owners: tuple[tuple[nn.Module, str], ...]


@dataclass
class _Use:
    """One parameter under one name."""

    name: str
    module_name: str
    module: nn.Module
    local_name: str
    parameter: nn.Parameter

    @property
    def names(self) -> tuple[str, str]:
        return self.module_name, self.name


def find_targets(
    model: nn.Module,
    pattern: NMPattern,
    *,
    targets: Selection = None,
    exclude: Selection = None,
    patterns: Mapping[str, str | NMPattern] | None = None,
) -> tuple[list[Target], dict[str, str]]:
    """Decide for every matrix of ``model`` whether it becomes N:M.

    Args:
        model: any module, also on the meta device.
        pattern: for weights that ``patterns`` does not name.
        targets: globs over module or parameter names, or a predicate ``(name, module) -> bool`` over
            module names: exactly these instead of the rule (which leaves out routers, adapters, and
            convolutions in models whose blocks hold linear layers).
        exclude: the same forms: these stay dense.
        patterns: glob to pattern, for some of the chosen weights; the last glob that matches counts.

    Returns:
        The targets in the order of the model's parameters, and for every other parameter with two
        dimensions or more the reason why it stays dense.

    Raises:
        ValueError: a glob matches nothing it could act on, or an explicitly targeted weight cannot
            be N:M (its input size, its type, or it is shared with a module that is not targeted).
    """
    uses = list(_uses(model))
    lazy = [use.name for use in uses if isinstance(use.parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{lazy[0]} has no shape yet (a lazy module); run one forward pass before sparsify"
        )
    explicit = targets is not None
    chosen = _matcher(targets, uses, "targets")
    left_out = _matcher(exclude, uses, "exclude")
    overrides = [
        (glob, NMPattern.parse(value), _matcher([glob], uses, "patterns"))
        for glob, value in (patterns or {}).items()
    ]
    blocks = tuple(f"{name}." if name else "" for name in transformer_blocks(model))
    inside = [use for use in uses if use.name.startswith(blocks)]
    left_by_rule = _LeftByRule(model, inside, blocks)
    embedded = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }

    by_parameter: dict[int, list[_Use]] = {}
    for use in uses:
        by_parameter.setdefault(id(use.parameter), []).append(use)

    found: list[Target] = []
    skipped: dict[str, str] = {}
    refused: list[str] = []
    for shared in by_parameter.values():
        first = shared[0]
        shape = tuple(first.parameter.shape)
        if len(shape) < 2:
            continue
        if explicit:  # a module may have several names: one of them is enough
            named_modules = {id(use.module) for use in shared if chosen(use)}
            wanted = [use for use in shared if id(use.module) in named_modules]
        else:
            wanted = [use for use in shared if use.name.startswith(blocks)]
        dims = {input_dims(use.module).get(use.local_name) for use in shared}
        dim = next(iter(dims))
        use_pattern, overridden = pattern, False
        for _, override, matches in overrides:
            if any(matches(use) for use in shared):
                use_pattern, overridden = override, True

        reason = None
        if not wanted:
            reason = "not in targets" if explicit else OUTSIDE_BLOCKS
        elif any(left_out(use) for use in shared):
            reason = "excluded"
        elif id(first.parameter) in embedded:
            tied = len({id(use.module) for use in shared}) > 1
            reason = "tied to an embedding" if tied else "an embedding"
        elif len(wanted) < len(shared):
            other = next(use for use in shared if use not in wanted)
            reason = f"shared with {other.name}, which stays dense"
        elif not explicit and (left := left_by_rule.reason(first)) is not None:
            reason = left
        elif len(dims) > 1:
            reason = "shared by layers that sum over different dimensions of it"
        elif dim is None:
            reason = f"a parameter of {type(first.module).__name__}, which is not supported"
        elif first.parameter.dtype not in MASKABLE_DTYPES:
            reason = f"dtype {first.parameter.dtype} cannot be N:M"
        elif 0 in shape:
            reason = "it has no entry"
        elif not use_pattern.divides(shape[dim]):
            reason = f"input size {shape[dim]} is not a multiple of m={use_pattern.m}"
        elif not explicit and left_by_rule.convolution(first):
            reason = "a convolution among linear layers"

        if reason is None:
            assert dim is not None
            owners = tuple((use.module, use.local_name) for use in shared)
            found.append(Target(first.name, shape, dim, use_pattern, owners))
            continue
        skipped[first.name] = reason
        named = [use for use in wanted if input_dims(use.module)]
        indivisible = dim is not None and not use_pattern.divides(shape[dim])
        if named and reason != "excluded" and (explicit or (overridden and indivisible)):
            refused.append(f"{named[0].name} {list(shape)}: {reason}")

    used = {(id(module), local_name) for t in found for module, local_name in t.owners}

    if refused:
        raise ValueError(
            "these weights are named in targets= or patterns= but cannot be N:M:\n  "
            + "\n  ".join(refused)
            + "\nname them in exclude=, or choose another m for them in patterns="
        )
    for glob, _, matches in overrides:
        touched = [use for use in uses if matches(use)]
        if not any((id(use.module), use.local_name) in used for use in touched):
            raise ValueError(
                f"{glob!r} in patterns= matches only weights that stay dense (first: "
                f"{touched[0].name}); patterns= gives another pattern to chosen weights, targets= "
                "chooses them"
            )
    return found, skipped


class _LeftByRule:
    """Which matrices inside the blocks the rule leaves dense, though they could be N:M.

    Args:
        model: the whole model.
        inside: the parameters inside its blocks.
        blocks: the names of the blocks, each with a dot at its end.
    """

    def __init__(self, model: nn.Module, inside: list[_Use], blocks: tuple[str, ...]) -> None:
        self._blocks = blocks
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._linear = any(
            input_dims(use.module) and not is_convolution(use.module) for use in inside
        )

    def reason(self, use: _Use) -> str | None:
        """Why the parameter stays dense, or None."""
        if self._is_adapter(use):
            return "a PEFT adapter"
        if is_router(use.module_name, self._modules, self._block_of(use)):
            return "a router"
        if _POSITIONS.search(use.name) and not isinstance(use.module, nn.Linear):
            return "a relative-position table"
        if _BIAS.search(use.local_name):
            return "a bias"
        return None

    def _block_of(self, use: _Use) -> str:
        return next((block for block in self._blocks if use.name.startswith(block)), "")

    def convolution(self, use: _Use) -> bool:
        """Whether it is one among linear layers."""
        return self._linear and not acts_linearly(use.module)

    def _is_adapter(self, use: _Use) -> bool:
        """PEFT keeps the model's own layer as ``base_layer`` of a tuner, its adapters beside it."""
        names = use.module_name.split(".")
        for length in range(1, len(names)):
            module = self._modules[".".join(names[:length])]
            tuner = any(base.__name__ == "BaseTunerLayer" for base in type(module).__mro__)
            if tuner and names[length] != "base_layer":
                return True
        return False


def _uses(model: nn.Module) -> Iterator[_Use]:
    """Every parameter under every name of every module that holds it."""
    for module_name, module in model.named_modules(remove_duplicate=False):
        for local_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{local_name}" if module_name else local_name
            yield _Use(name, module_name, module, local_name, parameter)


def _matcher(selection: Selection, uses: list[_Use], argument: str) -> Callable[[_Use], bool]:
    """A test for one use; globs are checked against the model at once."""
    if selection is None:
        return lambda _: False
    able = [use for use in uses if input_dims(use.module).get(use.local_name) is not None]
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


def _matches(glob: str, use: _Use) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in use.names)


def _nothing_matches(glob: str, argument: str, uses: list[_Use], able: list[_Use]) -> str:
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
