"""Casts keep the masks, loads split again."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import mlp
from tolerances import assert_same_bits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training import (
    SIZES,
    assert_same_state,
    assert_sparse,
    masks,
    sparse_mlp,
    state_of,
    train,
    trained,
)

import hf_nm


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_masks_stay_through_a_cast_until_the_next_step(dtype):
    """Red if a cast computes masks again: in a coarser dtype ties would move them."""
    layer = hf_nm.NMLinear(16, 64, bias=False, dtype=torch.float32)
    model = nn.Sequential(layer)
    with hf_nm.dense_weights(model), torch.no_grad():
        layer.weight.copy_(1 + torch.rand(64, 16) / 1000)  # ties in 16 bits
    before = layer.mask.clone()
    dense = layer.dense_weight()
    model.to(dtype)
    assert torch.equal(layer.mask, before)
    assert_same_bits(layer.dense_weight(), dense.to(dtype))
    assert_sparse(model)
    if dtype != torch.float64:
        assert not torch.equal(hf_nm.nm_mask(layer.dense_weight(), 2, 4), before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = hf_nm.attach(optimizer, model)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    assert torch.equal(layer.mask, hf_nm.nm_mask(layer.dense_weight(), 2, 4))
    assert (handle.sad() > 0) == (dtype != torch.float64)


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_in_a_low_precision(dtype):
    """Red if a mask is promoted or the pruned part kept in another dtype: ``S + R == W`` would break."""
    model = sparse_mlp(dtype=dtype, decay=0.05)
    plain = mlp(*SIZES, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    hf_nm.attach(optimizer, model)
    for w in hf_nm.sparse_weights(model):
        assert_same_bits(w.dense_weight(), plain.get_parameter(w.name).detach())
    train(model, optimizer, range(5))
    for w in hf_nm.sparse_weights(model):
        assert w.weight.dtype == w.state.aside.dtype == dtype
        assert torch.equal(w.mask, hf_nm.nm_mask(w.dense_weight(), 2, 4))
    assert_sparse(model)


def test_load_state_dict_splits_again():
    """Red if a mask or a pruned part of the old weights survives a load."""
    model, optimizer = trained()
    dense = {name: tensor + 1 for name, tensor in mlp(*SIZES).state_dict().items()}
    model.load_state_dict(dense)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.dense_weight(), dense[w.name])
        assert torch.equal(w.mask, hf_nm.nm_mask(dense[w.name], 2, 4))
    assert_sparse(model)

    other, _ = trained(steps=9)
    model.load_state_dict(other.state_dict())
    for w in hf_nm.sparse_weights(model):
        assert_same_bits(w.dense_weight(), w.weight.detach())
    assert_sparse(model)
    train(model, optimizer, range(3))
    assert_sparse(model)


def test_load_state_dict_of_a_part():
    """Red if weights that are not in the file lose their pruned part."""
    model, _ = trained()
    before = state_of(model)
    model.load_state_dict({"0.weight": torch.randn(24, 16)}, strict=False)
    after = state_of(model)
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["2.weight/dense"], before["2.weight/dense"])


def test_a_load_that_fails_changes_nothing():
    """Red if a weight whose shape does not fit loses its pruned part on the way to the error."""
    model, _ = trained()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"0.weight": torch.zeros(24, 20)}, strict=False)
    assert_same_state(state_of(model), before)


def test_load_state_dict_while_masks_are_held():
    """Red if held masks survive weights that do not obey them, or are moved where they do."""
    model = sparse_mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    hf_nm.attach(optimizer, model, freeze_masks_at=2)
    train(model, optimizer, range(5))
    with hf_nm.dense_weights(model), torch.no_grad():
        model[0].weight.zero_()  # so that its mask cannot be told from its values
    held, saved = masks(model), {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(saved)
    assert all(torch.equal(mask, held[name]) for name, mask in masks(model).items())
    model.load_state_dict(mlp(*SIZES).state_dict())
    assert_sparse(model)
    train(model, optimizer, range(3))
    assert_sparse(model)


def test_no_warning_and_no_trace_in_the_state_dict():
    """Red if masks or pruned parts become buffers, parameters or keys of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = trained()
        plain = mlp(*SIZES)
        assert list(model.state_dict()) == list(plain.state_dict())
        assert not list(model.buffers())
        plain.load_state_dict(model.state_dict())
    inputs = torch.randn(3, SIZES[0])
    assert torch.equal(model(inputs), plain(inputs))


def test_a_shard_is_moved(single_process_group):
    """Red if something beside a sharded weight holds on to it: torch then refuses to move the model, as
    the Trainers of transformers do (5.17), or the weight is not watched any more."""
    model = nn.Sequential(nn.Linear(8, 8))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    hf_nm.sparsify(model, targets="*")
    model.to(torch.float64)
    (weight,) = hf_nm.sparse_weights(model)
    assert weight.weight.dtype == torch.float64
    assert isinstance(weight.weight, DTensor)
    with torch.no_grad():
        weight.weight.fill_(1.0)
    with pytest.raises(hf_nm.BrokenPatternError):
        model(torch.randn(2, 8, dtype=torch.float64)).sum().backward()
