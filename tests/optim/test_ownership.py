"""Which optimizer trains which N:M weight: one handle each, wrappers, several of them."""

from __future__ import annotations

import pickle

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from torch import nn
from training import (
    assert_same_state,
    assert_sparse,
    loss_of,
    masks,
    sparse_mlp,
    state_of,
    train,
)

import hf_nm


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.02)


# -- one handle for one optimizer -------------------------------------------------------------------


def test_attach_again_returns_the_same_handle():
    """Red if a second attach adds a second set of hooks: the decay would enter twice."""
    model, twin = sparse_mlp(decay=0.05), sparse_mlp(decay=0.05)
    optimizer, other = adam(model), adam(twin)
    handle = hf_nm.attach(optimizer, model)
    assert hf_nm.attach(optimizer, model) is handle
    hf_nm.attach(other, twin)
    train(model, optimizer, range(3))
    assert hf_nm.attach(optimizer, model) is handle
    train(model, optimizer, range(3, 6))
    train(twin, other, range(6))
    assert handle.step == 6
    assert_same_state(state_of(model, optimizer), state_of(twin, other))


def test_other_options_or_another_model_are_refused():
    model = sparse_mlp()
    optimizer = adam(model)
    hf_nm.attach(optimizer, model, mask_interval=2)
    with pytest.raises(ValueError, match=r"mask_interval=2.*not.*mask_interval=1.*remove"):
        hf_nm.attach(optimizer, model)
    with pytest.raises(ValueError, match=r"another model.*remove"):
        hf_nm.attach(optimizer, sparse_mlp(), mask_interval=2)


def test_remove_gives_the_optimizer_back():
    """Red if hooks or the guarded step stay behind, also with a scheduler made in between."""
    model = sparse_mlp()
    optimizer = adam(model)
    handle = hf_nm.attach(optimizer, model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, range(2))
    handle.remove()
    with pytest.raises(hf_nm.BrokenPatternError):
        train(model, optimizer, range(2))
    assert handle.step == 2
    assert "nm_sparsity" not in optimizer.state_dict()
    with pytest.warns(UserWarning, match="taken as the dense weights"), hf_nm.dense_weights(model):
        pass
    handle = hf_nm.attach(optimizer, model, mask_interval=2)
    train(model, optimizer, range(2))
    scheduler.step()
    assert handle.step == 2
    assert_sparse(model)


def test_masks_move_again_after_remove():
    """Red if freezing outlives the handle that froze."""
    model = sparse_mlp()
    handle = hf_nm.attach(adam(model), model, freeze_masks_at=1)
    train(model, handle.optimizer, range(3))
    handle.remove()
    before = masks(model)
    with hf_nm.dense_weights(model), torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    assert any(not torch.equal(before[name], mask) for name, mask in masks(model).items())


# -- wrappers ---------------------------------------------------------------------------------------


def wrap_with_accelerate(model, optimizer):
    return Accelerator(cpu=True).prepare(model, optimizer)


def wrap_with_ddp(model, optimizer):
    return nn.parallel.DistributedDataParallel(model), optimizer


def wrap_with_compile(model, optimizer):
    return torch.compile(model, backend="eager"), optimizer


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("wrap", [wrap_with_accelerate, wrap_with_ddp, wrap_with_compile])
def test_wrappers_are_looked_through(wrap, when, single_process_group):
    """Red if a wrapper hides the model, or its optimizer's hooks: bit for bit the plain loop."""
    plain, model = sparse_mlp(), sparse_mlp()
    plain_optimizer, optimizer = adam(plain), adam(model)
    hf_nm.attach(plain_optimizer, plain)
    if when == "before":
        handle = hf_nm.attach(optimizer, model)
    wrapped, wrapped_optimizer = wrap(model, optimizer)
    if when == "after":
        handle = hf_nm.attach(wrapped_optimizer, wrapped)
    assert hf_nm.attach(wrapped_optimizer, wrapped) is handle
    assert hf_nm.attach(optimizer, model) is handle
    train(plain, plain_optimizer, range(5))
    train(wrapped, wrapped_optimizer, range(5))
    assert handle.step == 5
    assert handle.optimizer is optimizer
    assert handle.sad() > 0
    assert_same_state(state_of(model, optimizer), state_of(plain, plain_optimizer))
    assert [w.name for w in hf_nm.sparse_weights(wrapped)] == ["0.weight", "2.weight"]
    assert hf_nm.report(wrapped) == hf_nm.report(model)


