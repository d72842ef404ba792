"""``compact_state=True``: the same run, bit for bit, from fewer bytes, and from files of either form."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from models import mlp
from tolerances import assert_same_bits
from torch import nn
from training import assert_same_state, assert_sparse, loss_of, sparse_mlp, state_of, train
from wide import METHODS

import hf_nm
from hf_nm.methods.held import Compact, Whole

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05),
    "adamw-fused": lambda params: torch.optim.AdamW(params, lr=0.05, fused=True),
}


def start(compact: bool, name: str = "adamw", options: Any = None, **sparsify: Any):
    """Model, optimizer and handle of a run at its beginning."""
    model = sparse_mlp(**{"decay": 0.05, **sparsify})
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, optimizer, hf_nm.attach(optimizer, model, compact_state=compact, **options or {})


def forms(model: nn.Module) -> set[type]:
    return {type(w.state.parts.held) for w in hf_nm.sparse_weights(model)}


def assert_same_run(one: Any, other: Any) -> None:
    """Weights, masks, pruned parts, optimizer state and everything a handle tells agree in every bit."""
    for told in ("sad_per_layer", "flips_per_layer", "flip_rate"):
        for since in ("start", "mark"):
            assert getattr(one[2], told)(since) == getattr(other[2], told)(since)
    states = []
    for model, optimizer, _ in (one, other):
        states.append(state_of(model))
        inner = optimizer.state_dict()["state"].items()
        states[-1] |= {f"{i}/{k}": torch.as_tensor(v) for i, s in inner for k, v in s.items()}
    assert_same_state(*states)


def bytes_beside(model: nn.Module) -> float:
    """Bytes a weight that its mask and what is aside hold."""
    weights = hf_nm.sparse_weights(model)
    held = [t for w in weights for t in w.state.parts.tensors()]
    total = sum(t.untyped_storage().nbytes() for t in held)
    return total / sum(w.weight.numel() for w in weights)


@pytest.mark.parametrize(
    "sparsify",
    [
        {},
        {"n": 1},
        {"n": 6, "m": 8},
        {"method": "ste"},
        {"method": "fixed"},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64},
        *({"method": method, "n": 1} for method in METHODS.values()),
    ],
    ids=lambda given: "-".join(str(getattr(v, "name", v)) for v in given.values()) or "2:4",
)
def test_in_lockstep(sparsify: dict[str, Any]) -> None:
    """Red if a bit of S, W, a mask, the optimizer or a count differs at any of 50 steps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*round", UserWarning)  # bf16 without fp32 copies
        runs = [start(compact, **sparsify) for compact in (False, True)]
    assert forms(runs[0][0]) == {Whole}
    assert forms(runs[1][0]) == {Compact}
    for step in range(50):
        for model, optimizer, handle in runs:
            train(model, optimizer, [step])
            if step % 10 == 9:
                handle.mark()
        assert_same_run(*runs)
    assert_sparse(runs[1][0])
    if sparsify.get("method") != "fixed":
        assert runs[1][2].sad() > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [
        {"mask_interval": 7},
        {"freeze_masks_at": 20},
        {"mask_interval": 4, "freeze_masks_at": 30},
        {"decay_warmup_steps": 25},
    ],
    ids=str,
)
def test_in_lockstep_by_a_schedule(name: str, options: dict[str, Any]) -> None:
    """Red if masks that are held or frozen, or a decay that rises, differ."""
    runs = [start(compact, name, options) for compact in (False, True)]
    for step in range(50):
        for model, optimizer, _ in runs:
            train(model, optimizer, [step])
        assert_same_run(*runs)
    if "freeze_masks_at" in options:
        assert bytes_beside(runs[1][0]) == 1 / 8


def test_in_lockstep_with_a_closure() -> None:
    """Red if the loss inside a step sees other weights, or flips are counted otherwise."""
    runs = []
    for compact in (False, True):
        model = sparse_mlp(decay=0.05)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        runs.append((model, optimizer, hf_nm.attach(optimizer, model, compact_state=compact)))
    for step in range(5):
        for model, optimizer, _ in runs:

            def closure(model: Any = model, optimizer: Any = optimizer, step: int = step) -> Any:
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss

            optimizer.step(closure)
        for told in ("sad_per_layer", "flips_per_layer"):
            assert getattr(runs[0][2], told)() == getattr(runs[1][2], told)()
        assert_same_state(*(state_of(model) for model, _, _ in runs))


