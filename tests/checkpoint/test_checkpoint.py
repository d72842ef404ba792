"""Sparse checkpoints: opened by plain transformers, and checked from the weights alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import run_python
from models import MODELS, VIT_IS_RENAMED, batch, bert, llama, mlp, vit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import hf_nm

WEIGHT = "bert.encoder.layer.1.intermediate.dense.weight"

# Run by another Python: opens each folder with the class that a user would, and saves the logits.
OPEN_PLAIN = """
import sys, torch, transformers
logits = {}
for folder, auto in zip(sys.argv[2::2], sys.argv[3::2]):
    model = getattr(transformers, auto).from_pretrained(folder)
    inputs = torch.load(folder + "/inputs.pt")
    with torch.no_grad():
        logits[folder] = model.eval()(**inputs).logits
    weights = [p for n, p in model.named_parameters() if n in model.config.nm_sparsity["modules"]]
    assert len(weights) == len(model.config.nm_sparsity["modules"])
    assert all((w.unflatten(-1, (-1, 4)) != 0).sum(-1).max() == 2 for w in weights)
assert "hf_nm" not in sys.modules
torch.save(logits, sys.argv[1])
"""
AUTO = {
    "marian": "AutoModelForSeq2SeqLM",
    "bert": "AutoModelForSequenceClassification",
    "t5": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
    "llama": "AutoModelForCausalLM",
    "vit": "AutoModelForImageClassification",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sparse BERT as ``save_pretrained`` writes it."""
    hf_nm.sparsify(bert()).save_pretrained(tmp_path)
    return tmp_path


def trained(kind: str) -> nn.Module:
    """A sparse model after two steps: its pruned part is not zero."""
    model = hf_nm.sparsify(MODELS[kind]())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hf_nm.attach(optimizer, model)
    for step in range(2):
        model(**batch(model, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_opens_in_plain_transformers(tmp_path: Path) -> None:
    """Red if the saved weights are not those that the model computes with."""
    expected, arguments = {}, []
    for kind in MODELS:
        model, saved = trained(kind), tmp_path / kind
        model.save_pretrained(saved)
        inputs = batch(model)
        torch.save(inputs, saved / "inputs.pt")
        with torch.no_grad():
            expected[str(saved)] = model(**inputs).logits
        arguments += [str(saved), AUTO[kind]]
    run_python("-I", "-c", OPEN_PLAIN, tmp_path / "logits.pt", *arguments)
    logits = torch.load(tmp_path / "logits.pt")
    for name, values in expected.items():
        assert torch.equal(logits[name], values), name


@pytest.mark.parametrize("kind", list(MODELS))
def test_verify_passes(kind: str, tmp_path: Path) -> None:
    """Red if verify does not find what was saved, in one file, in shards or in a model."""
    model = trained(kind)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    loaded = type(model).from_pretrained(tmp_path / "whole")
    rows = [hf_nm.verify(model).layers]
    rows += [hf_nm.verify(tmp_path / "whole").layers, hf_nm.verify(str(tmp_path / "shards")).layers]
    rows += [hf_nm.verify(loaded).layers, hf_nm.verify(hf_nm.restore(loaded)).layers]
    rows += [hf_nm.verify(hf_nm.finalize(model)).layers]
    for row in rows[0]:
        assert row.kept == row.shape[0] * row.shape[1] // 2
    for others in rows[1:]:
        assert sorted(others) == sorted(rows[0])


def test_verify_counts_what_is_there(tmp_path: Path) -> None:
    """Red if kept is taken from the claim instead of the weights."""
    model = hf_nm.sparsify(bert(), patterns={WEIGHT: "1:8"})
    with hf_nm.dense_weights(model), torch.no_grad():
        model.get_parameter(WEIGHT)[0].zero_()
    model.save_pretrained(tmp_path)
    for report in (hf_nm.verify(model), hf_nm.verify(tmp_path)):
        row = next(row for row in report.layers if row.name == WEIGHT)
        assert (str(row.pattern), row.shape, row.kept) == ("1:8", (64, 32), 63 * 4)
        assert {row.reason for row in report.skipped} == {"not claimed to be N:M"}
        assert "classifier.weight" in {row.name for row in report.skipped}
        assert len(report.layers) == 12


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a folder with one safetensors file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))


def break_group(tensors: dict[str, torch.Tensor]) -> None:
    tensors[WEIGHT][7, 12:16] = torch.tensor([1.0, float("nan"), 0.0, -2.0])