def test_compiled_then_wrapped_in_ddp(single_process_group):
    model = sparse_mlp()
    wrapped = nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
    optimizer = adam(wrapped)
    assert hf_nm.attach(optimizer, wrapped).model is model


def test_accelerated_optimizer_can_be_pickled():
    """Red if the guarded step travels along: it belongs to this process."""
    GradientState._reset_state()  # a Trainer of another test may have left its data loader there
    model = sparse_mlp()
    model, optimizer = wrap_with_accelerate(model, adam(model))
    hf_nm.attach(optimizer, model)
    restored = pickle.loads(pickle.dumps(optimizer))
    assert len(restored.param_groups) == 1
    copied = pickle.loads(pickle.dumps(optimizer.optimizer))
    assert not hasattr(copied, "_nm_attachment")


# -- several optimizers, several models -------------------------------------------------------------


def test_two_optimizers_on_halves_of_a_model():
    """Red if an attachment touches weights that its optimizer does not hold."""
    whole, halves = sparse_mlp(decay=0.05), sparse_mlp(decay=0.05)
    one = torch.optim.SGD(whole.parameters(), lr=0.1)
    first = torch.optim.SGD(halves[0].parameters(), lr=0.1)
    second = torch.optim.SGD(halves[2].parameters(), lr=0.1)
    whole_handle = hf_nm.attach(one, whole)
    handles = [hf_nm.attach(first, halves), hf_nm.attach(second, halves)]
    assert [[w.name for w in h.weights()] for h in handles] == [["0.weight"], ["2.weight"]]
    for step in range(6):
        train(whole, one, [step])
        halves.zero_grad()
        loss_of(halves, step).backward()
        first.step()
        second.step()
    assert_same_state(state_of(halves), state_of(whole))
    assert [h.step for h in handles] == [6, 6]
    assert sum(h.sad() for h in handles) == whole_handle.sad() > 0
    assert handles[0].flip_rate() != handles[1].flip_rate()


def test_optimizers_that_step_in_turn():
    """One of two attached optimizers pauses: the other's weights alone move."""
    model = sparse_mlp()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    hf_nm.attach(first, model)
    hf_nm.attach(second, model)
    before = state_of(model)
    for step in range(20):
        model.zero_grad()
        loss_of(model, step).backward()
        first.step()
    after = state_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"0"}
    assert_sparse(model)


def test_groups_added_later():
    """Red if weights are looked up once, when attached."""
    model = sparse_mlp()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    handle = hf_nm.attach(optimizer, model)
    model[0].requires_grad_(False)
    train(model, optimizer, range(3))
    start = state_of(model)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    train(model, optimizer, range(3, 8))
    assert_sparse(model)
    assert not torch.equal(start["0.weight/dense"], state_of(model)["0.weight/dense"])
    assert set(handle.sad_per_layer()) == {"0.weight", "2.weight"}
    assert handle.sad_per_layer()["0.weight"] > 0
    assert "0.weight" in optimizer.state_dict()["nm_sparsity"]["weights"]


def test_state_dict_between_adding_a_group_and_the_next_step():
    model = sparse_mlp()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    handle = hf_nm.attach(optimizer, model)
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": list(model[0].parameters())})
    assert set(optimizer.state_dict()["nm_sparsity"]["weights"]) == {"0.weight", "2.weight"}
    assert handle.sad_per_layer()["0.weight"] == 0
    handle.mark()
    train(model, optimizer, range(2, 4))
    assert handle.flips_per_layer("mark")["0.weight"] > 0


def test_models_do_not_see_each_other():
    """Red if anything is kept globally or by ``id``: interleaved runs equal separate ones."""

    def new(method, interval):
        model = sparse_mlp(method=method)
        optimizer = adam(model)
        hf_nm.attach(optimizer, model, mask_interval=interval)
        return model, optimizer

    expected = []
    for options in (("sr-ste", 1), ("ste", 3)):
        model, optimizer = new(*options)
        train(model, optimizer, range(7))
        expected.append(state_of(model, optimizer))
    (first, first_optimizer), (second, second_optimizer) = new("sr-ste", 1), new("ste", 3)
    for step in range(7):
        train(first, first_optimizer, [step])
        train(second, second_optimizer, [step])
    assert_same_state(state_of(first, first_optimizer), expected[0])
    assert_same_state(state_of(second, second_optimizer), expected[1])
