"""Two CPU processes: what they agree on, and that together they do what one process does."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import processes
import pytest
import torch
from launching import run_python
from models import RESUMES_ON_CPUS
from tolerances import assert_close
from trainers import sad_file
from training import assert_same_state
from transformers import AutoModelForSequenceClassification

import hf_nm

pytestmark = pytest.mark.slow


def run_processes(folder: Path, count: int, scenarios: ModuleType = processes) -> Path:
    """``count`` processes with gloo, which leave in ``folder`` what they saw."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    # By default a launcher that says nothing for 15 seconds, as on a busy machine, counts as dead.
    options = ["--rdzv-conf=keep_alive_max_attempt=360", f"--log-dir={folder / 'logs'}"]
    run_python(*launcher, *options, scenarios.__file__, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saw; they run once for all tests of this file."""
    return run_processes(tmp_path_factory.mktemp("two"), 2)


def seen_by(folder: Path, name: str, count: int = 2) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(count)]


def assert_state_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.dtype == torch.bool:
            assert torch.equal(actual[name], tensor), name
        else:
            assert_close(actual[name], tensor, name)


@pytest.mark.parametrize("name", processes.SCENARIOS)
def test_copies_agree_and_equal_one_process(name, folder):
    """Ranks started from different weights. Red if pruned parts or masks are not taken from rank 0
    (the pruned parts then differ for ever), also those of weights that join later, or if SAD starts
    anywhere but at rank 0's first masks."""
    first, second = seen_by(folder, name)
    assert_same_state(second["state"], first["state"])
    one = processes.train(None, seed=0, **processes.SCENARIOS[name])
    assert_state_close(first["state"], one["state"])
    for key in ("step", "sad", "flips", "flip_rate"):
        assert first[key] == second[key] == one[key], key
    if name != "fixed":
        assert sum(one["sad"].values()) > 0
    losses = [
        torch.tensor(result["losses"], dtype=torch.float64) for result in (first, second, one)
    ]
    assert_close((losses[0] + losses[1]) / 2, losses[2])


def test_automatic_decay(folder):
    """Red if each rank follows the gradient of its own half of the batch."""
    first, second = seen_by(folder, "automatic")
    one = processes.train(None, seed=0, decay="auto")
    assert_same_state(second["state"], first["state"])
    assert first["decays"] == second["decays"] == pytest.approx(one["decays"], rel=1e-6)
    assert all(decay > 0 for decay in one["decays"].values())


def test_independent_models_are_left_alone(folder):
    """Red if ranks that train models of their own get masks from rank 0."""
    for rank, result in enumerate(seen_by(folder, "independent")):
        alone = processes.train(None, seed=rank)
        assert_same_state(result["state"], alone["state"])
        assert {**result, "state": None} == {**alone, "state": None}


def test_an_optimizer_that_was_not_attached_is_found(folder):
    """Red if attaching one optimizer under DDP silences the other's weights."""
    for result in seen_by(folder, "forgotten"):
        assert result["step"] == 1
        assert "hf_nm.attach" in result["error"]


def test_two_models_in_four_processes(tmp_path):
    """Red if masks are taken from rank 0 by ranks whose model has another first rank, or by none."""
    results = seen_by(run_processes(tmp_path, 4), "pairs", 4)
    for model in (0, 1):
        first, second = results[model], results[model + 2]
        assert_same_state(second["state"], first["state"])
        one = processes.train(None, seed=model, accumulate=2)
        assert_state_close(first["state"], one["state"])
        assert first["sad"] == second["sad"] == one["sad"]


def test_nothing_is_sent_after_the_first_step(folder):
    """Red if masks or pruned parts are buffers, or are aligned at every step."""
    plain = processes.new_model(0)
    for result in seen_by(folder, "traffic"):
        assert result["buffers"] == []
        assert not result["syncs_buffers"]
        assert result["parameters"] == sum(p.numel() for p in plain.parameters())
        assert result["per_step"][0]["broadcast"] == 4  # two masks, two pruned parts
        assert result["per_step"][1:] == [{}, {}]


def test_trainer_in_two_processes_equals_one(folder, tmp_path):
    """Red if ranks log or train on masks of their own, or the file is written by both."""
    first, second = (result["whole"] for result in seen_by(folder, "trainer"))
    assert_same_state(second["model"], first["model"])
    run = processes.trainer(tmp_path, 0)
    run.train()
    one = processes.trained(run)
    assert_state_close(first["model"], one["model"])
    assert len(one["logs"]) == 4
    for two, alone in zip(first["logs"], one["logs"], strict=True):
        assert two["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert two | {"loss": 0} == alone | {"loss": 0}
    assert [line | {"loss": 0} for line in second["logs"]] == [
        line | {"loss": 0} for line in first["logs"]
    ]
    assert one["logs"][0]["nm/sad"] > 0
    assert sad_file(folder / "whole") == sad_file(tmp_path)


@pytest.mark.skipif(
    not RESUMES_ON_CPUS, reason="resuming in several processes on CPUs needs transformers >= 5.18"
)
def test_trainer_resumes_in_two_processes(folder):
    """Red if a rank restores something else than it had: bit for bit the run that was not stopped."""
    for result in seen_by(folder, "trainer"):
        assert_same_state(result["resumed"]["state"], result["whole"]["state"])
        for resumed, whole in zip(result["resumed"]["logs"], result["whole"]["logs"], strict=True):
            assert resumed | {"loss": 0} == whole | {"loss": 0}
    whole, stopped = folder / "whole", folder / "stopped"
    assert (whole / "nm_sad.jsonl").read_bytes() == (stopped / "nm_sad.jsonl").read_bytes()
    for checkpoint in (whole / "checkpoint-10", stopped / "checkpoint-10"):
        hf_nm.verify(checkpoint)
        AutoModelForSequenceClassification.from_pretrained(checkpoint)
