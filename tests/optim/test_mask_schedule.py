"""``mask_interval``, ``freeze_masks_at``, ``decay_warmup_steps``: what happens at which step."""

from __future__ import annotations

import pytest
import torch
from training import (
    assert_equals_reference,
    assert_same_state,
    assert_sparse,
    loss_of,
    masks,
    reference_loss,
    sparse_mlp,
    state_of,
    train,
    twins,
)

import hf_nm


@pytest.mark.parametrize(
    ("options", "moving_steps"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"mask_interval": 3}, [3, 6, 9]),
        ({"mask_interval": 10}, [10]),
        ({"mask_interval": 11}, []),
        ({"freeze_masks_at": 4}, [1, 2, 3, 4]),
        ({"freeze_masks_at": 1}, [1]),
        ({"mask_interval": 2, "freeze_masks_at": 5}, [2, 4]),
        ({"mask_interval": 2, "freeze_masks_at": 6}, [2, 4, 6]),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_at_which_masks_move(options, moving_steps, accumulate):
    """Red if masks move at another step, or the dense weight departs from the reference in between
    (its pruned part is then not what the mask says), or frozen masks are not trained as fixed ones."""
    model, reference = twins()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    reference_optimizer = torch.optim.SGD(reference.model.parameters(), lr=0.2, momentum=0.9)
    handle = hf_nm.attach(optimizer, model, **options)
    reference.fixed_masks = reference.masks()
    moved = []
    flips = 0
    for step in range(1, 11):
        optimizer.zero_grad()
        reference_optimizer.zero_grad()
        for micro_step in range(accumulate):
            loss_of(model, 100 * step + micro_step).backward()
            reference_loss(reference, 100 * step + micro_step).backward()
        before = masks(model)
        optimizer.step()
        reference.step(reference_optimizer)
        if step in moving_steps:
            reference.fixed_masks = {}
            reference.fixed_masks = reference.masks()
        if step == options.get("freeze_masks_at"):
            reference.freeze()
        assert_equals_reference(model, reference)
        assert_sparse(model)
        change = sum(hf_nm.sad(before[name], mask) for name, mask in masks(model).items())
        flips += change
        if change:
            moved.append(step)
    assert moved == moving_steps
    assert handle.step == 10
    entries = sum(w.weight.numel() for w in hf_nm.sparse_weights(model))
    assert handle.flip_rate() == flips / (entries * 10)


def test_dense_weights_do_not_move_held_masks():
    """Red if a visit between two updates moves masks that ``mask_interval`` holds."""
    model = sparse_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    hf_nm.attach(optimizer, model, mask_interval=4)
    for step in range(1, 9):
        train(model, optimizer, [step])
        before = state_of(model)
        with hf_nm.dense_weights(model):
            pass
        assert_same_state(state_of(model), before)


@pytest.mark.parametrize(
    ("warmup", "factors"), [(0, [1, 1, 1, 1]), (1, [1] * 4), (3, [1 / 3, 2 / 3, 1, 1])]
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_decay_rises_to_its_value(warmup, factors, accumulate):
    """Red if the ramp is off by one, counts micro-steps, or ends below the decay."""
    model, reference = twins(decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    reference_optimizer = torch.optim.SGD(reference.model.parameters(), lr=0.2, momentum=0.9)
    hf_nm.attach(optimizer, model, decay_warmup_steps=warmup)
    for step, factor in enumerate(factors, 1):
        optimizer.zero_grad()
        reference_optimizer.zero_grad()
        for micro_step in range(accumulate):
            loss_of(model, 100 * step + micro_step).backward()
            reference_loss(reference, 100 * step + micro_step).backward()
        optimizer.step()
        reference.decay = 0.5 * factor
        reference.step(reference_optimizer)
        assert_equals_reference(model, reference)


def test_resumed_ramp_goes_on():
    """Red if the ramp begins again after a checkpoint."""
    whole, halves = sparse_mlp(decay=0.5), sparse_mlp(decay=0.5)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.2)
    hf_nm.attach(optimizer, whole, decay_warmup_steps=6)
    train(whole, optimizer, [1, 2, 3, 4, 5, 6, 7])
    first = torch.optim.SGD(halves.parameters(), lr=0.2)
    hf_nm.attach(first, halves, decay_warmup_steps=6)
    train(halves, first, [1, 2, 3])
    resumed = sparse_mlp(decay=0.5)
    resumed.load_state_dict(halves.state_dict())
    second = torch.optim.SGD(resumed.parameters(), lr=0.2)
    hf_nm.attach(second, resumed, decay_warmup_steps=6)
    second.load_state_dict(first.state_dict())
    train(resumed, second, [4, 5, 6, 7])
    assert_same_state(state_of(resumed), state_of(whole))


def test_nothing_to_warm_up_is_refused():
    """Red if the option is taken where it has no effect."""
    model = sparse_mlp(method="ste")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with pytest.raises(ValueError, match=r"none of these weights has a decay to warm up"):
        hf_nm.attach(optimizer, model, decay_warmup_steps=5)
    with pytest.raises(ValueError, match="decay_warmup_steps must be an integer >= 0"):
        hf_nm.attach(optimizer, model, decay_warmup_steps=0.1)
