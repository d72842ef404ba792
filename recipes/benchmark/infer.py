"""What a sparse linear layer costs in inference: dense, packed, and on torch's 2:4 kernels.

    python recipes/benchmark/infer.py --rounds 20

Layers of BERT-base and of a Llama of one billion parameters, 1 to 4,096 rows. Every round times each way
once, in turning order; the ratio to the dense product is taken within a round. ``packed`` is the fastest
way that ``compress`` has at that shape (in brackets), ``kernel`` reading the packed weight, ``unpack``
making the dense one in a scratch buffer, ``semi_structured`` making torch's form of it each time.
``semi-structured`` without brackets is a weight that stays in torch's form.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measured import (
    Record,
    bar,
    clock_of,
    common_options,
    kept_if_stopped,
    out_of_memory,
    prepare,
    quartiles,
    ratios,
    rounds_of,
    shown,
)

import hf_nm
from hf_nm.inference.packed_tensor import pack_weight
from hf_nm.inference.product import WAYS, ways_at
from hf_nm.inference.semi_structured import why_no_kernel

SHAPES = {
    "BERT-base attention": (768, 768),
    "BERT-base up": (3072, 768),
    "BERT-base down": (768, 3072),
    "Llama-1B attention": (2048, 2048),
    "Llama-1B up": (8192, 2048),
    "Llama-1B down": (2048, 8192),
}
COLUMNS = ("layer", "rows", "dense, ms", "packed / dense", "way", "semi-structured / dense")


def time_shape(
    shape: tuple[int, int], rows: int, pattern: hf_nm.NMPattern, dtype: torch.dtype, args: Any
) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of every way in every round, and which of them are ``compress``'s."""
    device = torch.device(args.device)
    weight = torch.randn(shape, device=device).to(dtype)
    weight = torch.where(hf_nm.nm_mask(weight, pattern.n, pattern.m), weight, 0.0)
    packed = pack_weight(weight, pattern, -1)
    inputs = torch.randn(rows, shape[1], device=device).to(dtype)
    calls: dict[str, Any] = {"dense": partial(F.linear, inputs, weight)}
    ways = ways_at(rows, packed.kept, pattern.n, pattern.m)
    for way in ways:
        calls[way] = partial(
            WAYS[way], inputs, packed.kept, packed.bits, None, pattern.n, pattern.m
        )
    if why_no_kernel(shape, dtype, device, pattern) is None:
        held = torch.sparse.to_sparse_semi_structured(weight)
        calls["semi-structured"] = partial(F.linear, inputs, held)
    with torch.no_grad():
        return rounds_of(calls, device, args.rounds, clock=clock_of(args)), ways


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Speed-up over rows, a line a layer."""
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == layer]
        axes.plot([r["rows"] for r in own], [1 / r["packed"][1] for r in own], "o-", label=layer)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("rows")
    axes.set_ylabel("speed of packed (dense = 1)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common_options(parser, "benchmark-results")
    parser.add_argument("--pattern", default="2:4", help="n:m (default 2:4)")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32")
    parser.add_argument("--layers", nargs="+", default=list(SHAPES), help="some of the layers")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 64, 256, 1024, 4096])
    args = parser.parse_args()
    device = prepare(args)
    pattern, dtype = hf_nm.NMPattern.parse(args.pattern), getattr(torch, args.dtype)
    shapes = {"tiny": (64, 64)} if args.tiny else {name: SHAPES[name] for name in args.layers}
    cases = [
        (layer, rows) for layer in shapes for rows in (args.rows[:2] if args.tiny else args.rows)
    ]
    record = Record(args, "infer", COLUMNS)
    with kept_if_stopped(record):
        for layer, rows in bar(cases, "infer"):
            try:
                seconds, ways = time_shape(shapes[layer], rows, pattern, dtype, args)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                continue
            way = min(ways, key=lambda name: quartiles(seconds[name])[1])
            dense = [1e3 * value for value in quartiles(seconds["dense"])]
            packed = ratios(seconds[way], seconds["dense"])
            held = seconds.get("semi-structured")
            semi = None if held is None else ratios(held, seconds["dense"])
            figures = {"layer": layer, "shape": shapes[layer], "rows": rows, "dense_ms": dense}
            figures |= {"packed": packed, "way": way, "semi_structured": semi, "seconds": seconds}
            cells = [shown(dense, 3), shown(packed, 2), way, "" if semi is None else shown(semi, 2)]
            record.add(figures, [layer, str(rows), *cells])
    print(
        f"{pattern}, {args.dtype}, {device}, {args.rounds} interleaved rounds: median (quartiles)\n"
    )
    record.finish(draw)


if __name__ == "__main__":
    main()
