"""What cannot be attached, and is refused with a name and a remedy."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import mlp
from torch import nn
from training import (
    SIZES,
    loss_of,
    sparse_mlp,
)

import hf_nm


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.02)


def test_nothing_to_do_is_an_error():
    model = sparse_mlp()
    with pytest.raises(ValueError, match="sparsify"):
        hf_nm.attach(adam(mlp(*SIZES)), mlp(*SIZES))
    with pytest.raises(ValueError, match=r"holds none of the model's 2 N:M weights"):
        hf_nm.attach(adam(sparse_mlp()), model)
    with pytest.raises(TypeError, match="Sequential"):
        hf_nm.attach(model, adam(model))
    with pytest.raises(TypeError, match="Adam"):
        hf_nm.attach(adam(model), adam(model))
    for options in ({"mask_interval": 0}, {"mask_interval": 1.5}, {"freeze_masks_at": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            hf_nm.attach(adam(model), model, **options)


def test_weights_written_before_attach_are_refused():
    """Red if attach starts from a weight whose pruned entries hold values."""
    model = sparse_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of(model, 0).backward()
    optimizer.step()
    with pytest.raises(hf_nm.BrokenPatternError, match="dense_weights"):
        hf_nm.attach(optimizer, model)


def named(name: str, base: type, module: str = "elsewhere") -> type:
    return type(name, (base,), {"__module__": module})


class Lookalike(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("Lomo", "lomo_optim", "AdamW"),
        ("AdaLomo", "lomo_optim", "AdamW"),
        ("LayerWiseDummyOptimizer", "transformers.trainer_pt_utils", "galore_adamw"),
        ("DeepSpeedOptimizerWrapper", "accelerate.utils.deepspeed", "FSDP2"),
        ("DeepSpeedZeroOptimizer", "deepspeed.runtime.zero.stage_1_and_2", "FSDP2"),
    ],
)
def test_optimizers_refused_by_name(name, module, remedy):
    model = sparse_mlp()
    optimizer = named(name, Lookalike, module)(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=remedy):
        hf_nm.attach(optimizer, model)


def test_deepspeeds_optimizer_is_not_looked_through():
    """Red if only the innermost optimizer is judged: ZeRO's holds a torch optimizer of flat copies."""

    class DeepSpeedZeroOptimizer:
        __module__ = "deepspeed.runtime.zero.stage_1_and_2"

        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = sparse_mlp()
    with pytest.raises(TypeError, match=r"DeepSpeed.*FSDP2"):
        hf_nm.attach(DeepSpeedZeroOptimizer(adam(model)), model)


def test_layerwise_galore_of_transformers_is_refused():
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    model = sparse_mlp()
    with pytest.raises(TypeError, match="galore_adamw"):
        hf_nm.attach(LayerWiseDummyOptimizer(optimizer_dict={}), model)


def test_models_refused_by_name(single_process_group):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = sparse_mlp()
    optimizer = adam(model)
    engine = named("DeepSpeedEngine", nn.Sequential, "deepspeed.runtime.engine")(model)
    with pytest.raises(TypeError, match=r"DeepSpeed.*FSDP2"):
        hf_nm.attach(optimizer, engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP1 itself is deprecated, and warns on CPU
        sharded = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"FSDP1.*fully_shard"):
        hf_nm.attach(optimizer, sharded)
