"""The Triton kernels of packed weights, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from launching import run_python

pytest.importorskip("triton", reason="hand-written kernels need it")

SCRIPT = Path(__file__).parents[1] / "support" / "packed_kernels.py"


def test_in_the_interpreter() -> None:
    """Red if a bit, a kept entry, a row, or an entry past the end is taken for another, a sum is kept in
    the weight's dtype, or Inf and NaN come out otherwise than from the dense product."""
    run_python(SCRIPT, env=dict(os.environ) | {"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    """The same, compiled."""
    import packed_kernels

    packed_kernels.main(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_compressed_llama_on_a_gpu() -> None:
    """The same logits as dense, at one row and many, eager and compiled, and in a CUDA graph. Red if a
    way that was measured there is wrong, or measuring it breaks a graph."""
    import copy

    from models import llama

    import hf_nm

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    model = hf_nm.finalize(hf_nm.sparsify(llama(**sizes).to("cuda", torch.bfloat16))).eval()
    packed = hf_nm.compress(copy.deepcopy(model))
    compiled = torch.compile(packed, mode="reduce-overhead")
    with torch.no_grad():
        for length in (1, 3, 20):
            tokens = torch.randint(3, 64, (1, length), device="cuda")
            expected = model(tokens).logits
            for run in (packed, compiled, compiled, compiled):
                got = run(tokens).logits.clone()
                torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)
