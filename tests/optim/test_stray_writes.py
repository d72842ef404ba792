"""Values written where masks say zero, between two steps or inside one: found, and never made part of
the dense weight."""

from __future__ import annotations

import pytest
import torch
from tolerances import assert_same_bits
from training import assert_sparse, dense_parts, loss_of, sparse_mlp, state_of, train

import hf_nm
from hf_nm.grouping.gathered import Gathered
from hf_nm.grouping.group import Separate, stray_write


def start(**options):
    model = sparse_mlp(16, 256, 8, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, model)
    train(model, optimizer, range(3))
    return model, optimizer, handle


@pytest.mark.parametrize("method", ["sr-ste", "ste", "fixed"])
@pytest.mark.parametrize("rows", [slice(0, 16), slice(240, 256)])
def test_rows_initialised_again(rows, method):
    """Red if only the first entries of a weight are looked at, or what was written at pruned places
    becomes another number of the dense weight."""
    model, optimizer, _ = start(method=method)
    weight = hf_nm.sparse_weights(model)[0].weight
    optimizer.zero_grad()
    loss_of(model, 9).backward()
    with torch.no_grad():
        weight[rows].normal_()
    before = state_of(model)
    with pytest.raises(hf_nm.BrokenPatternError, match=r"0\.weight held .*between two steps"):
        optimizer.step()
    for name, value in state_of(model).items():
        assert_same_bits(value, before[name], name)  # nothing was lost
    with pytest.warns(UserWarning, match="taken as the dense weights"), hf_nm.dense_weights(model):
        assert weight.abs().max() < 10
    train(model, optimizer, range(2))
    assert_sparse(model)


def test_a_weight_behind_the_broken_one_is_sparse_again():
    """Red if weights that were opened before the broken one stay dense."""
    model, optimizer, _ = start()
    last = hf_nm.sparse_weights(model)[-1]
    kept = dense_parts(model)
    optimizer.zero_grad()
    loss_of(model, 9).backward()
    last.weight.data[-1].fill_(1.0)
    with pytest.raises(hf_nm.BrokenPatternError):
        optimizer.step()
    first = hf_nm.sparse_weights(model)[0]
    assert not first.state.is_dense
    assert_same_bits(first.dense_weight(), kept[first.name])


def test_found_on_a_device_that_is_not_waited_for(monkeypatch):
    """Red if what a step found on an accelerator is never said. (Stood in for by flags of our own.)"""
    model, optimizer, handle = start()
    name = hf_nm.sparse_weights(model)[0].name
    found = {name: torch.ones((), dtype=torch.bool)}
    monkeypatch.setattr(Gathered, "strays", found)
    monkeypatch.setattr(Separate, "strays", found, raising=False)
    train(model, optimizer, range(1))
    for read in (handle.sad, handle.flip_rate, optimizer.state_dict, handle.raise_if_written):
        handle._strays = {name: torch.ones((), dtype=torch.bool)}
        with pytest.raises(hf_nm.BrokenPatternError, match=str(stray_write(name))[:20]):
            read()
        handle.raise_if_written()  # said once


def test_saving_inside_a_step_is_refused():
    """Red if dense weights are saved as N:M ones, by a hook of the optimizer or another thread."""
    model, optimizer, _ = start()
    saved = []
    optimizer.register_step_pre_hook(lambda *_: saved.append(model.state_dict()))
    with pytest.raises(
        hf_nm.BrokenPatternError, match=r"inside optimizer\.step\(\).*dense_weights"
    ):
        train(model, optimizer, range(1))
    assert not saved
    assert_sparse(model)
    with hf_nm.dense_weights(model):
        model.state_dict()  # asked for
