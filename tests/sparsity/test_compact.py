"""Mask and pruned part in the compact form: the same bits as two whole tensors hold, in fewer bytes."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from tolerances import assert_same_bits
from torch import Tensor

import hf_nm.sparsity.compact as compact
from hf_nm import NMPattern, nm_mask
from hf_nm.sparsity.bits import count_bits, pack_bits, unpack_bits
from hf_nm.sparsity.mask import split_

PATTERNS = [
    (1, 2),
    (2, 4),
    (1, 4),
    (3, 4),
    (4, 8),
    (6, 8),
    (1, 16),
    (8, 16),
    (5, 7),
    (3, 6),
    (31, 64),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
# By the place of a dimension of groups: what goes before and after it.
AROUND = {-1: ((5,), ()), 0: ((), (6,)), 1: ((3,), (5,)), -2: ((2,), (1, 3))}


@pytest.fixture(params=["one run", "many runs"])
def runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many runs":
        monkeypatch.setattr(compact, "_RUN_CPU", 100)
        monkeypatch.setattr(compact, "_RUN_OTHER", 100)


def awkward(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random weights with every special value among them, kept and pruned."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    special = torch.tensor([nan, -nan, inf, -inf, 0.0, -0.0, 1e-45, -1e-45, 3e38])
    places = torch.randint(0, weight.numel(), (weight.numel() // 3,), generator=generator)
    weight.view(-1)[places] = special[torch.arange(len(places)) % len(special)]
    return weight.to(dtype)


def shape_of(m: int, dim: int) -> tuple[tuple[int, ...], int]:
    """A shape with three groups of m along a dimension, which is given as for that shape."""
    before, after = AROUND[dim]
    if dim == -2:
        return (*before, 3 * m, 3), -2
    return (*before, 3 * m, *after), dim


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", list(AROUND))
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_same_bits_as_whole_tensors(n, m, dim, dtype, device):
    """Red if a value is put at another place of its group or another group, a NaN, an infinity, a minus
    zero or a denormal changes on the way, or a flip is not counted."""
    pattern = NMPattern(n, m)
    shape, dim = shape_of(m, dim)
    dense, after = (awkward(shape, dtype, seed).to(device) for seed in (1, 2))
    mask = nm_mask(dense, n, m, dim)
    whole, pruned = dense.clone(), torch.empty_like(dense)
    split_(whole, pruned, mask, pattern, dim, update_mask=False)
    bits = pack_bits(mask)
    values = compact.pack_pruned(pruned, bits, pattern, dim)
    assert values.numel() == dense.numel() // m * (m - n)
    assert_same_bits(compact.unpack_pruned(values, bits, shape, pattern, dim), pruned, "R")

    weight = whole.clone()
    assert not compact.merge_compact_(weight, values, bits, pattern, dim)
    assert_same_bits(weight, dense, "W")
    for update in (True, False):
        weight, other = after.clone(), after.clone()
        flips = compact.split_compact_(weight, values, bits, pattern, dim, update_mask=update)
        expected = split_(other, pruned, mask, pattern, dim, update_mask=update)
        assert int(flips) == int(expected)
        assert bool(flips) == update
        assert torch.equal(unpack_bits(bits, mask.shape), mask)
        assert_same_bits(weight, other, "S")
        assert_same_bits(compact.unpack_pruned(values, bits, shape, pattern, dim), pruned, "R")


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_order_of_the_values(rows):
    """Red if the values of a group are not in the order of their places, by the table (two rows fill
    bytes) or counted, or those of groups along the rows do not lie row by row."""
    weight = torch.tensor([[1.0, 9, 2, 8], [7, 3, 6, 4], [5, -5, -6, 0]])[:rows]
    expected = torch.tensor([1.0, 2, 3, 4, -5, 0])[: 2 * rows]
    bits = pack_bits(nm_mask(weight, 2, 4))
    assert torch.equal(compact.pack_pruned(weight, bits, NMPattern(2, 4)), expected)
    bits = pack_bits(nm_mask(weight.t(), 2, 4, 0))
    along_rows = compact.pack_pruned(weight.t(), bits, NMPattern(2, 4), 0)
    assert torch.equal(along_rows.view(2, rows), expected.view(rows, 2).t())


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("dim", list(AROUND))
@pytest.mark.parametrize(("n", "m"), [(2, 4), (5, 7)])
def test_other_memory_layouts_and_nothing_aside(n, m, dim, device):
    """Red if a transposed weight is read in another order, or the kept part changes where nothing is
    aside."""
    pattern = NMPattern(n, m)
    shape, dim = shape_of(m, dim)
    dense = awkward(shape, torch.float32).to(device).transpose(0, -1).contiguous().transpose(0, -1)
    assert dense.ndim < 2 or not dense.is_contiguous()
    bits = pack_bits(nm_mask(dense, n, m, dim))
    values = compact.pack_pruned(dense, bits, pattern, dim)
    mask = unpack_bits(bits, dense.shape)
    sparse = dense.clone()
    compact.split_compact_(sparse, values, bits, pattern, dim, update_mask=False)
    assert_same_bits(sparse, torch.where(mask, dense, 0))
    alone = dense.clone()
    compact.split_compact_(alone, None, bits, pattern, dim, update_mask=False)
    assert_same_bits(alone, sparse)
    assert not compact.merge_compact_(alone, None, bits, pattern, dim)
    assert_same_bits(alone, sparse)
    compact.merge_compact_(sparse, values, bits, pattern, dim)
    assert_same_bits(sparse, dense)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("value", [1.0, nan, 1e-45])
@pytest.mark.parametrize(("n", "m", "dim"), [(2, 4, -1), (2, 4, 0), (5, 7, -1)])
def test_a_stray_value_is_found_and_leaves_a_cpu_weight_as_it_was(n, m, dim, value, device):
    """Red if a value at a pruned place is overwritten, or runs before it stay merged."""
    pattern = NMPattern(n, m)
    dense = torch.randn(8 * m, 8 * m, device=device)
    mask = nm_mask(dense, n, m, dim)
    bits = pack_bits(mask)
    values = compact.pack_pruned(dense, bits, pattern, dim)
    sparse = torch.where(mask, dense, 0)
    assert not compact.breaks_compact(sparse, bits, pattern, dim)
    sparse[tuple((~mask).nonzero()[-1])] = value
    before = sparse.clone()
    assert compact.breaks_compact(sparse, bits, pattern, dim)
    assert_same_bits(sparse, before)
    assert compact.merge_compact_(sparse, values, bits, pattern, dim)
    assert_same_bits(sparse, before if device.type == "cpu" else dense)
    assert compact.merge_compact_(before.clone(), None, bits, pattern, dim)


def test_minus_zero_is_zero():
    """Red if a pruned minus zero counts as a value, or survives merging."""
    dense = torch.randn(4, 8)
    mask = nm_mask(dense, 2, 4)
    bits = pack_bits(mask)
    values = compact.pack_pruned(dense, bits, NMPattern(2, 4))
    sparse = torch.where(mask, dense, -0.0)
    assert not compact.breaks_compact(sparse, bits, NMPattern(2, 4))
    assert not compact.merge_compact_(sparse, values, bits, NMPattern(2, 4))
    assert_same_bits(sparse, dense)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("dim", [0, -1])
def test_the_pruned_part_in_runs(dim, device):
    """Red if a run's entries, mask or pruned values are another's."""
    dense = awkward((12, 20), torch.float32).to(device)
    mask = nm_mask(dense, 1, 4, dim)
    found = torch.full((240,), 7.0, device=device)
    kept = torch.zeros(240, dtype=torch.bool, device=device)
    for run, its_mask, pruned in compact.pruned_runs(dense, pack_bits(mask), NMPattern(1, 4), dim):
        found[run], kept[run] = pruned, its_mask
    assert torch.equal(kept.view(12, 20), mask)
    assert_same_bits(found.view(12, 20), torch.where(mask, 0, dense))


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 8, 3)])
def test_empty_shards(shape):
    """Red if a process that holds nothing of a weight fails."""
    dim, pattern = (1, NMPattern(2, 4)) if shape[1] else (0, NMPattern(2, 4))
    weight = torch.zeros(shape)
    bits = pack_bits(torch.zeros(shape, dtype=torch.bool))
    values = compact.pack_pruned(weight, bits, pattern, dim)
    assert values.shape == (0,)
    assert not compact.merge_compact_(weight, values, bits, pattern, dim)
    assert not compact.split_compact_(weight, values, bits, pattern, dim, update_mask=True)
    assert compact.unpack_pruned(values, bits, weight.shape, pattern, dim).shape == shape


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("dim", [0, -1])
def test_memory_that_was_never_written_is_not_left(n, m, dim):
    """Red if bits that are no mask (after ``to_empty``) make a place outside the tensor."""
    pattern = NMPattern(n, m)
    for byte in (0, 255, 0b01101000):
        weight = torch.randn(16 * m, 16 * m)
        bits = torch.full(((weight.numel() + 7) // 8,), byte, dtype=torch.uint8)
        values = compact.pack_pruned(weight, bits, pattern, dim)
        compact.unpack_pruned(values, bits, weight.shape, pattern, dim)
        compact.merge_compact_(weight, values, bits, pattern, dim)
        compact.split_compact_(weight, values, bits, pattern, dim, update_mask=False)


def test_refuses_values_of_another_dtype():
    with pytest.raises(TypeError, match="cast both"):
        compact.merge_compact_(
            torch.zeros(4), torch.zeros(2, dtype=torch.float64), torch.zeros(1), NMPattern(2, 4)
        )


def test_inference_mode_fake_tensors_and_after():
    """Red if a table made under inference mode or of fake tensors is used afterwards."""
    from torch._subclasses import FakeTensorMode

    compact._tables.clear()
    pattern, dense = NMPattern(2, 4), torch.randn(4, 8)
    mask = nm_mask(dense, 2, 4)

    def packed() -> Tensor:
        return compact.pack_pruned(dense, pack_bits(mask), pattern)

    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.empty(4, 8)
        compact.pack_pruned(fake, pack_bits(nm_mask(fake, 2, 4)), pattern)
    with torch.inference_mode():
        packed()
    assert_same_bits(packed(), dense[~mask])


def test_no_tensor_of_the_whole_weight_is_made(monkeypatch):
    """Red if merging or splitting a weight makes a tensor that is longer than two of its runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Longest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self.entries = max(self.entries, made.numel())
            return made

    monkeypatch.setattr(compact, "_RUN_CPU", 1 << 10)
    dense, pattern = torch.randn(256, 256), NMPattern(2, 4)
    bits = pack_bits(nm_mask(dense, 2, 4))
    values = compact.pack_pruned(dense, bits, pattern)
    with Longest() as longest:
        compact.split_compact_(dense, values, bits, pattern, update_mask=True)
        compact.merge_compact_(dense, values, bits, pattern)
    assert 0 < longest.entries <= 2 << 10


def test_bits():
    """Red if a bit lands elsewhere, or is counted twice."""
    every = torch.arange(256, dtype=torch.uint8)
    mask = unpack_bits(every, torch.Size([2048]))
    assert [int(b) for b in mask[8 * 0b01101000 :][:8]] == [0, 0, 0, 1, 0, 1, 1, 0]
    assert torch.equal(pack_bits(mask), every)
    assert int(count_bits(every.clone())) == 1024
    assert int(count_bits(torch.tensor([0b10110111], dtype=torch.uint8))) == 6
