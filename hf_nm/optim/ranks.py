"""Several processes that train copies of one model: what they must agree on before the first step."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist

from hf_nm.methods.method import Aside
from hf_nm.model.parts import Parts
from hf_nm.model.sharding import (
    is_sharded,
    placement_of,
    scatter,
    sum_over_shards,
)
from hf_nm.model.weights import SparseWeight
from hf_nm.optim.options import options_of
from hf_nm.optim.schedule import Schedule
from hf_nm.processes import meet, several_processes
from hf_nm.sparsity.bits import fingerprint


@torch.no_grad()
def align_ranks(weights: list[SparseWeight], trained: list[str], schedule: Schedule) -> bool:
    """Agree on how the model is trained, and take masks and pruned parts of whole weights from the first
    rank that trains a copy of it.

    DDP aligns only the sparse weights; ranks may have initialised differently. Ranks hold copies if
    names, shapes and sparse weights agree; others (pipeline stages, models of their own) are left
    alone. Every rank must call it.

    Args:
        weights: the model's.
        trained: names of those that the optimizer trains.
        schedule: of the optimizer.

    Returns:
        Whether another rank holds a copy of these weights.

    Warns:
        UserWarning: ranks that began with the same weights train them differently, but have other
            gradients, so that they may train models of their own.

    Raises:
        RuntimeError: on every rank: one will not come, or trains a copy with other options.
    """
    if not several_processes() or not weights:
        return False
    meet()
    whole = [w for w in weights if not is_sharded(w.weight)]
    mine = {w.name: [list(w.weight.shape), _values(w)] for w in weights}
    options = {w.name: options_of(w) | {"trained": w.name in trained} for w in weights}
    same = _digest([mine[w.name] + [w.name] for w in whole])
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, (same, _digest([mine, options, asdict(schedule)])))
    if len({everything for _, everything in seen}) > 1:
        _compare(mine, options, schedule, weights)
    if not whole:
        return False
    weights, digests = whole, [found for found, _ in seen]
    copies: dict[str, list[int]] = {}
    for rank, found in enumerate(digests):
        copies.setdefault(found, []).append(rank)
    for ranks in copies.values():
        if len(ranks) == 1:
            continue
        # Every rank takes part in making a group, also of others.
        part = dist.new_group(ranks) if len(ranks) < len(digests) else None
        if dist.get_rank() in ranks:
            for w in weights:
                for tensor in [] if w.state.parts is None else w.state.parts.tensors():
                    sent = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
                    dist.broadcast(sent, src=ranks[0], group=part)
            if part is not None:
                dist.destroy_process_group(part)
    return len(copies[same]) > 1


def _values(w: SparseWeight) -> Any:
    """What is the same on ranks that train one weight, and probably on no others."""
    return str(placement_of(w.weight)) if is_sharded(w.weight) else fingerprint(w.weight)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _compare(
    mine: dict[str, Any],
    options: dict[str, dict[str, Any]],
    schedule: Schedule,
    weights: list[SparseWeight],
) -> None:
    """Find ranks that train copies of one model with different options: an error on every rank,
    whichever they are. Every rank must call it.

    Args:
        mine: name to shape and values of each weight.
        options: name to what it is trained with.
        schedule: of the optimizer.
        weights: all of them.
    """
    gradients = {
        w.name: fingerprint(w.weight.grad)
        for w in weights
        if w.weight.grad is not None and not is_sharded(w.weight)
    }
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (mine, options, asdict(schedule), gradients))
    for (first, one), (second, other) in combinations(enumerate(ranks), 2):
        common = one[0].keys() & other[0].keys()
        if not common or any(one[0][name] != other[0][name] for name in common):
            continue  # models of their own
        different = list(_differences(first, one, second, other))
        if not different:
            continue
        said = "; ".join(different[:3]) + (
            f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        )
        if any(one[3][name] != other[3][name] for name in one[3].keys() & other[3].keys()):
            warnings.warn(
                f"ranks {first} and {second} begin with the same N:M weights, and train them "
                f"differently: {said}. If they are to train one model, give every rank the same options",
                stacklevel=5,
            )
            return
        raise RuntimeError(
            f"ranks {first} and {second} train copies of one model with different options: {said}; give "
            "every rank the same to hf_nm.sparsify and hf_nm.attach"
        )


def _differences(first: int, one: Any, second: int, other: Any) -> Iterator[str]:
    """What two ranks that train copies of one model do differently."""
    for option, value in one[2].items():
        if other[2][option] != value:
            yield f"{option} is {value!r} on rank {first}, {other[2][option]!r} on rank {second}"
    for name in sorted(one[1].keys() | other[1].keys()):
        ours, theirs = one[1].get(name), other[1].get(name)
        if ours is None or theirs is None:
            yield f"{name} is N:M on rank {second if ours is None else first} only"
            continue
        for option, value in ours.items():
            if theirs[option] != value:
                yield (
                    f"{option} of {name} is {value!r} on rank {first}, {theirs[option]!r} on rank "
                    f"{second}"
                )


@torch.no_grad()
def settle_shards(weights: list[SparseWeight]) -> list[SparseWeight]:
    """Masks and pruned parts for weights that were sharded since they were made sparse.

    Usually each rank's own belong to its shard. Where they do not on every rank, values may have come
    from the first rank (accelerate fills only that one's model): then its masks do. Where those do not
    belong either, other values were loaded: they are taken as dense ones. Nothing is sent unless
    weights are new here and sharded; then every rank must call it.

    Returns:
        The weights that were.
    """
    new = [w for w in weights if is_sharded(w.weight) and not w.state.agrees(w.weight)]
    for w in new:
        w.state.match_placement(w.weight)
    kept = sum_over_shards(
        [int(w.state.waiting is not None) for w in new], [w.weight for w in new], copies_too=True
    )
    waiting = [w for w, count in zip(new, kept, strict=True) if count]
    for w in waiting:
        if w.state.waiting is None:  # made sparse on the meta device here, from values elsewhere
            w.state.empty()
    for w in _disagreeing(waiting):
        whole = (w.state.waiting or _nothing(w)).cast(w.weight.dtype)
        w.state.install(whole.mapped(partial(scatter, weight=w.weight), placement_of(w.weight)))
    for w in _disagreeing(waiting):
        w.state.project_dense(w.weight)
    for w in new:
        w.state.agree()
    return new


def _nothing(w: SparseWeight) -> Parts:
    """Parts of the whole weight's shape, which the first rank's take the place of."""
    keeps = w.state.method.keeps is not Aside.NOTHING
    shape, dtype = w.weight.shape, w.weight.dtype
    mask, zeros = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=dtype)
    extras = w.state.spec.extras(zeros, mask)
    return Parts(mask, w.state.step_pattern, zeros if keeps else None, extras)


def _disagreeing(weights: list[SparseWeight]) -> list[SparseWeight]:
    """Those whose shard does not obey its mask on some rank."""
    wrong = [not w.state.obeyed_by(w.weight) for w in weights]
    counts = sum_over_shards([int(x) for x in wrong], [w.weight for w in weights], copies_too=True)
    return [w for w, count in zip(weights, counts, strict=True) if count]