class Transposed(nn.Module):
    """A matrix whose inputs are its rows, one that lies transposed in memory, and stacked ones."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        from transformers.pytorch_utils import Conv1D

        self.first, self.second = Conv1D(24, 16), nn.Linear(24, 8)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        self.second.weight = nn.Parameter(self.second.weight.detach().t().contiguous().t())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs).tanh())


def test_in_lockstep_along_another_dimension() -> None:
    """Red if groups along the rows, or in a weight that is not contiguous, get another's values."""
    runs = []
    for compact in (False, True):
        model = hf_nm.sparsify(Transposed(), targets="*", decay=0.05)
        assert not model.second.weight.is_contiguous()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        runs.append((model, optimizer, hf_nm.attach(optimizer, model, compact_state=compact)))
    assert {w.state.dim for w in hf_nm.sparse_weights(runs[0][0])} == {-2, -1}
    for step in range(20):
        for model, optimizer, _ in runs:
            train(model, optimizer, [step])
        assert_same_run(*runs)


@pytest.mark.parametrize("saved", [False, True], ids=["whole", "compact"])
@pytest.mark.parametrize("resumed", [False, True], ids=["to-whole", "to-compact"])
@pytest.mark.parametrize(
    "sparsify",
    [{}, {"n": 5, "m": 8}, {"method": METHODS["s-ste"]}, {"method": METHODS["tightening"], "n": 1}],
    ids=["2:4", "5:8", "s-ste", "tightening"],
)
def test_resume_across_forms(saved, resumed, sparsify, tmp_path) -> None:
    """Red if a checkpoint of one form does not go on bit for bit in the other."""
    never = start(False, **sparsify)
    train(*never[:2], range(8))
    run = start(saved, **sparsify)
    train(*run[:2], range(4))
    torch.save([run[0].state_dict(), run[1].state_dict()], tmp_path / "run.pt")
    model_state, optimizer_state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert optimizer_state["nm_sparsity"]["version"] == (2 if saved else 1)
    again = start(resumed, **sparsify)
    again[0].load_state_dict(model_state)
    again[1].load_state_dict(optimizer_state)
    assert forms(again[0]) == {Compact if resumed else Whole}
    train(*again[:2], range(4, 8))
    assert_same_run(again, never)


def test_bytes(tmp_path) -> None:
    """Red if more is held, or written, than the pruned values and one bit a mask entry."""
    model = hf_nm.sparsify(mlp(256, 512, 256), targets="*")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert bytes_beside(model) == 5
    handle = hf_nm.attach(optimizer, model, compact_state=True)
    held = {w.name: [t.data_ptr() for t in w.state.parts.tensors()] for w in handle.weights()}
    for _ in range(3):
        model(torch.randn(4, 256)).sum().backward()
        optimizer.step()
    assert bytes_beside(model) == 2 + 1 / 8 <= 2.4
    for w in handle.weights():  # the same memory all the time
        assert held[w.name] == [t.data_ptr() for t in w.state.parts.tensors()]
    history = handle.meter.history(handle.weights()[0])
    references = history.start.nbytes + history.mark.nbytes
    assert references / handle.weights()[0].weight.numel() == 2 / 8
    saved = optimizer.state_dict()["nm_sparsity"]["weights"]
    tensors = [entry[name] for entry in saved.values() for name in ("mask", "pruned")]
    assert sum(tensor.nbytes for tensor in tensors) == (2 + 1 / 8) * sum(
        w.weight.numel() for w in handle.weights()
    )


@pytest.mark.parametrize(("pattern", "share"), [("1:4", 3 / 4), ("4:8", 1 / 2), ("5:7", 2 / 7)])
def test_bytes_of_other_patterns(pattern: str, share: float) -> None:
    n, m = map(int, pattern.split(":"))
    model = hf_nm.sparsify(mlp(8 * m, 16 * m, 8 * m), n, m, targets="*")
    hf_nm.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, compact_state=True)
    assert bytes_beside(model) == pytest.approx(4 * share + 1 / 8)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("inside", [False, True], ids=["between", "inside-dense-weights"])
