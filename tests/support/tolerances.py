"""How close two numbers have to be: the one table that every test uses."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative, then absolute, by dtype. Weights and logits of the test models are of order 0.1 to 10.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-6, 1e-8),
    torch.bfloat16: (1e-2, 1e-3),
    torch.float16: (1e-3, 1e-4),
}


def assert_close(actual: Tensor, expected: Tensor, message: str = "") -> None:
    """``torch.testing.assert_close`` with the tolerances of the expected tensor's dtype."""
    rtol, atol = TOLERANCES[expected.dtype]
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{message}\n{text}"
    )


def assert_same_bits(actual: Tensor, expected: Tensor, message: str = "") -> None:
    """Equal in every bit: tells -0.0 from 0.0 and finds NaN equal to itself."""
    assert actual.dtype == expected.dtype, f"{message}: {actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{message}: {actual.shape} is not {expected.shape}"
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    same = actual.detach().contiguous().view(integer) == expected.detach().contiguous().view(
        integer
    )
    assert same.all(), f"{message}: {int((~same).sum())} of {same.numel()} entries differ"
