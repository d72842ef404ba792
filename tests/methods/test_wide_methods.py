"""Methods of one's own: what is kept aside, scores, projections, extras and patterns that tighten."""

from __future__ import annotations

import copy

import pytest
import torch
from models import batch, bert, mlp
from tolerances import assert_close, assert_same_bits
from torch import nn
from training import (
    SIZES,
    assert_same_state,
    dense_parts,
    example,
    loss_of,
    mask_of,
    masks,
    sparse_mlp,
    state_of,
    train,
)
from wide import METHODS, WideTwin, pattern_of, tighter

import hf_nm
from hf_nm.methods.method import Aside

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.03),
}
every_method = pytest.mark.parametrize("name", METHODS)


def sparse(name: str, dtype: torch.dtype = torch.float64, **options) -> nn.Sequential:
    n, m = pattern_of(name)
    return sparse_mlp(dtype=dtype, n=n, m=m, method=METHODS[name], **options)


def attached(name: str, dtype: torch.dtype = torch.float64, **schedule):
    model = sparse(name, dtype)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    return model, optimizer, hf_nm.attach(optimizer, model, **schedule)


def twin_of(name: str, model: nn.Module, dtype: torch.dtype = torch.float64) -> WideTwin:
    names = [w.name for w in hf_nm.sparse_weights(model)]
    return WideTwin(name, mlp(*SIZES, dtype=dtype), names)


def twin_loss(twin: WideTwin, step: int) -> torch.Tensor:
    inputs, targets = example(step, dtype=next(twin.model.parameters()).dtype)
    return nn.functional.mse_loss(twin(inputs), targets)


def assert_equals_twin(model: nn.Module, twin: WideTwin) -> None:
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(mask_of(w), twin.masks[w.name]), w.name
        assert_close(w.dense_weight(), twin.weights[w.name].detach(), w.name)
        assert_close(w.weight.detach(), twin.sparse(w.name).detach(), w.name)
        assert not w.weight.detach()[~mask_of(w)].count_nonzero()


@every_method
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_slow_twin(name, optimizer_name, dtype):
    """Red if the optimizer steps on S instead of W, a mask is chosen by other numbers or another
    pattern, the projection or its factor is another one, or W is not kept in every bit."""
    model = sparse(name, dtype)
    twin = twin_of(name, model, dtype)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    twin_optimizer = OPTIMIZERS[optimizer_name](twin.model.parameters())
    handle = hf_nm.attach(optimizer, model)
    assert_equals_twin(model, twin)
    steps = 8 if dtype == torch.float64 else 3
    for step in range(steps):
        train(model, optimizer, [step])
        twin_optimizer.zero_grad()
        twin_loss(twin, step).backward()
        twin_optimizer.step()
        twin.count_step()
        if dtype == torch.float64:
            assert_equals_twin(model, twin)
    for w in hf_nm.sparse_weights(model):
        found = w.dense_weight()
        torch.testing.assert_close(found, twin.weights[w.name].detach(), rtol=1e-4, atol=1e-5)
    assert handle.sad() > 0


def test_patterns_that_tighten_are_followed_step_by_step():
    """Red if a step's mask has another n than ``pattern_at`` says."""
    model, optimizer, _ = attached("tightening")
    for step in range(7):
        for mask in masks(model).values():
            kept = mask.unflatten(-1, (-1, 4)).sum(-1)
            assert (kept == tighter(step, hf_nm.NMPattern(1, 4)).n).all(), step
        train(model, optimizer, [step])


def test_a_held_mask_keeps_its_pattern_and_resumes():
    """Masks at every 4th step, the pattern tighter at the 3rd. Red if a held mask is said to follow a
    pattern that it was not computed by: its checkpoint is then refused."""
    model, optimizer, _ = attached("tightening", mask_interval=4)
    train(model, optimizer, range(3))
    assert {str(w.state.parts.pattern) for w in hf_nm.sparse_weights(model)} == {"3:4"}
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again, other, _ = attached("tightening", mask_interval=4)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for m, o in ((model, optimizer), (again, other)):
        train(m, o, range(3, 9))
    assert_same_state(state_of(again, other), state_of(model, optimizer))
    assert {str(w.state.parts.pattern) for w in hf_nm.sparse_weights(model)} == {"1:4"}


