"""Several processes that train copies of one model: what they must agree on before the first step."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor

from hf_nm.model.sharding import is_sharded, local, scatter, sum_over_shards
from hf_nm.model.weights import SparseWeight
from hf_nm.sparsity.bits import fingerprint
from hf_nm.sparsity.mask import breaks_mask


def several_processes() -> bool:
    """Whether other processes train beside this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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
                if w.state.mask is not None:
                    dist.broadcast(w.state.mask.view(torch.uint8), src=ranks[0], group=part)
                if w.state.pruned is not None:
                    dist.broadcast(w.state.pruned, src=ranks[0], group=part)
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
    new = [w for w in weights if is_sharded(w.weight) and not w.state.agreed]
    for w in new:
        w.state.settle(w.weight)
    kept = sum_over_shards(
        [int(w.state.whole is not None) for w in new], [w.weight for w in new], copies_too=True
    )
    waiting = [w for w, count in zip(new, kept, strict=True) if count]
    for w in waiting:
        if w.state.whole is None:  # made sparse on the meta device here, from values elsewhere
            w.state.mask = None
    for w in _disagreeing(waiting):
        mask, pruned = w.state.whole or _nothing(w)
        w.state.mask, w.state.sharded = scatter(mask, w.weight), True
        w.state.pruned = None if pruned is None else scatter(pruned.to(w.weight.dtype), w.weight)
    for w in _disagreeing(waiting):
        w.state.take(w.weight)
    for w in new:
        w.state.whole, w.state.agreed = None, True
    return new


def _nothing(w: SparseWeight) -> tuple[Tensor, Tensor | None]:
    """A mask and pruned part of the whole weight's shape, which the first rank's take the place of."""
    pruned = torch.zeros(w.weight.shape, dtype=w.weight.dtype)
    return torch.zeros(
        w.weight.shape, dtype=torch.bool
    ), pruned if w.state.method.moves_masks else None


def _disagreeing(weights: list[SparseWeight]) -> list[SparseWeight]:
    """Those whose shard does not obey its mask on some rank."""
    wrong = [w.state.mask is None or breaks_mask(local(w.weight), w.state.mask) for w in weights]
    counts = sum_over_shards([int(x) for x in wrong], [w.weight for w in weights], copies_too=True)
    return [w for w, count in zip(weights, counts, strict=True) if count]