GROUP = rf"{WEIGHT} is not 2:4: group 3 of row \[7\] holds 3 non-zero entries where 2 of 4 are "
GROUP += r"allowed \(1 of 512 groups"


def test_one_broken_group_in_a_folder(folder: Path) -> None:
    """Red if one group of 4,096 goes unnoticed, a NaN passes for zero, or another place is named."""
    edit_weights(folder, break_group)
    with pytest.raises(hf_nm.BrokenPatternError, match=GROUP):
        hf_nm.verify(folder)


def test_one_broken_group_in_a_shard(tmp_path: Path) -> None:
    hf_nm.sparsify(bert()).save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / index["weight_map"][WEIGHT]
    tensors = load_file(shard)
    break_group(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(hf_nm.BrokenPatternError, match=GROUP):
        hf_nm.verify(tmp_path)


@pytest.mark.skipif(not VIT_IS_RENAMED, reason="ViT's other names need transformers >= 5.9")
def test_one_broken_group_under_another_name(tmp_path: Path) -> None:
    """Red if a model that is saved under other names than its parameters' is not really read."""
    model = hf_nm.sparsify(vit())
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        name = next(name for name in file.keys() if name.endswith("1.intermediate.dense.weight"))  # noqa: SIM118
    assert name not in dict(model.named_parameters())
    edit_weights(tmp_path, lambda tensors: tensors[name].fill_(1.0))
    with pytest.raises(
        hf_nm.BrokenPatternError, match=r"vit\.layers\.1\.mlp\.fc1\.weight is not 2:4"
    ):
        hf_nm.verify(tmp_path)


@pytest.mark.parametrize("finalized", [False, True])
def test_one_broken_group_in_a_model(finalized: bool) -> None:
    model = hf_nm.sparsify(bert())
    if finalized:
        hf_nm.finalize(model)
    with torch.no_grad():
        break_group({WEIGHT: model.get_parameter(WEIGHT)})
    with pytest.raises(hf_nm.BrokenPatternError, match=GROUP):
        hf_nm.verify(model)


def test_broken_weights_are_not_saved(tmp_path: Path) -> None:
    """Red if a checkpoint with a manifest can hold dense weights."""
    model = hf_nm.sparsify(bert())
    with torch.no_grad():
        break_group({WEIGHT: model.get_parameter(WEIGHT)})
    with pytest.raises(
        hf_nm.BrokenPatternError, match=rf"{WEIGHT} is not 2:4 .*, so it is not saved"
    ):
        model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=rf"first: {WEIGHT}"), hf_nm.dense_weights(model):
        pass
    model.save_pretrained(tmp_path)
    hf_nm.verify(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 100, 20_000])
