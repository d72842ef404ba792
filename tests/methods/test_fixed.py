"""Method ``fixed``: the first magnitude mask stays, pruned weights stay zero."""

from __future__ import annotations

import math

import torch
from models import mlp
from training import (
    SIZES,
    assert_equals_reference,
    assert_sparse,
    loss_of,
    masks,
    reference_loss,
    sparse_mlp,
    train,
    twins,
)

import hf_nm


class Remembers(torch.optim.Adam):
    """Adam that keeps the gradients it was given. (Its step calls another step that torch hooks.)"""

    def step(self, closure=None):
        self.given = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def test_fixed_masks_never_move():
    """Red if the mask is recomputed, a pruned part is kept, or a pruned gradient reaches Adam."""
    model = sparse_mlp(method="fixed")
    before = masks(model)
    optimizer = Remembers(model.parameters(), lr=0.05, weight_decay=0.1)
    handle = hf_nm.attach(optimizer, model)
    for step in range(10):
        train(model, optimizer, [step])
        for w, gradient in zip(hf_nm.sparse_weights(model), optimizer.given[::2], strict=True):
            assert w.state.aside is None
            assert torch.equal(w.mask, before[w.name])
            assert torch.equal(w.dense_weight(), w.weight.detach())
            assert not gradient[~w.mask].count_nonzero()
            assert gradient[w.mask].count_nonzero()
    assert handle.sad() == handle.flip_rate() == 0
    assert handle.step == 10


def test_fixed_equals_the_reference():
    """Red if anything but masking the gradient differs from ASP written out."""
    model, reference = twins(method="fixed")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    reference_optimizer = torch.optim.Adam(reference.model.parameters(), lr=0.02)
    hf_nm.attach(optimizer, model)
    for step in range(10):
        train(model, optimizer, [step])
        reference_optimizer.zero_grad()
        reference_loss(reference, step).backward()
        reference.step(reference_optimizer)
        assert_equals_reference(model, reference)


def test_fixed_pruned_gradients_that_are_not_finite():
    """Red if pruned gradients are zeroed by multiplying: 0 * NaN is NaN."""
    model = sparse_mlp(method="fixed")
    optimizer = Remembers(model.parameters(), lr=0.05)
    hf_nm.attach(optimizer, model)
    loss_of(model, 0).backward()
    for w in hf_nm.sparse_weights(model):
        w.weight.grad[~w.mask] = math.nan
    optimizer.step()
    assert all(gradient.isfinite().all() for gradient in optimizer.given)


def test_momentum_from_before_does_not_leak():
    """ASP after dense training with one optimizer: its momentum pushes pruned weights, in vain."""
    model = mlp(*SIZES)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    train(model, optimizer, range(5))
    hf_nm.sparsify(model, method="fixed", targets="*")
    before = masks(model)
    assert optimizer.state[model[0].weight]["exp_avg"][~before["0.weight"]].count_nonzero()
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(5, 10))
    assert_sparse(model)
    for name, mask in masks(model).items():
        assert torch.equal(mask, before[name])
