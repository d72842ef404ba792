"""What wraps a model or an optimizer: looked through where the weights stay whole, else refused. Nothing
else in the package refuses by a class's name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_nm import compat
from hf_nm.model.weights import sparse_weights, unwrap

_FSDP1 = "FullyShardedDataParallel"
_WRAPPERS = ("DistributedDataParallel", "DataParallel", _FSDP1)


def checked_model(model: nn.Module) -> nn.Module:
    """The model inside its wrappers."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"attach needs a torch.nn.Module, but got {type(model).__name__}; write "
            "hf_nm.attach(optimizer, model)"
        )
    kinds = _kinds(model)
    _refuse_flat_copies(
        deepspeed=any(_is_deepspeed(kind) for kind in kinds),
        fsdp1=any(kind.__name__ == _FSDP1 for kind in kinds),
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


def check_trainer(trainer: Any) -> None:
    """Refuse a transformers Trainer that will wrap its model or optimizer in what is refused here."""
    _refuse_flat_copies(
        deepspeed=trainer.is_deepspeed_enabled,
        fsdp1=trainer.is_fsdp_enabled
        and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1,
    )


def _refuse_by_name(optimizer: Any) -> None:
    for base in type(optimizer).__mro__:
        # accelerate's wrapper of ZeRO's optimizer is a class of accelerate's.
        _refuse_flat_copies(
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


def _kinds(model: nn.Module) -> list[type]:
    """The classes of a model's modules and those that they are made from, each once."""
    own = dict.fromkeys(type(module) for module in model.modules())
    return list(dict.fromkeys(base for kind in own for base in kind.__mro__))


def _is_deepspeed(kind: type) -> bool:
    return kind.__module__.startswith("deepspeed")


def _refuse_flat_copies(*, deepspeed: bool, fsdp1: bool) -> None:
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


def check_plain(model: nn.Module, *, may_be_sparse: bool = False) -> None:
    """Refuse what cannot be changed in place, and say what to do instead.

    Args:
        model: any module.
        may_be_sparse: whether it may have N:M layers already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"hf_nm works on a torch.nn.Module, but got {type(model).__name__}; load the model "
            "first, for example AutoModelForSeq2SeqLM.from_pretrained(...)"
        )
    sparse = [] if may_be_sparse else sparse_weights(model)
    if sparse:
        raise ValueError(
            f"the model is already sparse ({len(sparse)} weights, first {sparse[0].name} "
            f"{sparse[0].pattern}); use patterns= to mix patterns in one call, or "
            "hf_nm.finalize(model) first"
        )
    packed = [name for name, p in model.named_parameters() if getattr(p, "is_nm_packed", False)]
    if packed:
        raise ValueError(
            f"the model is compressed ({len(packed)} weights, first {packed[0]}), for inference alone; "
            "load the plain checkpoint to train it"
        )
    kinds = _kinds(model)
    wrapper = next((kind.__name__ for kind in kinds if kind.__name__ in _WRAPPERS), None)
    if wrapper is None and any(_is_deepspeed(kind) for kind in kinds):
        wrapper = "DeepSpeed"
    if wrapper is not None:
        raise ValueError(
            f"the model, or a part of it, is already wrapped by {wrapper}; make the plain model "
            "sparse first, then wrap it"
        )
    for name, module in model.named_modules():
        if compat.is_offloaded(module):
            raise ValueError(
                f"the weights of {name or 'the model'} are offloaded (device_map sent them to the CPU "
                "or the disk), and each forward pass brings copies; load the model where it fits, for "
                "example with device_map={'': 0}, or use FSDP2"
            )
        if compat.compiled_inner(module) is not None:
            raise ValueError(
                f"{name or 'the model'} is already compiled; make the model sparse first, then call "
                "torch.compile"
            )
    quantizer = getattr(model, "hf_quantizer", None)
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if quantizer is not None or config is not None or getattr(model, "is_quantized", False):
        kind = type(config if config is not None else quantizer).__name__
        raise ValueError(
            f"the model is quantized ({kind}); N:M training needs floating-point weights: load it "
            "without a quantization_config"
        )
