"""The two parts of a weight in fewer bytes: of ``R`` only the pruned values, and the mask as bits.

What :func:`~hf_nm.sparsity.mask.split_` and :func:`~hf_nm.sparsity.mask.merge_` do, bit for bit, with
2.125 bytes beside a fp32 weight at 2:4 in place of 5. Work goes run by run, so that no tensor of a whole
weight's size is made on the way. (On a GPU these are torch's own kernels; nothing waits for the device.)

Shapes: ``weight`` is any tensor with groups of ``m`` along ``dim``; ``bits`` is uint8
``[ceil(numel / 8)]``, the mask as :func:`~hf_nm.sparsity.bits.pack_bits` writes it; ``values`` is
``[numel / m * (m - n)]`` in the weight's dtype: the pruned values of each group by their place in it,
laid out in memory as a weight is whose groups have ``m - n`` entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hf_nm.sparsity.bits import as_integers, count_bits, pack_bits, unpack_bits
from hf_nm.sparsity.mask import merge_, nm_mask, zero_pruned_
from hf_nm.sparsity.pattern import NMPattern

# Entries handled at a time. Places are 64-bit numbers, so a run is shorter than a mask's elsewhere.
_RUN_CPU = 1 << 18
_RUN_OTHER = 1 << 21

# So many neighbours' bits are read as one number, which a table gives the places for.
_CODES = {8: torch.uint8, 16: torch.int16}

# Where no table can: so many comparisons a group cost what counting by a cumulative sum does.
_MOST_SWEEPS = 32


def count_pruned(entries: int, pattern: NMPattern) -> int:
    """How many of so many entries, in whole groups, a mask of the pattern prunes."""
    return entries // pattern.m * (pattern.m - pattern.n)


@torch.no_grad()
def pack_pruned(tensor: Tensor, bits: Tensor, pattern: NMPattern, dim: int = -1) -> Tensor:
    """The values of ``tensor`` at pruned places.

    Args:
        tensor: ``R`` or ``W``; not changed.
        bits: its mask, which keeps exactly ``n`` of each group.
        pattern: the N:M pattern of the mask.
        dim: the input dimension.

    Returns:
        ``values``, a new tensor.
    """
    tensor = tensor.detach().contiguous()
    values = tensor.new_empty(count_pruned(tensor.numel(), pattern))
    stride = _stride(tensor, dim)
    for entries, mask, pruned in _runs(tensor, bits, values, pattern, stride):
        assert pruned is not None
        places = _places(mask, entries.numel(), pattern, stride)
        torch.gather(_as(entries, places), 1, places, out=pruned.view(places.shape))
    return values


@torch.no_grad()
def unpack_pruned(
    values: Tensor, bits: Tensor, shape: torch.Size, pattern: NMPattern, dim: int = -1
) -> Tensor:
    """Undo :func:`pack_pruned`: ``R`` of ``shape``, zero where the mask keeps."""
    whole = values.new_zeros(shape)
    stride = _stride(whole, dim)
    for entries, mask, pruned in _runs(whole, bits, values, pattern, stride):
        assert pruned is not None
        places = _places(mask, entries.numel(), pattern, stride)
        _as(entries, places).scatter_(1, places, pruned.view(places.shape))
    return whole


@torch.no_grad()
def split_compact_(
    weight: Tensor,
    values: Tensor | None,
    bits: Tensor,
    pattern: NMPattern,
    dim: int = -1,
    *,
    update_mask: bool,
) -> Tensor:
    """Do what :func:`~hf_nm.sparsity.mask.split_` does, where mask and pruned part are held compact.

    Args:
        weight: ``W``; holds ``S`` afterwards.
        values: receives the pruned values; None drops them.
        bits: the mask; read, or with ``update_mask`` written from ``W``.
        pattern: the N:M pattern of the mask.
        dim: the input dimension.
        update_mask: whether the mask is computed again from ``W`` first.

    Returns:
        int64 scalar tensor on the weight's device: how many mask entries changed.
    """
    if not weight.is_contiguous():
        copy = weight.contiguous()
        flips = split_compact_(copy, values, bits, pattern, dim, update_mask=update_mask)
        weight.copy_(copy)
        return flips
    stride = _stride(weight, dim)
    flips = torch.zeros((), dtype=torch.int64, device=weight.device)
    for entries, mask, pruned in _runs(weight, bits, values, pattern, stride):
        if update_mask:
            groups = entries.view(weight.dtype).view(-1, pattern.m, stride)
            kept = nm_mask(groups, pattern.n, pattern.m, dim=1).view(-1)
            new = pack_bits(kept)
            flips += count_bits(mask.bitwise_xor_(new))
            mask.copy_(new)
        else:
            kept = unpack_bits(mask, entries.shape)
        if pruned is not None:
            places = _places(mask, entries.numel(), pattern, stride)
            torch.gather(_as(entries, places), 1, places, out=pruned.view(places.shape))
        zero_pruned_(entries, kept)
    return flips


@torch.no_grad()
def merge_compact_(
    weight: Tensor, values: Tensor | None, bits: Tensor, pattern: NMPattern, dim: int = -1
) -> Tensor:
    """Do what :func:`~hf_nm.sparsity.mask.merge_` does, where mask and pruned part are held compact.

    Args:
        weight: ``S``; holds ``W`` afterwards. On a CPU it is left as it is where a pruned entry of it is
            not zero.
        values: the pruned values; None: nothing to merge, only to look at.
        bits: the mask.
        pattern: the N:M pattern of the mask.
        dim: the input dimension.

    Returns:
        bool scalar tensor on the weight's device: whether a pruned entry was not zero (minus zero is).

    Raises:
        TypeError: ``values`` have another dtype.
    """
    if values is not None and weight.dtype != values.dtype:  # bits would mean other numbers
        raise TypeError(f"a {weight.dtype} weight has pruned values of {values.dtype}; cast both")
    if not weight.is_contiguous():
        copy = weight.contiguous()
        stray = merge_compact_(copy, values, bits, pattern, dim)
        if values is not None:
            weight.copy_(copy)
        return stray
    stride = _stride(weight, dim)
    strays = torch.zeros((), dtype=torch.bool, device=weight.device)
    merged: list[tuple[Tensor, Tensor]] = []
    for entries, mask, pruned in _runs(weight, bits, values, pattern, stride):
        if pruned is None:
            strays |= merge_(entries.view(weight.dtype), None, unpack_bits(mask, entries.shape))
            continue
        places = _places(mask, entries.numel(), pattern, stride)
        sparse = _as(entries, places)
        present = sparse.gather(1, places)
        stray = present.bitwise_and_(torch.iinfo(present.dtype).max).amax().ne(0)
        if weight.device.type != "cpu":
            strays |= stray
        elif stray:  # this run is as it was, and now so are those before it
            for before, its_mask in merged:
                zero_pruned_(before, unpack_bits(its_mask, before.shape))
            return strays.fill_(True)
        sparse.scatter_(1, places, pruned.view(places.shape))
        merged.append((entries, mask))
    return strays


@torch.no_grad()
def breaks_compact(weight: Tensor, bits: Tensor, pattern: NMPattern, dim: int = -1) -> bool:
    """Whether any pruned entry of ``weight`` is not zero (NaN is not zero). Waits for the device."""
    weight = weight.detach().contiguous()
    strays = torch.zeros((), dtype=torch.bool, device=weight.device)
    for entries, mask, _ in _runs(weight, bits, None, pattern, _stride(weight, dim)):
        kept = unpack_bits(mask, entries.shape)
        strays |= torch.any(entries.view(weight.dtype).ne(0).logical_and_(~kept))
    return bool(strays)


@torch.no_grad()
def pruned_runs(
    weight: Tensor, bits: Tensor, pattern: NMPattern, dim: int = -1
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A dense weight's mask and pruned part, run by run.

    Args:
        weight: ``W``, contiguous.
        bits: its mask.
        pattern: the N:M pattern of the mask.
        dim: the input dimension.

    Yields:
        Which entries of the flattened weight; their mask, bool; their ``R``, in the weight's dtype.
    """
    start = 0
    for entries, packed, _ in _runs(weight, bits, None, pattern, _stride(weight, dim)):
        mask = unpack_bits(packed, entries.shape)
        pruned = mask.view(torch.int8).sub(1).to(entries.dtype).bitwise_and_(entries)
        yield slice(start, start + entries.numel()), mask, pruned.view(weight.dtype)
        start += entries.numel()


