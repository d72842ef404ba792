"""A compiled model trains without graph breaks, is compiled once, and gives the eager result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import models
import pytest
import torch
from functorch.compile import make_boxed_func
from packaging.version import Version
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from training import assert_same_state, assert_sparse, loss_of, sparse_mlp, state_of, train

import hf_nm


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(
        self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]
    ) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward

    def of_autograd(
        self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]
    ) -> Callable[..., Any]:
        """The same as a compiler of forward and backward graphs."""
        self.graphs += 1
        return make_boxed_func(graph.forward)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_graph_over_many_steps(when):
    """Red if the forward touches masks or pruned parts (a guard on them fails after each step)."""
    backend = Counting()
    plain, model = sparse_mlp(decay=0.05), sparse_mlp(decay=0.05)
    plain_optimizer, optimizer = (
        torch.optim.AdamW(m.parameters(), lr=0.05) for m in (plain, model)
    )
    hf_nm.attach(plain_optimizer, plain)
    if when == "before":
        hf_nm.attach(optimizer, model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    if when == "after":
        hf_nm.attach(optimizer, compiled)
    train(plain, plain_optimizer, range(6))
    train(compiled, optimizer, range(6))
    assert backend.graphs == 1
    assert_same_state(state_of(model, optimizer), state_of(plain, plain_optimizer))


def test_dense_weights_and_loads_do_not_recompile():
    backend = Counting()
    model = sparse_mlp()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    handle = hf_nm.attach(optimizer, compiled)
    train(compiled, optimizer, range(2))
    with hf_nm.dense_weights(compiled):
        loss_of(compiled, 2)
    model.load_state_dict(model.state_dict())
    handle.mark()
    train(compiled, optimizer, range(2, 4))
    assert backend.graphs == 1
    assert_sparse(model)


def test_a_transformer_with_aot_autograd():
    """Red if the backward graph writes gradients past the probes, or the pieces are recompiled."""
    backend = Counting()
    # (BERT looks up its kind of problem once, and would be compiled again for that)
    model = models.bert(problem_type="single_label_classification").train()
    hf_nm.sparsify(model)
    batch = models.batch(model)
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=backend.of_autograd))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, compiled)
    for step in range(4):
        optimizer.zero_grad()
        compiled(**batch).loss.backward()
        optimizer.step()
        if step == 0:
            after_one = backend.graphs
    assert backend.graphs == after_one
    assert handle.step == 4
    assert handle.sad() > 0
    assert_sparse(model)


# torch's own, from tracing its optimizers
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_optimizer_step():
    """Red if what happens around the step is traced with it: dynamo warns and may break it up."""
    backend = Counting()
    plain, model = sparse_mlp(decay=0.05), sparse_mlp(decay=0.05)
    plain_optimizer, optimizer = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, model))
    hf_nm.attach(plain_optimizer, plain)
    handle = hf_nm.attach(optimizer, model)
    compiled_step = torch.compile(optimizer.step, backend=backend)
    train(plain, plain_optimizer, range(4))
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        compiled_step()
    assert backend.graphs == 1
    assert handle.step == 4
    assert_sparse(model)
    if Version(torch.__version__) >= Version("2.13"):
        assert_same_state(state_of(model), state_of(plain))
    else:  # torch 2.11's compiled SGD differs from its eager one in the last bit, without hf_nm too
        torch.testing.assert_close(state_of(model), state_of(plain))


def test_compiled_layer_alone():
    layer = hf_nm.NMLinear(16, 8)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    inputs = torch.randn(3, 16)
    assert torch.equal(compiled(inputs), nn.functional.linear(inputs, layer.weight, layer.bias))
