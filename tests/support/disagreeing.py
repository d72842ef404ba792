"""What two processes do that were not told the same, for ``test_ranks.py``: ``torchrun disagreeing.py
FOLDER``.

Each scenario leaves in ``FOLDER/<scenario>-<rank>.pt`` how it ended on each rank, and after how many
seconds.
"""

from __future__ import annotations

import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hf_nm

STEPS = 3

# Options of rank 1 to ``sparsify`` and ``attach``, where rank 0 has the defaults.
DIFFERENT: dict[str, dict[str, Any]] = {
    "forgot attach": {},  # first: a rank that has ever attached is not asked
    "the same": {},
    "pattern": {"n": 1},
    "method": {"method": "ste"},
    "decay": {"decay": 0.5},
    "targets": {"targets": "0"},
    "patterns": {"patterns": {"2": "1:4"}},
    "mask_interval": {"mask_interval": 3},
    "freeze_masks_at": {"freeze_masks_at": 7},
    "decay_warmup_steps": {"decay_warmup_steps": 2},
    "own gradients": {"decay": 0.5},
    "own models": {"decay": 0.5},
}
OF_ATTACH = ("mask_interval", "freeze_masks_at", "decay_warmup_steps")


def train(name: str, rank: int) -> dict[str, Any]:
    """A few steps of a small model in DDP."""
    torch.manual_seed(rank)
    given = DIFFERENT[name] if rank else {}
    of_attach = {key: value for key, value in given.items() if key in OF_ATTACH}
    of_sparsify = {key: value for key, value in given.items() if key not in OF_ATTACH}
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
    hf_nm.sparsify(model, **{"targets": "*"} | of_sparsify)
    wrapped: Any = model if name == "own models" else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if name != "forgot attach" or rank == 0:
        hf_nm.attach(optimizer, wrapped, **of_attach)
    started, error, kind, steps = time.monotonic(), "", "", 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            while steps < STEPS:
                optimizer.zero_grad()
                inputs = torch.randn(8, 16)
                if name == "own gradients":
                    with wrapped.no_sync():
                        wrapped(inputs).square().mean().backward()
                else:
                    wrapped(inputs).square().mean().backward()
                optimizer.step()
                steps += 1
        except Exception as raised:
            error, kind = str(raised), type(raised).__name__
    return {
        "error": error,
        "kind": kind,
        "steps": steps,
        "seconds": time.monotonic() - started,
        "warned": [str(warning.message) for warning in warned],
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    rank = dist.get_rank()
    for name in DIFFERENT:  # all of them end on both ranks at the same collective
        torch.save(train(name, rank), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
