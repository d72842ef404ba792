"""Optimizers that are not element by element, keep coarse states, or replace parameters' memory."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from models import mlp
from reference import Reference, patterns_of
from trainers import build, train_logs
from training import (
    assert_equals_reference,
    assert_same_state,
    assert_sparse,
    loss_of,
    reference_loss,
    sparse_mlp,
    state_of,
    train,
    twins,
)

import hf_nm


def test_muon_beside_adamw():
    """Red if Muon, whose update mixes a matrix's entries, orthogonalises what lacks the decay, or one
    of the two optimizers projects the other's weights."""
    model, reference = twins()

    def optimizers(m):
        rest = [p for name, p in m.named_parameters() if name != "0.weight"]
        return torch.optim.Muon([m[0].weight], lr=0.05), torch.optim.AdamW(rest, lr=0.05)

    ours, others = optimizers(model), optimizers(reference.model)
    handles = [hf_nm.attach(optimizer, model) for optimizer in ours]
    assert [[w.name for w in handle.weights()] for handle in handles] == [
        ["0.weight"],
        ["2.weight"],
    ]
    together = SimpleNamespace(step=lambda: [optimizer.step() for optimizer in others])
    for step in range(12):
        model.zero_grad()
        reference.model.zero_grad()
        loss_of(model, step).backward()
        reference_loss(reference, step).backward()
        for optimizer in ours:
            optimizer.step()
        reference.step(together)
        assert_equals_reference(model, reference)
        assert_sparse(model)
    assert all(handle.sad() > 0 for handle in handles)


WIDE = (128, 64, 8)  # bitsandbytes keeps states of less than 4096 entries in 32 bits


def eight_bit(params):
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit(params, lr=0.01)


def wide_loss(forward, step):
    generator = torch.Generator().manual_seed(step)
    inputs, targets = (
        torch.randn(8, 128, generator=generator),
        torch.randn(8, 8, generator=generator),
    )
    return torch.nn.functional.mse_loss(forward(inputs), targets)


def test_eight_bit_adamw():
    """Red if bitsandbytes, which writes through pointers, updates the sparse weight."""
    model, twin = sparse_mlp(*WIDE, decay=0.05), mlp(*WIDE)
    reference = Reference(twin, patterns_of(hf_nm.report(model).layers), decay=0.05)
    optimizer, other = eight_bit(model.parameters()), eight_bit(twin.parameters())
    handle = hf_nm.attach(optimizer, model)
    for step in range(12):
        optimizer.zero_grad()
        other.zero_grad()
        wide_loss(model, step).backward()
        wide_loss(reference, step).backward()
        optimizer.step()
        reference.step(other)
        assert_equals_reference(model, reference)
        assert_sparse(model)
    assert optimizer.state[model[0].weight]["state1"].dtype == torch.uint8
    assert handle.sad() > 0


def test_eight_bit_adamw_resumed(tmp_path):
    """Red if masks are taken from the checkpoint by torch's hooks alone: bitsandbytes' own
    ``load_state_dict`` calls none."""

    def started():
        model = sparse_mlp(*WIDE, decay=0.05)
        optimizer = eight_bit(model.parameters())
        hf_nm.attach(optimizer, model)
        return model, optimizer

    def train_on(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            wide_loss(model, step).backward()
            optimizer.step()

    model, optimizer = started()
    train_on(model, optimizer, range(4))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "run.pt")
    train_on(model, optimizer, range(4, 8))
    resumed, other = started()
    weights, state = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    train_on(resumed, other, range(4, 8))
    assert_same_state(state_of(resumed), state_of(model))
    assert_sparse(resumed)


def test_eight_bit_adamw_in_the_trainer(tmp_path, monkeypatch):
    """Red if the Trainer's wrapper of the optimizer goes past what was wrapped for bitsandbytes."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # The Trainer notes there, for the whole process and by number, whose states keep 32 bits.
    monkeypatch.setattr(bitsandbytes.optim.GlobalOptimManager, "_instance", None)
    options = {"optim": "adamw_bnb_8bit", "save_strategy": "steps", "save_steps": 5}
    whole = build(tmp_path / "whole", **options)
    whole.train()
    resumed = build(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert resumed.nm_callback.attachment.step == 12
    assert train_logs(resumed)[-1]["nm/sad_init"] == train_logs(whole)[-1]["nm/sad_init"] > 0
    assert_same_state(state_of(resumed.model), state_of(whole.model))


class OwnLoad(torch.optim.Adam):
    """Adam with a ``load_state_dict`` of its own, which passes on to torch's."""

    def load_state_dict(self, state_dict):
        self.loaded = getattr(self, "loaded", 0) + 1
        super().load_state_dict(state_dict)


def test_a_load_state_dict_of_ones_own():
    """Red if masks are taken twice (the second time there are none, with a warning), or the wrapper
    stays behind."""
    model = sparse_mlp(decay=0.05)
    optimizer = OwnLoad(model.parameters(), lr=0.05)
    handle = hf_nm.attach(optimizer, model)
    train(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = state_of(model)
    train(model, optimizer, range(3, 6))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert "nm_sparsity" in saved[1]
    assert_same_state(state_of(model), expected)
    assert (handle.step, optimizer.loaded) == (3, 1)
    with pytest.warns(UserWarning, match="saved without hf_nm"):
        optimizer.load_state_dict(torch.optim.Adam(model.parameters()).state_dict())
    handle.remove()
    assert "load_state_dict" not in vars(optimizer)


class Replacing(torch.optim.SGD):
    """SGD that gives each parameter new memory instead of writing into the old one."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = parameter.data - group["lr"] * parameter.grad


def test_an_optimizer_that_replaces_memory():
    """Red if the projection writes into memory that the parameter no longer uses."""
    plain, model = sparse_mlp(decay=0.05), sparse_mlp(decay=0.05)
    states = []
    for kind, m in ((torch.optim.SGD, plain), (Replacing, model)):
        optimizer = kind(m.parameters(), lr=0.125)  # a power of two: rounded alike in both
        hf_nm.attach(optimizer, m)
        train(m, optimizer, range(6))
        assert_sparse(m)
        states.append(state_of(m))
    assert_same_state(*states)
