"""The fused kernels in triton's interpreter: ``python interpreted.py CHECK``.

A process of its own, since ``TRITON_INTERPRET=1`` has to be there when triton is imported, and changes
what torch.compile does. Each check raises where it fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
from tolerances import assert_same_bits
from torch import Tensor
from training import assert_same_state, loss_of, sparse_mlp, state_of, train

import hf_nm
from hf_nm.grouping.fused import Fused
from hf_nm.methods.fixed import zero_pruned_gradient
from hf_nm.methods.sr_ste import add_decay
from hf_nm.sparsity.kernels import around_step, table
from hf_nm.sparsity.kernels.table import Adjust, Kind, Table, bytes_a_weight
from hf_nm.sparsity.mask import merge_, split_, stride_along

assert os.environ["TRITON_INTERPRET"] == "1"
CPU = torch.device("cpu")
INF, NAN = float("inf"), float("nan")
PATTERNS = [(2, 4), (1, 4), (4, 8), (1, 16), (6, 8), (2, 6), (5, 7), (3, 33)]
SHAPES = [(1, 1), (3, 3), (12, 5)]  # groups along the input dimension, and the rest


def awkward(shape: list[int], dtype: torch.dtype) -> Tensor:
    """Half the entries special, ties among them."""
    weight = torch.randn(shape)
    special = torch.tensor([NAN, -NAN, INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 3e38, 1.0, -1.0, 1.0])
    places = torch.randint(0, weight.numel(), (weight.numel() // 2 + 1,))
    weight.view(-1)[places] = special[torch.arange(len(places)) % len(special)]
    return weight.to(dtype)


def weights_of(n: int, m: int, dtype: torch.dtype, dim: int) -> dict[int, list[Tensor]]:
    """Dense weights of several sizes, by the stride of their groups."""
    found: dict[int, list[Tensor]] = {}
    for groups, rest in SHAPES:
        shape = [2, 3, rest]
        shape[dim] = groups * m
        weight = awkward(shape, dtype)
        found.setdefault(stride_along(weight, dim), []).append(weight)
    return found


def check_properties() -> None:
    """Masks, both parts, flips and strays in every bit, by pattern, dtype and dimension."""
    table._ENTRIES = 256  # several programs for a weight
    others = [(torch.bfloat16, -1), (torch.float16, 1), (torch.float64, -1)]
    for n, m in PATTERNS:
        for dtype, dim in [
            *[(torch.float32, dim) for dim in (-1, 1, 0)],
            *(others if m in (4, 7) else []),
        ]:
            for stride, weights in weights_of(n, m, dtype, dim).items():
                for keeps in (True, False):
                    kind = Kind(hf_nm.NMPattern(n, m), dtype, stride, CPU, keeps)
                    check_kind(kind, dim, weights)


def check_kind(kind: Kind, dim: int, weights: list[Tensor]) -> None:
    """After a step with masks that move and one with masks that are held, and before one."""
    pattern, keeps, count = kind.pattern, kind.keeps, len(weights)
    kernels = Table(kind, [w.numel() for w in weights])
    expected = [(w.clone(), torch.zeros_like(w), torch.rand(w.shape) > 0.5) for w in weights]
    found = [tuple(part.clone() for part in parts) for parts in expected]
    dense, asides, masks = (list(column) for column in zip(*found, strict=True))
    kept_aside = asides if keeps else None

    def same() -> None:
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_same_bits(a, b, f"{kind} {dim}")

    def before() -> None:
        gradients = [None] * count
        kernels.before_step(dense, gradients, masks, kept_aside, Adjust.LEAVE, [0.0] * count, None)

    for update in (True, False):
        flips = [
            int(split_(w, r if keeps else None, e, pattern, dim, update_mask=update))
            for w, r, e in expected
        ]
        kernels.flips.zero_()
        kernels.after_step(dense, masks, kept_aside, kernels.flips, update_mask=update)
        assert kernels.flips.tolist() == flips
        same()
        before()
        for w, r, e in expected:
            assert not merge_(w, r if keeps else None, e)
        same()
    kernels.after_step(dense, masks, kept_aside, kernels.flips, update_mask=False)
    assert not kernels.strays.any()

    first = dense[0].view(-1)
    first[int((~masks[0].view(-1)).nonzero()[0])] = 1e-45 if kind.dtype.itemsize >= 4 else 6e-8
    before()
    assert kernels.strays.tolist() == [1] + [0] * (count - 1)


def check_gradients() -> None:
    """What is added to gradients, or zeroed; weights that do not step, and those without a gradient."""
    pattern, strengths = hf_nm.NMPattern(2, 4), [0.037, -0.5, 0.0]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        kernels = Table(Kind(pattern, dtype, 1, CPU, True), [8 * k for k in (3, 40, 300)])
        parts = []
        for k in (3, 40, 300):
            weight = torch.randn(k, 8).to(dtype)
            aside, mask = torch.zeros_like(weight), torch.zeros(k, 8, dtype=torch.bool)
            split_(weight, aside, mask, pattern, update_mask=True)
            parts.append((weight, aside, mask))
        weights, asides, masks = (list(column) for column in zip(*parts, strict=True))
        one, size = torch.ones(1), torch.tensor([1000.0])
        for given, scale in (
            (strengths, None),
            (strengths, size),
            (torch.tensor(strengths), one),  # automatic ones
        ):
            gradients = [torch.randn(w.shape).to(dtype) for w in weights]
            gradients[2][0] = -0.0  # adding nothing leaves it, adding zeros does not
            found = [g.clone() for g in gradients]
            kernels.before_step(weights, found, masks, asides, Adjust.DECAY, given, scale)
            for got, g, (_, r, e), strength in zip(found, gradients, parts, given, strict=True):
                number = strength if scale is None else strength * scale[0]
                expected = g.clone()
                if dtype.itemsize >= 4:
                    add_decay(expected, r, e, number)
                else:
                    decay_as_on_a_gpu(expected, r, number)
                    on_a_cpu = g.clone()
                    add_decay(on_a_cpu, r, e, number)
                    check_bound(expected, on_a_cpu, g, r, number)
                if dtype is torch.bfloat16:  # which the interpreter cuts off, where a GPU rounds
                    check_bound(got, expected, g, r, number)
                else:
                    assert_same_bits(got, expected, f"{dtype} {scale}")
            kernels.after_step(weights, masks, asides, kernels.flips, update_mask=False)

        gradients = [awkward(list(w.shape), dtype) for w in weights]
        found = [g.clone() for g in gradients]
        kernels.before_step(
            weights, [found[0], None, found[2]], masks, asides, Adjust.ZERO, strengths, None
        )
        for index in (0, 2):
            zero_pruned_gradient(gradients[index], None, masks[index], 0.0)
        for a, b in zip(found, gradients, strict=True):
            assert_same_bits(a, b, "zeroed where pruned")
        before = [w.clone() for w in weights]
        kernels.after_step([None, weights[1], None], masks, asides, kernels.flips, update_mask=True)
        assert_same_bits(weights[0], before[0], "does not step")
        assert not weights[1][~masks[1]].count_nonzero()


def decay_as_on_a_gpu(gradient: Tensor, aside: Tensor, decay: float | Tensor) -> None:
    """What ``add_decay`` does to 16-bit gradients there: torch computes in float32, with a number as it
    is, and with a tensor in the gradient's dtype, whose product is rounded."""
    if isinstance(decay, Tensor):
        factor = decay.to(gradient.dtype).float()
        gradient.add_((aside.float() * factor).to(gradient.dtype))
    elif decay:
        exact = torch.tensor(decay, dtype=torch.float32).double() * aside.double()
        gradient.copy_((gradient.double() + exact).float())


