"""``prune``: a dense checkpoint pruned once by magnitude."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import batch, bert, llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import hf_nm
from hf_nm import nm_mask


def test_prune(tmp_path: Path) -> None:
    """The checkpoint of the masked model, in the dense one's dtype, with the tokenizer's files. Red if a
    weight is not the masked one, or something beside the weights is lost."""
    dense = llama().bfloat16()
    dense.save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    report = hf_nm.prune(
        tmp_path / "dense", tmp_path / "sparse", 1, 4, patterns={"*.o_proj": "2:4"}
    )
    assert (tmp_path / "sparse" / "tokenizer.json").read_text() == "{}"
    assert {str(row.pattern) for row in report.layers} == {"1:4", "2:4"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", dtype="auto")
    for row in report.layers:
        weight = dense.get_parameter(row.name)
        masked = weight * nm_mask(weight, row.pattern.n, row.pattern.m)
        assert torch.equal(loaded.get_parameter(row.name), masked)
    assert loaded.dtype == torch.bfloat16
    hf_nm.restore(loaded)
    assert {w.state.method.name for w in hf_nm.sparse_weights(loaded)} == {"fixed"}


def test_prune_leaves_the_rest(tmp_path: Path) -> None:
    """Folders beside the weights are kept; dense weights in another form, and what only resuming needs,
    are not; a checkpoint with a weight missing is refused."""
    bert().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "1_Pooling").mkdir()
    (tmp_path / "dense" / "1_Pooling" / "config.json").write_text("{}")
    for name in ("pytorch_model.bin", "model.onnx", "optimizer.pt", "training_args.bin"):
        (tmp_path / "dense" / name).write_bytes(b"dense")
    hf_nm.prune(tmp_path / "dense", tmp_path / "sparse")
    names = {path.name for path in (tmp_path / "sparse").iterdir()}
    assert names == {"1_Pooling", "config.json", "model.safetensors"}
    assert (tmp_path / "sparse" / "1_Pooling" / "config.json").read_text() == "{}"

    weights = load_file(tmp_path / "dense" / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "dense" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .*classifier\.weight"):
        hf_nm.prune(tmp_path / "dense", tmp_path / "again")


def test_prune_refuses(tmp_path: Path) -> None:
    """Nothing is written where something is in the way, or wrong."""
    bert().save_pretrained(tmp_path / "dense")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for overwrite in (False, True):  # whatever else somebody keeps there
        with pytest.raises(FileExistsError, match=r"is (there|not a model's folder)"):
            hf_nm.prune(tmp_path / "dense", tmp_path / "full", overwrite=overwrite)
    with pytest.raises(ValueError, match="matches no weight"):
        hf_nm.prune(tmp_path / "dense", tmp_path / "new", targets="*.fc1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "full"]
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    (tmp_path / "full" / "config.json").write_text("{}")
    hf_nm.prune(tmp_path / "dense", tmp_path / "full", overwrite=True)
    with pytest.raises(ValueError, match=r"call hf_nm\.restore"):
        hf_nm.prune(tmp_path / "full", tmp_path / "twice")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full")
    assert torch.isfinite(model(**batch(bert())).logits).all()
