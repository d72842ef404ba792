"""The kernels that run before and after an optimizer's step, written in Triton.

Each is :func:`~hf_nm.sparsity.mask.merge_` or :func:`~hf_nm.sparsity.mask.split_`, bit for bit, with the
gradient's change beside the one and the flips' count in the other; each goes once over the memory of
many weights. A program finds its weight in a table (:mod:`hf_nm.sparsity.kernels.table`, which names
the rows) and treats a tile of ``GROUPS`` groups, ``WIDTH`` entries each: m, filled up to a power of two.
Numbers that change with a weight's shape are read from memory, so that no new shape is compiled anew.

Only this file imports triton. Loads and stores go through :func:`_load` and :func:`_store`, where a test
counts their bytes.
"""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Rows of the table: pointers, how many groups the weight has, and the first program that treats it.
_WEIGHT, _GRADIENT, _MASK, _ASIDE, _GROUPS, _FIRST = (tl.constexpr(row) for row in range(6))

_LEAVE, _DECAY = tl.constexpr(0), tl.constexpr(1)  # of hf_nm.sparsity.kernels.table.Adjust

# Of a weight's dtype: its bits, itself, and what sums are computed in.
_TYPES = {
    torch.float64: (tl.int64, tl.float64, tl.float64),
    torch.float32: (tl.int32, tl.float32, tl.float32),
    torch.bfloat16: (tl.int16, tl.bfloat16, tl.float32),
    torch.float16: (tl.int16, tl.float16, tl.float32),
}


