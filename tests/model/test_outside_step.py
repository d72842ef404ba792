"""Writes outside a step: inside ``dense_weights`` they are projected, elsewhere they are found."""

from __future__ import annotations

import copy

import models
import pytest
import torch
from models import mlp
from tolerances import assert_close, assert_same_bits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import (
    SIZES,
    assert_same_state,
    assert_sparse,
    dense_parts,
    loss_of,
    sparse_mlp,
    state_of,
    train,
    trained,
)

import hf_nm


def test_parameters_hold_the_dense_weight_inside():
    """Red if ``S + R`` is not ``W`` in every bit, or a visit changes anything."""
    model, optimizer = trained()
    before, dense = state_of(model, optimizer), dense_parts(model)
    parameters = list(model.parameters())
    with hf_nm.dense_weights(model) as opened:
        assert opened is model
        for w in hf_nm.sparse_weights(model):
            assert_same_bits(w.weight.detach(), dense[w.name])
            assert_same_bits(w.dense_weight(), dense[w.name])
            assert w.weight.detach()[~w.mask].count_nonzero()
        assert set(model.state_dict()) == {f"{i}.{k}" for i in (0, 2) for k in ("weight", "bias")}
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert_same_state(state_of(model, optimizer), before)


def test_what_is_written_inside_is_projected():
    """Red if the mask is not computed from what was written."""
    model, optimizer = trained()
    written = torch.randn_like(model[0].weight)
    with hf_nm.dense_weights(model), torch.no_grad():
        model[0].weight.copy_(written)
    assert torch.equal(model[0].mask, hf_nm.nm_mask(written, 2, 4))
    assert torch.equal(model[0].dense_weight(), written)
    assert_sparse(model)
    train(model, optimizer, range(4, 7))
    assert_sparse(model)


def test_nested():
    """Red if the inner exit projects what the outer one still needs dense."""
    model, _ = trained()
    before, dense = state_of(model), dense_parts(model)
    with hf_nm.dense_weights(model):
        with hf_nm.dense_weights(model):
            pass
        assert_same_bits(model[0].weight.detach(), dense["0.weight"])
        with hf_nm.dense_weights(model[2]):  # a part of it
            pass
        assert_same_bits(model[2].weight.detach(), dense["2.weight"])
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside(error):
    model, optimizer = trained()
    with pytest.raises(error), hf_nm.dense_weights(model):  # noqa: PT012
        with torch.no_grad():
            model[0].weight.mul_(2)
        raise error
    assert_sparse(model)
    train(model, optimizer, range(4, 6))
    assert_sparse(model)


def test_a_step_inside_raises():
    """Red if a step trains on a gradient that belongs to other weights."""
    model, optimizer = trained()
    before = state_of(model)
    loss_of(model, 4).backward()
    with hf_nm.dense_weights(model), pytest.raises(RuntimeError, match=r"step outside it"):
        optimizer.step()
    assert_same_state(state_of(model), before)
    optimizer.step()
    assert_sparse(model)


@pytest.mark.parametrize("method", ["sr-ste", "fixed"])
def test_broken_weights_are_taken_as_dense_with_a_warning(method):
    """Red if present values are merged with a pruned part that does not belong to them."""
    model, optimizer = trained(method=method)
    written = torch.randn_like(model[0].weight)
    model[0].weight.data.copy_(written)
    second = dense_parts(model)["2.weight"]
    with (  # noqa: PT031
        pytest.warns(UserWarning, match=r"1 N:M weights held values .*0\.weight"),
        hf_nm.dense_weights(model),
    ):
        assert torch.equal(model[0].weight, written)
        assert torch.equal(model[2].weight, second)
    if method == "sr-ste":
        assert torch.equal(model[0].dense_weight(), written)
        assert torch.equal(model[0].mask, hf_nm.nm_mask(written, 2, 4))
    assert_sparse(model)
    train(model, optimizer, range(4, 6))
    assert_sparse(model)


def test_nothing_to_open_is_an_error():
    with (
        pytest.raises(ValueError, match="sparsify"),
        hf_nm.dense_weights(mlp(*SIZES)),
    ):
        pass


def test_wrapped_models_open(single_process_group):
    model, _ = trained()
    dense = dense_parts(model)
    for wrapped in (
        nn.parallel.DistributedDataParallel(model),
        torch.compile(model, backend="eager"),
    ):
        with hf_nm.dense_weights(wrapped):
            assert torch.equal(model[0].weight, dense["0.weight"])
        assert_sparse(model)


