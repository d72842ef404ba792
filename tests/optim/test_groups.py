"""Weights that a step treats together: the same numbers as one by one, and fewer calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import assert_same_state, assert_sparse, state_of

import hf_nm
from hf_nm.grouping import groups
from hf_nm.grouping.fused import Fused
from hf_nm.grouping.gathered import Gathered
from hf_nm.grouping.group import Separate
from hf_nm.optim import before_step


class Experts(nn.Module):
    """Small matrices beside each other, and a larger one."""

    def __init__(self, count: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(12, 8, dtype=dtype) for _ in range(count))
        self.last = nn.Linear(8, 4, dtype=dtype)

    def forward(self, x: torch.Tensor, skipped: int = -1) -> torch.Tensor:
        outputs = [e(x).tanh() for i, e in enumerate(self.experts) if i != skipped]
        return self.last(torch.stack(outputs).sum(0))


def trained(*, together: bool, monkeypatch: pytest.MonkeyPatch, **options):
    """Seven steps, one without a gradient in one expert, with a checkpoint in between."""
    with monkeypatch.context() as patch:
        # Runs of 3 of 7 experts; or none is small enough.
        patch.setattr(hf_nm.sparsity.mask, "_CHUNK_CPU", 3 * 96 if together else 8)
        torch.manual_seed(0)
        maximize, schedule = options.pop("maximize", 0), options.pop("schedule", {})
        model = Experts(7, options.pop("dtype", torch.float32))
        hf_nm.sparsify(model, targets="*", **options)
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(
            [
                {"params": parameters[:maximize], "maximize": True},
                {"params": parameters[maximize:]},
            ],
            lr=0.02,
        )
        handle = hf_nm.attach(optimizer, model, **schedule)
        kinds = [type(group) for group in handle._groups.groups]
        assert kinds == ([Gathered, Separate] if together else [Separate])
        for step in range(7):
            optimizer.zero_grad()
            x = torch.randn(4, 12, dtype=parameters[0].dtype)
            model(x, skipped=2 if step == 3 else -1).square().mean().backward()
            optimizer.step()
            if step == 1:
                handle.mark()
            if step == 4:
                optimizer.load_state_dict(optimizer.state_dict())
        assert_sparse(model)
        measured = handle.sad_per_layer(), handle.flips_per_layer(), handle.flip_rate("mark")
        return state_of(model, optimizer), measured


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 0.05},
        {"decay": 0.05, "dtype": torch.float64},
        {"method": "ste"},
        {"method": "fixed"},
        {"decay": 0.05, "maximize": 3},
        {"decay": 0.05, "n": 1, "m": 4, "schedule": {"mask_interval": 2}},
        {"decay": 0.05, "schedule": {"freeze_masks_at": 3, "decay_warmup_steps": 2}},
    ],
    ids=str,
)
def test_gathered_weights_train_as_separate_ones(options, monkeypatch):
    """Red if a run is copied back to other weights, its flips are summed wrongly, or a run with a weight
    that has no gradient is left out."""
    found, measured = trained(together=True, monkeypatch=monkeypatch, **options)
    expected, expected_measured = trained(together=False, monkeypatch=monkeypatch, **options)
    assert_same_state(found, expected)
    assert measured == expected_measured


def test_closure_sees_sparse_weights_of_a_run():
    """Red if weights of a run stay dense while a closure evaluates the loss."""
    model = hf_nm.sparsify(Experts(5), targets="*", decay=0.05)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    handle = hf_nm.attach(optimizer, model)

    def closure():
        optimizer.zero_grad()
        assert_sparse(model)
        loss = model(torch.ones(2, 12)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert_sparse(model)
    assert handle.flip_rate() <= 1


def test_the_written_weight_of_a_run_is_named():
    """Red if the weights of its run are changed, or another is named."""
    model = hf_nm.sparsify(Experts(5), targets="*")
    optimizer = torch.optim.AdamW(model.parameters())
    hf_nm.attach(optimizer, model)
    model(torch.ones(2, 12)).sum().backward()
    w = hf_nm.sparse_weights(model)[3]
    w.weight.data[~w.mask] = 2.0
    before = state_of(model)
    with pytest.raises(hf_nm.BrokenPatternError, match=r"experts\.3\.weight"):
        optimizer.step()
    assert_same_state(state_of(model), before)


class Calls(TorchDispatchMode):
    """How often torch's operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


class Nothing(torch.optim.Optimizer):
    def step(self, closure=None):
        pass


def calls_of(count: int) -> int:
    model = hf_nm.sparsify(Experts(count), targets="*")
    optimizer = Nothing(model.parameters(), {})
    hf_nm.attach(optimizer, model)
    model(torch.ones(2, 12)).sum().backward()
    optimizer.step()
    with Calls() as calls:
        optimizer.step()
    return calls.count


def test_calls_do_not_grow_with_the_number_of_weights():
    """Red if a step calls torch for each weight of a run again or looks at weights again."""
    assert calls_of(400) == calls_of(40)


def test_groups_are_kept_until_something_changes():
    """Red if weights are put into groups anew at each step, or not once they were cast or loaded."""
    model = hf_nm.sparsify(Experts(4), targets="*")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, model)

    def step():
        optimizer.zero_grad()
        model(torch.ones(2, 12, dtype=model.last.weight.dtype)).sum().backward()
        optimizer.step()
        return handle._groups

    first = step()
    assert step() is first
    assert step() is first
    changes = [
        lambda: model.to(torch.float64),
        lambda: setattr(model.last.weight, "data", model.last.weight.data.clone()),
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
        lambda: model.load_state_dict(model.state_dict()),
        lambda: hf_nm.finalize(model.experts[0]),
    ]
    for change in changes:
        before = step()
        change()
        assert step() is not before
        assert len(handle._groups.weights) == len(handle.weights())
    assert len(handle.weights()) == 4


def test_capturing_a_step_is_refused(monkeypatch):
    """Red if a CUDA graph records a step, whose replay would move no mask and count nothing."""
    model = hf_nm.sparsify(Experts(4), targets="*")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, model)
    model(torch.ones(2, 12)).sum().backward()
    monkeypatch.setattr(before_step, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"AdamW\.step\(\) .* CUDA graph, .*after each replay"):
        optimizer.step()
    monkeypatch.undo()
    optimizer.step()
    assert handle.step == 1


def test_nothing_waits_while_a_graph_is_captured(monkeypatch):
    """Red if a backward pass that is captured looks at a weight, which would wait for the device."""
    model = hf_nm.sparsify(Experts(2), targets="*")
    monkeypatch.setattr(hf_nm.model.watch, "capturing", lambda: True)
    monkeypatch.setattr(hf_nm.model.state.NMState, "breaks", lambda *_: pytest.fail("looked at"))
    model(torch.ones(2, 12)).sum().backward()


def test_kernels_are_for_gpus_alone(monkeypatch):
    """Red if weights on a CPU go through the kernels outside of triton's interpreter, or
    ``HF_NM_KERNELS=0`` is not heard."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not groups.table.usable(torch.device("cpu"))
    monkeypatch.setattr(groups.table, "_works", lambda device: True)
    monkeypatch.setattr(groups.table.importlib.util, "find_spec", lambda name: True)
    assert groups.table.usable(torch.device("cuda"))
    monkeypatch.setenv("HF_NM_KERNELS", "0")
    assert not groups.table.usable(torch.device("cuda"))
    assert Fused is not Gathered
