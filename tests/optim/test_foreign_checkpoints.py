"""Optimizer checkpoints of another run, or damaged ones: refused whole, before anything is loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from test_resume import counters, start
from training import assert_same_state, state_of, train


def entry_of(**options):
    model, optimizer, _ = start(**options)
    train(model, optimizer, range(2))
    return optimizer.state_dict()


def older(saved):
    """As before checkpoints said what they were trained with."""
    del saved["nm_sparsity"]["trained_with"]
    return saved


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: older(entry_of(n=1, m=4)), r"mask of 0\.weight is not 2:4"),
        (lambda: older(entry_of(method="fixed")), r"another method than 'sr-ste'"),
        (lambda: entry_of(n=1, m=4), r"pattern 1:4, now 2:4 \(0\.weight\)"),
        (lambda: entry_of(method="fixed"), r"method fixed, now sr-ste \(0\.weight\)"),
        (lambda: entry_of(method="ste"), r"method ste, now sr-ste \(0\.weight\)"),
        (lambda: entry_of(exclude="2"), r"masks of 1 N:M weights, this optimizer has 2.*2\.weight"),
    ],
    ids=["older pattern", "older method", "pattern", "method", "keeps the same", "fewer"],
)
def test_checkpoints_of_another_run_are_refused(saved, message):
    """Red if masks of other weights, patterns or methods are taken, or half of them before the error."""
    model, optimizer, handle = start()
    train(model, optimizer, range(1))
    before, told = state_of(model, optimizer), counters(handle)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved())
    assert_same_state(state_of(model, optimizer), before)
    assert counters(handle) == told


def test_checkpoints_of_another_shape_or_version_are_refused():
    _, optimizer, handle = start()
    state = entry_of()
    state["nm_sparsity"]["weights"]["0.weight"]["mask"] = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"0\.weight has shape \(3, 4\), the weight \(24, 16\)"):
        optimizer.load_state_dict(state)
    state = entry_of()
    state["nm_sparsity"]["version"] = 99
    with pytest.raises(ValueError, match=r"version 99"):
        optimizer.load_state_dict(state)
    assert handle.step == 0


def _put(*path, value=None):
    def change(entry):
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = value

    return change


def _drop(*path):
    def change(entry):
        for key in path[:-1]:
            entry = entry[key]
        del entry[path[-1]]

    return change


_KEYS = ("mask", "pruned", "sparse_weight", "start", "mark", "flips", "flips_at_mark")
_FIRST = ("weights", "0.weight")
_ODD = [None, "x", 1.5, [], torch.zeros(2, 3), torch.zeros((), dtype=torch.int64)]
DAMAGE = {
    **{f"{key} missing": _drop(key) for key in ("step", "step_at_mark", "weights")},
    **{
        f"{key} odd {i}": _put(key, value=v)
        for key in ("step", "weights")
        for i, v in enumerate(_ODD)
    },
    **{f"{key} gone": _drop(*_FIRST, key) for key in _KEYS},
    **{
        f"{key} {i}": _put(*_FIRST, key, value=v)
        for key in _KEYS
        for i, v in enumerate(_ODD)
        if (key, i) not in {("flips", 5), ("flips_at_mark", 5)}
    },
    "no entry": _put("weights", "2.weight", value=None),
    "extras": _put(*_FIRST, "extras", value={"x": 1}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_refused_whole(damage):
    """Red if another error than ours comes of it, or anything is loaded before."""
    model, optimizer, handle = start()
    train(model, optimizer, range(1))
    saved = copy.deepcopy(entry_of())
    damage(saved["nm_sparsity"])
    before, told = state_of(model, optimizer), counters(handle)
    with pytest.raises(ValueError, match=r"the optimizer checkpoint"):
        optimizer.load_state_dict(saved)
    assert_same_state(state_of(model, optimizer), before)
    assert counters(handle) == told


@pytest.mark.parametrize("entry", [3, [], "x"])
def test_an_entry_of_another_kind_is_refused(entry):
    _, optimizer, _ = start()
    saved = entry_of() | {"nm_sparsity": entry}
    with pytest.raises(ValueError, match=r"is damaged: itself must be an object"):
        optimizer.load_state_dict(saved)
