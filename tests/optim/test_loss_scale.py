"""fp16 with a GradScaler: the decay has the gradients' scale, a skipped step changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from tolerances import assert_close
from torch import nn
from training import (
    assert_same_state,
    assert_sparse,
    loss_of,
    sparse_mlp,
    state_of,
    train,
)

import hf_nm


def scaled_step(model, optimizer, scaler, step, *, clip=False, spoil=False):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16, enabled=next(model.parameters()).dtype.itemsize == 4):
        loss = loss_of(model, step)
    scaler.scale(loss * (math.inf if spoil else 1.0)).backward()
    if clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()


SCALED = {
    "fused": lambda params: torch.optim.AdamW(params, lr=0.02, fused=True),
    # (torch leaves the momentum of a first step that is skipped uninitialised: none here)
    "fused-sgd": lambda params: torch.optim.SGD(params, lr=0.1, fused=True),
    "foreach": lambda params: torch.optim.AdamW(params, lr=0.02, foreach=True),
    "single": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=False),
}


def attached(name, **options):
    model = sparse_mlp(decay=2**-4, **options)  # exact in the float32 in which loss scales are kept
    optimizer = SCALED[name](model.parameters())
    return model, optimizer, hf_nm.attach(optimizer, model)


@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", SCALED)
def test_the_loss_scale_does_not_change_training(name, clip):
    """Red if the decay meets gradients that still carry the scale: off by 1024 where fused."""
    results = []
    for scale in (None, 1.0, 1024.0):
        model, optimizer, handle = attached(name, dtype=torch.float64)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(6):
            scaled_step(model, optimizer, scaler, step, clip=clip)
        assert handle.step == 6
        assert_sparse(model)
        results.append(state_of(model))
    plain, one, large = results
    for key in ("0.weight/dense", "2.weight/dense"):
        assert_close(one[key], plain[key], key)
        assert_close(large[key], plain[key], key)
        assert torch.equal(large[key.replace("dense", "mask")], plain[key.replace("dense", "mask")])


@pytest.mark.parametrize("name", SCALED)
def test_fp16_autocast_with_a_grad_scaler(name):
    """The real thing: float16 forward, float32 weights; the decay moves pruned weights as without."""
    model, optimizer, _ = attached(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain, plain_optimizer, _ = attached(name)
    for step in range(4):
        scaled_step(model, optimizer, scaler, step)
        train(plain, plain_optimizer, [step])
    assert_sparse(model)
    for ours, theirs in zip(hf_nm.sparse_weights(model), hf_nm.sparse_weights(plain), strict=True):
        moved = (theirs.dense_weight() - ours.dense_weight()).abs().mean()
        assert moved < 0.1 * theirs.dense_weight().abs().mean()


@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("accelerate", [False, True])
def test_a_step_skipped_for_overflow_changes_nothing(name, clip, accelerate):
    """Red if a skipped step counts, moves a mask, or leaves the decay in the weights."""
    model, optimizer, handle = attached(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    outer = optimizer
    if accelerate:
        Accelerator(cpu=True)
        outer = AcceleratedOptimizer(optimizer, scaler=scaler)
        assert hf_nm.attach(outer, model) is handle

    def step(index, spoil=False):
        if not accelerate:
            return scaled_step(model, optimizer, scaler, index, clip=clip, spoil=spoil)
        outer.zero_grad()
        scaler.scale(loss_of(model, index) * (math.inf if spoil else 1.0)).backward()
        if clip:
            scaler.unscale_(optimizer)
        return outer.step()

    step(0, spoil=True)  # before anything else happened
    assert handle.step == 0
    step(1)
    step(2)
    assert handle.step == 2
    before = state_of(model, optimizer)
    counters = handle.step, handle.sad(), handle.flip_rate(), handle.flips_per_layer()
    scale = scaler.get_scale()
    step(3, spoil=True)
    assert scaler.get_scale() == scale / 2
    assert_same_state(state_of(model, optimizer), before)
    assert counters == (handle.step, handle.sad(), handle.flip_rate(), handle.flips_per_layer())
    step(4)
    assert handle.step == 3
    assert_sparse(model)
    assert not torch.equal(before["0.weight/dense"], state_of(model)["0.weight/dense"])