def check_bound(
    one: Tensor, other: Tensor, gradient: Tensor, aside: Tensor, decay: float | Tensor
) -> None:
    """How far 16-bit gradients on a CPU and a GPU are from each other: what ``add_decay`` states."""
    added = (aside.double() * float(decay)).abs()
    bound = torch.finfo(one.dtype).eps * (gradient.double().abs() + 2.5 * added)
    assert ((one.double() - other.double()).abs() <= bound).all()


@contextmanager
def torch_functions() -> Iterator[None]:
    """The kernels switched off."""
    os.environ["HF_NM_KERNELS"] = "0"
    yield
    del os.environ["HF_NM_KERNELS"]


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sr-ste": ({"decay": 0.05}, {}, {}),
    "float64": ({"decay": 0.05, "dtype": torch.float64}, {}, {}),
    "bf16": ({"method": "ste", "dtype": torch.bfloat16}, {}, {}),
    "ste": ({"method": "ste"}, {}, {}),
    "fixed": ({"method": "fixed"}, {}, {}),
    "1:4": ({"decay": 0.05, "n": 1}, {}, {}),
    "interval": ({"decay": 0.05}, {"mask_interval": 3}, {}),
    "frozen": ({"decay": 0.05}, {"freeze_masks_at": 3}, {}),
    "warm-up": ({"decay": 0.05}, {"decay_warmup_steps": 4}, {}),
    "maximize": ({"decay": 0.05}, {}, {"maximize": True, "lr": 1e-3}),
    "automatic": ({"decay": "auto"}, {"decay_warmup_steps": 4}, {}),
    "automatic, float64": ({"decay": "auto", "dtype": torch.float64}, {}, {}),
    "automatic, frozen": ({"decay": "auto"}, {"freeze_masks_at": 3}, {}),
    "automatic, maximize": ({"decay": "auto"}, {}, {"maximize": True, "lr": 1e-3}),
}


