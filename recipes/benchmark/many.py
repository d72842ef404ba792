"""What a step of hf_nm costs beside its work on memory, where there are thousands of small weights.

    python recipes/benchmark/many.py --weights 10000 --size 8

The optimizer does nothing and the matrices are tiny, so what is left is Python and calling torch. On a
CPU its parts that no arrangement of calls avoids are measured in the same run: copying each weight
together with the others, and back. On a GPU two kernels treat all of them where they lie, whatever their
size (``--device cuda --size 256``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hf_nm
from hf_nm.environment import environment


class Nothing(torch.optim.Optimizer):
    """An optimizer that leaves its parameters alone."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def milliseconds(work: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Quartiles of this process's time on the CPU, in ms."""
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        found.append(1000 * (time.process_time() - start))
    low, middle, high = statistics.quantiles(found[1:], n=4, method="inclusive")
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--size", type=int, default=8, help="rows and columns of each (default 8)")
    parser.add_argument("--method", default="sr-ste", choices=["sr-ste", "ste", "fixed"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", help="cuda or cpu (default cpu)")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    parser.add_argument("--tiny", action="store_true", help="50 weights, which show that it runs")
    args = parser.parse_args()
    if args.tiny:
        args.weights, args.rounds = 50, 2
    torch.set_num_threads(1)
    device = torch.device(args.device)
    matrices = [
        nn.Linear(args.size, args.size, bias=False, device=device) for _ in range(args.weights)
    ]
    model = hf_nm.sparsify(nn.ModuleList(matrices), targets="*", method=args.method)
    parameters: list[torch.Tensor] = list(model.parameters())
    optimizer = Nothing(parameters, {})
    hf_nm.attach(optimizer, model)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    with torch.no_grad():
        rows = {"a step": milliseconds(optimizer.step, args.rounds)}
        if device.type == "cpu":
            room = torch.empty(args.weights, args.size, args.size)
            each = list(room.unbind())
            rows["one copy together"] = milliseconds(
                lambda: torch.stack(parameters, out=room), args.rounds
            )
            rows["one copy back"] = milliseconds(
                lambda: [p.copy_(e) for p, e in zip(parameters, each, strict=True)], args.rounds
            )
    machine = environment()
    print(json.dumps(machine))
    print(
        f"{args.weights:,} weights {args.size} x {args.size}, 2:4, {args.method}, {device}, one thread\n"
    )
    print("| | ms of CPU time: median (quartiles) |\n|---|---|")
    for name, (low, middle, high) in rows.items():
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) |")
    if args.json:
        record = {"arguments": {k: str(v) for k, v in vars(args).items()}, "machine": machine}
        args.json.write_text(json.dumps(record | {"ms": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
