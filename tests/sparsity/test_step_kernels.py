"""The fused kernels: in triton's interpreter bit for bit the torch functions, and compiled for GPUs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from launching import run_python

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
SCRIPT = Path(__file__).parents[1] / "support/interpreted.py"


@pytest.mark.parametrize(
    "check",
    [
        pytest.param("properties", marks=pytest.mark.slow),
        "gradients",
        pytest.param("training", marks=pytest.mark.slow),
        pytest.param("automatic", marks=pytest.mark.slow),
        "closures_and_scales",
        "strays",
        "traffic",
    ],
)
def test_in_the_interpreter(check: str) -> None:
    """Red if a kernel gives another bit than ``split_``, ``merge_`` or a method's own function (an entry
    is ranked or placed otherwise, a flip or a stray value is not counted), if a step with kernels trains
    otherwise than one without, or if it moves more bytes than :func:`bytes_a_weight` says."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_NM_KERNELS"}
    run_python(SCRIPT, check, env=environment | {"TRITON_INTERPRET": "1"})


COMPILE = """
import re
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hf_nm.sparsity.kernels import around_step

def compiled(name, dtype, **constants):
    kernel = getattr(around_step, name)
    constants |= around_step.types_of(name, dtype)
    kinds = dict(table="*i64", owners="*i32", strengths="*fp32", scale="*fp32", strays="*i32")
    kinds |= dict(flips="*i64", count="i32", stride="i32")
    signature = {a: kinds.get(a, "constexpr") for a in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    options = {"enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

tile = dict(M=4, WIDTH=4, GROUPS=512, KEEPS=True, ALIGNED=4)
before = compiled("before_step", torch.float32, **tile, GRADIENT=1, SCALED=False)
after = compiled("after_step", torch.float32, **tile, N=2, SELECT=True, AXIS=1)
compiled("after_step", torch.bfloat16, **(tile | dict(ALIGNED=1)), N=2, SELECT=True, AXIS=0)
for text, loads, stores in ((before, 3, 2), (after, 1, 2)):
    # 2,048 entries by 128 threads: four times four at once, of each tensor
    assert len(re.findall(r"ld[.]global[.]v4[.]b32", text)) == 4 * loads, text
    assert len(re.findall(r"st[.]global[.]v4[.]b32", text)) == 4 * stores, text
assert "shfl" not in after  # a thread holds whole groups
assert before.count("fma.rn.f32") == 16
"""


@pytest.mark.slow
def test_compiled_for_a_gpu(tmp_path: Path) -> None:
    """Triton compiles for a GPU that is not there. Red if it refuses a kernel, reads four entries one by
    one where it may read them together, or rounds the decay's product and sum otherwise than torch."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    run_python(script, env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "cache")})