def one_run(options: dict, schedule: dict, adam: dict, *, fused: bool) -> tuple:
    """State, SAD and flips of seven steps, with a checkpoint in between and one weight left out once."""
    model = sparse_mlp(**options)
    optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 0.05, **adam})
    handle = hf_nm.attach(optimizer, model, **schedule)
    kinds = {type(group) for group in handle._groups.groups}
    assert (kinds == {Fused}) == fused, kinds
    train(model, optimizer, range(3))
    handle.mark()
    optimizer.zero_grad()
    loss_of(model, 3).backward()
    hf_nm.sparse_weights(model)[0].weight.grad = None
    optimizer.step()
    model.load_state_dict(saved := model.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(4, 7))
    measured = handle.sad(), handle.sad("mark"), handle.flips_per_layer(), handle.flip_rate("mark")
    assert saved
    return state_of(model, optimizer), measured


def check_training() -> None:
    """Whole runs are the same in every bit with and without the kernels."""
    check_runs(RUNS)


def check_automatic() -> None:
    """The same with automatic decays as they are on a GPU: tensors, for which nobody waits."""
    module = vars(hf_nm.optim.step)
    as_numbers = module["automatic_decays"]

    def as_tensors(weights: list[Any], loss_scale: float | Tensor) -> dict[str, Tensor]:
        decays = as_numbers(weights, loss_scale)
        return {name: torch.tensor(decay) for name, decay in decays.items()}

    module["automatic_decays"] = as_tensors
    check_runs({name: run for name, run in RUNS.items() if "automatic" in name})
    check_closures_and_scales(decay="auto")


def check_runs(runs: dict[str, tuple[dict, dict, dict]]) -> None:
    for name, (options, schedule, adam) in runs.items():
        found, measured = one_run(options, schedule, adam, fused=True)
        with torch_functions():
            expected, expected_measured = one_run(options, schedule, adam, fused=False)
        assert_same_state(found, expected)
        assert measured == expected_measured, name
        assert measured[0] > 0 or options.get("method") == "fixed", name


def closure_run(decay: float | str) -> dict[str, Tensor]:
    model = sparse_mlp(decay=decay)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    handle = hf_nm.attach(optimizer, model)
    for step in range(3):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    return state_of(model) | {
        "sad": torch.tensor(handle.sad()),
        "flips": torch.tensor(handle.flip_rate()),
    }


