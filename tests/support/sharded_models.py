"""Weights that transformers, or a layout of one's own, shards: more scenarios of ``sharded.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sharded_net import DECAY, STEPS, new_optimizer, raised, seen, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import hf_nm


def tensor_parallel(rank: int | None, folder: Path) -> dict[str, Any]:
    """Llama by transformers' own plan; every rank sees the whole batch."""
    from models import VOCABULARY, llama
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    torch.manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (4, 7))
    model: Any = llama().double()
    if rank is not None:
        if rank == 0:
            model.save_pretrained(folder / "llama")
        dist.barrier()
        parallel = DistributedConfig(tp_size=2, tp_plan="auto")
        model = AutoModelForCausalLM.from_pretrained(
            folder / "llama", distributed_config=parallel, dtype=torch.float64
        )
    hf_nm.sparsify(model, decay=DECAY)
    optimizer = new_optimizer(model)
    handle = hf_nm.attach(optimizer, model)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 2:
            handle.mark()
    if rank is not None:
        model.save_pretrained(folder / "sparse-llama")
    return seen(model, handle, losses)


def trainer(rank: int | None, folder: Path) -> list[dict[str, Any]]:
    """An NMTrainer over a model that transformers itself sharded by FSDP2; what it logged. (The Trainer
    refuses to save the optimizer of such a model.)"""
    from trainers import build, figures, one_layer_bert, train_logs
    from transformers import AutoModelForSequenceClassification
    from transformers.distributed import DistributedConfig

    model: Any = one_layer_bert().double()
    if rank is not None:
        if rank == 0:
            model.save_pretrained(folder / "bert")
        dist.barrier()
        model = AutoModelForSequenceClassification.from_pretrained(
            folder / "bert", distributed_config=DistributedConfig(fsdp_size=2), dtype=torch.float64
        )
    built = build(
        folder / "trainer",
        model=hf_nm.sparsify(model),
        per_device_train_batch_size=8 if rank is None else 4,
        average_tokens_across_devices=False,
        save_strategy="steps",
        save_steps=5,
        save_only_model=True,
    )
    built.train()
    return [
        {"step": line["step"], "loss": line["loss"], **figures(line)} for line in train_logs(built)
    ]


def partial_gradients(rank: int | None) -> Tensor:
    """A weight on every process whose gradient is a sum over processes that nobody has formed yet."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=False).double()
    x = torch.randn(6, 8, dtype=torch.float64)
    if rank is not None:
        mesh = init_device_mesh("cpu", (2,))
        weight = distribute_tensor(layer.weight.detach(), mesh, [Replicate()])
        layer.weight = nn.Parameter(weight)
        x = distribute_tensor(x, mesh, [Shard(0)])
    hf_nm.sparsify(layer, targets="*", decay=10.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    hf_nm.attach(optimizer, layer)
    layer(x).sum().backward()
    optimizer.step()
    return whole(hf_nm.sparse_weights(layer)[0].dense_weight())


def cut_plan() -> str:
    """A plan that cuts the groups of the last feed-forward layer: 12 inputs over 2 processes. Nothing is
    changed by the refusal: leaving the layer dense, as it says, works."""
    from models import llama

    model = llama(intermediate_size=12)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        weight = distribute_tensor(layer.mlp.down_proj.weight.detach(), mesh, [Shard(1)])
        layer.mlp.down_proj.weight = nn.Parameter(weight)
    refused = raised(lambda: hf_nm.sparsify(model))
    hf_nm.sparsify(model, exclude="*.down_proj")
    return refused
