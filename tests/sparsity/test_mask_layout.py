"""Groups along any dimension, in any memory layout: the same as with that dimension moved last."""

from __future__ import annotations

import pytest
import torch
from tolerances import assert_same_bits

from hf_nm import NMPattern, nm_mask
from hf_nm.sparsity.mask import merge_, split_

CASES = [
    ((8, 6), 0),  # Conv1D
    ((3, 8, 5), 1),  # transposed experts
    ((4, 8, 3, 3), 1),  # convolution
    ((8, 4, 3), 0),  # transposed convolution
    ((128, 3), 0),
    ((2, 128, 5), -2),
    ((600, 1000), 0),  # more than one run
    ((0, 8, 3), 1),  # empty shards
    ((8, 0), 0),
    ((0, 8), -1),
]


def patterns(size: int) -> list[NMPattern]:
    found = [NMPattern(2, 4), NMPattern(1, 8), NMPattern(5, 64)]
    return [pattern for pattern in found if pattern.divides(size)]


@pytest.mark.parametrize(("shape", "dim"), CASES)
@pytest.mark.parametrize("contiguous", [True, False])
def test_any_dimension(shape, dim, contiguous, device):
    """Red if neighbours in memory are taken for neighbours in a group, counted or sorted."""
    for pattern in patterns(shape[dim]):
        weight = torch.randn(shape, device=device).to(torch.bfloat16)  # ties among them
        if not contiguous:
            weight = weight.transpose(0, -1).contiguous().transpose(0, -1)
        expected = nm_mask(weight.movedim(dim, -1).contiguous(), pattern.n, pattern.m)
        mask = nm_mask(weight, pattern.n, pattern.m, dim)
        assert torch.equal(mask.movedim(dim, -1), expected)

        split, pruned, moved = weight.clone(), torch.zeros_like(weight), torch.zeros_like(mask)
        flips = split_(split, pruned, moved, pattern, dim, update_mask=True)
        assert torch.equal(moved, mask)
        assert int(flips) == int(mask.sum())
        assert_same_bits(split, torch.where(mask, weight, 0))
        assert_same_bits(pruned, torch.where(mask, 0, weight))
        merge_(split, pruned, mask)
        assert_same_bits(split, weight)
