"""Around a step: exceptions inside it, steps that call other steps, schedulers."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
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


class Breaks(torch.optim.SGD):
    """SGD whose step number ``at`` writes half of its parameters and raises."""

    def __init__(self, params, at, error=RuntimeError, **options):
        super().__init__(params, lr=0.1, **options)
        self.at, self.error, self.calls = at, error, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.calls += 1
        loss = closure() if closure is not None else None
        if self.calls == self.at:
            for p in self.param_groups[0]["params"][:2]:
                p.sub_(p.grad)
            raise self.error("in the middle")
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)
        return loss


def scheduled(model, optimizer):
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    return model, optimizer


def accelerated(model, optimizer):
    return Accelerator(cpu=True).prepare(model, optimizer)


def scaled(model, optimizer):
    """As accelerate does it in fp16: it swaps the inner optimizer's ``step`` around each call."""
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))  # makes its tensors
    return model, AcceleratedOptimizer(optimizer, scaler=scaler)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("wrap", [None, scheduled, accelerated, scaled])
def test_an_exception_inside_step_leaves_sparse_weights(wrap, error, when):
    """Red if projecting relies on torch's post hook, which an exception passes by, or only the inner
    optimizer's ``step`` is guarded, which accelerate swaps."""
    model = sparse_mlp()
    optimizer = Breaks(model.parameters(), at=3, error=error)
    wrapped, outer = model, optimizer
    if when == "before":
        handle = hf_nm.attach(optimizer, model)
    if wrap is not None:
        wrapped, outer = wrap(model, optimizer)
    if when == "after":
        handle = hf_nm.attach(outer, wrapped)
    train(wrapped, outer, range(2))
    before = state_of(model)
    with pytest.raises(error, match="in the middle"):
        train(wrapped, outer, [2])
    assert_sparse(model)
    after = state_of(model)
    assert not torch.equal(before["0.weight/dense"], after["0.weight/dense"])
    assert torch.equal(before["2.weight/dense"], after["2.weight/dense"])
    assert handle.step == 2
    train(wrapped, outer, range(3, 8))
    assert_sparse(model)
    assert handle.step == 7


def test_an_exception_inside_a_closure():
    model = sparse_mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    handle = hf_nm.attach(optimizer, model)
    calls = []

    def closure():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert_sparse(model)
    handle.remove()  # LBFGS itself cannot go on: its history is half written
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    handle = hf_nm.attach(optimizer, model)
    optimizer.step(closure)
    assert_sparse(model)
    assert handle.step == 1


def test_an_exception_in_somebody_elses_hook():
    """Red if only the optimizer's own step is guarded, not the hooks around it."""
    model = sparse_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)

    def fails(*_):
        raise RuntimeError("a hook")

    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        hook = register(fails)
        with pytest.raises(RuntimeError, match="a hook"):
            train(model, optimizer, range(1))
        hook.remove()
        assert_sparse(model)
    train(model, optimizer, range(2))
    assert_sparse(model)


def test_a_step_that_calls_the_step_of_its_base_class():
    """Red if such a step counts twice: torch calls the hooks of both, once the base class was used."""

    class Chatty(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # torch hooks a class when it is first used
    results = []
    for optimizer_class in (torch.optim.SGD, Chatty):
        model = sparse_mlp(decay=0.05)
        optimizer = optimizer_class(model.parameters(), lr=0.1, momentum=0.9)
        handle = hf_nm.attach(optimizer, model)
        train(model, optimizer, range(4))

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(model, 4)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert handle.step == 5
        results.append(state_of(model, optimizer))
    assert_same_state(*results)


def test_schedulers_made_before_or_after():
    """Red if attach hides the scheduler's own patch of ``step`` (torch then warns), or the other way."""
    results = []
    for scheduler_first in (True, False):
        model = sparse_mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        if not scheduler_first:
            hf_nm.attach(optimizer, model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        handle = hf_nm.attach(optimizer, model)
        for step in range(5):
            train(model, optimizer, [step])
            scheduler.step()
        assert handle.step == 5
        assert optimizer.param_groups[0]["lr"] == 0.05 / 4
        assert_sparse(model)
        results.append(state_of(model, optimizer))
    assert_same_state(*results)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_maximize_still_shrinks_pruned_weights(optimizer_class):
    """Red if the decay is negated together with a gradient that is ascended."""
    down, up = sparse_mlp(decay=0.05), sparse_mlp(decay=0.05)
    for model, sign in ((down, 1), (up, -1)):
        optimizer = optimizer_class(model.parameters(), lr=0.05, maximize=sign < 0)
        hf_nm.attach(optimizer, model)
        for step in range(8):
            optimizer.zero_grad()
            (sign * loss_of(model, step)).backward()
            optimizer.step()
    assert_same_state(state_of(up), state_of(down))