@every_method
def test_dense_weights_open_and_project(name):
    """Red if W does not come into the parameter, or what is written there is not projected."""
    model, optimizer, _ = attached(name)
    train(model, optimizer, range(6))
    before, dense = state_of(model), dense_parts(model)
    with hf_nm.dense_weights(model):
        for w in hf_nm.sparse_weights(model):
            assert_same_bits(w.weight.detach(), dense[w.name], w.name)
    assert_same_state(state_of(model), before)
    with hf_nm.dense_weights(model), torch.no_grad():
        for w in hf_nm.sparse_weights(model):
            w.weight.copy_(-2 * dense[w.name].roll(1, 0))
    for w in hf_nm.sparse_weights(model):
        kept = mask_of(w)
        expected = -2 * dense[w.name].roll(1, 0)
        if name == "regrow":
            expected = expected * kept
        assert_same_bits(w.dense_weight() + 0.0, expected + 0.0, w.name)
        assert not w.weight.detach()[~kept].count_nonzero()


@every_method
def test_copies_are_their_own(name):
    """Red if a deep copy shares a tensor with the original, or forgets one."""
    model, optimizer, _ = attached(name)
    train(model, optimizer, range(6))
    copied = copy.deepcopy(model)
    before = state_of(copied)
    assert_same_state(before, state_of(model))
    train(model, optimizer, range(6, 8))
    assert_same_state(state_of(copied), before)
    own = OPTIMIZERS["adamw"](copied.parameters())
    hf_nm.attach(own, copied)
    train(copied, own, range(3))


@every_method
@pytest.mark.parametrize("model_first", [True, False])
def test_resumes_exactly(name, model_first):
    """Stopped between two tightenings, and within a mask interval. Red if W, S, extras or the pattern
    are not what they were, in either order of loading: S is then projected a second time."""
    model, optimizer, handle = attached(name, mask_interval=2)
    train(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(3, 8))
    again, other, resumed = attached(name, mask_interval=2)
    train(again, other, range(20, 22))
    loads = [lambda: again.load_state_dict(saved[0]), lambda: other.load_state_dict(saved[1])]
    for load in loads if model_first else loads[::-1]:
        load()
    assert_same_state(again.state_dict(), saved[0])
    train(again, other, range(3, 8))
    assert_same_state(state_of(again, other), state_of(model, optimizer))
    assert resumed.sad() == handle.sad()


def test_a_checkpoint_of_other_extras_is_refused():
    """Red if it is found in the middle of a step, by a KeyError."""
    _, optimizer, _ = attached("dense-aside")
    _, other, _ = attached("s-ste")
    saved = optimizer.state_dict()
    del saved["nm_sparsity"]["trained_with"]  # else the methods' names are compared first
    with pytest.raises(ValueError, match="'s-ste' keeps \\['beta'\\]"):
        other.load_state_dict(saved)


@every_method
def test_a_loaded_sparse_weight_stays(name):
    """Red if a state dict that follows the pattern is pruned or projected again when it is loaded."""
    model, optimizer, _ = attached(name)
    train(model, optimizer, range(6))
    saved = copy.deepcopy(model.state_dict())
    fresh = sparse(name)
    fresh.load_state_dict(saved)
    assert_same_state(fresh.state_dict(), saved)