def test_broken_weights_are_not_saved(tmp_path):
    """Red if a folder that claims 2:4 can be written from weights that are not."""
    model = hf_nm.sparsify(models.bert())
    name = hf_nm.report(model).layers[0].name
    model.get_parameter(name).data.normal_()
    for save in (model.state_dict, lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(hf_nm.BrokenPatternError, match=r"is not 2:4 any more.*dense_weights"):
            save()
    with pytest.warns(UserWarning, match=name), hf_nm.dense_weights(model):
        pass
    model.save_pretrained(tmp_path)
    hf_nm.verify(tmp_path)


@pytest.mark.parametrize("write", ["copy", "data"])
def test_dense_values_written_between_two_steps_are_found(write):
    """Red if an attached run goes on after a write outside ``dense_weights`` (an average swapped in,
    a wrapper that interpolates after each step): the pruned part does not belong to such values."""
    model, optimizer = trained()
    average = [torch.randn_like(p) for p in model.parameters()]
    with pytest.raises(hf_nm.BrokenPatternError, match="dense_weights"):  # noqa: PT012
        for step in range(4, 8):
            train(model, optimizer, [step])
            with torch.no_grad():
                for p, other in zip(model.parameters(), average, strict=True):
                    (p if write == "copy" else p.data).lerp_(other, 0.5)


def test_moving_average_of_dense_weights():
    """The right way: average what the optimizer trains, project at the end. Red if the average is
    one of sparse weights: it would miss what pruned weights were worth."""
    model = sparse_mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    hf_nm.attach(optimizer, model)
    average = copy.deepcopy(model)
    expected = dense_parts(model)
    for step in range(6):
        train(model, optimizer, [step])
        with hf_nm.dense_weights(model), hf_nm.dense_weights(average), torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.3)
        assert_sparse(average)
        assert_sparse(model)
        for name, dense in dense_parts(model).items():
            expected[name] = expected[name].lerp(dense, 0.3)
    for w in hf_nm.sparse_weights(average):
        assert_close(w.dense_weight(), expected[w.name], w.name)
        assert torch.equal(w.mask, hf_nm.nm_mask(w.dense_weight(), 2, 4))
    hf_nm.verify(average)


def test_average_swapped_in_for_evaluation():
    """An EMA's store, copy in, evaluate, restore: inside ``dense_weights`` nothing is lost."""
    model, optimizer = trained()
    before = state_of(model, optimizer)
    with hf_nm.dense_weights(model), torch.no_grad():
        stored = [p.clone() for p in model.parameters()]
        for p in model.parameters():
            p.mul_(1.5)
    assert_sparse(model)
    with hf_nm.dense_weights(model), torch.no_grad():
        for p, old in zip(model.parameters(), stored, strict=True):
            p.copy_(old)
    assert_same_state(state_of(model, optimizer), before)


@pytest.mark.parametrize("decay", [None, 0.7], ids=["swa", "ema"])
def test_torchs_averaged_model(decay):
    """Red if dense weights are averaged otherwise than by hand, or the average of sparse ones, which is
    not N:M, is saved as if it were."""
    kind = {} if decay is None else {"multi_avg_fn": get_ema_multi_avg_fn(decay)}
    model, optimizer = trained()
    wrong, right = AveragedModel(model, **kind), AveragedModel(model, **kind)
    seen = []
    for step in range(4, 7):
        train(model, optimizer, [step])
        wrong.update_parameters(model)
        with hf_nm.dense_weights(model), hf_nm.dense_weights(right):
            right.update_parameters(model)
        assert_sparse(right.module)
        seen.append({f"module.{name}": dense for name, dense in dense_parts(model).items()})
    for w in hf_nm.sparse_weights(right):
        first, second, third = (parts[w.name] for parts in seen)
        average = (first + second + third) / 3
        if decay is not None:
            average = first.lerp(second, 1 - decay).lerp(third, 1 - decay)
        assert_close(w.dense_weight(), average, w.name)
        assert torch.equal(w.mask, hf_nm.nm_mask(average, 2, 4)), w.name
    hf_nm.verify(right.module)
    with pytest.raises(hf_nm.BrokenPatternError, match="dense_weights"):
        wrong.state_dict()
    with pytest.raises(hf_nm.BrokenPatternError):
        hf_nm.verify(wrong.module)


def test_save_pretrained_inside_is_refused(tmp_path):
    """Red if a dense checkpoint is written whose config claims N:M weights."""
    model = hf_nm.sparsify(models.bert())
    with hf_nm.dense_weights(model):
        with pytest.raises(hf_nm.BrokenPatternError, match="leave the context first"):
            model.save_pretrained(tmp_path / "dense")
        with pytest.raises(hf_nm.BrokenPatternError, match="leave the context first"):
            model.bert.save_pretrained(tmp_path / "dense")
    model.save_pretrained(tmp_path / "sparse")
    hf_nm.verify(tmp_path / "sparse")


def test_a_warning_made_an_error_leaves_sparse_weights():
    """Red if the weights stay dense when entering fails."""
    model, _ = trained()
    with torch.no_grad():
        next(iter(hf_nm.sparse_weights(model))).weight.fill_(1.0)
    with pytest.raises(UserWarning, match="taken as the dense weights"), hf_nm.dense_weights(model):
        pass  # warnings are errors here
    assert_sparse(model)
    assert not any(w.state.is_dense for w in hf_nm.sparse_weights(model))
