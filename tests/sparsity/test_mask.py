"""Masks, and splitting a weight by them: literal cases, invariants, the slow twin."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reference import reference_mask
from tolerances import assert_same_bits
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hf_nm.sparsity.mask
from hf_nm import NMPattern, nm_mask
from hf_nm.sparsity.bits import fingerprint
from hf_nm.sparsity.mask import (
    breaks_mask,
    check_maskable,
    count_kept,
    merge_,
    split_,
    zero_pruned_,
)

nan, inf = math.nan, math.inf
PATTERNS = [(2, 4), (1, 2), (1, 4), (3, 4), (4, 8), (1, 16), (3, 7), (7, 9), (5, 48), (9, 49)]
PATTERNS += [(31, 64), (127, 128), (1, 300)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]

LITERAL = {
    "magnitudes": ((2, 4), [1.0, -4.0, 3.0, -2.0], "0110"),
    "all equal": ((2, 4), [1.0, 1.0, 1.0, 1.0], "1100"),
    "equal but for the sign": ((2, 4), [-1.0, 1.0, -1.0, 1.0], "1100"),
    "tie at the edge": ((2, 4), [1.0, 3.0, 1.0, 1.0], "1100"),
    "tie at the edge, late": ((2, 4), [0.5, 1.0, 3.0, 1.0], "0110"),
    "all zero": ((2, 4), [0.0, 0.0, 0.0, 0.0], "1100"),
    "zeros of both signs": ((2, 4), [-0.0, 0.0, -0.0, 0.0], "1100"),
    "zeros of both signs, turned": ((1, 4), [0.0, -0.0, 0.0, -0.0], "1000"),
    "one not zero": ((2, 4), [0.0, 0.0, 0.0, -7.0], "1001"),
    "infinity": ((2, 4), [1.0, inf, 2.0, -inf], "0101"),
    "more infinities than n": ((1, 4), [1.0, -inf, inf, inf], "0100"),
    "NaN above infinity": ((1, 4), [inf, 1.0, nan, 5.0], "0010"),
    "NaN of both signs": ((1, 4), [1.0, -nan, nan, 5.0], "0100"),
    "all NaN": ((2, 4), [nan, nan, nan, nan], "1100"),
    "NaN, infinity, rest": ((3, 4), [9.0, 1.0, -inf, nan], "1011"),
    "the smallest of all": ((1, 4), [0.0, 0.0, 6e-8, 0.0], "0010"),
    "two groups": ((1, 4), [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0], "00011000"),
    "3 of 7": ((3, 7), [1.0, 5.0, 5.0, 2.0, 5.0, 5.0, 9.0], "0110001"),
    "1 of 2": ((1, 2), [1.0, -2.0, 2.0, 2.0, -0.0, 0.0], "011010"),
    "4 of 8": ((4, 8), [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0], "00111100"),
}


def bits(text: str) -> Tensor:
    return torch.tensor([letter == "1" for letter in text])


def many_ties(*shape: int) -> Tensor:
    """Entries of few values: most groups have equal magnitudes."""
    return torch.randint(-2, 3, shape).float()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of some hundred entries span several chunks."""
    monkeypatch.setattr(hf_nm.sparsity.mask, "_CHUNK_CPU", 100)
    monkeypatch.setattr(hf_nm.sparsity.mask, "_CHUNK_OTHER", 100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LITERAL)
def test_literal(case: str, dtype: torch.dtype, device: torch.device) -> None:
    """Red if ties go to another index, a sign counts, or NaN is not the largest."""
    (n, m), values, expected = LITERAL[case]
    mask = nm_mask(torch.tensor(values, dtype=dtype, device=device), n, m)
    assert torch.equal(mask.cpu(), bits(expected))


def test_literal_matrix() -> None:
    """Red if groups run down a column, or cross from one row into the next."""
    weight = torch.tensor([[1.0, -4.0, 3.0, -2.0], [9.0, 8.0, 0.0, 7.0], [1.0, 1.0, 2.0, 2.0]])
    expected = torch.stack([bits("0110"), bits("1100"), bits("0011")])
    assert torch.equal(nm_mask(weight, 2, 4), expected)
    assert torch.equal(nm_mask(weight.T.contiguous(), 2, 4, dim=0), expected.T)


