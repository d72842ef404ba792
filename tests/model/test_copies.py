"""Copies of models and optimizers, and parameters that are replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from models import mlp
from torch import nn
from training import (
    SIZES,
    assert_same_state,
    assert_sparse,
    sparse_mlp,
    state_of,
    train,
)

import hf_nm


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.02)


def test_a_copied_model_trains_on_its_own():
    """Red if a copy shares masks or pruned parts with the original, or loses the pruned part."""
    model = sparse_mlp()
    optimizer = adam(model)
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(3))
    copied = copy.deepcopy(model)
    before = state_of(model)
    assert_same_state(state_of(copied), before)
    other = adam(copied)
    handle = hf_nm.attach(other, copied)
    train(copied, other, range(3, 6))
    assert handle.step == 3
    assert_sparse(copied)
    assert_same_state(state_of(model), before)
    train(model, optimizer, range(3, 6))
    assert_sparse(model)


def test_a_copied_optimizer_is_not_attached():
    """Red if the copy keeps the original's handle: model and optimizer copied together, then trained."""
    model = sparse_mlp()
    optimizer = adam(model)
    handle = hf_nm.attach(optimizer, model)
    train(model, optimizer, range(3))
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    assert copied_optimizer.param_groups[0]["params"][0] is copied[0].weight
    with pytest.raises(hf_nm.BrokenPatternError, match="attach"):
        train(copied, copied_optimizer, range(3, 5))

    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    again = hf_nm.attach(copied_optimizer, copied)
    assert again is not handle
    train(model, optimizer, range(3, 6))
    train(copied, copied_optimizer, range(3, 6))
    assert_same_state(state_of(copied), state_of(model))
    assert (handle.step, again.step) == (6, 3)


def test_a_copy_made_inside_dense_weights_is_sparse():
    """Red if the copy is taken for one that somebody will project: nobody does."""
    model = sparse_mlp()
    dense = {w.name: w.dense_weight() for w in hf_nm.sparse_weights(model)}
    with hf_nm.dense_weights(model):
        copied = copy.deepcopy(model)
    assert_sparse(copied)
    hf_nm.verify(copied)
    for w in hf_nm.sparse_weights(copied):
        assert torch.equal(w.dense_weight(), dense[w.name])


def test_parameters_replaced_by_assign():
    """Red if state is keyed by the parameter that was replaced."""
    model = sparse_mlp()
    state = {name: tensor + 1 for name, tensor in mlp(*SIZES).state_dict().items()}
    old = model[0].weight
    model.load_state_dict(state, assign=True)
    assert model[0].weight is not old
    assert_sparse(model)
    optimizer = adam(model)
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(5))
    assert_sparse(model)
    assert hf_nm.nm_mask(model[0].dense_weight(), 2, 4).equal(model[0].mask)


def test_an_optimizer_left_with_replaced_parameters_says_so():
    """Red if a step that reaches no N:M weight passes silently."""
    model = sparse_mlp()
    optimizer = adam(model)
    hf_nm.attach(optimizer, model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    with pytest.raises(ValueError, match="holds no N:M weight any more"):
        train(model, optimizer, range(1))


def test_conversion_keeps_what_the_optimizer_holds():
    """``.to(dtype)`` keeps the Parameter objects; the next step trains in the new dtype."""
    model = sparse_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(2))
    model.to(torch.float64)
    optimizer.zero_grad()
    train(model, optimizer, range(2, 4))
    assert model[0].dense_weight().dtype == torch.float64
    assert_sparse(model)
