"""Training small models step by step: batches that depend on the step alone, states to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from reference import Reference, patterns_of
from tolerances import assert_close, assert_same_bits
from torch import Tensor, nn

import hf_nm

SIZES = (16, 24, 8)
State = dict[str, Tensor]


def sparse_mlp(*sizes: int, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Sequential:
    """A small network with all its matrices N:M: the same weights at every call."""
    # Here: transformers takes long to import, and test_ddp's processes do without.
    from models import mlp

    return hf_nm.sparsify(mlp(*(sizes or SIZES), dtype=dtype), targets="*", **options)


def example(step: int, rows: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs ``[rows, 16]`` and targets ``[rows, 8]`` of one step."""
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(rows, SIZES[0], generator=generator, dtype=torch.float64)
    targets = torch.randn(rows, SIZES[-1], generator=generator, dtype=torch.float64)
    return inputs.to(dtype), targets.to(dtype)


def loss_of(model: nn.Module, step: int) -> Tensor:
    """Mean squared error on the step's example."""
    inputs, targets = example(step, dtype=next(model.parameters()).dtype)
    return nn.functional.mse_loss(model(inputs), targets)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    """A plain loop."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def mask_of(weight: hf_nm.SparseWeight) -> torch.Tensor:
    """Its mask; without one nothing can be compared."""
    assert weight.mask is not None, weight.name
    return weight.mask


def masks(model: nn.Module) -> State:
    """Copies of the masks by name."""
    return {w.name: mask_of(w).clone() for w in hf_nm.sparse_weights(model)}


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> State:
    """Copies of everything that training depends on, flat: parameters, masks, pruned parts, and the
    optimizer's whole state dict."""
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for w in hf_nm.sparse_weights(model):
        state[f"{w.name}/mask"] = mask_of(w).clone()
        state[f"{w.name}/dense"] = w.dense_weight()
    if optimizer is not None:
        state |= {f"optimizer/{name}": tensor for name, tensor in _flat(optimizer.state_dict())}
    return state


def assert_same_state(actual: State, expected: State) -> None:
    """Two :func:`state_of` agree in every bit."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(actual[name], tensor, name)


def assert_sparse(model: nn.Module) -> None:
    """Every N:M weight is zero where its mask says so, keeps n per group, and can be saved."""
    assert hf_nm.sparse_weights(model)
    for w in hf_nm.sparse_weights(model):
        assert not w.weight.detach()[~mask_of(w)].count_nonzero(), w.name
        kept = mask_of(w).movedim(w.state.dim, -1).unflatten(-1, (-1, w.pattern.m)).sum(-1)
        assert (kept == w.pattern.n).all(), w.name
    model.state_dict()


def twins(
    decay: float = 0.05, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[nn.Sequential, Reference]:
    """A sparse model and the slow reference of it."""
    model = sparse_mlp(dtype=dtype, decay=decay, **options)
    from models import mlp

    twin = mlp(*SIZES, dtype=dtype)
    method = options.get("method", "sr-ste")
    return model, Reference(twin, patterns_of(hf_nm.report(model).layers), method, decay)


def reference_loss(reference: Reference, step: int) -> Tensor:
    """:func:`loss_of` of the reference."""
    inputs, targets = example(step, dtype=next(reference.model.parameters()).dtype)
    return nn.functional.mse_loss(reference(inputs), targets)


def assert_equals_reference(model: nn.Module, reference: Reference) -> None:
    """Dense weights agree, and masks in every entry."""
    expected = dict(reference.model.named_parameters())
    expected_masks = reference.masks()
    for w in hf_nm.sparse_weights(model):
        assert_close(w.dense_weight(), expected[w.name].detach(), w.name)
        assert torch.equal(mask_of(w), expected_masks[w.name]), w.name


def recording(model: nn.Module, train_step: Callable[[int], None], steps: int) -> list[State]:
    """Masks before the first step and after each."""
    found = [masks(model)]
    for step in range(steps):
        train_step(step)
        found.append(masks(model))
    return found


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}/{index}")
    elif isinstance(value, Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, bool | int | float):
        yield path, torch.tensor(value, dtype=torch.float64)


def trained(steps: int = 4, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sparse network and its attached AdamW after some steps."""
    model = sparse_mlp(**options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(steps))
    return model, optimizer


def dense_parts(model: nn.Module) -> State:
    """The dense weights by name."""
    return {w.name: w.dense_weight() for w in hf_nm.sparse_weights(model)}
