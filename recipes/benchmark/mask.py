"""What computing an N:M mask costs: by sorting, by ``topk``, by ``nm_mask``, and a copy as the limit.

    python recipes/benchmark/mask.py

Weights of 1 million entries to as many as fit, up to 256 million. ``argsort`` is how the published code
does it. A copy reads and writes the weight once: nothing that looks at a weight can be faster by much.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
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
from torch import Tensor

import hf_nm

PATTERNS = ["2:4", "1:4", "4:8", "1:16", "6:8"]
SIZES = [1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28]
WAYS = ("copy", "nm_mask", "topk", "argsort")
COLUMNS = ("pattern", "entries", "copy, ms", "nm_mask / copy", "topk / copy", "argsort / copy")


def by_sorting(weight: Tensor, n: int, m: int) -> Tensor:
    """The mask as the published code computes it."""
    groups = weight.abs().view(-1, m)
    dropped = groups.argsort(dim=1)[:, : m - n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, dropped, False).view(weight.shape)


def by_topk(weight: Tensor, n: int, m: int) -> Tensor:
    """The mask by ``torch.topk``."""
    groups = weight.abs().view(-1, m)
    kept = groups.topk(n, dim=1, sorted=False).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, kept, True).view(weight.shape)


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Time over entries at 2:4, a line a way."""
    own = [row for row in rows if row["pattern"] == rows[0]["pattern"]]
    for way in WAYS:
        there = [row for row in own if way in row["ms"]]
        axes.plot([r["entries"] for r in there], [r["ms"][way][1] for r in there], "o-", label=way)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(f"entries, {rows[0]['pattern']}")
    axes.set_ylabel("ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common_options(parser, "benchmark-results")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()
    device, dtype = prepare(args), getattr(torch, args.dtype)
    sizes = [1 << 12] if args.tiny else args.sizes
    record = Record(args, "mask", COLUMNS)
    too_large = {way: float("inf") for way in WAYS}
    with kept_if_stopped(record):
        for size, text in bar([(size, text) for size in sizes for text in args.patterns], "mask"):
            pattern = hf_nm.NMPattern.parse(text)
            n, m = pattern.n, pattern.m
            try:
                weight = torch.randn(size // 1024, 1024, device=device).to(dtype)
                target = torch.empty_like(weight)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                break
            calls: dict[str, Any] = {
                "copy": partial(target.copy_, weight),
                "nm_mask": partial(hf_nm.nm_mask, weight, n, m),
                "topk": partial(by_topk, weight, n, m),
                "argsort": partial(by_sorting, weight, n, m),
            }
            seconds: dict[str, list[float]] = {}
            calls = {way: call for way, call in calls.items() if size < too_large[way]}
            for way in list(calls):  # what does not fit is left out, here and at larger sizes
                try:
                    calls[way]()
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    too_large[way] = size
                    del calls[way]
            rounds = args.rounds if size <= 1 << 24 else max(3, args.rounds // 4)
            seconds = rounds_of(calls, device, rounds, warmup=1, clock=clock_of(args))
            ms = {way: [1e3 * v for v in quartiles(found)] for way, found in seconds.items()}
            relative = {way: ratios(found, seconds["copy"]) for way, found in seconds.items()}
            cells = [shown(relative[way], 1) if way in relative else "" for way in WAYS[1:]]
            figures = {"pattern": text, "entries": size, "ms": ms, "ratio": relative}
            record.add(figures, [text, f"{size:,}", shown(ms["copy"], 2), *cells])
    print(f"{args.dtype}, {device}, interleaved rounds: median (quartiles)\n")
    record.finish(draw)


if __name__ == "__main__":
    main()