def scaled_run(decay: float | str) -> dict[str, Tensor]:
    """As torch's GradScaler does with a fused optimizer, a skipped step included."""
    model = sparse_mlp(decay=decay)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    handle = hf_nm.attach(optimizer, model, decay_warmup_steps=3)
    for step in range(4):
        optimizer.zero_grad()
        (loss_of(model, step) * 1024.0).backward()
        for name, value in (("grad_scale", 1024.0), ("found_inf", float(step == 2))):
            setattr(optimizer, name, torch.tensor(value))
        optimizer.step()
    return state_of(model) | {"sad": torch.tensor(handle.sad())}


def check_closures_and_scales(decay: float | str = 0.05) -> None:
    """The same where the loss is evaluated inside a step, or gradients carry a scale on the device."""
    for run in (closure_run, scaled_run):
        found = run(decay)
        with torch_functions():
            assert_same_state(found, run(decay))


def check_strays() -> None:
    """What was written at a pruned place is replaced, and said when somebody reads."""
    model = sparse_mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    handle = hf_nm.attach(optimizer, model)
    train(model, optimizer, range(2))
    w = hf_nm.sparse_weights(model)[1]
    assert w.mask is not None
    w.weight.data[~w.mask] = 7.0
    train(model, optimizer, range(2, 4))
    assert w.weight.abs().max() < 5
    for read in (handle.sad, optimizer.state_dict):
        assert w.mask is not None
        w.weight.data[~w.mask] = 7.0
        train(model, optimizer, range(1))
        model.to(torch.float64)  # other groups than those that found it
        train(model, optimizer, range(0))
        with pytest.raises(hf_nm.BrokenPatternError, match=w.name.replace(".", r"\.")):
            read()
        handle.raise_if_written()  # said once
        model.to(torch.float32)


def check_traffic() -> None:
    """The bytes that loads and stores move are those of the model, and launches two a group."""
    moved = {"read": 0, "written": 0}
    load, store = around_step._load, around_step._store

    def size(pointers: Any, where: Any) -> int:
        mask = torch.as_tensor(where.handle.data).expand(
            torch.as_tensor(pointers.handle.data).shape
        )
        return int(mask.sum()) * pointers.dtype.element_ty.primitive_bitwidth // 8

    def counted_load(pointers: Any, where: Any) -> Any:
        moved["read"] += size(pointers, where)
        return load(pointers, where)

    def counted_store(pointers: Any, values: Any, where: Any) -> Any:
        moved["written"] += size(pointers, where)
        return store(pointers, values, where)

    around_step._load, around_step._store = counted_load, counted_store
    for adjust, keeps, update in [
        (Adjust.DECAY, True, True),
        (Adjust.LEAVE, True, True),
        (Adjust.DECAY, True, False),
        (Adjust.ZERO, False, False),
    ]:
        shape, pattern = (64, 48), hf_nm.NMPattern(2, 4)
        weight = torch.randn(shape)
        mask = torch.zeros(shape, dtype=torch.bool)
        aside, gradient = torch.zeros(shape), torch.randn(shape)
        split_(weight, aside, mask, pattern, update_mask=True)
        kind = Kind(pattern, torch.float32, 1, CPU, keeps)
        kernels, asides = Table(kind, [weight.numel()]), [aside] if keeps else None
        moved.update(read=0, written=0)
        kernels.before_step([weight], [gradient], [mask], asides, adjust, [0.1], None)
        weight.copy_(torch.randn(shape))  # all that can move does
        mask.logical_not_() if update else None
        kernels.after_step([weight], [mask], asides, kernels.flips, update_mask=update)
        per_weight = sum(moved.values()) / weight.numel()
        stated = bytes_a_weight(kind, adjust, update_mask=update)
        assert stated * 0.95 < per_weight <= stated <= 40, (
            adjust,
            keeps,
            update,
            per_weight,
            stated,
        )
        assert kernels.launches == 2 <= 4


if __name__ == "__main__":
    torch.manual_seed(0)
    globals()[f"check_{sys.argv[1]}"]()
    print(f"triton {triton.__version__}: {sys.argv[1]} checked")