def test_groups_never_cross_rows() -> None:
    """Red if the weight is grouped as one long run: 6 is no multiple of 4, though 4 * 6 is."""
    with pytest.raises(ValueError, match=r"2:4 .* 4 divides, .* dimension -1 .* has 6 entries"):
        nm_mask(torch.ones(4, 6), 2, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_equals_the_reference(n: int, m: int, dtype: torch.dtype, device: torch.device) -> None:
    """Red if any entry of any group is ranked otherwise than by the loops of the slow twin."""
    for weight in (torch.randn(6, 3 * m), many_ties(6, 3 * m), many_ties(6, 3 * m) * inf):
        weight = weight.to(device, dtype)
        mask = nm_mask(weight, n, m)
        assert mask.dtype == torch.bool
        assert mask.device == weight.device
        assert mask.is_contiguous()
        assert torch.equal(mask, reference_mask(weight, n, m))
        assert (mask.unflatten(-1, (-1, m)).sum(-1) == n).all()


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (31, 64)])
def test_float8(n: int, m: int, dtype: torch.dtype) -> None:
    """Red if eight bits are compared as something else than a float's magnitude."""
    weight = torch.randn(6, 3 * m).to(dtype)
    weight[0] = torch.tensor(nan).to(dtype)
    assert torch.equal(nm_mask(weight, n, m), reference_mask(weight, n, m))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_order_of_one_group(dtype: torch.dtype) -> None:
    """Red if one of the 5**4 ways to fill a group of 4 with 0, 1, -1, 2 and NaN goes wrong."""
    values = torch.tensor([0.0, 1.0, -1.0, 2.0, nan], dtype=dtype)
    weight = torch.cartesian_prod(values, values, values, values)
    for n in (1, 2, 3):
        assert torch.equal(nm_mask(weight, n, 4), reference_mask(weight, n, 4))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (31, 64)])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dim(dim: int, n: int, m: int) -> None:
    """Red if groups run along another dimension than asked for."""
    shape = [2, 3, 5]
    shape[dim] = 2 * m
    weight = many_ties(*shape)
    mask = nm_mask(weight, n, m, dim=dim)
    assert mask.is_contiguous()
    assert torch.equal(mask, reference_mask(weight, n, m, dim))


def test_weight_of_one_dimension() -> None:
    assert torch.equal(nm_mask(torch.tensor([1.0, 2.0, 0.0, 0.0]), 1, 4), bits("0100"))


def test_weight_without_rows() -> None:
    assert nm_mask(torch.empty(0, 8), 2, 4).shape == (0, 8)


def test_non_contiguous_weights() -> None:
    """Red if memory is read in storage order instead of the tensor's."""
    base = torch.randn(8, 16)
    for weight in (base.T, base[:, ::2], base[::2], base.expand(3, 8, 16), base[:, 4:12]):
        assert torch.equal(nm_mask(weight, 2, 4), reference_mask(weight, 2, 4))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (7, 9), (1, 16), (31, 64), (1, 300)])
def test_weights_of_several_chunks(n: int, m: int) -> None:
    """Red if a chunk starts inside a group, or the shorter last chunk is handled otherwise."""
    for rows in (1, 7, 30):
        weight = many_ties(rows, 2 * m)
        assert torch.equal(nm_mask(weight, n, m), reference_mask(weight, n, m))


def test_one_real_chunk_and_a_bit() -> None:
    """Red if the second chunk of the real size is ranked or placed wrongly."""
    rows = hf_nm.sparsity.mask._CHUNK_CPU // 64 + 3
    weight = many_ties(rows, 64)
    mask = nm_mask(weight, 2, 4)
    assert torch.equal(mask[-5:], reference_mask(weight[-5:], 2, 4))
    assert torch.equal(mask[:5], reference_mask(weight[:5], 2, 4))
    assert (mask.unflatten(-1, (-1, 4)).sum(-1) == 2).all()


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_idempotent(n: int, m: int) -> None:
    """Red if the sparse weight of a mask has another mask (kept entries are not zero here)."""
    weight = torch.randn(6, 3 * m)
    mask = nm_mask(weight, n, m)
    assert torch.equal(nm_mask(weight * mask, n, m), mask)


def test_weight_is_not_changed_and_may_require_grad() -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    before = weight.detach().clone()
    mask = nm_mask(weight, 2, 4)
    assert not mask.requires_grad
    assert_same_bits(weight.detach(), before)


def test_inference_mode_and_after() -> None:
    """Red if what is kept during inference mode cannot be used outside it."""
    weight = torch.randn(3, 20)  # a size that no other test has: nothing is kept for it yet
    with torch.inference_mode():
        inside = nm_mask(weight, 2, 4)
    assert torch.equal(nm_mask(weight, 2, 4), inside)


