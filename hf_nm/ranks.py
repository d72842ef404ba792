"""Several processes that train copies of one model: what they must agree on before the first step."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist

from hf_nm.mask import fingerprint
from hf_nm.weights import SparseWeight


def several_processes() -> bool:
    """Whether other processes train beside this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def align_ranks(weights: list[SparseWeight]) -> bool:
    """Take masks and pruned parts from the first rank that trains a copy of the same model.

    DDP aligns only the sparse weights; ranks may have initialised differently. Ranks hold copies if
    names, shapes and sparse weights agree; others (pipeline stages, models of their own) are left
    alone. Every rank must call it.

    Returns:
        Whether another rank holds a copy of these weights.
    """
    if not several_processes():
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
