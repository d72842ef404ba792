"""A plain loop that stops and goes on from its files equals one that never stopped, bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from models import mlp
from torch import nn
from training import SIZES, assert_same_state, assert_sparse, masks, sparse_mlp, state_of, train

import hf_nm

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05),
    "adamw-fused": lambda params: torch.optim.AdamW(params, lr=0.05, fused=True),
    "amsgrad": lambda params: torch.optim.Adam(params, lr=0.05, amsgrad=True),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.05),
}


def start(name="adamw", *, dtype=torch.float32, options=None, **sparsify):
    """Model, optimizer and handle of a run at its beginning."""
    model = sparse_mlp(dtype=dtype, decay=0.05, **sparsify)
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, optimizer, hf_nm.attach(optimizer, model, **options or {})


def save(folder: Path, model, optimizer) -> None:
    torch.save(model.state_dict(), folder / "model.pt")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def load(folder: Path, model, optimizer, order: str) -> None:
    for part, name in ((model, "model"), (optimizer, "optimizer"))[
        :: 1 if order == "model" else -1
    ]:
        part.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))


def counters(handle):
    """Everything that a handle tells."""
    return (
        handle.step,
        handle.step_at_mark,
        handle.sad_per_layer("start"),
        handle.sad_per_layer("mark"),
        handle.flips_per_layer("start"),
        handle.flips_per_layer("mark"),
        handle.flip_rate("start"),
        handle.flip_rate("mark"),
    )


@pytest.mark.parametrize("order", ["model", "optimizer"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_equals_uninterrupted(name, order, tmp_path):
    """Red if pruned parts, masks or counters are not saved, or the load order matters."""
    model, optimizer, handle = start(name)
    train(model, optimizer, range(3))
    handle.mark()
    train(model, optimizer, range(3, 5))
    save(tmp_path, model, optimizer)
    saved = state_of(model, optimizer)
    train(model, optimizer, range(5, 10))
    assert handle.sad("mark") > 0

    torch.manual_seed(7)  # the new process starts from other weights
    resumed = hf_nm.sparsify(
        nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)), targets="*", decay=0.05
    )
    other = OPTIMIZERS[name](resumed.parameters())
    again = hf_nm.attach(other, resumed)
    load(tmp_path, resumed, other, order)
    assert_same_state(state_of(resumed, other), saved)
    assert_sparse(resumed)
    train(resumed, other, range(5, 10))
    assert_same_state(state_of(resumed, other), state_of(model, optimizer))
    assert counters(again) == counters(handle)


@pytest.mark.parametrize("order", ["model", "optimizer"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize(
    "options",
    [{"mask_interval": 3}, {"freeze_masks_at": 4}, {"mask_interval": 2, "freeze_masks_at": 5}],
    ids=["interval", "freeze", "both"],
)
def test_resumed_in_each_phase(options, stop, order, tmp_path):
    """Red if held masks are computed again from the weights: they are no function of them."""
    model, optimizer, handle = start(options=options)
    train(model, optimizer, range(stop))
    save(tmp_path, model, optimizer)
    train(model, optimizer, range(stop, 10))
    resumed, other, again = start(options=options)
    load(tmp_path, resumed, other, order)
    with hf_nm.dense_weights(resumed):  # held masks are held from the load on
        pass
    train(resumed, other, range(stop, 10))
    assert_same_state(state_of(resumed, other), state_of(model, optimizer))
    assert counters(again) == counters(handle)


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("order", ["model", "optimizer"])
@pytest.mark.parametrize(
    "sparsify",
    [{"method": "fixed"}, {"method": "ste"}, {"n": 1, "m": 8}, {"dtype": torch.bfloat16}],
    ids=str,
)
def test_resumed_with_other_methods_patterns_and_dtypes(sparsify, order, tmp_path):
    """Red if a saved tensor is cast on its way through the optimizer's state."""
    model, optimizer, handle = start(**sparsify)
    train(model, optimizer, range(4))
    save(tmp_path, model, optimizer)
    train(model, optimizer, range(4, 8))
    resumed, other, again = start(**sparsify)
    load(tmp_path, resumed, other, order)
    train(resumed, other, range(4, 8))
    assert_same_state(state_of(resumed, other), state_of(model, optimizer))
    assert counters(again) == counters(handle)


def test_resumed_through_accelerates_save_state(tmp_path):
    """Red if accelerate's own saving or loading loses what the optimizer carries."""

    def prepared():
        accelerator = Accelerator(cpu=True)
        model = sparse_mlp(decay=0.05)
        model, optimizer = accelerator.prepare(model, OPTIMIZERS["adamw"](model.parameters()))
        return accelerator, model, optimizer, hf_nm.attach(optimizer, model)

    accelerator, model, optimizer, handle = prepared()
    train(model, optimizer, range(5))
    accelerator.save_state(tmp_path)
    train(model, optimizer, range(5, 9))
    accelerator, resumed, other, again = prepared()
    accelerator.load_state(tmp_path)
    train(resumed, other, range(5, 9))
    assert_same_state(state_of(resumed, other), state_of(model, optimizer))
    assert counters(again) == counters(handle)


def test_resumed_in_the_same_process():
    """Red if a load leaves something of the steps taken since: rolling back and on again."""
    model, optimizer, handle = start(options={"mask_interval": 2})
    train(model, optimizer, range(3))
    saved = state_of(model, optimizer)
    snapshot = (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, optimizer.state_dict()),
    )
    train(model, optimizer, range(3, 8))
    expected, told = state_of(model, optimizer), counters(handle)
    model.load_state_dict(snapshot[0])
    optimizer.load_state_dict(snapshot[1])
    assert_same_state(state_of(model, optimizer), saved)
    train(model, optimizer, range(3, 8))
    assert_same_state(state_of(model, optimizer), expected)
    assert counters(handle) == told


