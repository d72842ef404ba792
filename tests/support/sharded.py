"""What two processes do with sharded weights, for ``test_fsdp2.py``: ``torchrun sharded.py FOLDER``.

Each scenario leaves what each rank saw in ``FOLDER/<scenario>-<rank>.pt``. Runs of one process (``rank``
None) use the same code without sharding.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from launching import PATIENCE
from models import SHARDS_BY_SIZE, TRAINS_SHARDED
from sharded_models import cut_plan, partial_gradients, tensor_parallel, trainer
from sharded_net import (
    DECAY,
    STEPS,
    Experts,
    Net,
    loss_of,
    new_model,
    new_optimizer,
    raised,
    seen,
    shard,
    steps,
    whole,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from training import mask_of
from wide import EVERYTHING

import hf_nm


def run(
    rank: int | None,
    way: Callable[[Net], tuple[Net, Any, hf_nm.Attachment]],
    *,
    clip: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Six steps of a model prepared in one of the ways below; where only the first rank has the right
    values, others start from the second model."""
    model = new_model(**options)
    if rank and way in FILLED_FROM_FIRST:
        model = new_model(seed=99, **options)
    model, optimizer, handle = way(model)
    losses = steps(model, optimizer, rank, range(3), clip)
    handle.mark()
    losses += steps(model, optimizer, rank, range(3, STEPS), clip)
    return seen(model, handle, losses)


# -- ways to get there -----------------------------------------------------------------------------


def not_sharded(model: Net, **options: Any) -> tuple[Net, Any, hf_nm.Attachment]:
    optimizer = new_optimizer(model)
    return model, optimizer, hf_nm.attach(optimizer, model, **options)


