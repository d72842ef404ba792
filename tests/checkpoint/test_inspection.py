"""``inspect``: what sparsify would do, and how large the checkpoint would be, from the config alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from models import MODELS, bert, llama, t5

import hf_nm


def test_equals_sparsify(kind: str, tmp_path: Path) -> None:
    """Red if anything is counted that ``sparsify`` would not do, or left out."""
    model = MODELS[kind]()
    model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()  # the config is enough
    found = hf_nm.inspect(tmp_path)
    report = hf_nm.report(hf_nm.sparsify(model))
    assert found.report.layers == report.layers
    assert found.report.skipped == report.skipped
    assert found.architecture == type(model).__name__
    assert found.parameters == sum(p.numel() for p in model.parameters())
    groups = found.groups()
    assert sum(row["count"] for row in groups) == len(report.layers) + len(report.skipped)


def test_sizes(tmp_path: Path) -> None:
    """Kept values and one bit for each N:M entry. Red if the bits, or a dtype's size, are forgotten."""
    llama().save_pretrained(tmp_path)
    found = hf_nm.inspect(tmp_path / "config.json", dtype="bfloat16")
    assert found.dense_bytes == 2 * found.parameters
    saved = found.report.weights * 2 - (found.report.kept * 2 + found.report.weights // 8)
    assert found.packed_bytes == found.dense_bytes - saved
    fp32 = hf_nm.inspect(tmp_path, 1, 4)
    assert fp32.dense_bytes == 4 * fp32.parameters
    assert fp32.report.kept * 4 == fp32.report.weights


def test_options_and_a_sparse_checkpoint(tmp_path: Path) -> None:
    """Its own patterns are shown, whatever is asked for."""
    bert().save_pretrained(tmp_path / "dense")
    found = hf_nm.inspect(
        tmp_path / "dense", targets="*.intermediate.dense", patterns={"*.0.*": "1:4"}
    )
    assert [str(row.pattern) for row in found.report.layers] == ["1:4", "2:4"]
    model = hf_nm.sparsify(bert(), 1, 8, exclude="*.query")
    model.save_pretrained(tmp_path / "sparse")
    claimed = hf_nm.inspect(tmp_path / "sparse", 2, 4)
    assert claimed.claimed
    assert claimed.report.layers == hf_nm.report(model).layers
    assert json.loads(json.dumps(claimed.to_dict()))["sparse_checkpoint"] is True


def test_a_config_without_a_class_name(tmp_path: Path) -> None:
    """A model with a head rather than without."""
    model = t5()
    model.config.architectures = None
    model.config.save_pretrained(tmp_path)
    assert hf_nm.inspect(tmp_path).architecture == "T5ForConditionalGeneration"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("./nowhere", FileNotFoundError, "does not exist"),
        ("an-org/a-model", OSError, "offline mode"),
    ],
)
def test_no_such_config(source: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hf_nm.inspect(source)


def test_bad_input(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="floating-point dtype of torch"):
        hf_nm.inspect(tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="matches no weight"):
        hf_nm.inspect(tmp_path, targets="*.fc1")
    assert os.listdir(tmp_path)
