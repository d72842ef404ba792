"""Two processes that were not told the same: an error on both at the first step, which names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import disagreeing
import pytest
import torch
from launching import run_python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """How each scenario ended on each rank; they run once for all tests of this file."""
    folder = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--rdzv-conf=keep_alive_max_attempt=360", f"--log-dir={folder / 'logs'}"]
    run_python(*launcher, *options, disagreeing.__file__, folder)
    return folder


def ended(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


SAID = {
    "pattern": "pattern of 0.weight is '2:4' on rank 0, '1:4' on rank 1; ",
    "method": "method of 0.weight is 'sr-ste' on rank 0, 'ste' on rank 1; ",
    "decay": "decay of 0.weight is 0.0002 on rank 0, 0.5 on rank 1; ",
    "targets": "2.weight is N:M on rank 0 only",
    "patterns": "pattern of 2.weight is '2:4' on rank 0, '1:4' on rank 1",
    "mask_interval": "mask_interval is 1 on rank 0, 3 on rank 1",
    "freeze_masks_at": "freeze_masks_at is None on rank 0, 7 on rank 1",
    "decay_warmup_steps": "decay_warmup_steps is 0 on rank 0, 2 on rank 1",
}


@pytest.mark.parametrize("name", SAID)
def test_every_rank_says_what_differs(name: str, folder: Path) -> None:
    """Red if ranks train apart, one of them goes on or waits, or the message names not the option, both
    values and both ranks."""
    first, second = ended(folder, name)
    assert first["kind"] == second["kind"] == "RuntimeError"
    assert first["error"] == second["error"]
    assert "ranks 0 and 1 train copies of one model with different options: " in first["error"]
    assert SAID[name] in first["error"]
    assert first["steps"] == second["steps"] == 0


def test_a_rank_that_forgot_attach(folder: Path) -> None:
    """Red if the others wait for it until the timeout (300 s here), or it says nothing itself."""
    first, second = ended(folder, "forgot attach")
    assert first["error"] == second["error"]
    assert "rank 1 steps an optimizer (SGD) that trains " in first["error"]
    assert "while rank 0 attached its own: call hf_nm.attach" in first["error"]
    assert first["steps"] == second["steps"] == 0
    assert max(first["seconds"], second["seconds"]) < 300


def test_ranks_that_agree_train(folder: Path) -> None:
    """Red if agreeing ranks are refused."""
    for result in ended(folder, "the same"):
        assert result == result | {"error": "", "steps": disagreeing.STEPS, "warned": []}


def test_models_of_their_own(folder: Path) -> None:
    """Red if ranks with weights of their own are compared, or those with gradients of their own refused
    without a way out."""
    for result in ended(folder, "own models"):
        assert result == result | {"error": "", "steps": disagreeing.STEPS, "warned": []}
    for result in ended(folder, "own gradients"):
        assert result["error"] == ""
        (warned,) = result["warned"]
        assert "decay of 0.weight is 0.0002 on rank 0, 0.5 on rank 1" in warned
