"""The network of ``sharded.py``: weights that processes share evenly, unevenly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training import mask_of

import hf_nm

STEPS = 6
WIDTH = 16
DECAY = 0.05


class Experts(nn.Module):
    """Three fused experts: the first matrix ``[experts, out, in]`` or ``[experts, in, out]``."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.up_proj = nn.Parameter(torch.empty(3, *((WIDTH, 8) if transposed else (8, WIDTH))))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.up_proj if self.is_transposed else self.up_proj.transpose(1, 2)
        return torch.einsum("bi,eio->bo", x, weight).clone()


class Net(nn.Module):
    """Rows that two processes share evenly (24, 16), unevenly (5; 3 experts) and not at all (1)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 24)
        self.fc2 = nn.Linear(24, WIDTH)
        self.experts = nn.ModuleList([Experts(False), Experts(True)])
        self.five = nn.Linear(WIDTH, 5)
        self.one = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc2(torch.tanh(self.fc1(x))))
        mixed = torch.cat([expert(x) for expert in self.experts], dim=-1)
        x = torch.tanh(x + mixed)
        return self.five(x) + self.one(x)


def new_model(seed: int = 0, **options: Any) -> Net:
    """A float64 network whose weights depend on the seed."""
    model = Net().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / 3)
    return hf_nm.sparsify(model, targets="*", **({"decay": DECAY} | options))


def shard(model: Net, **options: Any) -> Net:
    for part in (model.fc1, model.fc2, *model.experts, model.five):
        fully_shard(part, **options)
    fully_shard(model, **options)
    return model


def loss_of(model: nn.Module, step: int, rank: int | None) -> Tensor:
    """Loss on the step's global batch of 8 (``rank`` None), or on the rank's half of it."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    if rank is not None:
        x, y = x.chunk(2)[rank], y.chunk(2)[rank]
    return nn.functional.mse_loss(model(x), y)


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.03)


def steps(
    model: nn.Module, optimizer: Any, rank: int | None, which: range, clip: bool = False
) -> list[float]:
    losses = []
    for step in which:
        optimizer.zero_grad()
        loss = loss_of(model, step, rank)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        losses.append(loss.item())
    return losses


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def seen(model: nn.Module, handle: hf_nm.Attachment, losses: list[float]) -> dict[str, Any]:
    """Everything that training depends on, gathered, and what is measured."""
    state = {name: whole(parameter) for name, parameter in model.named_parameters()}
    for w in hf_nm.sparse_weights(model):
        state[f"{w.name}/mask"] = whole(mask_of(w))
        state[f"{w.name}/dense"] = whole(w.dense_weight())
    return {
        "state": state,
        "step": handle.step,
        "sad": handle.sad_per_layer(),
        "sad_mark": handle.sad_per_layer("mark"),
        "flips": handle.flips_per_layer(),
        "flip_rate": handle.flip_rate(),
        "losses": losses,
        "decays": handle.meter.decays(),
    }


def raised(action: Callable[[], Any]) -> str:
    try:
        action()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