def _stride(tensor: Tensor, dim: int) -> int:
    """How far apart in memory neighbours along ``dim`` of a contiguous tensor are, in entries."""
    return max(1, math.prod(tensor.shape[dim % tensor.ndim + 1 :]))  # 1 in an empty shard


def _runs(
    tensor: Tensor, bits: Tensor, values: Tensor | None, pattern: NMPattern, stride: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """A contiguous tensor flattened and cut into runs of whole groups that begin at a byte of bits.

    Yields:
        Entries of the run and its pruned values, both as integers, and in between its bits.
    """
    flat = as_integers(tensor).view(-1)
    packed = None if values is None else as_integers(values)
    limit = _RUN_CPU if tensor.device.type == "cpu" else _RUN_OTHER
    # Of 64 entries too where that is not long: vectors then lie in a run as they do in the whole, and
    # a float16 is rounded otherwise where it does not fill one.
    unit = math.lcm(pattern.m * stride, 64)
    if unit > limit:
        unit = math.lcm(pattern.m * stride, 8)
    size = max(unit, limit // unit * unit)
    for start in range(0, flat.numel(), size):
        end = min(start + size, flat.numel())
        first, last = count_pruned(start, pattern), count_pruned(end, pattern)
        yield (
            flat[start:end],
            bits[start // 8 : (end + 7) // 8],
            None if packed is None else packed[first:last],
        )


def _as(entries: Tensor, places: Tensor) -> Tensor:
    """A run's entries in the shape whose second dimension ``places`` point into."""
    return entries.view(places.shape[0], -1, *places.shape[2:])


def _places(bits: Tensor, entries: int, pattern: NMPattern, stride: int) -> Tensor:
    """Where the pruned entries of a run are.

    A mask of another pattern (memory that was never written) gives places that are wrong, but none
    outside the run.

    Args:
        bits: the run's mask.
        entries: how many they are of.
        pattern: the N:M pattern of the mask.
        stride: how far apart the entries of a group lie.

    Returns:
        int64 ``[outer, pruned, stride]``: places along 1 of the run read as ``[outer, neighbours,
        stride]``; a row's neighbours are one group, or several beside each other. Without the last
        dimension where the stride is 1.
    """
    width = next((width for width in _CODES if stride == 1 and not width % pattern.m), 0)
    if not width or entries % width:
        mask = unpack_bits(bits, torch.Size([entries])).view(-1, pattern.m, stride)
        places = _places_in_groups(mask, pattern)
        return places.squeeze(-1) if stride == 1 else places
    codes = bits.view(_CODES[width]).to(torch.int32)
    if width == 16:
        codes.bitwise_and_(0xFFFF)
    return _table(pattern, width, bits).index_select(0, codes)


def _places_in_groups(mask: Tensor, pattern: NMPattern) -> Tensor:
    """Places of the pruned entries of groups: bool ``[outer, m, stride]`` to int64
    ``[outer, m - n, stride]``."""
    outer, m, stride = mask.shape
    pruned = m - pattern.n
    dropped = ~mask
    if pruned * m <= _MOST_SWEEPS:
        # The j-th pruned entry stands after as many entries as see at most j pruned up to themselves.
        places = torch.zeros(outer, pruned, stride, dtype=torch.uint8, device=mask.device)
        seen = torch.zeros(outer, stride, dtype=torch.uint8, device=mask.device)
        for i in range(m - 1):
            seen += dropped[:, i].view(torch.uint8)
            for j in range(pruned):
                places[:, j] += seen.le(j).view(torch.uint8)
        return places.to(torch.int64)
    # Which of the pruned entries of its group each is, from 1; kept ones all go to 0, which is cut off.
    rank = dropped.cumsum(1).mul_(dropped).clamp_(max=pruned)
    places = rank.new_zeros(outer, pruned + 1, stride)
    position = torch.arange(m, device=mask.device).view(1, m, 1).expand_as(rank)
    return places.scatter_(1, rank, position)[:, 1:].contiguous()


_tables: dict[tuple[NMPattern, torch.device], Tensor] = {}


def _table(pattern: NMPattern, width: int, bits: Tensor) -> Tensor:
    """Places of the pruned entries of ``width`` neighbours, by their mask's bits read as a number: int64
    ``[2 ** width, pruned]``. The same tensor each time."""
    key = (pattern, bits.device)
    if key in _tables and type(bits) is Tensor:
        return _tables[key]
    with torch.inference_mode(False), torch.no_grad():
        codes = torch.arange(1 << width, device=bits.device).unsqueeze(1)
        mask = codes.bitwise_right_shift(torch.arange(width, device=bits.device)).bitwise_and(1)
        places = _places_in_groups(mask.view(-1, pattern.m, 1).to(torch.bool), pattern)
        first = torch.arange(0, width, pattern.m, device=bits.device).view(1, -1, 1)
        table = (places.view(1 << width, first.shape[1], -1) + first).view(1 << width, -1)
    if type(bits) is Tensor:  # a FakeTensor's must not be kept
        _tables[key] = table
    return table
