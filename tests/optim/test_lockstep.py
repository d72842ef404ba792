"""The step against a slow twin written from the paper's equations, side by side for many steps.

At every step: masks equal, ``S + R == W`` bit for bit, dense weights within the table's tolerance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import batch as tokens
from models import marian, mlp
from reference import Reference, patterns_of
from tolerances import assert_close, assert_same_bits
from torch import Tensor, nn
from transformers import Adafactor

import hf_nm

Forward = Callable[..., Any]
# Loss of a micro-batch: (forward, step, index of the micro-batch, micro-batches in the step).
Loss = Callable[[Forward, int, int, int], Tensor]
DECAY = 0.01

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1, fused=True),
    "adafactor": lambda p: Adafactor(p, lr=3e-3, relative_step=False, scale_parameter=False),
    "adafactor-relative": lambda p: Adafactor(p, relative_step=True, scale_parameter=True),
}


def regression(
    inputs: int, outputs: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Loss:
    """Mean squared error on a new random batch of 16 at every step."""

    def loss(forward: Forward, step: int, part: int, parts: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, inputs, generator=generator, dtype=dtype).to(device)
        y = torch.randn(16, outputs, generator=generator, dtype=dtype).to(device)
        rows = slice(part * 16 // parts, (part + 1) * 16 // parts)
        return F.mse_loss(forward(x[rows]), y[rows]) / parts

    return loss


def lockstep(
    model: nn.Module,
    twin: nn.Module,
    loss: Loss,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    *,
    steps: int = 100,
    parts: int = 1,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    masks_move: bool = True,
) -> None:
    """Train the sparsified ``model`` with hf_nm and the dense ``twin`` with the reference."""
    state = hf_nm.sparse_weights(model)[0].state
    reference = Reference(
        twin, patterns_of(hf_nm.report(model).layers), state.method.name, state.spec.decay
    )
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
    twin_optimizer = make_optimizer([p for p in twin.parameters() if p.requires_grad])
    handle = hf_nm.attach(optimizer, model)

    def accumulate(forward: Forward, step: int) -> None:
        for part in range(parts):
            with _autocast(model, autocast):
                value = loss(forward, step, part, parts)
            value.backward()

    for step in range(steps):
        accumulate(model, step)
        accumulate(reference, step)
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            nn.utils.clip_grad_norm_(twin.parameters(), clip)
            assert norm > clip, "clipping never happened: the test shows nothing"
        optimizer.step()
        reference.step(twin_optimizer)
        optimizer.zero_grad()
        twin_optimizer.zero_grad()

        masks = reference.masks()
        for w in hf_nm.sparse_weights(model):
            where = f"{w.name} after step {step + 1}"
            assert torch.equal(w.mask, masks[w.name]), f"mask of {where}"
            assert_sum_is_dense(w, where)
            assert_close(w.dense_weight(), reference.weights[w.name].detach(), where)

    assert (handle.sad() > 0) == masks_move, "masks should move" if masks_move else "masks moved"
    assert handle.step == steps
    names = {w.name for w in hf_nm.sparse_weights(model)}
    rest = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if name not in names:
            assert_close(parameter.detach(), rest[name].detach(), name)


def assert_sum_is_dense(w: hf_nm.SparseWeight, where: str) -> None:
    """``S + R == W`` and ``S == E*W``, bit for bit."""
    sparse, dense = w.weight.detach(), w.dense_weight()
    pruned = torch.zeros_like(dense) if w.state.aside is None else w.state.aside
    zero = torch.zeros_like(dense)
    assert_same_bits(sparse + pruned, dense, f"S + R of {where}")
    assert_same_bits(sparse, torch.where(w.mask, dense, zero), f"S of {where}")
    assert_same_bits(pruned, torch.where(w.mask, zero, dense), f"R of {where}")


def _autocast(model: nn.Module, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 8)], ids=["2:4", "1:8"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw-foreach", "adamw-fused"])
def test_sr_ste(
    optimizer: str, pattern: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """Red if the decay has the wrong sign, size or mask, or the optimizer sees S instead of W."""
    model, twin = (mlp(16, 32, 32, 8, dtype=dtype).to(device) for _ in range(2))
    hf_nm.sparsify(model, *pattern, targets="*", decay=DECAY)
    lockstep(model, twin, regression(16, 8, dtype, device), OPTIMIZERS[optimizer])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw-fused", "adafactor"])
@pytest.mark.parametrize("method", ["ste", "fixed"])
def test_other_methods(method: str, optimizer: str, device: torch.device) -> None:
    """Red if "ste" adds a decay, or "fixed" moves its masks or hands the optimizer gradients of pruned
    entries (which Adafactor's row and column means would spread to the kept ones)."""
    model, twin = (mlp(16, 32, 8).to(device) for _ in range(2))
    hf_nm.sparsify(model, targets="*", method=method, decay=DECAY)
    lockstep(
        model,
        twin,
        regression(16, 8, torch.float32, device),
        OPTIMIZERS[optimizer],
        masks_move=method != "fixed",
    )


def test_method_of_ones_own() -> None:
    """Red if a method of one's own is not given what the package's methods are given."""

    def add_twice(
        gradient: Tensor, pruned: Tensor | None, mask: Tensor, decay: float | Tensor
    ) -> None:
        assert pruned is not None
        assert not pruned[mask].any()
        gradient.add_(pruned, alpha=2 * decay)

    runs = []
    for method, decay in (("sr-ste", 2 * DECAY), (hf_nm.Method("twice", add_twice), DECAY)):
        model = mlp(16, 32, 8)
        hf_nm.sparsify(model, targets="*", method=method, decay=decay)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        hf_nm.attach(optimizer, model)
        for step in range(20):
            regression(16, 8, torch.float32)(model, step, 0, 1).backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append(hf_nm.sparse_weights(model))
    for one, other in zip(*runs, strict=True):
        assert_same_bits(one.dense_weight(), other.dense_weight(), one.name)


@pytest.mark.parametrize("optimizer", ["adafactor", "adafactor-relative"])
def test_adafactor(optimizer: str) -> None:
    """Red if Adafactor's update clipping or relative step saw S (whose RMS is smaller) instead of W."""
    model, twin = mlp(16, 32, 8), mlp(16, 32, 8)
    hf_nm.sparsify(model, targets="*", decay=DECAY)
    lockstep(model, twin, regression(16, 8, torch.float32), OPTIMIZERS[optimizer])


def test_clipping_comes_before_the_decay() -> None:
    """Red if the decay is added before clipping, which would scale it down."""
    model, twin = mlp(16, 32, 8), mlp(16, 32, 8)
    hf_nm.sparsify(model, targets="*", decay=DECAY)
    lockstep(model, twin, regression(16, 8, torch.float32), OPTIMIZERS["sgd"], clip=0.1)


def test_bf16_autocast(device: torch.device) -> None:
    """Red if autocast hands the forward a stale or half-precision copy of the sparse weight."""
    model, twin = (mlp(16, 32, 8).to(device) for _ in range(2))
    hf_nm.sparsify(model, targets="*", decay=DECAY)
    lockstep(
        model,
        twin,
        regression(16, 8, torch.float32, device),
        OPTIMIZERS["adamw-fused"],
        autocast=torch.bfloat16,
    )


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw-foreach"])
def test_pure_bf16(optimizer: str, device: torch.device) -> None:
    """Red if the decay or the mask is computed in another precision than the weights': ties are common
    here, and one rounding more moves masks within a few steps."""
    model, twin = (mlp(16, 32, 8, dtype=torch.bfloat16).to(device) for _ in range(2))
    hf_nm.sparsify(model, targets="*", decay=DECAY)
    lockstep(model, twin, regression(16, 8, torch.bfloat16, device), OPTIMIZERS[optimizer])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw-fused"])
def test_accumulation_in_lockstep(optimizer: str) -> None:
    """Red if the decay is added once per backward instead of once per step."""
    model, twin = mlp(16, 32, 8), mlp(16, 32, 8)
    hf_nm.sparsify(model, targets="*", decay=DECAY)
    lockstep(model, twin, regression(16, 8, torch.float32), OPTIMIZERS[optimizer], parts=4)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 8)], ids=["2:4", "1:8"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw-foreach", "adamw-fused"])
def test_accumulation_equals_one_big_batch(optimizer: str, pattern: tuple[int, int]) -> None:
    """Red if the decay is added once per backward: 4 times as much with 4 micro-batches."""
    loss = regression(16, 8, torch.float64)
    runs = []
    for parts in (1, 4):
        model = mlp(16, 32, 32, 8, dtype=torch.float64)
        hf_nm.sparsify(model, *pattern, targets="*", decay=DECAY)
        trained = OPTIMIZERS[optimizer](model.parameters())
        handle = hf_nm.attach(trained, model)
        for step in range(100):
            for part in range(parts):
                loss(model, step, part, parts).backward()
            trained.step()
            trained.zero_grad()
        assert handle.step == 100
        assert handle.sad() > 0
        runs.append(hf_nm.sparse_weights(model))
    for whole, parted in zip(*runs, strict=True):
        assert torch.equal(parted.mask, whole.mask), whole.name
        assert_close(parted.dense_weight(), whole.dense_weight(), whole.name)


class Shared(nn.Module):
    """Three linear layers in a row; the first and the last hold the same weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.middle = nn.Linear(16, 16)
        self.last = nn.Linear(16, 16)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class Repeated(nn.Module):
    """One linear layer applied three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(torch.tanh(x))
        return x


@pytest.mark.parametrize("build", [Shared, Repeated])
def test_weight_used_more_than_once(build: type[nn.Module]) -> None:
    """Red if the decay counts once per use of the weight, or two masks are kept for one weight."""
    model, twin = build(), build()
    hf_nm.sparsify(model, targets="*", decay=DECAY)
    assert len(hf_nm.sparse_weights(model)) == len(list(model.parameters())) - sum(
        isinstance(module, nn.Linear) for module in model.modules()
    )
    lockstep(model, twin, regression(16, 16, torch.float32), OPTIMIZERS["sgd"])


@pytest.mark.parametrize("held", [True, False], ids=["in the optimizer", "not in the optimizer"])
def test_frozen_layer(held: bool) -> None:
    """Red if a weight without a gradient is decayed, stepped or loses its pruned part."""
    model, twin = mlp(16, 32, 32, 8), mlp(16, 32, 32, 8)
    hf_nm.sparsify(model, targets="*", decay=DECAY)
    before = [w.dense_weight() for w in hf_nm.sparse_weights(model)]
    for module in (model, twin):
        module[2].requires_grad_(False)
    make = OPTIMIZERS["adamw-foreach"]
    if held:
        lockstep(
            model,
            twin,
            regression(16, 8, torch.float32),
            lambda p: make([*p, *(x for x in _owner(p, model, twin)[2].parameters())]),
        )
    else:
        lockstep(model, twin, regression(16, 8, torch.float32), make)
    after = [w.dense_weight() for w in hf_nm.sparse_weights(model)]
    assert_same_bits(after[1], before[1], "the frozen weight")
    assert not torch.equal(after[0], before[0])


def _owner(parameters: list[nn.Parameter], *models: nn.Sequential) -> nn.Sequential:
    return next(model for model in models if model[0].weight is parameters[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw-fused"])
def test_marian(optimizer: str) -> None:
    """Red if a real model's weights are reached otherwise than through the parameter."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    model, twin = marian(**sizes), marian(**sizes)
    hf_nm.sparsify(model, decay=DECAY)
    assert len(hf_nm.sparse_weights(model)) == 16

    def loss(forward: Forward, step: int, part: int, parts: int) -> Tensor:
        return forward(**tokens(model, rows=8, seed=step)).loss

    lockstep(model, twin, loss, OPTIMIZERS[optimizer])
