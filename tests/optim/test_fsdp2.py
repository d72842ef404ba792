"""Weights sharded over two processes, by FSDP2 or tensor parallelism: the same run as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sharded
import torch
from models import SHARDS_BY_SIZE, TRAINS_SHARDED
from test_ddp import assert_state_close, run_processes, seen_by
from tolerances import assert_close
from trainers import sad_file
from training import assert_same_state

import hf_nm
from hf_nm import nm_mask

pytestmark = pytest.mark.slow
MEASURED = ("step", "sad", "sad_mark", "flips", "flip_rate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saw; they run once for all tests of this file."""
    return run_processes(tmp_path_factory.mktemp("sharded"), 2, sharded)


def one_process(name: str) -> dict[str, Any]:
    options = dict(sharded.WAYS.get(name, (None, {}))[1])
    schedule = {"mask_interval": 2, "freeze_masks_at": 4} if name == "scheduled" else {}
    return sharded.run(None, lambda model: sharded.not_sharded(model, **schedule), **options)


@pytest.mark.parametrize("name", [*sharded.WAYS, "per rank", "full", "dcp"])
def test_equals_one_process(name, folder):
    """Red if masks or pruned parts are lost on the way to shards or through a checkpoint, belong to
    another rank's values, are counted twice or once too few, or a step sees a part of a group."""
    first, second = seen_by(folder, name)
    assert_same_state(second["state"], first["state"])
    one = one_process(name)
    assert_state_close(first["state"], one["state"])
    for key in MEASURED:
        assert first[key] == second[key] == one[key], key
    if "fixed" not in name:
        assert sum(one["sad"].values()) > sum(one["sad_mark"].values()) > 0 or name == "scheduled"
    losses = [torch.tensor(r["losses"], dtype=torch.float64) for r in (first, second, one)]
    assert_close((losses[0] + losses[1]) / 2, losses[2])


@pytest.mark.parametrize("name", ["automatic", "automatic, resumed"])
def test_automatic_decay(name, folder):
    """Summed over shards, also empty ones, and through a distributed checkpoint. Red if a rank follows
    its part of a gradient, or counts its entries alone. (Sums are rounded to float32.)"""
    first, second = seen_by(folder, name)
    assert_same_state(second["state"], first["state"])
    one = sharded.run(None, sharded.not_sharded, decay="auto")
    assert first["decays"] == second["decays"] == pytest.approx(one["decays"], rel=1e-5)
    assert len(one["decays"]) == 6
    assert all(decay > 0 for decay in one["decays"].values())
    for w in one["decays"]:
        torch.testing.assert_close(
            first["state"][f"{w}/dense"], one["state"][f"{w}/dense"], rtol=1e-5, atol=1e-7
        )


def test_resumed_by_one_process(folder):
    """A checkpoint of two processes in a model that is not sharded. Red if it holds rank 0's part."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    saved = torch.load(folder / "full.pt", weights_only=True)
    model, optimizer, handle = sharded.not_sharded(sharded.new_model(seed=5))
    model.load_state_dict(saved["model"])
    set_optimizer_state_dict(model, optimizer, saved["optimizer"])
    sharded.steps(model, optimizer, None, range(3, sharded.STEPS))
    one = one_process("full")
    found = sharded.seen(model, handle, one["losses"])
    assert_state_close(found["state"], one["state"])
    assert {key: found[key] for key in MEASURED} == {key: one[key] for key in MEASURED}


@pytest.mark.skipif(
    not SHARDS_BY_SIZE, reason="sizes in DistributedConfig need transformers >= 5.13"
)
def test_tensor_parallel(folder, tmp_path):
    """By transformers' plan for Llama, also saved by it. Red if SAD counts one rank's part, or masks of
    row-parallel layers are those of other groups."""
    first, second = seen_by(folder, "tensor_parallel")
    one = sharded.tensor_parallel(None, tmp_path)
    for result in (first, second):
        assert_state_close(result["state"], one["state"])
        assert_close(torch.tensor(result["losses"]), torch.tensor(one["losses"]))
        assert {key: result[key] for key in MEASURED} == {key: one[key] for key in MEASURED}
    report = hf_nm.verify(folder / "sparse-llama")
    assert len(report.layers) == 14
    assert 2 * report.kept == report.weights


def test_gradients_still_to_be_summed(folder):
    """Red if the decay is added on every process before the sum."""
    one = sharded.partial_gradients(None)
    for result in seen_by(folder, "partial"):
        assert_close(result["dense"], one)


@pytest.mark.skipif(
    not TRAINS_SHARDED, reason="a Trainer of models sharded on loading needs transformers >= 5.18"
)
def test_trainer(folder, tmp_path):
    """Red if the Trainer logs one rank's part, or saves it."""
    one = sharded.trainer(None, tmp_path)
    for result in seen_by(folder, "trainer"):
        for line, alone in zip(result["logs"], one, strict=True):
            assert line["loss"] == pytest.approx(alone["loss"], rel=1e-6)
            assert line | {"loss": 0} == alone | {"loss": 0}
    assert one[0]["nm/sad"] > 0
    assert sad_file(folder / "trainer") == sad_file(tmp_path / "trainer")
    for checkpoint in ("checkpoint-5", "checkpoint-10"):
        report = hf_nm.verify(folder / "trainer" / checkpoint)
        assert 2 * report.kept == report.weights > 0


def test_outside_a_step(folder):
    """Dense weights are written and projected, a dense checkpoint is taken as dense weights."""
    first, second = seen_by(folder, "outside")
    model, optimizer, _ = sharded.not_sharded(sharded.new_model())
    sharded.steps(model, optimizer, None, range(2))
    for w in hf_nm.sparse_weights(model):
        assert_close(first["written"][w.name], -2 * w.dense_weight(), w.name)
        expected = nm_mask(first["dense"][w.name], 2, 4, w.state.dim)
        for result in (first, second):
            assert torch.equal(result["masks"][w.name], expected), w.name
    assert first["kept"] == [w.weight.numel() // 2 for w in hf_nm.sparse_weights(model)]
    assert first["finalized"] == "FSDPLinear"


def test_what_is_found(folder):
    """Red if a forgotten attach or a cut group goes unnoticed."""
    for result in seen_by(folder, "outside"):
        assert "BrokenPatternError: fc1.weight is not 2:4 any more" in result["save"]
        assert "BrokenPatternError" in result["verify"]
        assert "BrokenPatternError: fc1.weight is not 2:4 any more" in result["unsettled"]
        assert result["rows"] == result["even"] == ""
        assert result["cut"] == (
            "ValueError: 0.weight [4, 12] is sharded along its input dimension -1 into 2 parts of 6, "
            "which cuts 2:4 groups; shard it along another dimension (with FSDP2 shard_placement_fn="
            "lambda parameter: Shard(0)) or over fewer processes, or leave it dense with exclude="
        )
        assert "mlp.down_proj.weight [32, 12] is sharded along" in result["plan"]
