"""Which weights of a model become N:M: one list of rules, and how a caller narrows or widens it.

Every matrix of the model ends in one of two lists, chosen or skipped with the reason. Another reason to
leave weights dense is a line in :data:`RULES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from hf_nm.sparsity.mask import MASKABLE_DTYPES
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.blocks import transformer_blocks
from hf_nm.targets.kinds import acts_linearly, is_convolution, is_router
from hf_nm.targets.selection import Selection, Use, matcher, uses_of

OUTSIDE_BLOCKS = "outside the transformer blocks"
EXCLUDED = "excluded"

# Why a weight stays dense, read from top to bottom: the first test that holds gives the reason, and a
# weight for which none holds becomes N:M. `w` is a `_Weight`, and so is the one in the reasons' braces.
# A rule that `targets=` can overrule asks `not w.named` first.
RULES: tuple[tuple[Callable[[_Weight], bool], str], ...] = (
    (lambda w: w.named and not w.wanted, "not in targets"),
    (lambda w: not w.wanted, OUTSIDE_BLOCKS),
    (lambda w: w.is_excluded, EXCLUDED),
    (lambda w: w.is_embedding and w.is_shared, "tied to an embedding"),
    (lambda w: w.is_embedding, "an embedding"),
    (lambda w: w.unwanted is not None, "shared with {w.unwanted.name}, which stays dense"),
    (lambda w: not w.named and w.is_adapter, "a PEFT adapter"),
    (lambda w: not w.named and w.is_router, "a router"),
    (lambda w: not w.named and w.is_position_table, "a relative-position table"),
    (
        lambda w: not w.named and w.is_conditioning,
        "a layer of an adaptive norm or a time embedding",
    ),
    (lambda w: not w.named and w.is_bias, "a bias"),
    (lambda w: len(w.dims) > 1, "shared by layers that sum over different dimensions of it"),
    (lambda w: w.dim is None, "a parameter of {w.kind}, which is not supported"),
    (lambda w: w.dtype not in MASKABLE_DTYPES, "dtype {w.dtype} cannot be N:M"),
    (lambda w: 0 in w.shape, "it has no entry"),
    (lambda w: w.does_not_divide, "input size {w.input_size} is not a multiple of m={w.pattern.m}"),
    (lambda w: not w.named and w.is_lone_convolution, "a convolution among linear layers"),
)

# Tables of relative positions, by a parameter's full name. (A linear layer that projects positions, as
# in Conformers, is none, whatever it is called.)
_POSITIONS = re.compile(
    r"rel(ative)?_pos(ition)?s?_(embed|bias)|position_bias|pos_bias|rel_pos_[hw]$|emb_rel_|attention_bias"
)
# Parts of diffusion models' blocks that turn a time step or a condition into scales and shifts, by a
# module's name: a norm that holds a matrix is one. (FocalNet's `modulation` is its attention.)
_CONDITIONING = re.compile(
    r"^([a-z]+_)?(layer_?)?norms?\d*(_(context|out|final))?$|ada_?(ln|norm)|(^|_)mod$|time(step)?_?emb|(^|_)temb(_|$)",
    re.IGNORECASE,
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
    uses = list(uses_of(model))
    lazy = [use.name for use in uses if isinstance(use.parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{lazy[0]} has no shape yet (a lazy module); run one forward pass before sparsify"
        )
    chosen = matcher(targets, uses, "targets")
    left_out = matcher(exclude, uses, "exclude")
    overrides = [
        _Override(glob, NMPattern.parse(value), matcher([glob], uses, "patterns"))
        for glob, value in (patterns or {}).items()
    ]
    around = _Surroundings(model, uses)

    found: list[Target] = []
    skipped: dict[str, str] = {}
    refused: list[str] = []
    for shared in _by_parameter(uses):
        if shared[0].parameter.ndim < 2:
            continue
        if targets is None:
            wanted = [use for use in shared if use.name.startswith(around.blocks)]
        else:  # a module may have several names: one of them is enough
            named_modules = {id(use.module) for use in shared if chosen(use)}
            wanted = [use for use in shared if id(use.module) in named_modules]
        own = [o.pattern for o in overrides if any(o.matches(use) for use in shared)]
        last = own[-1] if own else pattern
        w = _Weight(shared, wanted, targets is not None, left_out, last, bool(own), around)
        reason = next((reason.format(w=w) for holds, reason in RULES if holds(w)), None)
        if reason is None:
            assert w.dim is not None
            owners = tuple((use.module, use.local_name) for use in w.uses)
            found.append(Target(w.first.name, w.shape, w.dim, w.pattern, owners))
            continue
        skipped[w.first.name] = reason
        asked_for = w.named or (w.overridden and w.does_not_divide)
        able = [use for use in w.wanted if use.siblings]
        if asked_for and able and reason != EXCLUDED:
            refused.append(f"{able[0].name} {list(w.shape)}: {reason}")

    if refused:
        raise ValueError(
            "these weights are named in targets= or patterns= but cannot be N:M:\n  "
            + "\n  ".join(refused)
            + "\nname them in exclude=, or choose another m for them in patterns="
        )
    used = {(id(module), local_name) for t in found for module, local_name in t.owners}
    for override in overrides:
        touched = [use for use in uses if override.matches(use)]
        if not any((id(use.module), use.local_name) in used for use in touched):
            raise ValueError(
                f"{override.glob!r} in patterns= matches only weights that stay dense (first: "
                f"{touched[0].name}); patterns= gives another pattern to chosen weights, targets= "
                "chooses them"
            )
    return found, skipped


class _Surroundings:
    """What the rules know of the whole model.

    Attributes:
        blocks: the names of its transformer blocks, each with a dot at its end.
        modules: its modules by every name.
        embedded: ids of the parameters of its embeddings.
        has_linear: whether its blocks hold linear layers or their like.
    """

    def __init__(self, model: nn.Module, uses: list[Use]) -> None:
        self.blocks = tuple(f"{name}." if name else "" for name in transformer_blocks(model))
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.embedded = {id(u.parameter) for u in uses if isinstance(u.module, nn.Embedding)}
        inside = (use for use in uses if use.name.startswith(self.blocks))
        self.has_linear = any(use.siblings and not is_convolution(use.module) for use in inside)


@dataclass(frozen=True)
class _Weight:
    """One parameter, and what the rules ask of it.

    Args:
        uses: it under every name.
        wanted: those of them that are in ``targets=``, or without it in a block.
        named: whether ``targets=`` takes the rules' place.
        left_out: whether ``exclude=`` names a use.
        pattern: what it would get.
        overridden: whether that stands in ``patterns=``.
        around: what is known of the model.
    """

    uses: list[Use]
    wanted: list[Use]
    named: bool
    left_out: Callable[[Use], bool]
    pattern: NMPattern
    overridden: bool
    around: _Surroundings

    @property
    def first(self) -> Use:
        return self.uses[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.first.parameter.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.first.parameter.dtype

    @property
    def dims(self) -> set[int | None]:
        """The input dimensions that its uses have, None where one has none."""
        return {use.dim for use in self.uses}

    @property
    def dim(self) -> int | None:
        """One of them; the only one of a weight that becomes N:M."""
        return next(iter(self.dims))

    @property
    def kind(self) -> str:
        """The class of the module that holds it."""
        return type(self.first.module).__name__

    @property
    def is_excluded(self) -> bool:
        """Whether ``exclude=`` names it."""
        return any(self.left_out(use) for use in self.uses)

    @property
    def is_embedding(self) -> bool:
        return id(self.first.parameter) in self.around.embedded

    @property
    def is_shared(self) -> bool:
        """Whether several modules hold it."""
        return len({id(use.module) for use in self.uses}) > 1

    @property
    def unwanted(self) -> Use | None:
        """Its first use that is not wanted."""
        return next((use for use in self.uses if use not in self.wanted), None)

    @property
    def is_adapter(self) -> bool:
        """PEFT keeps the model's own layer as ``base_layer`` of a tuner, its adapters beside it."""
        names = self.first.module_name.split(".")
        for length in range(1, len(names)):
            module = self.around.modules[".".join(names[:length])]
            tuner = any(base.__name__ == "BaseTunerLayer" for base in type(module).__mro__)
            if tuner and names[length] != "base_layer":
                return True
        return False

    @property
    def is_router(self) -> bool:
        block = next((b for b in self.around.blocks if self.first.name.startswith(b)), "")
        return is_router(self.first.module_name, self.around.modules, block)

    @property
    def is_position_table(self) -> bool:
        linear = isinstance(self.first.module, nn.Linear)
        return _POSITIONS.search(self.first.name) is not None and not linear

    @property
    def is_conditioning(self) -> bool:
        """Whether it lies in such a part of its block, and is a linear layer's."""
        block = next((b for b in self.around.blocks if self.first.name.startswith(b)), "")
        parts = self.first.module_name[len(block) :].split(".")
        linear = isinstance(self.first.module, nn.Linear)
        return linear and any(_CONDITIONING.search(part) for part in parts)

    @property
    def is_bias(self) -> bool:
        return _BIAS.search(self.first.local_name) is not None

    @property
    def is_lone_convolution(self) -> bool:
        """Whether it is a convolution's in a model whose blocks hold linear layers."""
        return self.around.has_linear and not acts_linearly(self.first.module)

    @property
    def input_size(self) -> int:
        """How many entries a dot product with it sums over."""
        assert self.dim is not None
        return self.shape[self.dim]

    @property
    def does_not_divide(self) -> bool:
        """Whether its input dimension is not made of whole groups."""
        return self.dim is not None and not self.pattern.divides(self.input_size)


@dataclass(frozen=True)
class _Override:
    """An entry of ``patterns=``."""

    glob: str
    pattern: NMPattern
    matches: Callable[[Use], bool]


def _by_parameter(uses: list[Use]) -> list[list[Use]]:
    """The uses of each parameter together, in the order of their first."""
    found: dict[int, list[Use]] = {}
    for use in uses:
        found.setdefault(id(use.parameter), []).append(use)
    return list(found.values())
