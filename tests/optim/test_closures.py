"""Optimizers that evaluate the loss inside ``step``: the closure sees the sparse weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from tolerances import assert_close
from training import (
    assert_equals_reference,
    assert_same_state,
    assert_sparse,
    loss_of,
    recording,
    reference_loss,
    sparse_mlp,
    state_of,
    train,
    twins,
)

import hf_nm


class SharpnessAware(torch.optim.Optimizer):
    """SAM (Foret et al. 2021): climb to the worst near point, step with the gradient there."""

    def __init__(self, params, rho=0.05, **options):
        super().__init__(params, {"rho": rho})
        self.inner = torch.optim.SGD(self.param_groups, **options)

    @torch.no_grad()
    def step(self, closure):
        closure = torch.enable_grad()(closure)
        loss = closure()
        held = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        before = [p.clone() for p in held]
        for p in held:
            p.add_(p.grad, alpha=float(self.param_groups[0]["rho"] / norm))
        closure()
        for p, old in zip(held, before, strict=True):
            p.copy_(old)
        self.inner.step()
        return loss


CLOSURE_OPTIMIZERS = {
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=4),
    "lbfgs-wolfe": lambda params: torch.optim.LBFGS(params, line_search_fn="strong_wolfe"),
    "sam": lambda params: SharpnessAware(params, rho=0.1, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.02),
}


@pytest.mark.parametrize("as_keyword", [False, True])
@pytest.mark.parametrize("name", CLOSURE_OPTIMIZERS)
def test_closures_see_the_sparse_weights(name, as_keyword):
    """Red if the loss is taken at the dense weights inside step, or the decay is left out there."""
    model, reference = twins()
    optimizer = CLOSURE_OPTIMIZERS[name](model.parameters())
    reference_optimizer = CLOSURE_OPTIMIZERS[name](reference.model.parameters())
    handle = hf_nm.attach(optimizer, model)
    for step in range(5):

        def closure(step=step):
            for w in hf_nm.sparse_weights(model):
                assert not w.weight.detach()[~w.mask].count_nonzero()
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        def reference_closure(step=step):
            reference_optimizer.zero_grad()
            loss = reference_loss(reference, step)
            loss.backward()
            with torch.no_grad():
                for weight_name, mask in reference.masks().items():
                    weight = reference.weights[weight_name]
                    weight.grad += reference.decay * (weight * ~mask)
            return loss

        loss = optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
        assert_close(loss.detach(), reference_optimizer.step(reference_closure).detach())
        assert_equals_reference(model, reference)
        assert_sparse(model)
    assert handle.step == 5
    assert handle.sad() > 0


def test_closure_flips_are_counted_net():
    """Red if masks that a closure moved in between count twice, or get lost."""
    model = sparse_mlp()
    optimizer = SharpnessAware(model.parameters(), rho=1.0, lr=0.1)
    handle = hf_nm.attach(optimizer, model)

    def step(index):
        optimizer.step(lambda: (optimizer.zero_grad(), loss_of(model, index).backward())[1])

    seen = recording(model, step, 4)
    changes = [
        sum(hf_nm.sad(old[name], new[name]) for name in old)
        for old, new in itertools.pairwise(seen)
    ]
    assert sum(changes) > 0
    assert sum(handle.flips_per_layer().values()) == sum(changes)
    assert handle.sad() == sum(hf_nm.sad(seen[0][name], seen[-1][name]) for name in seen[0])


def test_a_closure_gives_the_same_step_as_a_gradient():
    """Red if the closure's way round differs from the usual one: bit for bit."""
    models = [sparse_mlp(decay=0.05), sparse_mlp(decay=0.05)]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.02) for m in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        hf_nm.attach(optimizer, model)
    for step in range(5):
        train(models[0], optimizers[0], [step])

        def closure(step=step):
            optimizers[1].zero_grad()
            loss = loss_of(models[1], step)
            loss.backward()
            return loss

        optimizers[1].step(closure)
    assert_same_state(state_of(models[1], optimizers[1]), state_of(models[0], optimizers[0]))
