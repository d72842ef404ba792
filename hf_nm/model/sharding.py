"""Weights of which each process holds a part: FSDP2's ``fully_shard`` and tensor-parallel plans.

Such a parameter is a ``DTensor``. Its mask and pruned part are plain tensors of the local part's shape,
and all work on them is local: a shard never cuts a group (:func:`check_shards`).
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from hf_nm.sparsity.pattern import NMPattern

# How a weight is cut: the mesh's ranks, its shape, and a placement for each of its dimensions.
Placement = tuple[tuple[int, ...], tuple[int, ...], tuple[object, ...]]


def is_sharded(weight: Tensor) -> bool:
    """Whether this process holds a part of the weight only."""
    return isinstance(weight, DTensor)


def placement_of(weight: Tensor) -> Placement | None:
    """How a weight is cut, as a value that can be compared and copied; None where it is whole."""
    if not isinstance(weight, DTensor):
        return None
    ranks = weight.device_mesh.mesh
    return tuple(ranks.flatten().tolist()), tuple(ranks.shape), tuple(weight.placements)


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this process holds, sharing its memory and without its gradient; the
    tensor itself where it is whole."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, which every rank must ask for; another tensor as it is."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_shards(name: str, weight: Tensor, pattern: NMPattern, dim: int) -> None:
    """Raise ``ValueError`` where the shards of ``weight`` cut groups of m along ``dim``."""
    if not isinstance(weight, DTensor):
        return
    mesh = weight.device_mesh
    cuts = [
        mesh.size(mesh_dim)
        for mesh_dim, placement in enumerate(weight.placements)
        if isinstance(placement, Shard) and placement.dim % weight.ndim == dim % weight.ndim
    ]
    for placement in weight.placements:
        if type(placement) not in (Shard, Replicate):
            raise ValueError(
                f"{name} is sharded as {placement}, which does not tell where groups are cut; use plain "
                "FSDP2 (fully_shard on one mesh dimension) or one tensor-parallel plan"
            )
    rows = weight.shape[dim]
    for parts in cuts:
        rows = -(-rows // parts)  # as torch.chunk cuts
        if parts > 1 and rows % pattern.m:
            other = 0 if dim % weight.ndim else 1
            raise ValueError(
                f"{name} {list(weight.shape)} is sharded along its input dimension {dim} into {parts} "
                f"parts of {rows}, which cuts {pattern} groups; shard it along another dimension (with "
                f"FSDP2 shard_placement_fn=lambda parameter: Shard({other})) or over fewer processes, "
                "or leave it dense with exclude="
            )


def chunk(whole: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as the weight is; nothing is sent. A number is its own
    part."""
    if not isinstance(weight, DTensor) or not whole.ndim:
        return whole
    mesh, placements = weight.device_mesh, weight.placements
    cut = local(distribute_tensor(whole.detach(), mesh, placements, src_data_rank=None))
    return cut.to(local(weight).device, copy=True)  # not a view, which would keep the whole alive


def scatter(whole: Tensor, weight: Tensor) -> Tensor:
    """This process's part of the first rank's whole tensor (of a number: all of it); every rank of the
    mesh must call it."""
    assert isinstance(weight, DTensor)
    whole = whole.detach().to(weight.device_mesh.device_type)
    if whole.dtype == torch.bool:  # gloo sends no bools
        return scatter(whole.view(torch.uint8), weight).view(torch.bool)
    mesh = weight.device_mesh
    placements = weight.placements if whole.ndim else [Replicate()] * mesh.ndim
    cut = local(distribute_tensor(whole, mesh, placements))
    return cut.to(local(weight).device, copy=True)


def like_weight(part: Tensor, weight: Tensor) -> Tensor:
    """A part (a mask, a pruned part) as a DTensor that is sharded as the weight is; a whole tensor as it
    is."""
    if not isinstance(weight, DTensor):
        return part
    return DTensor.from_local(
        part,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def placed_as(gradient: Tensor, weight: Tensor) -> Tensor:
    """A gradient laid out as its weight is: one that is still to be summed over processes is summed."""
    if not isinstance(gradient, DTensor) or not isinstance(weight, DTensor):
        return gradient
    if gradient.placements == weight.placements:
        return gradient
    return gradient.redistribute(weight.device_mesh, weight.placements)


def part_of(tensor: Tensor, weight: Tensor) -> Tensor:
    """What belongs to this process's part of the weight, from a whole tensor or a sharded one."""
    if isinstance(tensor, DTensor):
        if isinstance(weight, DTensor):
            return local(tensor.redistribute(weight.device_mesh, weight.placements))
        return gathered(tensor)
    return chunk(tensor, weight)


def is_first_holder(weight: Tensor) -> bool:
    """Whether this process is the first of those that hold parts of the weight."""
    if not isinstance(weight, DTensor):
        return True
    place = tuple(weight.device_mesh.get_coordinate() or ())
    return not any(place[mesh_dim] for mesh_dim in _shard_dims(weight))


def sum_over_shards(
    counts: list[int], weights: list[Tensor], *, copies_too: bool = False
) -> list[int]:
    """Add up what each process counted in its part of each weight.

    Nothing is sent where no weight is sharded; else every process that holds parts must call it.

    Args:
        counts: one number per weight.
        weights: the weights, sharded or whole.
        copies_too: whether to add up over processes that hold copies of a part, too.
    """
    totals = list(counts)
    for (mesh, dims), indices in _summed_together(weights, copies_too).items():
        values = torch.tensor([counts[i] for i in indices], device=mesh.device_type)
        for mesh_dim in dims:
            dist.all_reduce(values, group=mesh.get_group(mesh_dim))
        for index, value in zip(indices, values.tolist(), strict=True):
            totals[index] = value
    return totals


def sum_tensors_over_shards(parts: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """:func:`sum_over_shards` of numbers that lie on the weights' devices, and for which nobody waits.

    Args:
        parts: of each weight a tensor of one shape and dtype, computed from this process's part.
        weights: the weights, sharded or whole.
    """
    totals = list(parts)
    for (mesh, dims), indices in _summed_together(weights, copies_too=False).items():
        values = torch.stack([parts[i] for i in indices]).to(mesh.device_type)
        for mesh_dim in dims:
            dist.all_reduce(values, group=mesh.get_group(mesh_dim))
        for index, value in zip(indices, values.unbind(), strict=True):
            totals[index] = value.to(parts[index].device)
    return totals


def _summed_together(
    weights: list[Tensor], copies_too: bool
) -> dict[tuple[DeviceMesh, tuple[int, ...]], list[int]]:
    """The sharded ones of these weights, as indices, by mesh and the dimensions of it to sum over."""
    together: dict[tuple[DeviceMesh, tuple[int, ...]], list[int]] = defaultdict(list)
    for index, weight in enumerate(weights):
        if isinstance(weight, DTensor):
            mesh = weight.device_mesh
            dims = tuple(range(mesh.ndim)) if copies_too else _shard_dims(weight)
            together[mesh, dims].append(index)
    return together


def _shard_dims(weight: DTensor) -> tuple[int, ...]:
    """The dimensions of the mesh over which the weight is cut."""
    return tuple(i for i, placement in enumerate(weight.placements) if placement.is_shard())