def test_weights_only_and_exact(tmp_path):
    """Red if the entry holds anything but plain tensors and numbers, or bools become floats."""
    model, optimizer, _ = start()
    train(model, optimizer, range(3))
    save(tmp_path, model, optimizer)
    entry = torch.load(tmp_path / "optimizer.pt", weights_only=True)["nm_sparsity"]
    assert entry["step"] == 3
    for w in hf_nm.sparse_weights(model):
        assert entry["weights"][w.name]["mask"].dtype == torch.bool
        assert torch.equal(entry["weights"][w.name]["mask"], w.mask)
        assert torch.equal(entry["weights"][w.name]["pruned"], w.state.aside)
    for state in optimizer.state.values():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_loaded_optimizer_shares_no_memory():
    """Red if two runs that load one dict write into each other's masks."""
    model, optimizer, _ = start()
    train(model, optimizer, range(3))
    kept = optimizer.state_dict()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runs = []
    for _ in range(2):
        resumed, other, _ = start()
        resumed.load_state_dict(weights)
        other.load_state_dict(kept)
        runs.append((resumed, other))
    before = state_of(runs[0][0])
    train(*runs[1], range(3, 6))
    assert_same_state(state_of(runs[0][0]), before)
    assert_same_state(state_of(model), before)


# -- what is refused or warned about ---------------------------------------------------------------


def test_loaded_before_attach_is_an_error(tmp_path):
    """Red if an optimizer that read the file unattached trains on with its pruned parts lost."""
    model, optimizer, _ = start()
    train(model, optimizer, range(3))
    save(tmp_path, model, optimizer)
    resumed = sparse_mlp()
    other = OPTIMIZERS["adamw"](resumed.parameters())
    load(tmp_path, resumed, other, "model")
    with pytest.raises(ValueError, match=r"loaded before attach.*call hf_nm\.attach.*first"):
        hf_nm.attach(other, resumed)


def test_a_dense_optimizer_checkpoint_is_a_warning():
    """Going sparse from a dense run: its moments are used, masks stay as they are."""
    dense = mlp(*SIZES)
    optimizer = OPTIMIZERS["adamw"](dense.parameters())
    train(dense, optimizer, range(3))
    model, other, handle = start()
    model.load_state_dict(dense.state_dict())
    before = masks(model)
    with pytest.warns(UserWarning, match="saved without hf_nm") as caught:
        other.load_state_dict(optimizer.state_dict())
    assert caught[0].filename == __file__
    assert all(torch.equal(mask, before[name]) for name, mask in masks(model).items())
    assert torch.equal(
        other.state[model[0].weight]["exp_avg"], optimizer.state[dense[0].weight]["exp_avg"]
    )
    assert handle.step == 0
    train(model, other, range(3, 5))
    assert_sparse(model)


def test_only_the_optimizer_was_loaded():
    """Red if masks from the file are trained with weights that do not belong to them."""
    model, optimizer, _ = start()
    train(model, optimizer, range(6))
    resumed, other, _ = start()
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(hf_nm.BrokenPatternError, match="load both"):
        train(resumed, other, range(1))


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("kind", ["moved", "same masks"])
def test_model_and_optimizer_of_different_steps(kind, optimizer_first):
    """Red if a model is trained on with the pruned parts of another step, whatever was loaded first."""
    options = {} if kind == "moved" else {"mask_interval": 100}
    model, optimizer, _ = start(options=options)
    train(model, optimizer, range(3))
    early = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(3, 6))
    resumed, other, _ = start(options=options)
    jobs = [
        lambda: other.load_state_dict(copy.deepcopy(optimizer.state_dict())),
        lambda: resumed.load_state_dict(early),
    ]
    for job in jobs if optimizer_first else reversed(jobs):
        job()
    with pytest.raises(hf_nm.BrokenPatternError, match="load both of the same step"):
        train(resumed, other, range(1))


def test_only_the_model_was_loaded(tmp_path):
    """A new optimizer on saved weights: pruned parts start at zero, nothing else is lost."""
    model, optimizer, _ = start()
    train(model, optimizer, range(4))
    save(tmp_path, model, optimizer)
    resumed, other, _ = start()
    resumed.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for w in hf_nm.sparse_weights(resumed):
        assert torch.equal(w.dense_weight(), w.weight.detach())
    train(resumed, other, range(3))
    assert_sparse(resumed)


def test_no_warnings():
    """Saving, loading and stepping is silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer, _ = start()
        train(model, optimizer, range(2))
        resumed, other, _ = start()
        resumed.load_state_dict(model.state_dict())
        other.load_state_dict(optimizer.state_dict())
        train(resumed, other, range(2))


def test_another_decay_or_schedule_is_a_warning():
    """Red if a difference is not said with both values, at the caller's line, or if there is a
    warning without a difference."""
    model, optimizer, _ = start(options={"mask_interval": 2})
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    _, other, _ = start(options={"mask_interval": 2})
    other.load_state_dict(saved)
    changed, other, handle = start(options={"freeze_masks_at": 7})
    for w in hf_nm.sparse_weights(changed):
        w.state.spec = dataclasses.replace(w.state.spec, decay=0.5)
    said = (
        r"with decay 0.05, now 0.5 \(2 weights, first: 0.weight\); mask_interval 2, now 1; "
        "freeze_masks_at None, now 7: training goes on with the new"
    )
    with pytest.warns(UserWarning, match=said) as caught:
        other.load_state_dict(saved)
    assert caught[0].filename == __file__
    assert handle.step == 2
    changed.load_state_dict(model.state_dict())
    train(changed, other, range(2, 8))
    assert_sparse(changed)
