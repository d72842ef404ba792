"""The fused kernels: in triton's interpreter bit for bit the torch functions, and compiled for GPUs."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch
from launching import run_python

from hf_nm.sparsity.kernels import table

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
