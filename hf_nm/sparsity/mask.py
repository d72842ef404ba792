"""Which weights are kept, and how a dense weight splits into its two parts: pure tensor functions.

Magnitudes are compared as integers: with the sign bit cleared, the bits of an IEEE float order as
its absolute value does, and a NaN comes out above infinity. So a NaN counts as the largest entry of
its group and the number kept never depends on the values. Splitting and merging work on the bits
too: selecting by multiplication would turn a pruned infinity into NaN.

Shapes: ``weight``, ``pruned`` and ``mask`` share one shape; groups of ``m`` run along ``dim``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_nm.sparsity.bits import as_integers
from hf_nm.sparsity.pattern import NMPattern

# Of these dtypes the bits without the sign order as magnitudes, NaN last. (The "fnuz" formats write
# NaN as minus zero, float8_e8m0fnu has no sign bit, float4_e2m1fn_x2 holds two numbers.)
MASKABLE_DTYPES = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    }
)


# Entries handled at a time: small enough for a CPU's caches, large enough that starting threads costs
# little (2**16 takes 1.4 times as long).
_CHUNK_CPU = 1 << 18
_CHUNK_OTHER = 1 << 22

# Above this group size counting wins over every distance costs more than a sort (crossover on CPU).
_LARGEST_COUNTED_GROUP = 48


def nm_mask(weight: Tensor, n: int, m: int, dim: int = -1) -> Tensor:
    """The N:M mask of a weight: True for the ``n`` largest ``abs(weight)`` of each group.

    Groups are ``m`` consecutive entries along ``dim``, the dimension a dot product sums over (the
    last one for ``nn.Linear``), and never cross rows. Exactly ``n`` are kept in each group; among
    equal magnitudes the lowest index is kept; a NaN counts as the largest.
    (Zhou et al. 2021.)

    Args:
        weight: any shape with ``weight.shape[dim]`` a multiple of ``m``; a floating dtype.
        n: entries kept per group, ``1 <= n < m``.
        m: entries per group.
        dim: the input dimension.

    Returns:
        Bool tensor of ``weight``'s shape, contiguous, on its device. ``weight`` is not changed.

    Raises:
        TypeError: ``weight`` is not a floating-point tensor, or ``n``, ``m`` not integers.
        ValueError: not ``1 <= n < m``, or ``m`` does not divide ``weight.shape[dim]``.
        IndexError: ``weight`` has no dimension ``dim``.
    """
    pattern = NMPattern(n, m)
    check_maskable(weight, pattern, dim)
    with torch.no_grad():
        weight = weight.detach().contiguous()
        mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        if weight.device.type != "meta":
            stride = stride_along(weight, dim)
            for bits, out in _chunks(pattern.m * stride, as_integers(weight), mask):
                out.copy_(_keep(bits, pattern, stride))
        return mask


def check_maskable(weight: Tensor, pattern: NMPattern, dim: int = -1) -> None:
    """Raise unless ``weight`` is a floating-point tensor made of whole groups along ``dim``."""
    if not isinstance(weight, Tensor) or weight.dtype not in MASKABLE_DTYPES:
        kind = str(weight.dtype) if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(
            f"an N:M mask needs a floating-point tensor, but got {kind}; cast or dequantize the "
            "weight first, for example to torch.bfloat16"
        )
    if not -weight.ndim <= dim < weight.ndim:
        raise IndexError(
            f"dim={dim} is not a dimension of a weight of shape {tuple(weight.shape)}; "
            "pass the dimension that the layer's dot product sums over"
        )
    size = weight.shape[dim]
    if not pattern.divides(size):
        raise ValueError(
            f"{pattern} needs an input dimension that {pattern.m} divides, but dimension {dim} of "
            f"shape {tuple(weight.shape)} has {size} entries; leave this weight dense or choose "
            f"another m"
        )


@torch.no_grad()
def split_(
    weight: Tensor,
    pruned: Tensor | None,
    mask: Tensor,
    pattern: NMPattern,
    dim: int = -1,
    *,
    update_mask: bool,
) -> Tensor:
    """Split a dense weight in place: ``weight`` becomes ``S = E*W``, ``pruned`` ``R = (1-E)*W``.

    Args:
        weight: ``W``; holds ``S`` afterwards.
        pruned: receives ``R``, same shape and dtype; None drops it.
        mask: ``E``, bool; read, or with ``update_mask`` written from ``W``.
        pattern: the N:M pattern of the mask.
        dim: the input dimension.
        update_mask: whether the mask is computed again from ``W`` first.

    Returns:
        int64 scalar tensor on the weight's device: how many mask entries changed.
    """
    parts = [weight, mask] if pruned is None else [weight, mask, pruned]
    if not all(part.is_contiguous() for part in parts):
        copies = [part.contiguous() for part in parts]
        copied_pruned = None if pruned is None else copies[2]
        flips = split_(copies[0], copied_pruned, copies[1], pattern, dim, update_mask=update_mask)
        for part, copy in zip(parts, copies, strict=True):
            part.copy_(copy)
        return flips

    stride = stride_along(weight, dim)
    flips = torch.zeros((), dtype=torch.int64, device=weight.device)
    tensors = [as_integers(weight), mask]
    if pruned is not None:
        tensors.append(as_integers(pruned))
    for dense, kept, *rest in _chunks(pattern.m * stride, *tensors):
        if update_mask:
            new = _keep(dense, pattern, stride)
            flips += torch.count_nonzero(torch.ne(new, kept))
            kept.copy_(new)
        counted = pattern.m <= _LARGEST_COUNTED_GROUP
        dropped = _buffers(pattern, dense, stride).compared if counted else torch.empty_like(dense)
        dropped.copy_(kept.view(torch.int8).sub(1))  # all bits set where pruned
        if rest:
            torch.bitwise_and(dense, dropped, out=rest[0])
            dense.bitwise_xor_(rest[0])
        else:
            dense.bitwise_and_(dropped.bitwise_not_())
    return flips


@torch.no_grad()
def merge_(weight: Tensor, pruned: Tensor | None, mask: Tensor) -> Tensor:
    """Undo :func:`split_`, bit for bit: pruned entries of ``weight`` come from ``pruned``.

    On the way every pruned entry of ``weight`` is looked at: they should all be zero. On a CPU nothing
    is changed where one is not. Elsewhere that would wait for the device: stray values are replaced.

    Args:
        weight: ``S``; holds ``W`` afterwards.
        pruned: ``R``, same shape and dtype; not changed. None: nothing to merge, only to look at.
        mask: ``E``, bool, same shape.

    Returns:
        bool scalar tensor on the weight's device: whether a pruned entry was not zero (minus zero is).

    Raises:
        TypeError: ``pruned`` has another dtype.
    """
    if pruned is not None and weight.dtype != pruned.dtype:  # bits would mean other numbers
        raise TypeError(f"a {weight.dtype} weight has a pruned part of {pruned.dtype}; cast both")
    parts = [weight, mask] if pruned is None else [weight, mask, pruned]
    if not all(part.is_contiguous() for part in parts):
        stray = torch.any(weight.ne(0).logical_and_(~mask))
        if pruned is not None and not (weight.device.type == "cpu" and bool(stray)):
            weight.copy_(torch.where(mask, weight, pruned))
        return stray

    strays = torch.zeros((), dtype=torch.bool, device=weight.device)
    tensors = [as_integers(weight), mask]
    if pruned is not None:
        tensors.append(as_integers(pruned))
    merged: list[tuple[Tensor, Tensor]] = []
    for bits, kept, *rest in _chunks(1, *tensors):
        if weight.device.type != "cpu":
            stray = torch.empty_like(bits)
            stray.copy_(kept.view(torch.int8).sub(1)).bitwise_and_(bits)  # minus one: all bits set
            bits.bitwise_xor_(stray)
            strays.logical_or_(_hold_values(stray))
        elif _may_stray(bits, kept):
            stray = kept.view(torch.int8).sub(1).to(bits.dtype).bitwise_and_(bits)
            if _hold_values(stray.clone()):  # this run is as it was, and now so are those before it
                for before, its_mask in merged:
                    zero_pruned_(before, its_mask)
                return strays.fill_(True)
            bits.bitwise_xor_(stray)  # minus zeros
        if rest:
            bits.bitwise_xor_(rest[0])  # no two bits of them meet
            merged.append((bits, kept))
    return strays


@torch.no_grad()
def zero_pruned_(tensor: Tensor, mask: Tensor) -> None:
    """Set ``tensor`` to zero in place wherever ``mask`` is False, whatever stood there (NaN too)."""
    bits = as_integers(tensor)
    bits.bitwise_and_(mask.to(bits.dtype).neg_())


@torch.no_grad()
def breaks_mask(weight: Tensor, mask: Tensor) -> bool:
    """Whether any pruned entry of ``weight`` is not zero (NaN is not zero). Waits for the device."""
    return bool(torch.any(weight.ne(0).logical_and_(~mask)))


@torch.no_grad()
def count_kept(weight: Tensor, pattern: NMPattern, dim: int = -1) -> Tensor:
    """Non-zero entries per group: int64 of shape ``[..., groups]``, ``dim`` moved last."""
    rows = weight.detach().movedim(dim, -1)
    return rows.ne(0).unflatten(-1, (-1, pattern.m)).sum(-1)


def stride_along(tensor: Tensor, dim: int) -> int:
    """How far apart in memory neighbours along ``dim`` of a contiguous tensor are, in entries."""
    return max(1, math.prod(tensor.shape[dim % tensor.ndim + 1 :]))  # 1 in an empty shard


def entries_at_a_time() -> int:
    """How many entries of CPU tensors these functions treat at a time, to stay in its caches."""
    return _CHUNK_CPU


def _chunks(span: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Contiguous tensors flattened and cut into equal runs of whole groups, which lie within ``span``
    entries."""
    flat = [tensor.view(-1) for tensor in tensors]
    size = _chunk_size(span, tensors[0].device)
    for start in range(0, flat[0].numel(), size):
        yield tuple(tensor[start : start + size] for tensor in flat)


