"""Weights and gradients that are infinite or not a number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training import (
    assert_sparse,
    loss_of,
    sparse_mlp,
    train,
)

import hf_nm

INF, NAN = math.inf, math.nan
AWKWARD = [
    [INF, -INF, INF, 1.0, NAN, 0.0, -0.0, 1e-45],
    [NAN, NAN, NAN, -INF, 0.0, -0.0, 0.0, -0.0],
    [1.0, -1.0, 1.0, -1.0, 3e38, -3e38, INF, 2.0],
    [1e-45, -1e-45, 0.0, 1e-40, -NAN, INF, -1.0, 0.5],
]
AWKWARD_MASK = [
    [1, 1, 0, 0, 1, 0, 0, 1],
    [1, 1, 0, 0, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0, 1, 0],
    [1, 0, 0, 1, 1, 1, 0, 0],
]


@pytest.mark.parametrize("method", ["ste", "sr-ste"])
def test_weights_that_are_not_finite(method):
    """Red if entries are selected by multiplying (0 * inf is NaN), or W loses a bit, a sign of zero."""
    layer = hf_nm.NMLinear(8, 4, bias=False, method=method)
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    hf_nm.attach(optimizer, model)
    awkward = torch.tensor(AWKWARD)
    with hf_nm.dense_weights(model), torch.no_grad():
        layer.weight.copy_(awkward)
    mask = torch.tensor(AWKWARD_MASK, dtype=torch.bool)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight.detach()[~mask], torch.zeros(int((~mask).sum())))
    as_integers = layer.dense_weight().view(torch.int32)
    assert torch.equal(as_integers, awkward.view(torch.int32))
    if method == "ste":
        layer.weight.grad = torch.zeros(4, 8)
        optimizer.step()
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.weight.detach()[~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_gradients_that_are_not_finite(value, optimizer_class):
    """Without a GradScaler they spoil the weights as in a dense model, but n per group holds."""
    model = sparse_mlp()
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(2))
    loss_of(model, 2).backward()
    model[0].weight.grad.fill_(value)
    model[2].weight.grad[0, 0] = value
    optimizer.step()
    assert not model[0].dense_weight().isfinite().any()
    assert_sparse(model)
    assert (model[0].weight.ne(0).unflatten(-1, (-1, 4)).sum(-1) == 2).all()
