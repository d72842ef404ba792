"""Triton kernels that read packed N:M weights: the product of a few rows, and the dense weight.

Imported only where there is a device for them; with ``TRITON_INTERPRET=1`` they run on a CPU, which is
how they are tested. Nothing in them is particular to NVIDIA.

Both go through groups of ``m`` entries: a row of the weight has ``groups`` of them, group ``g`` of row
``o`` is number ``o * groups + g``, its kept values are ``n`` neighbours in ``kept``, and its bits start
at bit ``m`` times its number.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import jit, next_power_of_2

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def few_rows(
    input: Tensor,
    kept: Tensor,
    bits: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    blocks: tuple[int, int],
) -> Tensor:
    """``input @ weight.T + bias``, summed in fp32; each byte of the packed weight is read once.

    Args:
        input: ``[..., in]``, contiguous; a few rows, since each is summed apart.
        kept: ``[out, in / m * n]``, contiguous.
        bits: uint8 ``[ceil(out * in / 8)]``.
        bias: ``[out]`` or None.
        n: kept of each group.
        m: entries of a group.
        blocks: rows of the weight, and groups of each, that one program holds at a time.

    Returns:
        ``[..., out]``.
    """
    inputs, out = input.shape[-1], kept.shape[0]
    count, groups = input.numel() // inputs, inputs // m
    result = input.new_empty(*input.shape[:-1], out)
    word = _WORDS.get(n * kept.itemsize)
    held_out = min(blocks[0], next_power_of_2(out))
    held_groups = min(blocks[1], next_power_of_2(groups))
    _few_rows[(-(-out // held_out),)](
        input,
        kept if word is None else kept.contiguous().view(word),
        bits,
        bias if bias is not None else input,
        result,
        count,
        out,
        inputs,
        groups,
        N=n,
        M=m,
        WORD=word is not None,
        ENTRY_BITS=8 * kept.itemsize,
        ROWS=next_power_of_2(count),
        HAS_BIAS=bias is not None,
        BLOCK_OUT=held_out,
        BLOCK_GROUPS=held_groups,
    )
    return result


def unpack(kept: Tensor, bits: Tensor, n: int, m: int) -> Tensor:
    """The dense weight.

    Args:
        kept: ``[out, in / m * n]``, contiguous.
        bits: uint8 ``[ceil(out * in / 8)]``.
        n: kept of each group.
        m: entries of a group.

    Returns:
        ``[out, in]``.
    """
    dense = kept.new_empty(kept.shape[0], kept.shape[1] // n * m)
    block = 1024
    grid = (-(-dense.numel() // block),)
    _unpack[grid](kept, bits, dense, dense.numel(), N=n, M=m, BLOCK=block)
    return dense


@jit
def _few_rows(
    rows: Any,
    kept: Any,
    bits: Any,
    bias: Any,
    result: Any,
    count: Any,
    out: Any,
    inputs: Any,
    groups: Any,
    N: tl.constexpr,
    M: tl.constexpr,
    WORD: tl.constexpr,  # a group's kept values are one integer of `kept`
    ENTRY_BITS: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
) -> None:
    o = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    r = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK_OUT, BLOCK_GROUPS], tl.float32)
    for first in range(0, groups, BLOCK_GROUPS):
        g = first + tl.arange(0, BLOCK_GROUPS)
        inside = (o < out)[:, None] & (g < groups)[None, :]
        group = o.to(tl.int64)[:, None] * groups + g[None, :]
        if WORD:
            word = tl.load(kept + group, mask=inside, other=0)
        rank = tl.zeros([BLOCK_OUT, BLOCK_GROUPS], tl.int32)
        byte = tl.load(bits + ((group * M) >> 3), mask=inside, other=0).to(tl.int32)
        for p in tl.static_range(M):
            bit = group * M + p
            if 8 % M != 0:  # else the group lies in that one byte
                byte = tl.load(bits + (bit >> 3), mask=inside, other=0).to(tl.int32)
            keeps = (byte >> (bit & 7).to(tl.int32)) & 1
            if WORD:
                entry = _lowest(word, ENTRY_BITS, rows.dtype.element_ty)
                value = tl.where(keeps == 1, entry, 0.0)
                if N > 1:  # the next kept entry takes its place
                    word = tl.where(keeps == 1, word >> ENTRY_BITS, word)
            else:
                where = kept + group * N + rank
                value = tl.load(where, mask=inside & (keeps == 1), other=0.0).to(tl.float32)
                rank += keeps
            x = tl.load(
                rows + r[:, None] * inputs + (g * M + p)[None, :],
                mask=(r < count)[:, None] & (g < groups)[None, :],
                other=0.0,
            )
            total += x.to(tl.float32)[:, None, :] * value[None, :, :]
    product = tl.sum(total, 2)
    if HAS_BIAS:
        product += tl.load(bias + o, mask=o < out, other=0.0).to(tl.float32)[None, :]
    there = (r < count)[:, None] & (o < out)[None, :]
    tl.store(result + r[:, None] * out + o[None, :], product, mask=there)


@jit
def _lowest(word: Any, ENTRY_BITS: tl.constexpr, dtype: tl.constexpr) -> Any:
    """The entry in a word's lowest bits, as fp32."""
    if ENTRY_BITS == 16:
        return word.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    return word.to(tl.int32).to(dtype, bitcast=True).to(tl.float32)


@jit
def _unpack(
    kept: Any,
    bits: Any,
    dense: Any,
    entries: Any,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    group, place = entry // M, entry % M
    rank = tl.zeros([BLOCK], tl.int32)
    keeps = tl.zeros([BLOCK], tl.int32)
    byte = tl.load(bits + (entry >> 3), mask=inside, other=0).to(tl.int32)
    for p in tl.static_range(M):
        bit = group * M + p
        if 8 % M != 0:
            byte = tl.load(bits + (bit >> 3), mask=inside, other=0).to(tl.int32)
        one = (byte >> (bit & 7).to(tl.int32)) & 1
        rank += tl.where(p < place, one, 0)
        keeps = tl.where(p == place, one, keeps)
    value = tl.load(kept + group * N + rank, mask=inside & (keeps == 1), other=0.0)
    tl.store(dense + entry, value, mask=inside)