def test_fake_tensors_and_after() -> None:
    """Red if what is kept for tensors without values is used for real ones."""
    with FakeTensorMode():
        mask = nm_mask(torch.empty(3, 28), 2, 4)
    assert (mask.shape, mask.dtype) == ((3, 28), torch.bool)
    weight = torch.randn(3, 28)
    assert torch.equal(nm_mask(weight, 2, 4), reference_mask(weight, 2, 4))


def test_inside_another_default_device() -> None:
    """Red if a buffer is made on the default device (models are built inside ``torch.device``)."""
    hf_nm.sparsity.mask._buffers_of_thread.latest.clear()
    weight = torch.randn(4, 8)
    expected = reference_mask(weight, 2, 4)
    with torch.device("meta"):
        assert torch.equal(nm_mask(weight, 2, 4), expected)
        mask, pruned = torch.zeros_like(expected), torch.zeros_like(weight)
        split_(weight, pruned, mask, NMPattern(2, 4), update_mask=True)
    assert torch.equal(mask, expected)
    assert torch.equal(nm_mask(weight, 2, 4), expected)


def test_threads() -> None:
    """Red if two threads share a buffer: autograd and data loaders run hooks in their own."""
    weights = [torch.randn(512, 512) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda weight: nm_mask(weight, 2, 4), weights * 4))
    for weight, mask in zip(weights * 4, masks, strict=True):
        assert torch.equal(mask, nm_mask(weight, 2, 4))


def test_meta_device() -> None:
    mask = nm_mask(torch.empty(4, 8, device="meta"), 2, 4)
    assert (mask.device.type, mask.shape, mask.dtype) == ("meta", (4, 8), torch.bool)


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"floating-point tensor, but got torch\.int64"):
        nm_mask(torch.ones(4, 4, dtype=torch.int64), 2, 4)
    with pytest.raises(TypeError, match=r"but got torch\.complex64"):
        nm_mask(torch.ones(4, 4, dtype=torch.complex64), 2, 4)
    with pytest.raises(TypeError, match="but got list"):
        nm_mask([[1.0, 2.0]], 1, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs integers"):
        nm_mask(torch.ones(4, 4), 2.0, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 <= n < m"):
        nm_mask(torch.ones(4, 4), 4, 4)
    with pytest.raises(IndexError, match=r"dim=2 .* shape \(4, 4\)"):
        nm_mask(torch.ones(4, 4), 2, 4, dim=2)
    with pytest.raises(IndexError, match=r"shape \(\)"):
        nm_mask(torch.tensor(1.0), 2, 4)
    with pytest.raises(ValueError, match="has 0 entries"):
        nm_mask(torch.ones(4, 0), 2, 4)
    with pytest.raises(ValueError, match=r"dimension 0 of shape \(6, 4\) has 6"):
        check_maskable(torch.ones(6, 4), NMPattern(2, 4), 0)


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2],
)
def test_formats_whose_bits_do_not_order_as_magnitudes(dtype: torch.dtype) -> None:
    """Red if they are ranked by their bits: NaN is "minus zero" there, or there is no sign bit."""
    weight = torch.zeros(4, 8, dtype=torch.uint8).view(dtype)
    with pytest.raises(TypeError, match=str(dtype)):
        nm_mask(weight, 2, 4)


# -- splitting and merging ---------------------------------------------------------------------


