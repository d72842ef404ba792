"""Merging what is aside into a sparse weight: what stands at pruned places is found."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import assert_same_bits

import hf_nm.sparsity.mask
from hf_nm import NMPattern
from hf_nm.sparsity.mask import merge_, split_

nan, inf = math.nan, math.inf


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("value", [1e-45, -2.0, inf, nan])
@pytest.mark.parametrize("row", [0, 5_000])
def test_merge_finds_a_stray_value(
    row: int, value: float, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a value written at a pruned place, however small or far back, becomes part of the dense
    weight, or if the weight is changed although it was found."""
    monkeypatch.setattr(hf_nm.sparsity.mask, "_CHUNK_CPU", 4096)
    dense = torch.randn(5_008, 8)
    weight, pruned, mask = dense.clone(), torch.zeros_like(dense), torch.zeros(dense.shape).bool()
    split_(weight, pruned, mask, NMPattern(2, 4), update_mask=True)
    weight[row, int((~mask[row]).nonzero()[0])] = value
    if layout == "strided":
        weight = weight.T.contiguous().T
    before = weight.clone()
    assert bool(merge_(weight, pruned, mask))
    assert_same_bits(weight.contiguous(), before.contiguous())
    assert bool(merge_(weight, None, mask))


def test_merge_takes_minus_zero_for_zero() -> None:
    """Red if a minus zero at a pruned place is an error, or turns the sign of what was pruned."""
    weight, pruned = torch.tensor([[1.0, -0.0, -0.0, 2.0]]), torch.tensor([[0.0, 0.5, -0.5, 0.0]])
    assert not bool(merge_(weight, pruned, torch.tensor([[True, False, False, True]])))
    assert weight.tolist() == [[1.0, 0.5, -0.5, 2.0]]
