"""The N:M weights of a model: listing them, and opening them for writes outside a step."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hf_nm import compat
from hf_nm.interrupts import uninterrupted
from hf_nm.model import layers
from hf_nm.model.layers import NMLayer
from hf_nm.model.merging import Merged
from hf_nm.model.sharding import like_weight
from hf_nm.model.state import NMState
from hf_nm.replaced import replace_in_all
from hf_nm.sparsity.check import BrokenPatternError
from hf_nm.sparsity.pattern import NMPattern


@dataclass(frozen=True)
class SparseWeight:
    """One N:M weight of a model.

    Args:
        name: the parameter's name in the model.
        layer: the module that holds it.
        local_name: its name in that module.
    """

    name: str
    layer: NMLayer
    local_name: str

    @property
    def state(self) -> NMState:
        """Mask, pruned part and how they are trained."""
        return self.layer._nm[self.local_name]

    @property
    def weight(self) -> nn.Parameter:
        """``S``, the parameter as it is now (it may be replaced: look it up each time)."""
        return getattr(self.layer, self.local_name)

    @property
    def pattern(self) -> NMPattern:
        """The weight's N:M pattern."""
        return self.state.pattern

    @property
    def mask(self) -> Tensor | None:
        """``E``: bool, the weight's shape, True where kept; sharded as the weight is; None on the meta
        device."""
        mask = self.state.mask
        return None if mask is None else like_weight(mask, self.weight)

    def dense_weight(self) -> Tensor:
        """``W = S + R``: a new tensor of the weight's shape."""
        return self.state.dense(self.weight)


def sparse_weights(model: nn.Module) -> list[SparseWeight]:
    """Every N:M weight of ``model``, Linear or not, each once, in the order of its modules.

    Wrappers (DDP, ``torch.compile``) are looked through; names are the inner model's. Parameters that
    FSDP2 still holds gathered after a forward pass are sharded again.
    """
    seen: set[int] = set()
    found = []
    for prefix, module in unwrap(model).named_modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after a forward pass its parameters may be gathered copies
        # Not getattr: a wrapper (PEFT's, for modules to save) would answer for what it wraps.
        for local_name, state in module.__dict__.get("_nm", {}).items():
            if id(state) not in seen:
                seen.add(id(state))
                name = f"{prefix}.{local_name}" if prefix else local_name
                found.append(SparseWeight(name, module, local_name))
    return found


class Lookup:
    """The N:M weights of one model whose parameters somebody holds; looked for again only where layers
    became sparse or dense, or parameters were replaced, since.

    Args:
        model: the model, without wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._held: list[Tensor] = []
        self._changes = -1  # looked at never
        self._found: list[SparseWeight] = []
        self._parameters: list[Tensor] = []

    def among(self, held: list[Tensor]) -> list[SparseWeight]:
        """Those whose parameters are among ``held`` now; where nothing changed, the same list."""
        if not self._is_known(held):
            ids = {id(parameter) for parameter in held}
            changes = layers.changes()
            self._found = [w for w in sparse_weights(self.model) if id(w.weight) in ids]
            self._parameters = [w.weight for w in self._found]
            self._held = held
            # FSDP2 may hold gathered copies at any time, which only looking again gives back.
            sharded = any(isinstance(module, FSDPModule) for module in self.model.modules())
            self._changes = -1 if sharded else changes
        return self._found

    def _is_known(self, held: list[Tensor]) -> bool:
        if self._changes != layers.changes() or len(held) != len(self._held):
            return False
        if not all(map(operator.is_, held, self._held)):
            return False
        now = [w.layer._parameters.get(w.local_name) for w in self._found]
        return all(map(operator.is_, now, self._parameters))


@contextmanager
def dense_weights(model: nn.Module) -> Iterator[nn.Module]:
    """Let the parameters hold the dense weights ``W = S + R`` inside; project them on exit.

    For every write outside an optimizer's step: averaging (EMA, SWA), perturbing (SAM), merging
    adapters, initialising by hand. ``state_dict()`` inside is the dense one; ``save_pretrained`` is
    refused, because the config claims N:M weights. On exit masks are computed from what the
    parameters hold then, unless they are held (``mask_interval``, ``freeze_masks_at``,
    ``method="fixed"``); also after an exception. A weight that breaks its pattern on entry is taken
    as a dense one, with a warning. Where adapters are merged inside (PEFT's ``merge_and_unload``,
    ``merge_adapter``) a warning says how much of what they add is pruned again.

    Raises:
        ValueError: ``model`` has no N:M weight.
    """
    weights = sparse_weights(model)
    if not weights:
        raise ValueError(
            "dense_weights needs a model with N:M weights, but this one has none; "
            "call hf_nm.sparsify(model) first"
        )
    merged = Merged()
    replaced = replace_in_all(list(model.modules()), "save_pretrained", _refuse_to_save)
    replaced += merged.watch(model, weights)
    try:
        with open_weights(weights):
            yield model
    finally:
        for method in replaced:
            method.remove()
    if merged.weights:
        warnings.warn(str(merged), stacklevel=3)


@contextmanager
def open_weights(weights: list[SparseWeight]) -> Iterator[None]:
    """What :func:`dense_weights` does, for some weights of a model."""
    for w in weights:
        w.state.match_placement(w.weight)
        waits = w.state.parts is None and w.state.waiting is not None
        if waits and w.weight.device.type != "meta":
            raise ValueError(
                f"{w.name} was sharded after sparsify and ranks have not agreed on its mask yet; call "
                "hf_nm.attach(optimizer, model) on every rank first"
            )
    opened = [w for w in weights if not w.state.is_dense and w.state.parts is not None]
    try:  # from here on whatever raises (a warning made an error, too) leaves sparse weights behind
        with uninterrupted():
            overwritten = [w.name for w in opened if not _open(w)]
        if overwritten:
            warnings.warn(
                f"{len(overwritten)} N:M weights held values where their masks say zero "
                f"(first: {overwritten[0]}); their present values are taken as the dense weights",
                stacklevel=5,
            )
        yield
    finally:
        with uninterrupted():
            for w in opened:
                w.state.split(w.weight, update_mask=w.state.updates_mask)


def _open(w: SparseWeight) -> bool:
    """Let the parameter hold its dense weight; False where it was overwritten and is one already."""
    whole = not w.state.breaks(w.weight)
    if whole:
        w.state.merge(w.weight, on_request=True)
    else:
        w.state.take_as_dense()
    return whole


def _refuse_to_save(*args: object, **kwargs: object) -> None:
    raise BrokenPatternError(
        "save_pretrained was called inside `with hf_nm.dense_weights(model):`, where parameters hold "
        "dense weights that the config calls N:M; leave the context first, or save the dense weights "
        "as a plain torch.save(model.state_dict(), ...)"
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DataParallel and DDP wrappers."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif (inner := compat.compiled_inner(model)) is not None:
            model = inner
        else:
            return model
