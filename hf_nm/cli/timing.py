"""How long a model's layer shapes take here: dense, packed, on 2:4 kernels, and their masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_nm.checkpoint.inspection import inspect
from hf_nm.environment import processor
from hf_nm.inference.choice import time_ways
from hf_nm.inference.packed_tensor import pack_weight
from hf_nm.inference.product import WAYS, ways_at
from hf_nm.inference.semi_structured import why_no_kernel
from hf_nm.sparsity.mask import merge_, nm_mask, split_
from hf_nm.sparsity.pattern import NMPattern


class LayerTime(NamedTuple):
    """Medians for one shape of linear layer.

    Args:
        shape: ``(out, in)``.
        layers: how many the model has.
        dense_ms: one dense product, in milliseconds.
        kernel_ms: the same product on torch's semi-structured kernel; None where it cannot.
        why_no_kernel: why, else empty.
        packed_ms: the same product as :func:`hf_nm.compress` would do it, the weight packed.
        packed_way: how that is done, the fastest way here.
        masks_ms: making the weight dense and sparse again around one training step.
        machine: what it ran on.
    """

    shape: tuple[int, ...]
    layers: int
    dense_ms: float
    kernel_ms: float | None
    why_no_kernel: str
    packed_ms: float
    packed_way: str
    masks_ms: float
    machine: str


def time_layers(
    source: str | Path,
    pattern: NMPattern,
    *,
    tokens: int = 512,
    rounds: int = 20,
    device: str | None = None,
    **download: Any,
) -> list[LayerTime]:
    """Time every distinct 2-D shape that :func:`hf_nm.sparsify` would make N:M, largest first.

    bf16 on CUDA, fp32 on a CPU. Each round times every variant once, one after the other; the medians
    are compared, not the means.

    Args:
        source: a ``config.json``, a folder with one, or a model's id on the Hub.
        pattern: the pattern.
        tokens: rows of the inputs.
        rounds: timings of each variant.
        device: ``"cuda"`` or ``"cpu"``; CUDA if there is one.
        **download: as for :func:`hf_nm.checkpoint.inspection.inspect`.

    Raises:
        ValueError: as ``inspect``, or the model has no 2-D N:M weight.
    """
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(
            f"device must be cpu, or cuda where there is one, but got {device!r} (CUDA available: "
            f"{torch.cuda.is_available()})"
        )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = place.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    machine = torch.cuda.get_device_name(place) if cuda else processor()
    machine = f"{machine}, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}"
    found = inspect(source, pattern.n, pattern.m, **download)
    shapes = Counter(row.shape for row in found.report.layers if len(row.shape) == 2)
    if not shapes:
        raise ValueError(f"{source} has no two-dimensional N:M weight to time")
    rows = []
    for shape, layers in sorted(shapes.items(), key=lambda item: -item[0][0] * item[0][1]):
        weight = torch.randn(shape, device=place, dtype=dtype)
        mask = nm_mask(weight, pattern.n, pattern.m)
        pruned = torch.zeros_like(weight)
        split_(weight, pruned, mask, pattern, update_mask=False)
        inputs = torch.randn(tokens, shape[1], device=place, dtype=dtype)
        kernel, why = _kernel(weight.clone(), pattern)

        variants: dict[str, Callable[[], Any]] = {
            "dense": partial(torch.nn.functional.linear, inputs, weight),
            "masks": partial(_masks, weight, pruned, mask, pattern),
        }
        if kernel is not None:
            variants["kernel"] = partial(torch.nn.functional.linear, inputs, kernel)
        packed = pack_weight(torch.where(mask, weight, 0.0), pattern, -1)
        parts: Any = (inputs, packed.kept, packed.bits, None, pattern.n, pattern.m)
        ways = ways_at(tokens, packed.kept, pattern.n, pattern.m)
        variants |= {f"packed {way}": partial(WAYS[way], *parts) for way in ways}
        times = time_ways(variants, place, rounds)
        way = min(
            (way for way in ways if f"packed {way}" in times), key=lambda w: times[f"packed {w}"]
        )
        rows.append(
            LayerTime(
                shape,
                layers,
                times["dense"],
                times.get("kernel"),
                why,
                times[f"packed {way}"],
                way,
                times["masks"],
                machine,
            )
        )
    return rows


def _masks(weight: Tensor, pruned: Tensor, mask: Tensor, pattern: NMPattern) -> None:
    merge_(weight, pruned, mask)
    split_(weight, pruned, mask, pattern, update_mask=True)


def _kernel(weight: Tensor, pattern: NMPattern) -> tuple[Tensor | None, str]:
    reason = why_no_kernel(tuple(weight.shape), weight.dtype, weight.device, pattern)
    if reason is not None:
        return None, reason
    try:
        return torch.sparse.to_sparse_semi_structured(weight), ""
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return None, str(error).splitlines()[0]