@every_method
def test_saved_and_verified(name, tmp_path):
    """Red if what is saved breaks the pattern that its config claims."""
    n, m = pattern_of(name)
    model = hf_nm.sparsify(bert(), n, m, method=METHODS[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    hf_nm.attach(optimizer, model)
    for step in range(5):
        optimizer.zero_grad()
        model(**batch(model, seed=step)).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    report = hf_nm.verify(tmp_path)
    assert report.layers
    assert report.kept <= report.weights * n // m


@every_method
@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
def test_cast(name):
    """Red if what waits beside a weight stays in its old dtype: the next step then fails or loses W."""
    model, optimizer, _ = attached(name, torch.float32)
    train(model, optimizer, range(6))
    dense = dense_parts(model)
    model.to(torch.bfloat16)
    for w in hf_nm.sparse_weights(model):
        assert w.dense_weight().dtype == torch.bfloat16
        assert_same_bits(w.dense_weight(), dense[w.name].to(torch.bfloat16), w.name)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(2))
    for w in hf_nm.sparse_weights(model):
        assert not w.weight.detach()[~mask_of(w)].count_nonzero()


@every_method
def test_frozen_masks(name):
    """Red if a mask moves or a pruned weight is kept after ``freeze_masks_at``, or if going back to a
    checkpoint from before it does not bring back what was aside then."""
    model, optimizer, handle = attached(name, freeze_masks_at=6)
    train(model, optimizer, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(4, 6))
    before = masks(model)
    train(model, optimizer, range(6, 9))
    after = state_of(model, optimizer)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(mask_of(w), before[w.name])
        assert w.state.aside is None
        assert torch.equal(w.dense_weight(), w.weight.detach())
    optimizer.load_state_dict(saved[1])
    model.load_state_dict(saved[0])
    train(model, optimizer, range(4, 9))
    assert handle.step == 9
    assert_same_state(state_of(model, optimizer), after)


def test_freezing_before_the_pattern_is_tight_is_refused():
    """Red if weights stay 2:4 for good that are called 1:4; with an interval the last masks are
    earlier."""
    with pytest.raises(ValueError, match="still 2:4 then, not 1:4"):
        attached("tightening", freeze_masks_at=4)
    with pytest.raises(ValueError, match="at step 4"):
        attached("tightening", freeze_masks_at=7, mask_interval=4)
    attached("tightening", freeze_masks_at=5)


@every_method
def test_closures_see_the_sparse_weights(name):
    """Red if a loss inside LBFGS's step is taken at W, or at another W than the optimizer wrote."""
    model = sparse(name)
    twin = twin_of(name, model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    twin_optimizer = torch.optim.LBFGS(twin.model.parameters(), lr=0.1, max_iter=3)
    hf_nm.attach(optimizer, model)
    for step in range(6):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        def twin_closure(step=step):
            twin.compute_masks()
            twin_optimizer.zero_grad()
            loss = twin_loss(twin, step)
            loss.backward()
            return loss

        optimizer.step(closure)
        twin_optimizer.step(twin_closure)
        twin.count_step()
        assert_equals_twin(model, twin)


@every_method
def test_a_warm_up_of_a_decay_that_is_not_used_is_refused(name):
    """Red if the option is taken and does nothing."""
    with pytest.raises(ValueError, match="none of these weights has a decay"):
        attached(name, decay_warmup_steps=5)


def test_options_that_do_not_fit_are_refused():
    """Red if such a method is found in the middle of a step."""
    with pytest.raises(ValueError, match=r"pass aside=Aside\.DENSE"):
        hf_nm.Method("x", project=lambda dense, mask, extras: dense)
    with pytest.raises(ValueError, match="leave out moves_masks=False"):
        hf_nm.Method("x", moves_masks=False, pattern_at=tighter)
    other = hf_nm.Method("x", pattern_at=lambda step, pattern: hf_nm.NMPattern(4, 8))
    with pytest.raises(ValueError, match=r"return NMPattern\(n, 4\)"):
        sparse_mlp(method=other)


def test_extras_are_not_the_weight_itself():
    """Red if extras that a method takes from the weight change with it."""
    method = hf_nm.Method("keeps-first", extras=lambda dense, mask: {"first": dense})
    first = dict(mlp(*SIZES).named_parameters())
    model = sparse_mlp(method=method)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(2))
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.state.parts.extras["first"], first[w.name].detach())


def test_a_projection_that_writes_in_place_leaves_the_dense_weight():
    """Red if what is kept aside is what the projection made of it."""
    method = hf_nm.Method(
        "halved", aside=Aside.DENSE, project=lambda dense, mask, extras: dense.mul_(0.5)
    )
    model, dense = sparse_mlp(method=method), dict(mlp(*SIZES).named_parameters())
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.dense_weight(), dense[w.name].detach())
        assert torch.equal(w.weight.detach(), 0.5 * dense[w.name].detach() * mask_of(w))