def plain(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    """fully_shard, then the optimizer."""
    return not_sharded(shard(model))


def scheduled(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    return not_sharded(shard(model), mask_interval=2, freeze_masks_at=4)


def as_accelerate(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    """accelerate with ``fsdp_version: 2``, by its own function (on CPU its ``prepare`` would make DDP).
    The optimizer is attached first; only rank 0 has the values; shards are made on the meta device,
    filled from rank 0's whole weights, and replace the optimizer's parameters."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    optimizer = new_optimizer(model)
    handle = hf_nm.attach(optimizer, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["NMLinear", "NMExperts"],
        cpu_ram_efficient_loading=True,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
        device=torch.device("cpu"),
    )
    model = fsdp2_prepare_model(accelerator, model)
    replaced = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [replaced[names[id(parameter)]] for parameter in group["params"]]
    return model, optimizer, handle


def filled_from_first(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    """torch's own way to fill shards on the meta device from rank 0 alone, then attach."""
    values = {} if dist.get_rank() else model.state_dict()
    model = shard(model.to("meta"))
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, values, options=options)
    return not_sharded(model)


def sharded_first(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    """As models come from transformers' own ``DistributedConfig(fsdp_size=...)``: sparsify last, also
    after a forward pass, which leaves the root's parameters gathered."""
    dense = Net().double()
    with torch.no_grad():
        for to, of in zip(dense.parameters(), model.parameters(), strict=True):
            to.copy_(of)
        for w in hf_nm.sparse_weights(model):
            dense.get_parameter(w.name).copy_(w.dense_weight())
    dense = shard(dense)
    loss_of(dense, 0, dist.get_rank())
    return not_sharded(hf_nm.sparsify(dense, targets="*", decay=DECAY))


def looked_at(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    """After a forward pass without a backward one FSDP2 leaves parameters gathered: looking at weights,
    opening them and saving the optimizer then must not lose anything."""
    model, optimizer, handle = not_sharded(shard(model, reshard_after_forward=False))

    def look() -> None:
        with torch.no_grad():
            loss_of(model, 0, dist.get_rank())

    look()
    with hf_nm.dense_weights(model):
        pass
    look()
    assert len(optimizer.state_dict()["param_groups"][0]["nm_sparsity"]["weights"]) == 6
    look()
    assert handle.sad() == 0
    look()
    return model, optimizer, handle


def made_on_meta(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    """A loop of one's own: only rank 0 ever had values; the others made the model sparse on the meta
    device."""
    values = model.state_dict()
    if dist.get_rank():
        with torch.device("meta"):
            model = hf_nm.sparsify(Net().double(), targets="*", decay=DECAY)
    model = shard(model.to("meta"))
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, {} if dist.get_rank() else values, options=options)
    return not_sharded(model)


def replicated_shards(model: Net) -> tuple[Net, Any, hf_nm.Attachment]:
    """A mesh of 2 x 1: each process holds a whole copy, as a DTensor."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    return not_sharded(shard(model, mesh=mesh))


FILLED_FROM_FIRST = (as_accelerate, filled_from_first)
WAYS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "plain": (plain, {}),
    "clipped": (plain, {"clip": True}),
    "fixed": (plain, {"method": "fixed"}),
    "wide": (plain, {"method": EVERYTHING}),
    "wide_as_accelerate": (as_accelerate, {"method": EVERYTHING}),
    "scheduled": (scheduled, {}),
    "as_accelerate": (as_accelerate, {}),
    "as_accelerate_fixed": (as_accelerate, {"method": "fixed"}),
    "filled_from_first": (filled_from_first, {}),
    "looked_at": (looked_at, {}),
    "made_on_meta": (made_on_meta, {}),
    "sharded_first": (sharded_first, {}),
    "replicated": (replicated_shards, {}),
}


# -- checkpoints -----------------------------------------------------------------------------------


def resumed(
    rank: int, folder: Path, kind: str, name: str = "dcp", **sparsify: Any
) -> dict[str, Any]:
    """Three steps, saved; another start from it, three more steps."""
    model, optimizer, handle = plain(new_model(**sparsify))
    losses = steps(model, optimizer, rank, range(3))
    handle.mark()
    if kind == "per rank":
        saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    elif kind == "full":
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        saved = {
            "model": get_model_state_dict(model, options=options),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
        }
        if rank == 0:
            torch.save(saved, folder / "full.pt")
    else:
        state: dict[str, Any] = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
        }
        dcp.save(state, checkpoint_id=folder / name)

    model, optimizer, handle = plain(new_model(seed=5, **sparsify))
    if kind == "per rank":
        optimizer.load_state_dict(saved["optimizer"])
        model.load_state_dict(saved["model"])
    elif kind == "full":
        saved = torch.load(folder / "full.pt", weights_only=True) if rank == 0 else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, saved.get("model", {}), options=options)
        set_optimizer_state_dict(model, optimizer, saved.get("optimizer", {}), options=options)
    else:
        state = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
        }
        dcp.load(state, checkpoint_id=folder / name)
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    losses += steps(model, optimizer, rank, range(3, STEPS))
    return seen(model, handle, losses)


# -- what goes wrong, or outside a step ------------------------------------------------------------


def outside(rank: int) -> dict[str, Any]:
    """Dense weights written by hand, a dense checkpoint loaded, and a forgotten attach."""
    model, optimizer, _ = plain(new_model())
    steps(model, optimizer, rank, range(2))
    with hf_nm.dense_weights(model), torch.no_grad():
        for w in hf_nm.sparse_weights(model):
            w.weight.mul_(-2)
    halves = {w.name: whole(w.dense_weight()) for w in hf_nm.sparse_weights(model)}
    verified = hf_nm.verify(model)

    dense = Net().double()
    torch.manual_seed(3)
    for parameter in dense.parameters():
        nn.init.normal_(parameter)
    loaded = shard(new_model())
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(loaded, dense.state_dict(), options=options)
    unsettled = raised(loaded.state_dict)
    hf_nm.attach(new_optimizer(loaded), loaded)
    masks = {w.name: whole(mask_of(w)) for w in hf_nm.sparse_weights(loaded)}

    forgotten = shard(new_model())
    steps(forgotten, new_optimizer(forgotten), rank, range(1))
    cut = hf_nm.sparsify(nn.Sequential(nn.Linear(6, 6)), 1, 2, targets="*")
    fully_shard(cut)
    odd = hf_nm.sparsify(nn.ModuleList([Experts(True)]), targets="*")
    for expert in odd:
        expert.get_parameter("up_proj").data.normal_()
    fully_shard(odd[0], shard_placement_fn=lambda parameter: Shard(1))
    six = hf_nm.sparsify(nn.Sequential(nn.Linear(12, 4)), targets="*")
    fully_shard(
        six[0],
        shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1),
    )
    return {
        "written": halves,
        "kept": [row.kept for row in verified.layers],
        "dense": {name: p.detach() for name, p in dense.named_parameters()},
        "masks": masks,
        "unsettled": unsettled,
        "save": raised(forgotten.state_dict),
        "verify": raised(lambda: hf_nm.verify(forgotten)),
        "rows": raised(lambda: hf_nm.attach(new_optimizer(cut), cut)),
        "even": raised(lambda: hf_nm.attach(new_optimizer(odd), odd)),
        "cut": raised(lambda: hf_nm.attach(new_optimizer(six), six)),
        "finalized": type(hf_nm.finalize(model).five).__name__,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # as accelerate's launcher sets it
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE / 2))
    rank = dist.get_rank()

    def keep(name: str, result: dict[str, Any]) -> None:
        torch.save(result, folder / f"{name}-{rank}.pt")

    for name, (way, options) in WAYS.items():
        keep(name, run(rank, way, **options))
    for kind in ("per rank", "full", "dcp"):
        keep(kind, resumed(rank, folder, kind))
    keep("automatic", run(rank, plain, decay="auto"))
    keep("automatic, resumed", resumed(rank, folder, "dcp", "auto", decay="auto"))
    keep("partial", {"dense": partial_gradients(rank)})
    if SHARDS_BY_SIZE:
        keep("tensor_parallel", tensor_parallel(rank, folder))
    if TRAINS_SHARDED:
        keep("trainer", {"logs": trainer(rank, folder)})
    keep("outside", outside(rank) | {"plan": cut_plan()})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