def _chunk_size(span: int, device: torch.device) -> int:
    limit = _CHUNK_CPU if device.type == "cpu" else _CHUNK_OTHER
    return max(span, limit // span * span)


def _keep(bits: Tensor, pattern: NMPattern, stride: int) -> Tensor:
    """Flat bool mask for a flat run of whole groups, given as signed integers; the entries of a group
    lie ``stride`` apart.

    Valid until the next call in this thread: it may be a buffer that is used again.
    """
    n, m = pattern.n, pattern.m
    if m > _LARGEST_COUNTED_GROUP:
        groups = bits.bitwise_and(torch.iinfo(bits.dtype).max).view(-1, m, stride)
        order = groups.sort(dim=1, descending=True, stable=True).indices[:, :n]
        kept = torch.zeros(groups.shape, dtype=torch.bool, device=bits.device)
        return kept.scatter_(1, order, True).view(-1)
    # An entry is kept if it beats at least m - n others of its group; an equal one beats those after
    # it. Whole runs are compared at each distance, and pairs that straddle two groups discarded:
    # m - 1 sweeps over contiguous memory instead of strided access within small groups.
    buffers = _buffers(pattern, bits, stride)
    torch.bitwise_and(bits, torch.iinfo(bits.dtype).max, out=buffers.magnitude[0])
    buffers.wins[0].copy_(buffers.start)
    for distance in range(1, m):
        # Compared into integers first: torch vectorizes that, and not a comparison into bool.
        torch.ge(buffers.magnitude[0], buffers.magnitude[distance], out=buffers.compared)
        beats = buffers.beats.copy_(buffers.compared).bitwise_and_(buffers.within[distance - 1])
        buffers.wins[0].add_(beats)
        buffers.wins[distance].sub_(beats)
    return buffers.wins[0].bitwise_right_shift_(7).view(torch.bool)


class _Buffers:
    """Working memory of :func:`_keep` for runs of one length; lists are views by distance ahead, in
    entries of a group.

    Attributes:
        magnitude: per distance the magnitudes that far ahead, integers.
        compared: a comparison's outcome, integers 0 or 1.
        beats: the same as uint8, and zero where it compares two groups.
        wins: per distance the win counts that far ahead, uint8.
        start: what counts start with, uint8: the wins over all entries before, so that a later one
            that does beat this entry takes its win back; shifted so that bit 7 comes on at ``m - n``
            wins (reading that bit is several times faster than comparing bytes).
        within: per distance less one, 1 where the entry that far ahead is in the same group, uint8.
    """

    def __init__(
        self, pattern: NMPattern, length: int, stride: int, dtype: torch.dtype, device: Any
    ) -> None:
        n, m = pattern.n, pattern.m
        position = torch.arange(m, dtype=torch.uint8, device=device).repeat_interleave(stride)
        position = position.repeat(length // (m * stride))
        self.start = position + (128 - (m - n))
        self.within = [(position < m - d).view(torch.uint8) for d in range(1, m)]
        self.compared = torch.empty(length, dtype=dtype, device=device)
        self.beats = torch.empty(length, dtype=torch.uint8, device=device)
        ahead = [d * stride for d in range(m)]
        magnitude = torch.zeros(length + m * stride, dtype=dtype, device=device)
        wins = torch.zeros(length + m * stride, dtype=torch.uint8, device=device)
        self.magnitude = [magnitude[d : d + length] for d in ahead]
        self.wins = [wins[d : d + length] for d in ahead]


class _BuffersOfThread(threading.local):
    """Each thread's own buffers, the latest few: asking the system for memory costs more than the
    work in it. (On a GPU torch's allocator keeps memory, and keeps streams apart.)"""

    def __init__(self) -> None:
        self.latest: dict[Any, _Buffers] = {}
        self.scratch: dict[int, Tensor] = {}


_buffers_of_thread = _BuffersOfThread()
_MOST_BUFFERS = 8


def _hold_values(stray: Tensor) -> Tensor:
    """Whether bits of pruned places, which are overwritten, are of more than minus zeros: bool scalar
    tensor."""
    return stray.bitwise_and_(torch.iinfo(stray.dtype).max).amax().ne(0)


def _may_stray(bits: Tensor, kept: Tensor) -> bool:
    """Whether a pruned entry has any bit set, on a CPU: over bytes, of which torch treats the most at a
    time (a pass over the weight's own integers costs as much as the merge)."""
    stray = _scratch(bits).copy_(bits)  # whether not zero
    return bool(torch.gt(stray, kept, out=stray).view(torch.uint8).amax())


def _scratch(bits: Tensor) -> Tensor:
    """A bool tensor of this length, of this thread where it can be used again."""
    if type(bits) is not Tensor:
        return torch.empty_like(bits, dtype=torch.bool)
    latest = _buffers_of_thread.scratch
    key = bits.numel()
    if key not in latest:
        if len(latest) == _MOST_BUFFERS:
            del latest[next(iter(latest))]
        with torch.inference_mode(False):
            latest[key] = torch.empty_like(bits, dtype=torch.bool)
    return latest[key]


def _buffers(pattern: NMPattern, bits: Tensor, stride: int) -> _Buffers:
    if bits.device.type != "cpu" or type(bits) is not Tensor:  # a FakeTensor's must not be kept
        return _Buffers(pattern, bits.numel(), stride, bits.dtype, bits.device)
    latest = _buffers_of_thread.latest
    key = (pattern, bits.numel(), stride, bits.dtype)
    buffers = latest.pop(key, None)
    if buffers is None:
        with torch.inference_mode(False):
            buffers = _Buffers(pattern, bits.numel(), stride, bits.dtype, bits.device)
        if len(latest) == _MOST_BUFFERS:
            del latest[next(iter(latest))]
    latest[key] = buffers
    return buffers
