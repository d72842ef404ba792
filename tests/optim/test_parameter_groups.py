"""Groups of parameters with options of their own, and parameters that are frozen for a while."""

from __future__ import annotations

import pytest
import torch
from training import (
    assert_equals_reference,
    assert_same_state,
    assert_sparse,
    loss_of,
    reference_loss,
    state_of,
    train,
    trained,
    twins,
)

import hf_nm

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "adamw-fused": lambda groups: torch.optim.AdamW(groups, fused=True),
}


def both_train(model, optimizer, reference, twin_optimizer, steps):
    """Train the model and its reference side by side; they agree after every step."""
    for step in steps:
        optimizer.zero_grad()
        twin_optimizer.zero_grad()
        loss_of(model, step).backward()
        reference_loss(reference, step).backward()
        optimizer.step()
        reference.step(twin_optimizer)
        assert_equals_reference(model, reference)
        assert_sparse(model)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_groups(name):
    """Red if only the first group is looked at, or the decay meets another group's options."""

    def groups(model):
        return [
            {"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.1},
            {"params": model[2].parameters(), "lr": 0.02, "weight_decay": 0.0},
        ]

    model, reference = twins()
    optimizer, twin = (OPTIMIZERS[name](groups(m)) for m in (model, reference.model))
    handle = hf_nm.attach(optimizer, model)
    both_train(model, optimizer, reference, twin, range(20))
    assert min(handle.sad_per_layer().values()) > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_added_later(name):
    """Red if a weight that comes later starts from its sparse instead of its dense weight."""
    model, reference = twins()
    optimizer, twin = (
        OPTIMIZERS[name]([{"params": m[2].parameters(), "lr": 0.05}])
        for m in (model, reference.model)
    )
    handle = hf_nm.attach(optimizer, model)
    for m in (model, reference.model):
        m[0].requires_grad_(False)
    both_train(model, optimizer, reference, twin, range(4))
    for m, one in ((model, optimizer), (reference.model, twin)):
        m[0].requires_grad_(True)
        one.add_param_group({"params": m[0].parameters(), "lr": 0.1})
    both_train(model, optimizer, reference, twin, range(4, 16))
    assert handle.sad_per_layer()["0.weight"] > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_for_a_while(name):
    """Red if a frozen weight is decayed or projected anew, or goes on without its pruned part."""
    model, reference = twins()
    optimizer, twin = (
        OPTIMIZERS[name]([{"params": m.parameters(), "lr": 0.05}]) for m in (model, reference.model)
    )
    handle = hf_nm.attach(optimizer, model)
    both_train(model, optimizer, reference, twin, range(5))
    before, flips = state_of(model), handle.flips_per_layer()
    for m in (model, reference.model):
        m[0].requires_grad_(False)
    both_train(model, optimizer, reference, twin, range(5, 10))
    frozen = {key: value for key, value in before.items() if key.startswith("0.")}
    assert_same_state({key: state_of(model)[key] for key in frozen}, frozen)
    assert handle.flips_per_layer()["0.weight"] == flips["0.weight"]
    assert handle.flips_per_layer()["2.weight"] > flips["2.weight"]
    for m in (model, reference.model):
        m[0].requires_grad_(True)
    both_train(model, optimizer, reference, twin, range(10, 20))
    assert handle.flips_per_layer()["0.weight"] > flips["0.weight"]


def test_all_frozen_but_a_bias():
    """Red if a step without any N:M gradient moves a mask, or is not counted."""
    model, optimizer = trained()
    before = state_of(model)
    for w in hf_nm.sparse_weights(model):
        w.weight.requires_grad_(False)
    train(model, optimizer, range(4, 8))
    after = state_of(model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        "0.bias",
        "2.bias",
    }
    assert hf_nm.attach(optimizer, model).step == 8