def test_copies(copied, inside) -> None:
    """Red if a copy shares memory with its original, or loses its pruned values."""
    model, optimizer, _ = start(True)
    train(model, optimizer, range(3))
    expected = state_of(model)
    if inside:
        with hf_nm.dense_weights(model):
            twin = copied(model)
    else:
        twin = copied(model)
    assert forms(twin) == {Compact}
    assert_same_state(state_of(twin), expected)
    train(model, optimizer, range(3, 5))
    assert_same_state(state_of(twin), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["to", "type", "data"])
def test_casts_as_the_whole_form_does(dtype, how) -> None:
    """Red if bits are cast, or pruned values are not."""
    models = []
    for compact in (False, True):
        model, optimizer, handle = start(compact)
        train(model, optimizer, range(3))
        handle.remove()
        if how == "data":
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
        else:
            getattr(model, how)(dtype)
        for w in hf_nm.sparse_weights(model):
            assert w.dense_weight().dtype == dtype
        models.append(model)
    assert forms(models[1]) == {Compact}
    assert_same_state(*(state_of(model) for model in models))


def test_meta_device_and_back() -> None:
    """Red if what waits while a model is on the meta device is lost."""
    model, optimizer, _ = start(True)
    train(model, optimizer, range(3))
    expected, weights = state_of(model), copy.deepcopy(model.state_dict())
    model.to("meta")
    model.to_empty(device="cpu")
    model.load_state_dict(weights)
    assert_same_state(state_of(model), expected)
    assert forms(model) == {Compact}


def test_writing_dense_weights() -> None:
    """Red if a write inside ``dense_weights``, or an overwritten weight, is projected otherwise."""
    models = []
    for compact in (False, True):
        model, optimizer, _ = start(compact)
        train(model, optimizer, range(3))
        with hf_nm.dense_weights(model), torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(torch.linspace(0.5, 2, parameter.shape[-1]))
        with torch.no_grad():
            model[0].weight.add_(0.01)
        said = pytest.warns(UserWarning, match="held values where their masks say zero")
        with said, hf_nm.dense_weights(model):
            pass
        assert_sparse(model)
        models.append(model)
    assert_same_state(*(state_of(model) for model in models))


def test_a_stray_write_is_found() -> None:
    """Red if a value at a pruned place is silently replaced, or the weight is left half merged."""
    model, optimizer, _ = start(True)
    train(model, optimizer, range(2))
    w = hf_nm.sparse_weights(model)[1]
    with torch.no_grad():
        w.weight[tuple((~w.mask).nonzero()[-1])] = 1.0
    before = w.weight.detach().clone()
    with pytest.raises(hf_nm.BrokenPatternError, match=w.name):
        model.state_dict()
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(hf_nm.BrokenPatternError, match=w.name):
        optimizer.step()
    assert_same_bits(w.weight.detach(), before)


def test_options() -> None:
    """Red if another form is taken silently, a weight added later is held otherwise, or going back to
    the whole form changes anything."""
    model = sparse_mlp()
    first, second = (w.weight for w in hf_nm.sparse_weights(model))
    optimizer = torch.optim.SGD([first], lr=0.1)
    handle = hf_nm.attach(optimizer, model, compact_state=True)
    assert hf_nm.attach(optimizer, model, compact_state=True) is handle
    with pytest.raises(ValueError, match=r"compact_state=True, not Schedule.* and False"):
        hf_nm.attach(optimizer, model)
    assert forms(model) == {Compact, Whole}
    optimizer.add_param_group({"params": [second]})
    train(model, optimizer, range(2))
    assert forms(model) == {Compact}
    expected = state_of(model)
    handle.remove()
    hf_nm.attach(optimizer, model)
    assert forms(model) == {Whole}
    assert_same_state(state_of(model), expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry | {"pruned": entry["pruned"][1:]},
        lambda entry: entry | {"mask": entry["mask"][1:]},
        lambda entry: entry | {"mask": entry["mask"].int()},
        lambda entry: entry | {"mask": torch.zeros_like(entry["mask"])},
    ],
    ids=["fewer values", "fewer bits", "another dtype", "another pattern"],
)
def test_a_damaged_compact_entry_is_refused(damage) -> None:
    """Red if half of a checkpoint is read."""
    model, optimizer, _ = start(True)
    train(model, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    entries = state["nm_sparsity"]["weights"]
    name = hf_nm.sparse_weights(model)[1].name
    entries[name] = damage(entries[name])
    before = state_of(model, optimizer)
    with pytest.raises(ValueError, match=name):
        optimizer.load_state_dict(state)
    assert_same_state(state_of(model, optimizer), before)
