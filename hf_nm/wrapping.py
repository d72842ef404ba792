"""What wraps a model or an optimizer: looked through where the weights stay whole, else refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_nm import compat


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DataParallel and DDP wrappers."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif (inner := compat.compiled_inner(model)) is not None:
            model = inner
        else:
            return model


def checked_model(model: nn.Module) -> nn.Module:
    """The model inside its wrappers."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"attach needs a torch.nn.Module, but got {type(model).__name__}; write "
            "hf_nm.attach(optimizer, model)"
        )
    for module in model.modules():
        bases = type(module).__mro__
        refuse_sharded_copies(
            deepspeed=any(base.__module__.startswith("deepspeed") for base in bases),
            fsdp1=any(base.__name__ == "FullyShardedDataParallel" for base in bases),
        )
    return unwrap(model)


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    _refuse_by_name(optimizer)
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
        _refuse_by_name(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"attach needs a torch.optim.Optimizer, but got {type(optimizer).__name__}; pass the "
            "optimizer whose step() updates the model"
        )
    return optimizer


def _refuse_by_name(optimizer: Any) -> None:
    for base in type(optimizer).__mro__:
        refuse_sharded_copies(
            deepspeed="deepspeed" in base.__module__ + base.__name__.lower(), fsdp1=False
        )
        if base.__name__ in ("Lomo", "AdaLomo"):
            raise TypeError(
                f"{base.__name__} updates weights during the backward pass, so there is no step to "
                "attach to; use AdamW, Adafactor or another torch optimizer"
            )
        if base.__name__ == "LayerWiseDummyOptimizer":
            raise TypeError(
                "layer-wise optimizers (galore_adamw_layerwise and its kin) step once per parameter "
                "during the backward pass; use the same optimizer without layer-wise updates "
                "(optim='galore_adamw')"
            )


def refuse_sharded_copies(*, deepspeed: bool, fsdp1: bool) -> None:
    """Raise for ways of training that keep their own flat copies of the weights."""
    if deepspeed:
        raise TypeError(
            "DeepSpeed keeps its own flat copies of the weights, which cannot be N:M; use FSDP2 "
            "(fully_shard; in accelerate fsdp_version: 2) or DDP"
        )
    if fsdp1:
        raise TypeError(
            "FSDP1 (FullyShardedDataParallel) keeps flat copies of the weights, which cannot be N:M; "
            "use FSDP2 (fully_shard; in accelerate fsdp_version: 2) or DDP"
        )
