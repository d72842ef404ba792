"""The average of a run's last checkpoints, as Vaswani et al. score it: of dense weights, then pruned.

The mean of sparse checkpoints is not N:M, since each has its own masks. A checkpoint holds the sparse
weight `S` in its model and the pruned part `R` in its optimizer, so the dense weight is `W = S + R`:

    W = mean over checkpoints of (S + R);   E = mask(W);   S = E * W
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

import hf_nm
from hf_nm.trainer.checkpoints import damage

WEIGHTS = "model.safetensors"
KEY = "nm_sparsity"  # in the optimizer's state


def average_checkpoints(model: Any, out: Path, count: int, main: bool) -> list[int]:
    """Give a model the average of the last checkpoints in a run's folder; every process calls it.

    Masks follow the averaged weights, unless they are fixed, frozen or held for an interval.

    Args:
        model: as it was trained, sparse or dense.
        out: where the checkpoints lie.
        count: how many; the last ones, or all where there are fewer.
        main: whether this process reads them; the others are given what it read.

    Returns:
        The updates that they are of; none where there is no whole checkpoint, and the model stays.

    Raises:
        ValueError: a checkpoint lacks the pruned part of a weight, so it was not saved by this run.
    """
    folders = last_checkpoints(out, count)
    if not folders:
        return []
    mean: dict[str, Any] = {}
    if main:
        kept = {w.name for w in hf_nm.sparse_weights(model) if w.state.aside is not None}
        mean = mean_of([dense_state(folder, kept) for folder in folders])
    several = torch.distributed.is_initialized()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=several, strict=False)
    if hf_nm.sparse_weights(model):
        with hf_nm.dense_weights(model):
            set_model_state_dict(model, mean, options=options)
    else:
        set_model_state_dict(model, mean, options=options)
    return [_step(folder) for folder in folders]


def last_checkpoints(out: Path, count: int) -> list[Path]:
    """The last whole checkpoints of a folder, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    whole = [path for path in sorted(found, key=_step) if damage(path) is None]
    return whole[-count:]


def dense_state(folder: Path, kept_aside: set[str]) -> dict[str, Tensor]:
    """A checkpoint's dense weights, `W = S + R`, and what is not sparse as it is.

    Args:
        folder: of the checkpoint.
        kept_aside: names of the weights that have a pruned part.

    Raises:
        ValueError: the optimizer's state lacks one.
    """
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    if not kept_aside:
        return state
    optimizer = torch.load(folder / "optimizer.pt", "cpu", weights_only=True, mmap=True)
    entries = optimizer.get(KEY, {}).get("weights", {})
    for name in sorted(kept_aside):
        pruned = entries.get(name, {}).get("pruned")
        if pruned is None:
            raise ValueError(
                f"{folder}: the optimizer's state holds no pruned part of {name}, which the average of "
                "dense weights needs; give --average_checkpoints 1."
            )
        state[name] = state[name] + pruned  # their supports are disjoint: exact
    return state


def mean_of(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor, summed in float64, so that the order does not matter."""
    sums = {name: tensor.double() for name, tensor in states[0].items()}
    for state in states[1:]:
        for name, total in sums.items():
            total += state[name]
    return {name: (total / len(states)).to(states[0][name].dtype) for name, total in sums.items()}


def _step(folder: Path) -> int:
    return int(folder.name.split("-")[1])