def awkward(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random weights with every special value among them, kept and pruned."""
    weight = torch.randn(rows, columns)
    special = torch.tensor([nan, -nan, inf, -inf, 0.0, -0.0, 1e-45, -1e-45, 3e38])
    places = torch.randint(0, weight.numel(), (rows * columns // 3,))
    weight.view(-1)[places] = special[torch.arange(len(places)) % len(special)]
    return weight.to(dtype)


def zeros_like_bits(weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (31, 64)])
def test_split_and_merge(n: int, m: int, dtype: torch.dtype, device: torch.device) -> None:
    """Red if a pruned infinity becomes NaN, a NaN loses its payload, or -0.0 its sign."""
    dense = awkward(6, 2 * m, dtype).to(device)
    weight, pruned = dense.clone(), awkward(6, 2 * m, dtype).to(device)
    mask = torch.zeros(dense.shape, dtype=torch.bool, device=device)
    flips = split_(weight, pruned, mask, NMPattern(n, m), update_mask=True)

    assert torch.equal(mask, nm_mask(dense, n, m))
    assert int(flips) == int(mask.sum())
    zero = zeros_like_bits(dense)
    assert_same_bits(weight, torch.where(mask, dense, zero), "S = E*W")
    assert_same_bits(pruned, torch.where(mask, zero, dense), "R = (1-E)*W")
    before = pruned.clone()
    merge_(weight, pruned, mask)
    assert_same_bits(weight, dense, "W")
    assert_same_bits(pruned, before, "R after merging")


def test_split_counts_flips() -> None:
    """Red if swaps count once, or unchanged entries count."""
    pattern = NMPattern(2, 4)
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    mask = torch.stack([bits("0110"), bits("1100")])
    pruned = torch.zeros_like(weight)
    assert int(split_(weight, pruned, mask, pattern, update_mask=True)) == 2
    assert torch.equal(mask, torch.stack([bits("0011"), bits("1100")]))


def test_split_by_a_mask_that_is_held() -> None:
    """Red if a held mask is computed again."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    mask = bits("1100").unsqueeze(0)
    pruned = torch.full_like(weight, nan)
    assert int(split_(weight, pruned, mask, NMPattern(2, 4), update_mask=False)) == 0
    assert weight.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    assert pruned.tolist() == [[0.0, 0.0, 3.0, 4.0]]
    assert torch.equal(mask[0], bits("1100"))


def test_split_without_a_pruned_part() -> None:
    weight = torch.tensor([[1.0, inf, nan, 4.0]])
    mask = bits("1001").unsqueeze(0)
    split_(weight, None, mask, NMPattern(2, 4), update_mask=False)
    assert weight.tolist() == [[1.0, 0.0, 0.0, 4.0]]


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("with_pruned", [True, False])
def test_split_along_another_dimension(dim: int, with_pruned: bool) -> None:
    """Red if a copy is split and not written back."""
    shape = [3, 5, 2]
    shape[dim] = 8
    dense = torch.randn(shape)
    weight, mask = dense.clone(), torch.zeros(shape, dtype=torch.bool)
    pruned = torch.full(shape, nan) if with_pruned else None
    flips = split_(weight, pruned, mask, NMPattern(2, 4), dim, update_mask=True)
    assert torch.equal(mask, reference_mask(dense, 2, 4, dim))
    assert int(flips) == dense.numel() // 2
    assert torch.equal(weight, dense * mask)
    if pruned is not None:
        assert torch.equal(pruned, dense * ~mask)
        merge_(weight, pruned, mask)
        assert torch.equal(weight, dense)


def test_split_of_non_contiguous_tensors() -> None:
    """Red if the storage is taken for the tensor."""
    dense = torch.randn(8, 6).T
    weight, pruned = dense.clone(), torch.empty(8, 6).T
    assert not pruned.is_contiguous()
    mask = torch.zeros(8, 12, dtype=torch.bool)[:, ::2].T
    split_(weight, pruned, mask, NMPattern(2, 4), update_mask=True)
    assert torch.equal(mask, reference_mask(dense, 2, 4))
    merge_(weight, pruned, mask)
    assert torch.equal(weight, dense)


def test_zero_pruned_removes_nan() -> None:
    tensor = torch.tensor([nan, inf, -1.0, 2.0])
    zero_pruned_(tensor, bits("0011"))
    assert_same_bits(tensor, torch.tensor([0.0, 0.0, -1.0, 2.0]))


@pytest.mark.parametrize(
    ("values", "breaks"),
    [
        ([1.0, 0.0, 0.0, 2.0], False),
        ([1.0, 1.0, 0.0, 0.0], True),
        ([0.0, nan, 0.0, 0.0], True),
        ([0.0, -0.0, 0.0, 0.0], False),
        ([nan, 0.0, 0.0, inf], False),
    ],
)
def test_breaks_mask(values: list[float], breaks: bool) -> None:
    assert breaks_mask(torch.tensor(values), bits("1001")) is breaks


def test_count_kept() -> None:
    weight = torch.tensor([[1.0, 0.0, nan, 0.0, 0.0, 0.0, -0.0, 0.0], [1.0] * 8])
    assert count_kept(weight, NMPattern(2, 4)).tolist() == [[2, 0], [4, 4]]
    assert count_kept(weight.T, NMPattern(2, 4), 0).tolist() == [[2, 0], [4, 4]]


def test_fingerprint_tells_weights_apart() -> None:
    """Red if a single bit goes unnoticed, or the fingerprint depends on the memory's layout."""
    weight = torch.randn(16, 16)
    assert fingerprint(weight) == fingerprint(weight.clone())
    assert fingerprint(weight) == fingerprint(weight.T.contiguous().T)
    changed = weight.clone()
    changed[3, 3] = torch.nextafter(changed[3, 3], torch.tensor(inf))
    for other in (changed, -weight, weight * (weight > 0)):
        assert fingerprint(other) != fingerprint(weight)
