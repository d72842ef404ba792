"""Multiplying with a packed weight: two operators of torch, ``hf_nm::packed_linear`` and
``hf_nm::unpack``, which ``torch.compile`` takes as they are.

There is more than one way to the product. ``kernel`` reads the packed weight (Triton; a few rows, as in
decoding), ``unpack`` makes the dense weight in a scratch buffer, of pieces where it can, and multiplies
with that, ``semi_structured`` makes torch's own 2:4 form of it. Which one is the fastest at a shape is
measured (:mod:`hf_nm.inference.choice`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_nm.formats.packed_weight import put_kept
from hf_nm.inference import choice
from hf_nm.inference.semi_structured import why_no_kernel
from hf_nm.sparsity.bits import as_integers
from hf_nm.sparsity.pattern import NMPattern

# Entries of the weight that the scratch buffer holds on a CPU: with the positions that are looked up for
# them they stay in a core's own cache.
_PIECE = 1 << 18
MOST_ROWS = 8  # that the kernel takes
# Rows of the weight, and groups of each, that one program of the kernel holds: as many ways, since which
# of them is the fastest depends on the device and the shape.
BLOCKS = {"kernel": (4, 256), "kernel_long": (1, 1024), "kernel_tall": (16, 64)}


@torch.library.custom_op("hf_nm::unpack", mutates_args=())
def unpack(kept: Tensor, bits: Tensor, n: int, m: int) -> Tensor:
    """The dense weight, with exact zeros.

    Args:
        kept: ``[..., out, in / m * n]``, each group's kept entries in order.
        bits: uint8 ``[..., ceil(out * in / 8)]``, one bit for each entry.
        n: kept of each group.
        m: entries of a group.

    Returns:
        ``[..., out, in]``.
    """
    if kept.ndim == 2:
        return _unpack_matrix(kept, bits, n, m)
    shape = (*kept.shape[:-1], kept.shape[-1] // n * m)
    dense = torch.empty(shape, dtype=kept.dtype, device=kept.device)
    flat = dense.view(-1, *shape[-2:])
    matrices = zip(kept.reshape(-1, *kept.shape[-2:]), bits.reshape(flat.shape[0], -1), strict=True)
    for index, (one, its_bits) in enumerate(matrices):
        flat[index] = _unpack_matrix(one, its_bits, n, m)
    return dense


@unpack.register_fake
def _(kept: Tensor, bits: Tensor, n: int, m: int) -> Tensor:
    return kept.new_empty((*kept.shape[:-1], kept.shape[-1] // n * m))


@torch.library.custom_op("hf_nm::packed_linear", mutates_args=())
def packed_linear(
    input: Tensor, kept: Tensor, bits: Tensor, bias: Tensor | None, n: int, m: int
) -> Tensor:
    """``input @ weight.T + bias``, as ``torch.nn.functional.linear``, the weight packed.

    Args:
        input: ``[..., in]``.
        kept: ``[out, in / m * n]``.
        bits: uint8 ``[ceil(out * in / 8)]``.
        bias: ``[out]`` or None.
        n: kept of each group.
        m: entries of a group.

    Returns:
        ``[..., out]``.
    """
    inputs = kept.shape[-1] // n * m
    if input.dtype != kept.dtype or input.shape[-1] != inputs:
        raise RuntimeError(
            f"an input {list(input.shape)} of {input.dtype} cannot be multiplied with a weight "
            f"{[kept.shape[0], inputs]} of {kept.dtype}; sizes and dtypes have to agree, as in "
            "torch.nn.functional.linear"
        )
    if not input.numel():
        return input.new_zeros(*input.shape[:-1], kept.shape[0])
    input = input.contiguous()
    return WAYS[_way(input, kept, bits, bias, n, m)](input, kept, bits, bias, n, m)


@packed_linear.register_fake
def _(input: Tensor, kept: Tensor, bits: Tensor, bias: Tensor | None, n: int, m: int) -> Tensor:
    return input.new_empty(*input.shape[:-1], kept.shape[0])


def _keep_for_backward(ctx: Any, inputs: Any, output: Any) -> None:
    _, kept, bits, bias, ctx.n, ctx.m = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(kept, bits)


def _backward(
    ctx: Any, gradient: Tensor
) -> tuple[Tensor | None, None, None, Tensor | None, None, None]:
    """To the input and the bias: what adapters and layers below a compressed one are trained with."""
    kept, bits = ctx.saved_tensors
    to_input, to_bias = None, None
    if ctx.needs_input_grad[0]:
        to_input = gradient @ unpack(kept, bits, ctx.n, ctx.m)
    if ctx.has_bias and ctx.needs_input_grad[3]:
        to_bias = gradient.flatten(0, -2).sum(0)
    return to_input, None, None, to_bias, None, None


packed_linear.register_autograd(_backward, setup_context=_keep_for_backward)


def ways_at(rows: int, kept: Tensor, n: int, m: int) -> list[str]:
    """The ways that there are to multiply ``rows`` rows with a packed weight, the surest first."""
    found = ["unpack"]
    if kept.device.type == "cpu":  # unpacking in pieces is all there is: no other was faster
        return found
    if rows <= MOST_ROWS and _has_kernels(kept):
        found = [*BLOCKS, *found]
    shape = (kept.shape[0], kept.shape[1] // n * m)
    if rows > MOST_ROWS and why_no_kernel(shape, kept.dtype, kept.device, NMPattern(n, m)) is None:
        found.append("semi_structured")
    return found


def _way(input: Tensor, kept: Tensor, bits: Tensor, bias: Tensor | None, n: int, m: int) -> str:
    inputs = input.shape[-1]
    rows = input.numel() // inputs
    ways = ways_at(rows, kept, n, m)
    if len(ways) == 1:
        return ways[0]
    calls = {way: partial(WAYS[way], input, kept, bits, bias, n, m) for way in ways}
    key = choice.key(rows, kept.shape[0], inputs, f"{n}:{m}", kept.dtype)
    return choice.fastest(key, calls, kept.device)


def by_kernel(
    input: Tensor,
    kept: Tensor,
    bits: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    *,
    blocks: tuple[int, int],
) -> Tensor:
    """The product of a few rows, reading the packed weight once."""
    from hf_nm.inference import kernels

    return kernels.few_rows(input, kept, bits, bias, n, m, blocks)


def _has_kernels(kept: Tensor) -> bool:
    """Whether Triton's kernels run on this tensor's device; imports Triton only where they may."""
    if kept.device.type not in ("cuda", "xpu") or importlib.util.find_spec("triton") is None:
        return False
    return kept.dtype in (torch.float32, torch.float16, torch.bfloat16)


def by_unpacking(
    input: Tensor, kept: Tensor, bits: Tensor, bias: Tensor | None, n: int, m: int
) -> Tensor:
    """The dense product with the weight made anew: on a CPU a piece of it at a time.

    The allocators of torch and of the system give the next layer the memory that this one let go.
    """
    out, inputs = kept.shape[0], input.shape[-1]
    if kept.device.type != "cpu":
        return F.linear(input, _unpack_matrix(kept, bits, n, m), bias)
    step = max(8, _PIECE // inputs // 8 * 8)  # whole bytes of the mask
    if step >= out:
        return F.linear(input, _unpack_matrix(kept, bits, n, m), bias)
    result = input.new_empty(*input.shape[:-1], out)
    for first in range(0, out, step):
        last = min(first + step, out)
        mask = bits[first * inputs // 8 : -(-last * inputs // 8)]
        weight = _unpack_matrix(kept[first:last], mask, n, m)
        part = None if bias is None else bias[first:last]
        result[..., first:last] = F.linear(input, weight, part)
    return result


def by_semi_structured(
    input: Tensor, kept: Tensor, bits: Tensor, bias: Tensor | None, n: int, m: int
) -> Tensor:
    """The product on torch's 2:4 kernel, whose own form of the weight is made anew."""
    weight = torch.sparse.to_sparse_semi_structured(_unpack_matrix(kept, bits, n, m))
    return F.linear(input, weight, bias)


def _unpack_matrix(kept: Tensor, bits: Tensor, n: int, m: int) -> Tensor:
    shape = (kept.shape[0], kept.shape[1] // n * m)
    if kept.device.type != "cpu" and _has_kernels(kept):
        from hf_nm.inference import kernels

        return kernels.unpack(kept, bits, n, m)
    flat = as_integers(kept).reshape(-1)
    dense = put_kept(flat, bits, math.prod(shape), NMPattern(n, m))
    return dense.view(kept.dtype).view(shape)


WAYS: dict[str, Callable[..., Tensor]] = {
    **{way: partial(by_kernel, blocks=blocks) for way, blocks in BLOCKS.items()},
    "unpack": by_unpacking,
    "semi_structured": by_semi_structured,
}
