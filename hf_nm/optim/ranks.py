"""Several processes that train copies of one model: what they must agree on before the first step."""

from __future__ import annotations

import hashlib
from functools import partial

import torch
import torch.distributed as dist

from hf_nm.methods.method import Aside
from hf_nm.model.parts import Parts, Whole
from hf_nm.model.sharding import (
    is_sharded,
    placement_of,
    scatter,
    several_processes,
    sum_over_shards,
)
from hf_nm.model.weights import SparseWeight
from hf_nm.sparsity.bits import fingerprint


@torch.no_grad()
def align_ranks(weights: list[SparseWeight]) -> bool:
    """Take masks and pruned parts of whole weights from the first rank that trains a copy of the same
    model.

    DDP aligns only the sparse weights; ranks may have initialised differently. Ranks hold copies if
    names, shapes and sparse weights agree; others (pipeline stages, models of their own) are left
    alone. Every rank must call it.

    Returns:
        Whether another rank holds a copy of these weights.
    """
    weights = [w for w in weights if not is_sharded(w.weight)]
    if not several_processes() or not weights:
        return False
    digest = hashlib.sha256()
    for w in weights:
        digest.update(f"{w.name} {tuple(w.weight.shape)} {fingerprint(w.weight)}".encode())
    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, digest.hexdigest())
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
    return len(copies[digest.hexdigest()]) > 1


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
    make = w.state.spec.method.extras
    extras = {} if make is None else make(zeros, mask)
    held = Whole(mask, zeros if keeps else None, w.state.step_pattern, w.state.dim)
    return Parts(held, extras)


def _disagreeing(weights: list[SparseWeight]) -> list[SparseWeight]:
    """Those whose shard does not obey its mask on some rank."""
    wrong = [not w.state.obeyed_by(w.weight) for w in weights]
    counts = sum_over_shards([int(x) for x in wrong], [w.weight for w in weights], copies_too=True)
    return [w for w, count in zip(weights, counts, strict=True) if count]
