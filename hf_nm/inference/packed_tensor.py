"""An N:M weight packed in memory: a tensor that every module takes for its dense weight.

What it holds is what a packed file holds (:mod:`hf_nm.formats.packed_weight`): the kept values, and one
bit for each entry. Linear layers, ``Conv1D`` and experts that are linear layers multiply with it
(:mod:`hf_nm.inference.product`); to any other operation of torch it is the dense weight, made for that
operation and dropped after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hf_nm import compat
from hf_nm.formats.packed_weight import DTYPES, Layout, pack_run
from hf_nm.inference.product import packed_linear, unpack
from hf_nm.sparsity.bits import as_integers
from hf_nm.sparsity.check import check_pattern
from hf_nm.sparsity.pattern import NMPattern

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_aten = torch.ops.aten


class PackedWeight(Tensor):
    """A dense weight's shape, dtype and device around its packed form. Made by :func:`pack_weight`.

    Args:
        kept: ``[out, in / m * n]``, or ``[experts, out, in / m * n]``: each group's kept entries in
            order.
        bits: uint8 ``[ceil(out * in / 8)]``, or ``[experts, ceil(out * in / 8)]``: one bit for each
            entry, 1 where kept, lowest bit of a byte first.
        n: kept of each group.
        m: entries of a group.
        input_dim: of the weight: -1 for ``[..., out, in]``, -2 for ``[..., in, out]``.
    """

    kept: Tensor
    bits: Tensor
    n: int
    m: int
    input_dim: int
    # Asked for where this module is not imported.
    is_nm_packed = True

    @staticmethod
    def __new__(
        cls: type[PackedWeight], kept: Tensor, bits: Tensor, n: int, m: int, input_dim: int
    ) -> PackedWeight:
        out, inputs = kept.shape[-2], kept.shape[-1] // n * m
        last = (out, inputs) if input_dim == -1 else (inputs, out)
        return compat.wrapper_tensor(cls, (*kept.shape[:-2], *last), kept)

    def __init__(self, kept: Tensor, bits: Tensor, n: int, m: int, input_dim: int) -> None:
        self.kept, self.bits, self.n, self.m, self.input_dim = kept, bits, n, m, input_dim

    @property
    def pattern(self) -> NMPattern:
        """The weight's N:M pattern."""
        return NMPattern(self.n, self.m)

    @property
    def packed_bytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.kept.nbytes + self.bits.nbytes

    def dense(self) -> Tensor:
        """The weight as a plain tensor with exact zeros, made anew."""
        weight = unpack(self.kept, self.bits, self.n, self.m)
        return weight if self.input_dim == -1 else weight.transpose(-2, -1)

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return (
            f"PackedWeight({self.n}:{self.m}, shape={list(self.shape)}, dtype={self.dtype}, "
            f"device='{self.device}', {self.packed_bytes:,} bytes)"
        )

    def __tensor_flatten__(self) -> tuple[list[str], tuple[int, int, int]]:
        return ["kept", "bits"], (self.n, self.m, self.input_dim)

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], made_with: tuple[int, int, int], size: Any, stride: Any
    ) -> PackedWeight:
        return cls(inner["kept"], inner["bits"], *made_with)

    def _stable_hash_for_caching(self) -> str:
        """What torch's cache of compiled code goes by, beside shape and dtype."""
        return f"{type(self).__name__} {self.n}:{self.m} {self.input_dim}"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        own = _AS_IT_IS.get(func)
        if own is not None:
            result = own(*args, **kwargs)
            if result is not None:
                return result
        return compat.call_below(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _KEEP_PACKED.get(func)
        if rule is not None:
            result = rule(func, *args, **kwargs)
            if result is not None:
                return result
        if any(isinstance(value, PackedWeight) for value in compat.written_arguments(func, args)):
            raise _no_writing(func)
        dense_args, dense_kwargs = tree_map_only(PackedWeight, PackedWeight.dense, (args, kwargs))
        return func(*dense_args, **dense_kwargs)


def _no_writing(func: Any) -> TypeError:
    return TypeError(
        f"{func} writes to a compressed weight, which holds its kept values alone; load the plain "
        "checkpoint to change weights (hf_nm.restore(model) to train it), and compress it again"
    )


def pack_weight(weight: Tensor, pattern: NMPattern, dim: int, name: str = "weight") -> PackedWeight:
    """Pack a weight that keeps its pattern.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]`` with ``dim`` -1, or the transposed of these with
            ``dim`` -2; at most n of each group not zero.
        pattern: its pattern.
        dim: its input dimension, negative.
        name: for the message of an error.

    Returns:
        The same values; zeros are +0.0, whatever their sign was.

    Raises:
        BrokenPatternError: a group holds more than n other than zero.
        ValueError: the weight is not made of whole groups, or has no such form.
    """
    if not is_packable(tuple(weight.shape), dim):
        raise ValueError(
            f"{name} of shape {list(weight.shape)} along {dim} has no packed form here"
        )
    check_pattern(name, weight, pattern, dim)
    rows = weight.detach() if dim == -1 else weight.detach().transpose(-2, -1)
    matrices = rows if rows.ndim == 3 else rows.unsqueeze(0)
    packed = [_pack_matrix(matrix, pattern) for matrix in matrices]
    if weight.ndim == 2:
        kept, bits = packed[0]
    else:
        kept, bits = (torch.stack(parts) for parts in zip(*packed, strict=True))
    return PackedWeight(kept, bits, pattern.n, pattern.m, dim)


def is_packable(shape: tuple[int, ...], dim: int) -> bool:
    """Whether a weight of this shape and input dimension is a matrix, or a stack of them."""
    return len(shape) in (2, 3) and dim in (-1, -2)


def _pack_matrix(matrix: Tensor, pattern: NMPattern) -> tuple[Tensor, Tensor]:
    """Kept values ``[out, in / m * n]`` and mask ``[ceil(out * in / 8)]`` of ``[out, in]``."""
    matrix = matrix.contiguous()
    layout = Layout(_NAMES[matrix.dtype], tuple(matrix.shape), pattern, -1)
    flat = as_integers(matrix).view(-1)
    values = torch.empty(layout.kept(layout.numel), dtype=layout.integer, device=matrix.device)
    mask = torch.empty(-(-layout.numel // 8), dtype=torch.uint8, device=matrix.device)
    done = 0
    for first, length in layout.runs():
        run = flat[first : first + length]
        if matrix.dtype.itemsize > 1:  # -0.0 is a zero, too
            zero = matrix.view(-1)[first : first + length] == 0
            run = run.masked_fill(zero, 0)
        count = layout.kept(length)
        values[done : done + count], mask[first // 8 : -(-(first + length) // 8)] = pack_run(
            run, layout
        )
        done += count
    kept = values.view(matrix.dtype).view(matrix.shape[0], -1)
    return kept, mask


def packed_size(weight: Tensor, pattern: NMPattern) -> int:
    """Bytes that a weight takes packed; more than it has where the pattern keeps nearly all."""
    matrices = weight.shape[0] if weight.ndim == 3 else 1
    each = weight.numel() // matrices
    bits = each // pattern.m * pattern.n * weight.itemsize + -(-each // 8)
    return matrices * bits


# What is done with the packed weight as it is; None where this is not such a case.


def _linear(input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    if isinstance(input, PackedWeight) or not isinstance(weight, PackedWeight):
        return None
    if weight.ndim != 2 or weight.input_dim != -1:
        return None
    return _product(input, weight, bias)


def _matmul(input: Any, other: Any) -> Tensor | None:
    if isinstance(input, PackedWeight) or not isinstance(other, PackedWeight):
        return None
    if other.ndim != 2 or other.input_dim != -2 or input.ndim < 2:
        return None
    return _product(input, other, None)


def _addmm(input: Any, mat1: Any, mat2: Any, **factors: Any) -> Tensor | None:
    """``Conv1D`` of transformers: a bias, then the product."""
    if factors or isinstance(input, PackedWeight) or input.ndim != 1:
        return None
    if isinstance(mat1, PackedWeight) or not isinstance(mat2, PackedWeight):
        return None
    return _product(mat1, mat2, input) if mat2.input_dim == -2 else None


def _product(input: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """``input`` times a packed matrix, as autocast wants it."""
    if weight.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"a compressed weight of shape {list(weight.shape)} requires a gradient, but it holds its "
            "kept values alone and cannot be trained; load the plain checkpoint and call "
            "hf_nm.restore(model), or leave it frozen (weight.requires_grad_(False)) and train others"
        )
    kept = weight.kept
    if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
        input, kept = input.to(dtype), kept.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return packed_linear(input, kept, weight.bits, bias, weight.n, weight.m)


def _contiguous(tensor: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """The plain tensor: what a file of a checkpoint holds. (transformers asks for this, one shard at a
    time, when it saves.)"""
    return tensor.dense().contiguous() if isinstance(tensor, PackedWeight) else None


def _storage(tensor: Any) -> Any:
    """What tells two weights from one that is held twice, as transformers asks when it saves."""
    return tensor.kept.untyped_storage() if isinstance(tensor, PackedWeight) else None


def _set_item(tensor: Any, *args: Any) -> None:
    """Writing through an index would reach the dense weight that is made for it, and be lost."""
    if isinstance(tensor, PackedWeight):
        raise _no_writing("an assignment to some of its entries")


_AS_IT_IS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.contiguous: _contiguous,
    Tensor.storage: _storage,
    Tensor.__setitem__: _set_item,
}


# What leaves a weight packed; None where that cannot be.


def _same(packed: PackedWeight, kept: Tensor, bits: Tensor) -> PackedWeight:
    return PackedWeight(kept, bits, packed.n, packed.m, packed.input_dim)


def _each(func: Any, packed: PackedWeight, *args: Any, **kwargs: Any) -> PackedWeight:
    return _same(packed, func(packed.kept, *args, **kwargs), func(packed.bits, *args, **kwargs))


def _clone(func: Any, packed: PackedWeight, **kwargs: Any) -> PackedWeight:
    return _same(packed, packed.kept.clone(), packed.bits.clone())


def _to(func: Any, packed: PackedWeight, **kwargs: Any) -> PackedWeight | None:
    dtype = kwargs.pop("dtype", None) or packed.dtype
    if dtype not in _NAMES:
        return None
    kwargs.pop("memory_format", None)
    kwargs.pop("layout", None)
    kept = packed.kept.to(dtype=dtype, **_device(kwargs))
    return _same(packed, kept, packed.bits.to(**_device(kwargs)))


def _device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: kwargs[name] for name in ("device", "non_blocking") if kwargs.get(name) is not None
    }


def _copy(func: Any, target: Any, source: Any, non_blocking: bool = False) -> Any:
    """Load into a compressed weight: packed values, or dense ones that keep the pattern."""
    if not isinstance(target, PackedWeight):
        return None
    if not isinstance(source, PackedWeight) or source.__tensor_flatten__() != (
        target.__tensor_flatten__()
    ):
        plain = source.dense() if isinstance(source, PackedWeight) else source
        source = pack_weight(
            plain.expand(target.shape), target.pattern, target.input_dim, "a loaded weight"
        )
    target.kept.copy_(source.kept, non_blocking)
    target.bits.copy_(source.bits, non_blocking)
    return target


def _select(func: Any, packed: PackedWeight, dim: int, index: int) -> PackedWeight | None:
    """One expert of a stack."""
    if packed.ndim != 3 or dim != 0:
        return None
    return _same(packed, packed.kept[index], packed.bits[index])


def _stack(func: Any, tensors: Any, dim: int = 0) -> PackedWeight | None:
    """Experts that a checkpoint holds apart, and transformers one over the other."""
    if dim != 0 or not _alike(tensors) or tensors[0].ndim != 2:
        return None
    kept, bits = (torch.stack([getattr(t, part) for t in tensors]) for part in ("kept", "bits"))
    return _same(tensors[0], kept, bits)


def _cat(func: Any, tensors: Any, dim: int = 0) -> PackedWeight | None:
    """Projections that a checkpoint holds apart, and transformers side by side (gate and up)."""
    if not _alike(tensors) or tensors[0].input_dim != -1:
        return None
    first = tensors[0]
    if dim % first.ndim != first.ndim - 2 or any(math.prod(t.shape[-2:]) % 8 for t in tensors):
        return None
    kept = torch.cat([t.kept for t in tensors], -2)
    return _same(first, kept, torch.cat([t.bits for t in tensors], -1))


def _alike(tensors: Any) -> bool:
    first = tensors[0]
    if not all(isinstance(t, PackedWeight) and t.dtype == first.dtype for t in tensors):
        return False
    made = first.__tensor_flatten__()
    return all(t.__tensor_flatten__() == made and t.device == first.device for t in tensors)


_KEEP_PACKED: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: _each,
    _aten.alias.default: _each,
    _aten.clone.default: _clone,
    compat.TO_COPY: _to,
    _aten.copy_.default: _copy,
    _aten.select.int: _select,
    _aten.stack.default: _stack,
    _aten.cat.default: _cat,
}


def is_packed_weight(value: Any) -> bool:
    """Whether a tensor, or a parameter, is packed in memory."""
    return isinstance(value, PackedWeight)


def frozen(packed: PackedWeight) -> nn.Parameter:
    """The parameter for a packed weight; what is packed is not trained."""
    return nn.Parameter(packed, requires_grad=False)


torch.serialization.add_safe_globals([PackedWeight])  # of our own making: torch.load may build it