def types_of(kernel: str, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a kernel that follow from the weights' dtype."""
    integer, floating, exact = _TYPES[dtype]
    bits = integer.primitive_bitwidth
    both = {"INTEGER": integer, "BYTES": bits // 8, "HIGHEST": (1 << (bits - 1)) - 1}
    return both | ({"FLOAT": floating, "EXACT": exact} if kernel == "before_step" else {})


@triton.jit
def _load(pointers, where):
    return tl.load(pointers, mask=where, other=0)


@triton.jit
def _store(pointers, values, where):
    tl.store(pointers, values, mask=where)


@triton.jit
def _memory(table, count, row: tl.constexpr, owner, TYPE: tl.constexpr):
    """The memory of one weight that a row of the table points to."""
    return tl.load(table + row * count + owner).to(tl.pointer_type(TYPE), bitcast=False)


@triton.jit
def _inside(group, groups, place, M: tl.constexpr, WIDTH: tl.constexpr):
    """Which entries of a tile there are; by whole groups where these fill it, so that the compiler may
    read several entries at a time."""
    inside = group < groups
    if M != WIDTH:
        inside = inside & (place < M)
    return inside


@triton.jit
def _at(memory, entry, BYTES: tl.constexpr, AXIS: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to entries of so many bytes. Where groups of neighbours begin at multiples of ALIGNED
    entries, in memory that begins at a multiple of 16 bytes, the compiler is told."""
    at = memory + entry
    if AXIS == 1 and ALIGNED > 1:
        at = tl.multiple_of(at, (1, min(16, ALIGNED * BYTES)))
    return at


@triton.jit(do_not_specialize=["count"])
def before_step(
    table,  # int64 [6, count]
    owners,  # int32 [programs]: the weight of each
    strengths,  # float32 [count]: of the decay; float64 where that is EXACT and nothing is SCALED
    scale,  # float32 [1]: what strengths are multiplied by, where SCALED
    strays,  # int32 [count]: becomes 1 where a pruned entry held a value
    count,
    INTEGER: tl.constexpr,  # the weights' bits
    BYTES: tl.constexpr,  # of an entry
    FLOAT: tl.constexpr,  # the weights' dtype
    EXACT: tl.constexpr,  # in which sums are computed
    HIGHEST: tl.constexpr,  # the largest integer: all bits but the sign
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    KEEPS: tl.constexpr,  # whether R is kept aside
    GRADIENT: tl.constexpr,  # LEAVE, DECAY or ZERO
    SCALED: tl.constexpr,
    ALIGNED: tl.constexpr,  # see _at
):
    """Weights: S to W. Gradients: ``g + strength * R``, or zero where pruned."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    weight = _memory(table, count, _WEIGHT, owner, INTEGER)
    if weight.to(tl.int64) != 0:  # this one steps
        groups = tl.load(table + _GROUPS * count + owner)
        first = (program - tl.load(table + _FIRST * count + owner)) * GROUPS
        group = (first + tl.arange(0, GROUPS))[:, None]
        place = tl.arange(0, WIDTH)[None, :]
        inside = _inside(group, groups, place, M, WIDTH)
        entry = group * M + place  # the tile's memory is one run, whatever the groups' stride
        AXIS: tl.constexpr = 1

        bits_at = _at(weight, entry, BYTES, AXIS, ALIGNED)
        mask = _memory(table, count, _MASK, owner, tl.int8)
        bits = _load(bits_at, inside)
        kept = _load(_at(mask, entry, 1, AXIS, ALIGNED), inside) != 0
        stray = tl.where(kept, 0, bits)
        found = tl.max(tl.max(stray & HIGHEST, axis=1), axis=0)
        if found != 0:  # more than minus zeros
            tl.store(strays + owner, 1)

        if KEEPS:
            aside = _memory(table, count, _ASIDE, owner, INTEGER)
            pruned = _load(_at(aside, entry, BYTES, AXIS, ALIGNED), inside)
            _store(bits_at, tl.where(kept, bits, pruned), inside)
        else:
            _store(bits_at, tl.zeros_like(bits), inside & (stray != 0))

        if GRADIENT != _LEAVE:
            gradient = _memory(table, count, _GRADIENT, owner, FLOAT)
            if gradient.to(tl.int64) != 0:
                gradient_at = _at(gradient, entry, BYTES, AXIS, ALIGNED)
                if GRADIENT == _DECAY:
                    before = _load(gradient_at, inside).to(EXACT)
                    value = pruned.to(FLOAT, bitcast=True).to(EXACT)
                    strength = tl.load(strengths + owner)
                    if (
                        SCALED
                    ):  # as tensors: the factor has the weights' dtype, the product is rounded
                        factor = (strength * tl.load(scale)).to(FLOAT).to(EXACT)
                        product = (value * factor).to(FLOAT).to(EXACT)
                        after = before + product
                    else:  # as torch.add(..., alpha=strength): rounded once; by 0 it is not called
                        after = tl.fma(value, tl.zeros_like(value) + strength, before)
                        after = tl.where(strength != 0, after, before)
                    _store(gradient_at, after.to(FLOAT), inside)
                else:  # as bits: a NaN keeps its own
                    gradient_bits = gradient_at.to(tl.pointer_type(INTEGER), bitcast=True)
                    _store(gradient_bits, tl.where(kept, _load(gradient_bits, inside), 0), inside)


@triton.jit(do_not_specialize=["count", "stride"])
def after_step(
    table,  # int64 [6, count]
    owners,  # int32 [programs]
    flips,  # int64 [count]: mask entries that changed are added, where SELECT
    count,
    stride,  # how far apart the entries of a group lie, where AXIS is 0
    INTEGER: tl.constexpr,
    BYTES: tl.constexpr,
    HIGHEST: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    KEEPS: tl.constexpr,
    SELECT: tl.constexpr,  # whether the mask is computed again
    AXIS: tl.constexpr,  # of a tile along which groups run: 1 where their entries are neighbours
    ALIGNED: tl.constexpr,  # see _at
):
    """Weights: W to S, with R and the mask beside it."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    weight = _memory(table, count, _WEIGHT, owner, INTEGER)
    if weight.to(tl.int64) != 0:
        groups = tl.load(table + _GROUPS * count + owner)
        first = (program - tl.load(table + _FIRST * count + owner)) * GROUPS
        group = tl.expand_dims(first + tl.arange(0, GROUPS), AXIS)
        place = tl.expand_dims(tl.arange(0, WIDTH), 1 - AXIS)
        inside = _inside(group, groups, place, M, WIDTH)
        if AXIS == 1:
            entry = group * M + place
        else:
            entry = group // stride * (stride * M) + group % stride + place * stride

        bits_at = _at(weight, entry, BYTES, AXIS, ALIGNED)
        mask = _memory(table, count, _MASK, owner, tl.int8)
        mask_at = _at(mask, entry, 1, AXIS, ALIGNED)
        bits = _load(bits_at, inside)
        before = _load(mask_at, inside) != 0
        kept = before
        if SELECT:
            # Bits without the sign order as magnitudes, NaN last.
            magnitude = tl.where(inside, bits & HIGHEST, -1)
            beaten = tl.zeros_like(magnitude)  # by how many others of its group
            for other_place in range(M):
                other = tl.sum(tl.where(place == other_place, magnitude, 0), axis=AXIS)
                other = tl.expand_dims(other, AXIS)
                beats = (other > magnitude) | ((other == magnitude) & (place > other_place))
                beaten += beats.to(INTEGER)
            kept = beaten < N
            changed = tl.where(inside & (kept != before), 1, 0)
            total = tl.sum(tl.sum(changed, axis=1), axis=0)
            if total != 0:
                tl.atomic_add(flips + owner, total.to(tl.int64), sem="relaxed")
            _store(mask_at, kept.to(tl.int8), changed != 0)

        if KEEPS:
            aside = _memory(table, count, _ASIDE, owner, INTEGER)
            _store(bits_at, tl.where(kept, bits, 0), inside)
            _store(_at(aside, entry, BYTES, AXIS, ALIGNED), tl.where(kept, 0, bits), inside)
        else:
            _store(bits_at, tl.zeros_like(bits), inside & (kept == 0) & (bits != 0))
