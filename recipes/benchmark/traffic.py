"""What one step launches and moves on a GPU: the N:M work beside AdamW's own, counted on any machine.

    python recipes/benchmark/traffic.py
    python recipes/benchmark/traffic.py --shape 4096 4096 --pattern 1:4 --dtype bfloat16

``AdamW`` and ``torch functions`` are counted by the operators that torch dispatches for tensors without
values (device ``meta``), taken as a GPU runs them: one launch each, every input read and every output
written once; views and allocations are free. ``kernels`` are hf_nm's own, counted by their loads and
stores (a test runs them in triton's interpreter and compares). They treat all weights of a kind in one
launch, so their launches are of a whole group; the other arms' are of one weight.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hf_nm
from hf_nm.methods.method import Aside
from hf_nm.methods.named import METHODS
from hf_nm.sparsity.kernels.table import Adjust, Kind, bytes_a_weight
from hf_nm.sparsity.mask import merge_, split_

META = torch.device("meta")
ADJUSTS = {"sr-ste": Adjust.DECAY, "ste": Adjust.LEAVE, "fixed": Adjust.ZERO}


class Count(TorchDispatchMode):
    """Counts launches and bytes of what runs inside.

    Attributes:
        launches: operators that do anything on the device.
        bytes: what they read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        arguments = func._schema.arguments
        given = dict(zip([a.name for a in arguments], args, strict=False)) | (kwargs or {})
        if func.is_view or name.startswith(("empty", "detach", "new_empty", "_local_scalar")):
            return result
        read: dict[int, Tensor] = {}
        written: dict[int, Tensor] = {id(t): t for t in tensors(result)}
        overwritten = name in ("copy_", "fill_", "zero_", "_foreach_zero_")
        for argument in arguments:
            of_argument = {id(t): t for t in tensors(given.get(argument.name))}
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes:
                written |= of_argument
            if not writes or not (argument.name == "out" or overwritten):
                read |= of_argument
        self.bytes += sum(t.nbytes for t in [*read.values(), *written.values()])
        self.launches += bool(written)
        return result


def tensors(value: Any) -> list[Tensor]:
    """The tensors in an argument that lie on the device."""
    found = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return [t for t in found if t.device == META]


def count_adamw(weight: Tensor) -> Count:
    """A step of ``torch.optim.AdamW(foreach=True)`` after the first."""
    parameter = torch.nn.Parameter(torch.empty_like(weight))
    parameter.grad = torch.empty_like(weight)
    optimizer = torch.optim.AdamW([parameter], foreach=True)
    optimizer.step()
    with Count() as count:
        optimizer.step()
    return count


def count_functions(weight: Tensor, pattern: hf_nm.NMPattern, method: str) -> Count:
    """The N:M work of a step by the torch functions."""
    adjust, keeps = METHODS[method].adjust_gradient, METHODS[method].keeps is not Aside.NOTHING
    mask = torch.empty_like(weight, dtype=torch.bool)
    aside = torch.empty_like(weight) if keeps else None
    gradient = torch.empty_like(weight)
    with Count() as count:
        merge_(weight, aside, mask)
        adjust(gradient, aside, mask, 2e-4)
        split_(weight, aside, mask, pattern, update_mask=METHODS[method].moves_masks)
    return count


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Per arm: launches, and bytes a weight."""
    dtype = getattr(torch, args.dtype)
    pattern = hf_nm.NMPattern.parse(args.pattern)
    weight = torch.empty(args.shape, dtype=dtype, device=META)
    entries = math.prod(args.shape)
    rows = []
    adamw = count_adamw(weight)
    rows.append(
        {"arm": "AdamW, foreach", "launches": adamw.launches, "bytes": adamw.bytes / entries}
    )
    for method in METHODS:
        count = count_functions(weight, pattern, method)
        keeps = METHODS[method].keeps is not Aside.NOTHING
        kind = Kind(pattern, dtype, 1, META, keeps)
        moved = bytes_a_weight(kind, ADJUSTS[method], update_mask=METHODS[method].moves_masks)
        rows += [
            {
                "arm": f"{method}: torch functions",
                "launches": count.launches,
                "bytes": count.bytes / entries,
            },
            {"arm": f"{method}: kernels", "launches": 2, "bytes": moved},
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", default=[768, 3072], help="of one weight")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    args = parser.parse_args()
    rows = rows_of(args)
    print(f"One step of a {args.dtype} weight {args.shape}, {args.pattern}; kernels: of a group\n")
    print("| arm | launches | bytes a weight |")
    print("|---|---|---|")
    for row in rows:
        print(f"| {row['arm']} | {row['launches']} | {row['bytes']:.1f} |")
    if args.json:
        record = {"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows}
        args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
