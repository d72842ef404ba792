"""Several processes that train copies of one model: what they must agree on before the first step."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist

from hf_nm.mask import fingerprint
from hf_nm.weights import SparseWeight


@torch.no_grad()
def align_ranks(weights: list[SparseWeight]) -> bool:
    """Take masks and pruned parts from rank 0 where ranks train copies of one model.

    DDP aligns only the sparse weights; ranks may have initialised differently. Ranks are copies if
    names, shapes and sparse weights agree on all of them; otherwise (pipeline stages, separate
    models) they are left alone. Every rank must call it.

    Returns:
        Whether masks and pruned parts were taken from rank 0.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return False
    digest = hashlib.sha256()
    for w in weights:
        digest.update(f"{w.name} {tuple(w.weight.shape)} {fingerprint(w.weight)}".encode())
    digests: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest.hexdigest())
    if len(set(digests)) > 1:
        return False
    for w in weights:
        if w.state.mask is not None:
            dist.broadcast(w.state.mask.view(torch.uint8), src=0)
        if w.state.pruned is not None:
            dist.broadcast(w.state.pruned, src=0)
    return True
