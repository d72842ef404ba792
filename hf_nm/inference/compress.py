"""Running a model with its N:M weights packed in memory, on any device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_nm.formats.manifest import KEY
from hf_nm.formats.packed_weight import DTYPES
from hf_nm.formats.recorded import recorded_claims
from hf_nm.inference import choice
from hf_nm.inference.packed_tensor import (
    PackedWeight,
    frozen,
    is_packable,
    is_packed_weight,
    pack_weight,
    packed_size,
)
from hf_nm.inference.product import WAYS, ways_at
from hf_nm.model.refused import check_plain
from hf_nm.model.sharding import is_sharded
from hf_nm.model.surgery import finalize, owners_of_weights
from hf_nm.model.weights import sparse_weights
from hf_nm.sparsity.mask import count_kept
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.kinds import input_dims, is_convolution
from hf_nm.targets.rule import Target

ModelT = TypeVar("ModelT", bound=nn.Module)


def compress(
    model: ModelT,
    *,
    pattern: str | NMPattern | None = None,
    only_if_faster: bool = False,
    rows: int = 1,
) -> ModelT:
    """Keep a sparse model's N:M weights packed in memory, in place: for inference, on any device.

    A 2:4 weight in bf16 takes 0.5625 of what it took. Names, classes and ``generate`` stay as they
    are, outputs too up to the order of summation. On a GPU a few rows (decoding) are multiplied by a
    kernel that reads the packed weight, more rows by the fastest way that was measured there at this
    shape; on a CPU it saves memory alone, and is slower. ``save_pretrained`` writes the plain
    checkpoint. Packed weights are frozen: what else the model has, adapters too, can be trained.

    Args:
        model: made by :func:`hf_nm.sparsify` (it is finalized), or a checkpoint of one as
            ``from_pretrained`` loads it; any device, any floating-point dtype.
        pattern: for a model whose config does not say which weights are N:M, such as ``"2:4"``: then
            every matrix that keeps it is taken.
        only_if_faster: leave a weight dense where its product is not faster packed, measured here.
        rows: how many rows that is measured with: 1 is decoding one sequence.

    Returns:
        ``model``, the same object. N:M weights that stay dense are named in a warning, with the reason.

    Raises:
        ValueError: nothing says which weights are N:M, none could be taken, or the model is
            compiled, wrapped, quantized, offloaded, or compressed already.
        BrokenPatternError: a weight does not keep the pattern that is claimed for it.
    """
    check_plain(model, may_be_sparse=True)
    found = _find(model, None if pattern is None else NMPattern.parse(pattern))
    judge = _Judge(rows) if only_if_faster else None
    taken, left = _pack_targets(model, found, judge)
    if not taken and judge is None:
        first = next(iter(left.items()))
        raise ValueError(
            f"compress could take no weight of the model (first: {first[0]}: {first[1]})"
        )
    _tell(taken, left)
    return model


def compress_rest(model: nn.Module) -> None:
    """What :func:`compress` does, for a model that was loaded with some of its weights packed."""
    there = {name: p for name, p in model.named_parameters() if is_packed_weight(p)}
    for parameter in there.values():
        parameter.requires_grad_(False)
    taken, left = _pack_targets(model, _claimed_and_dense(model))
    _tell(len(there) + taken, left)


def _tell(taken: int, left: dict[str, str]) -> None:
    if left:
        text = "\n  ".join(f"{name}: {reason}" for name, reason in left.items())
        warnings.warn(
            f"{taken} weights are packed, {len(left)} N:M weights stay dense:\n  {text}",
            stacklevel=3,
        )


def _pack_targets(
    model: nn.Module, found: list[Target], judge: _Judge | None = None
) -> tuple[int, dict[str, str]]:
    """Pack some weights of a model, one after the other, each in all modules that hold it.

    Args:
        model: which is changed.
        found: its N:M weights.
        judge: says which weights are no gain.

    Returns:
        How many are packed, and name to reason for the others.

    Raises:
        BrokenPatternError: a weight does not keep its pattern.
    """
    uses = owners_of_weights(model)
    left: dict[str, str] = {}
    for target in found:
        module, local = target.owners[0]
        weight = getattr(module, local)
        owners = uses[id(weight)]
        reason = _reason(weight, target, owners)
        packed = None
        if reason is None:
            packed = pack_weight(weight, target.pattern, target.dim, target.name)
            reason = None if judge is None else judge.reason(weight, packed)
        if packed is None or reason is not None:
            left[target.name] = str(reason)
            continue
        parameter = frozen(packed)
        for owner, name in owners:
            setattr(owner, name, parameter)
        del weight  # the dense one goes before the next is packed
    return len(found) - len(left), left


def _claimed_and_dense(model: nn.Module) -> list[Target]:
    """The weights that a model's config claims to be N:M, but those that are packed already.

    Raises:
        ValueError: the config's claim is not valid, or names a weight that is not there.
    """
    owners = owners_of_weights(model)
    weights = dict(model.named_parameters())
    found = []
    for name, (pattern, dim) in recorded_claims(model).items():
        if name not in weights:
            raise ValueError(
                f"config.{KEY} names {name}, which this {type(model).__name__} does not have; load the "
                "checkpoint with the class that saved it"
            )
        weight = weights[name]
        if not is_packed_weight(weight):
            shape = tuple(weight.shape)
            found.append(Target(name, shape, dim, pattern, tuple(owners[id(weight)])))
    return found


def _find(model: nn.Module, pattern: NMPattern | None) -> list[Target]:
    """The N:M weights of a model: as it is, as its config says, or as ``pattern`` asks for."""
    owners = owners_of_weights(model)
    trained = []
    for w in sparse_weights(model):
        held = tuple(owners[id(w.weight)])
        trained.append(Target(w.name, tuple(w.weight.shape), w.state.dim, w.pattern, held))
    if trained:
        finalize(model)
        return trained
    if pattern is None:
        claimed = _claimed_and_dense(model)
        if not claimed:
            raise ValueError(
                "compress needs a sparse model, but nothing says which weights of this one are N:M; "
                "name the pattern that they keep, such as hf_nm.compress(model, pattern='2:4'), or "
                "hf_nm.sparsify and train it first"
            )
        return claimed
    found: dict[int, Target] = {}
    for prefix, module in model.named_modules():
        for local, dim in input_dims(module).items():
            weight = getattr(module, local)
            name = f"{prefix}.{local}" if prefix else local
            if id(weight) not in found and _keeps(weight, pattern, dim):
                shape = tuple(weight.shape)
                found[id(weight)] = Target(name, shape, dim, pattern, tuple(owners[id(weight)]))
    if not found:
        raise ValueError(f"compress found no matrix of the model that is {pattern}")
    return list(found.values())


def _keeps(weight: Tensor, pattern: NMPattern, dim: int) -> bool:
    if weight.device.type == "meta" or weight.shape[dim] % pattern.m or not weight.numel():
        return False
    return weight.is_floating_point() and int(count_kept(weight, pattern, dim).max()) <= pattern.n


def _reason(weight: Tensor, target: Target, uses: list[tuple[nn.Module, str]]) -> str | None:
    """Why a weight stays dense, or None."""
    for module, local in uses:
        kind = type(module).__name__
        if isinstance(module, nn.RNNBase):
            return f"a {local} of {kind}: torch's recurrent kernels take dense weights only"
        if is_convolution(module):
            return f"a {local} of {kind}: convolutions take dense weights only"
        if local not in input_dims(module):
            return f"shared with a {kind}, which does not multiply with it"
    if weight.device.type == "meta":
        return "on the meta device, without values"
    if is_sharded(weight):
        return "sharded over processes"
    if weight.dtype not in DTYPES.values():
        return f"dtype {weight.dtype}"
    if not is_packable(tuple(weight.shape), target.dim):
        return (
            f"shape {list(weight.shape)} along dimension {target.dim}: not one matrix, nor a stack"
        )
    size = weight.numel() * weight.itemsize
    if packed_size(weight, target.pattern) >= size:
        return f"{target.pattern} in {weight.dtype} takes no less memory packed"
    return None


class _Judge:
    """Whether a product is faster packed, measured once for every shape.

    Args:
        rows: of the inputs.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._reasons: dict[Any, str | None] = {}

    def reason(self, weight: Tensor, packed: PackedWeight) -> str | None:
        """Why packed is no gain; None where it is."""
        if weight.ndim != 2:
            return "a stack of matrices: how many rows each of them gets is not known"
        key = packed.kept.shape, packed.pattern, weight.dtype, weight.device
        if key not in self._reasons:
            dense = packed.dense()
            dense = dense if packed.input_dim == -1 else dense.T.contiguous()
            times = time_product(dense, packed, self.rows)
            best = min((way for way in times if way != "dense"), key=lambda way: times[way])
            faster = times[best] < times["dense"]
            self._reasons[key] = (
                None
                if faster
                else (
                    f"no faster at {self.rows} rows on this {weight.device.type}: {times[best]:.3f} ms "
                    f"packed ({best}), {times['dense']:.3f} ms dense"
                )
            )
        return self._reasons[key]


def time_product(
    dense: Tensor, packed: PackedWeight, rows: int, rounds: int = 9
) -> dict[str, float]:
    """Median milliseconds of the product with a weight, ``dense`` and each way that there is packed.

    Args:
        dense: ``[out, in]``.
        packed: the same weight.
        rows: of the input.
        rounds: of timing, interleaved.
    """
    inputs = torch.randn(rows, dense.shape[1], device=dense.device).to(dense.dtype)
    parts: Any = (inputs, packed.kept, packed.bits, None, packed.n, packed.m)
    ways = ways_at(rows, packed.kept, packed.n, packed.m)
    calls: dict[str, Callable[[], Any]] = {way: partial(WAYS[way], *parts) for way in ways}
    with torch.no_grad():
        calls["dense"] = partial(F.linear, inputs, dense)
        return choice.time_ways(calls, dense.device, rounds)