def test_truncated_file(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        hf_nm.verify(folder)


def test_something_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no folder .*nowhere"):
        hf_nm.verify(tmp_path / "nowhere")
    (folder / "model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"model\.bin has no config\.json"):
        hf_nm.verify(folder / "model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        hf_nm.verify(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        hf_nm.verify(folder)


def test_missing_shard(tmp_path: Path) -> None:
    hf_nm.sparsify(bert()).save_pretrained(tmp_path, max_shard_size="20KB")
    next(tmp_path.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-.* is missing"):
        hf_nm.verify(tmp_path)


@pytest.mark.parametrize(
    "weight_map",
    [
        *(None, ["model.safetensors"], {"a": 1}, {"a": "../config.json"}, {"a": "/etc/passwd"}),
        *({"a": ".."}, {"a": ""}, {"a": "\x1b[2Jx.safetensors"}, {"a": "pytorch_model.bin"}),
    ],
)
def test_bad_index(folder: Path, weight_map: Any) -> None:
    """Red if an index can point outside its folder."""
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()  # which transformers, and verify, would rather read
    with pytest.raises(ValueError, match="not an index of files in its own folder"):
        hf_nm.verify(folder)


def test_missing_weight(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(WEIGHT))
    with pytest.raises(ValueError, match=rf"1 weights claimed to be N:M .* \(first: {WEIGHT}\)"):
        hf_nm.verify(folder)


@pytest.mark.skipif(not VIT_IS_RENAMED, reason="ViT's other names need transformers >= 5.9")
def test_missing_weight_under_another_name(tmp_path: Path) -> None:
    """Red if a weight that transformers makes up for a missing one is taken for the checkpoint's."""
    hf_nm.sparsify(vit()).save_pretrained(tmp_path)
    edit_weights(
        tmp_path,
        lambda tensors: [
            tensors.pop(n) for n in list(tensors) if n.endswith("1.output.dense.weight")
        ],
    )
    with pytest.raises(ValueError, match=r"1 weights claimed .* \(first: vit\.layers\.1\.mlp\.fc2"):
        hf_nm.verify(tmp_path)


def test_wrong_names(folder: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        modules = config["nm_sparsity"]["modules"]
        config["nm_sparsity"]["modules"] = {f"gpt.h.{name}": modules[name] for name in modules}

    edit_json(folder / "config.json", rename)
    with pytest.raises(
        ValueError, match=r"12 weights claimed to be N:M are not there \(first: gpt\.h"
    ):
        hf_nm.verify(folder)


@pytest.mark.parametrize("architectures", [None, [], ["os"], ["torch"], ["Trainer"], "x", [3]])
def test_wrong_names_and_unknown_architecture(folder: Path, architectures: Any) -> None:
    """Red if a name in a config can reach anything but a model class of transformers."""

    def change(config: dict[str, Any]) -> None:
        config["architectures"] = architectures
        config["nm_sparsity"]["modules"]["x.weight"] = "2:4"

    edit_json(folder / "config.json", change)
    with pytest.raises(ValueError, match=r"1 weights claimed .* \(first: x\.weight\)"):
        hf_nm.verify(folder)


def test_architecture_that_does_not_fit(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["architectures"] = ["LlamaForCausalLM"]
        config["hidden_size"] = 30
        config["nm_sparsity"]["modules"]["x.weight"] = "2:4"

    edit_json(folder / "config.json", change)
    # Configs of transformers 5.0 do not look at their sizes: the weights are missed instead.
    refusals = r"transformers cannot load .* as a LlamaForCausalLM|weights claimed .* are not there"
    with pytest.raises(ValueError, match=refusals):
        hf_nm.verify(folder)


def test_pattern_that_does_not_fit(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["nm_sparsity"]["modules"][WEIGHT] = "3:7"

    edit_json(folder / "config.json", change)
    with pytest.raises(ValueError, match=rf"{WEIGHT}.*3:7"):
        hf_nm.verify(folder)


def test_claim_on_what_is_no_matrix(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["nm_sparsity"]["modules"]["classifier.bias"] = "2:4"

    edit_json(folder / "config.json", change)
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        hf_nm.verify(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no 'nm_sparsity'"),
        ('{"nm_sparsity": null}', "has no 'nm_sparsity'"),
        ('{"nm_sparsity": []}', "must be an object"),
        ('{"nm_sparsity": {"version": 3}}', "version 3"),
    ],
)
def test_bad_config(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        hf_nm.verify(folder)


def test_config_that_is_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not valid JSON"):
        hf_nm.verify(folder)


def test_model_that_claims_nothing() -> None:
    for model in (bert(), mlp(16, 8)):
        with pytest.raises(ValueError, match="nothing claims to be N:M"):
            hf_nm.verify(model)


def test_saved_by_state_dict_alone(tmp_path: Path) -> None:
    """Red if a plain ``torch.save(model.state_dict())`` is not the sparse checkpoint."""
    model, plain = hf_nm.sparsify(llama()), llama()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    plain.load_state_dict(torch.load(tmp_path / "weights.pt"))
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(plain.get_parameter(w.name), w.weight)


def test_config_survives_loading_and_saving_again(tmp_path: Path) -> None:
    """Red if plain transformers drops the manifest on the way."""
    model = hf_nm.sparsify(llama())
    model.save_pretrained(tmp_path / "first")
    loaded = type(model).from_pretrained(tmp_path / "first")
    assert loaded.config.nm_sparsity == model.config.nm_sparsity
    loaded.save_pretrained(tmp_path / "second")
    assert hf_nm.verify(tmp_path / "second").layers == hf_nm.verify(tmp_path / "first").layers


def test_half_precision(tmp_path: Path) -> None:
    model = hf_nm.sparsify(llama()).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    hf_nm.verify(tmp_path)
    hf_nm.restore(loaded)
    for w, other in zip(hf_nm.sparse_weights(loaded), hf_nm.sparse_weights(model), strict=True):
        assert torch.equal(w.weight, other.weight)
        assert w.weight.dtype == torch.bfloat16
