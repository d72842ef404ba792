"""What a training run holds in memory, and what a step needs at most: dense, and N:M in both forms.

    python recipes/benchmark/memory.py

Marian at Transformer-base size, AdamW (fused), each arm in a process of its own. ``whole`` is this
package as it is by default, ``compact`` with ``compact_state=True``. Counted from the tensors that are
really held: parameters, AdamW's two moments, masks and what is kept aside, and the masks that SAD is
measured against. Measured: what is resident after some steps, and the most during one more step (Linux's
``VmRSS`` and ``VmHWM``, which is set back before that step; on a GPU what torch has allocated). Stopped
by Ctrl-C it prints and writes what was measured.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_step import build_model

import hf_nm
from hf_nm.environment import environment

MIB = 1 << 20
Row = dict[str, Any]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory that tensors lie in, each piece once."""
    pieces = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(pieces.values())


def resident(device: torch.device) -> int:
    """Bytes held now."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL("libc.so.6").malloc_trim(
        0
    )  # what is freed goes back to the system, and is not counted
    return _status("VmRSS")


def forget_peak(device: torch.device) -> None:
    """Measure the peak from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak(device: torch.device) -> int:
    """The most bytes held since :func:`forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def measure(arm: str, args: argparse.Namespace) -> Row:
    """Bytes of one arm: ``dense``, or a form and a pattern, such as ``compact 2:4``."""
    torch.set_num_threads(1)
    device = torch.device(args.device)
    before = resident(device)
    model = build_model(args.vocab_size, device)
    form, _, pattern = arm.partition(" ")
    if pattern:
        nm = hf_nm.NMPattern.parse(pattern)
        hf_nm.sparsify(model, nm.n, nm.m)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    handle = hf_nm.attach(optimizer, model, compact_state=form == "compact") if pattern else None
    generator = torch.Generator().manual_seed(1)
    size = (args.tokens // 32, 32)
    tokens = torch.randint(2, args.vocab_size, size, generator=generator).to(device)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    held = resident(device) - before
    forget_peak(device)
    step()
    most = peak(device) - before
    weights = [] if handle is None else handle.weights()
    parts = [w.state.parts for w in weights]
    state = [t for p in parts if p is not None for t in p.tensors()]
    histories = [] if handle is None else [handle.meter.history(w) for w in weights]
    moments = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return {
        "arm": arm,
        "nm_weights": sum(w.weight.numel() for w in weights),
        "parameters": size_of(model.parameters()),
        "moments": size_of(moments),
        "mask_and_aside": size_of(state),
        "references": size_of(t for h in histories for t in (h.start, h.mark)),
        "resident": held,
        "peak": most,
    }


def table(rows: list[Row]) -> str:
    """The rows in Markdown; bytes in MiB, and per N:M weight."""
    lines = [
        "| | mask and aside, bytes per N:M weight | references, bytes per N:M weight "
        "| tensors in all, MiB | resident, MiB | peak of a step, MiB | peak, ratio to dense |",
        "|---|---|---|---|---|---|---|",
    ]
    dense = next((row["peak"] for row in rows if row["arm"] == "dense"), None)
    for row in rows:
        parts = ("parameters", "moments", "mask_and_aside", "references")
        total = sum(row[part] for part in parts)
        each = [
            f"{row[part] / row['nm_weights']:.3f}" if row["nm_weights"] else ""
            for part in parts[2:]
        ]
        ratio = f"{row['peak'] / dense:.3f}" if dense else ""
        sizes = [f"{value / MIB:.0f}" for value in (total, row["resident"], row["peak"])]
        lines.append("| " + " | ".join([row["arm"], *each, *sizes, ratio]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patterns", nargs="+", default=["2:4", "1:4", "4:8", "1:16", "6:8"])
    parser.add_argument("--tokens", type=int, default=128, help="tokens per side and step")
    parser.add_argument("--vocab_size", type=int, default=8000, help="joint vocabulary")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    parser.add_argument("--tiny", action="store_true", help="one pattern, which shows that it runs")
    parser.add_argument("--arm", default=None, help=argparse.SUPPRESS)  # what a child measures
    args = parser.parse_args()
    if args.tiny:
        args.patterns, args.tokens, args.vocab_size = ["2:4"], 32, 200
    if args.arm:
        print(json.dumps(measure(args.arm, args)))
        return
    arms = ["dense"]
    arms += [f"{form} {pattern}" for pattern in args.patterns for form in ("whole", "compact")]
    rows: list[Row] = []
    try:
        for number, arm in enumerate(arms, 1):
            print(f"{number} of {len(arms)}: {arm}", file=sys.stderr)
            command = [sys.executable, __file__, "--arm", arm, "--device", args.device]
            command += ["--tokens", str(args.tokens), "--vocab_size", str(args.vocab_size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    except KeyboardInterrupt:
        print(f"stopped after {len(rows)} of {len(arms)}", file=sys.stderr)
    machine = environment()
    print(json.dumps(machine))
    print(
        f"Transformer-base Marian, vocabulary {args.vocab_size}, {args.tokens} tokens a side, fp32, "
        f"fused AdamW, {args.device}\n\n{table(rows)}"
    )
    if args.json:
        record = {"arguments": {k: str(v) for k, v in vars(args).items()}, "machine": machine}
        args.json.write_text(json.dumps(record | {"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
