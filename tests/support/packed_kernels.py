"""What the kernels of packed weights have to do, on a GPU or, as a script, in Triton's interpreter.

A process of its own, since ``TRITON_INTERPRET=1`` has to be there when Triton is imported.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from tolerances import TOLERANCES, assert_same_bits

import hf_nm
from hf_nm import NMPattern
from hf_nm.inference import kernels
from hf_nm.inference.packed_tensor import pack_weight
from hf_nm.inference.product import BLOCKS

# Groups in a byte, over bytes, across bytes; kept entries that are one integer, and that are not.
PATTERNS = [(2, 4), (1, 4), (4, 8), (6, 8), (1, 16), (3, 5), (1, 2), (3, 12)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(n: int, m: int, dtype: torch.dtype, device: torch.device) -> None:
    """The dense weight bit for bit, and products as in float64, at sizes that fill no block."""
    out, inputs = 13, 7 * m
    weight = torch.randn(out, inputs).to(device, dtype)
    weight = torch.where(hf_nm.nm_mask(weight, n, m), weight, 0)
    packed = pack_weight(weight, NMPattern(n, m), -1)
    assert_same_bits(kernels.unpack(packed.kept, packed.bits, n, m), weight)
    rtol, _ = TOLERANCES[dtype]
    for shape, with_bias in (((inputs,), False), ((3, inputs), True), ((2, 4, inputs), False)):
        rows = torch.randn(shape).to(device, dtype)
        bias = torch.randn(out).to(device, dtype) if with_bias else None
        wide = None if bias is None else bias.double()
        exact = F.linear(rows.double(), weight.double(), wide)
        for blocks in (BLOCKS["kernel"], (4, 4)):  # all groups at once, and in two parts
            got = kernels.few_rows(rows, packed.kept, packed.bits, bias, n, m, blocks)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=max(1e-5, rtol))


def check_not_finite(device: torch.device) -> None:
    """Inf and NaN among kept entries, as the dense product has them."""
    weight = torch.zeros(4, 8, device=device)
    weight[0, 1], weight[1, 4], weight[2, 0] = float("inf"), float("nan"), -0.0
    weight[2, 5] = 2.0
    packed = pack_weight(weight, NMPattern(2, 4), -1)
    rows = torch.ones(1, 8, device=device)
    got = kernels.few_rows(rows, packed.kept, packed.bits, None, 2, 4, BLOCKS["kernel"])
    torch.testing.assert_close(got, F.linear(rows, weight), equal_nan=True)


def main(device: torch.device) -> None:
    torch.manual_seed(0)
    for n, m in PATTERNS:
        for dtype in DTYPES:
            check(n, m, dtype, device)
    check_not_finite(device)


if __name__ == "__main__":
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    main(torch.device("cpu" if interpreted else "cuda"))
