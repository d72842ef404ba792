"""Schedule-free optimizers write the parameters in ``train()`` and ``eval()``, outside of any step."""

from __future__ import annotations

import pytest
import torch
from tolerances import assert_close
from trainers import build, train_logs
from training import (
    assert_equals_reference,
    assert_same_state,
    assert_sparse,
    loss_of,
    masks,
    reference_loss,
    sparse_mlp,
    state_of,
    train,
    twins,
)

import hf_nm
from hf_nm.optim import guards

schedulefree = pytest.importorskip("schedulefree")

OPTIMIZERS = {
    "adamw": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.05, weight_decay=0.01),
    "adamw-loop": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.05, foreach=False),
    "radam": lambda p: schedulefree.RAdamScheduleFree(p, lr=0.05),
    "sgd": lambda p: schedulefree.SGDScheduleFree(p, lr=0.3),
}


def started(model, **options):
    """AdamW in train mode, attached."""
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    handle = hf_nm.attach(optimizer, model, **options)
    optimizer.train()
    return optimizer, handle


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mode_switches_equal_the_reference(name):
    """Red if a switch interpolates sparse weights: the pruned part would stay at the other point."""
    model, reference = twins()
    optimizer, twin = (OPTIMIZERS[name](m.parameters()) for m in (model, reference.model))
    handle = hf_nm.attach(optimizer, model)
    for step in range(12):
        for one in (optimizer, twin):
            one.train()
            one.zero_grad()
        loss_of(model, step).backward()
        reference_loss(reference, step).backward()
        optimizer.step()
        reference.step(twin)
        assert_equals_reference(model, reference)
        if step % 3 == 2:
            optimizer.eval()
            twin.eval()
            assert_equals_reference(model, reference)
            assert_sparse(model)
            with torch.no_grad():
                assert_close(loss_of(model, 99), reference_loss(reference, 99))
    assert handle.step == 12
    assert handle.sad() > 0


def test_equals_switching_inside_dense_weights():
    """Red if the switch of an attached optimizer differs from the one written by hand, in any bit."""
    states = []
    for by_hand in (False, True):
        model = sparse_mlp(decay=0.05)
        optimizer, _ = started(model)
        for part in range(3):
            train(model, optimizer, range(3 * part, 3 * part + 3))
            for mode in ("eval", "train"):
                if by_hand:
                    with hf_nm.dense_weights(model):
                        getattr(type(optimizer), mode)(optimizer)
                else:
                    getattr(optimizer, mode)()
        states.append(state_of(model, optimizer))
    assert_same_state(*states)


def test_a_mode_it_is_in_costs_nothing(monkeypatch):
    """Red if the Trainer's ``optimizer.train()`` before every batch merges and projects all weights."""
    model = sparse_mlp()
    optimizer, _ = started(model)
    train(model, optimizer, range(2))
    opened, original = [], guards.open_weights
    monkeypatch.setattr(guards, "open_weights", lambda w: opened.append(len(w)) or original(w))
    for mode in ("train", "train", "eval", "eval", "train"):
        getattr(optimizer, mode)()
    assert opened == [0, 0, 2, 0, 2]


def test_held_masks_stay():
    """Red if a switch moves masks that are frozen."""
    model = sparse_mlp()
    optimizer, _ = started(model, freeze_masks_at=2)
    train(model, optimizer, range(3))
    before = masks(model)
    train(model, optimizer, range(3, 6))
    optimizer.eval()
    assert_sparse(model)
    assert all(torch.equal(mask, before[name]) for name, mask in masks(model).items())


def test_a_write_before_the_switch_is_found():
    """Red if a switch takes what other code wrote for the weights that were trained."""
    model = sparse_mlp()
    optimizer, _ = started(model)
    train(model, optimizer, range(2))
    model[0].weight.data.normal_()
    with pytest.raises(hf_nm.BrokenPatternError, match=r"0\.weight held .*optimizer\.eval\(\)"):
        optimizer.eval()


def test_a_switch_that_fails_leaves_sparse_weights():
    """Red if dense weights stay behind."""
    model = sparse_mlp()
    optimizer, _ = started(model)
    train(model, optimizer, range(2))
    before = state_of(model)
    del optimizer.param_groups[0]["betas"]
    with pytest.raises(KeyError):
        optimizer.eval()
    assert_same_state(state_of(model), before)


def test_remove_gives_the_modes_back():
    model = sparse_mlp()
    optimizer, handle = started(model)
    handle.remove()
    assert "train" not in vars(optimizer)
    assert "eval" not in vars(optimizer)


def test_resumed_from_either_mode(tmp_path):
    """Red if what a switch wrote is not what the optimizer's checkpoint describes."""
    for mode in ("train", "eval"):
        model = sparse_mlp(decay=0.05)
        optimizer, _ = started(model)
        train(model, optimizer, range(4))
        getattr(optimizer, mode)()
        torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / mode)
        optimizer.train()
        train(model, optimizer, range(4, 8))

        resumed = sparse_mlp(decay=0.05)
        other, _ = started(resumed)
        weights, state = torch.load(tmp_path / mode, weights_only=True)
        resumed.load_state_dict(weights)
        other.load_state_dict(state)
        other.train()
        train(resumed, other, range(4, 8))
        assert_same_state(state_of(resumed, other), state_of(model, optimizer))


def test_in_the_trainer(tmp_path):
    """Red if the Trainer's own mode switches break the pattern, or a resumed run departs."""

    def make(folder):
        return build(
            tmp_path / folder,
            optim="schedule_free_adamw",
            lr_scheduler_type="constant",
            eval_strategy="steps",
            eval_steps=3,
            save_strategy="steps",
            save_steps=3,
        )

    whole = make("whole")
    whole.train()
    handle = whole.nm_callback.attachment
    assert isinstance(handle.optimizer, schedulefree.AdamWScheduleFree)
    assert handle.step == 12
    assert train_logs(whole)[-1]["nm/sad_init"] > 0
    assert_sparse(whole.model)
    for step in (3, 12):  # saved in eval mode: what is served
        hf_nm.verify(tmp_path / "whole" / f"checkpoint-{step}")
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert_same_state(
        state_of(resumed.model, resumed.optimizer), state_of(whole.model, whole.optimizer)
    )
    assert train_logs(resumed)[-1]["nm/sad_init"] == train_logs(whole)[-1]["nm/sad_init"]
