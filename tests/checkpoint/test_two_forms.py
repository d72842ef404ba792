"""Folders and repositories that hold weights in two forms: which are read, and which are left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from models import llama
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import hf_nm
from hf_nm.formats.folder import packed_name, plain_name

WEIGHT = "model.layers.0.mlp.up_proj.weight"


def saved(folder: Path, *, sparse: bool = True, **options) -> Path:
    model = hf_nm.sparsify(llama()) if sparse else llama()
    model.save_pretrained(folder, **options)
    return folder


def test_a_stale_file_in_a_packed_folder(tmp_path: Path) -> None:
    """Red if unpack puts an unchecked file in the place of what it checked."""
    hf_nm.pack(saved(tmp_path / "sparse"), tmp_path / "packed")
    dense = saved(tmp_path / "dense", sparse=False) / "model.safetensors"
    (tmp_path / "packed" / "model.safetensors").write_bytes(dense.read_bytes())
    hf_nm.unpack(tmp_path / "packed", tmp_path / "plain")
    expected = load_file(tmp_path / "sparse" / "model.safetensors")
    found = load_file(tmp_path / "plain" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_file_saved_over_shards(tmp_path: Path) -> None:
    """transformers reads the single file, and leaves the shards' index behind. Red if verify or pack
    looks at what nobody loads."""
    folder = saved(tmp_path / "both", max_shard_size="20KB")
    saved(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(hf_nm.verify(folder).layers) == 14
    hf_nm.pack(folder, tmp_path / "packed")
    loaded = hf_nm.load_packed(tmp_path / "packed")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.get_parameter(WEIGHT), plain.get_parameter(WEIGHT))
    saved(folder, sparse=False)
    config = json.loads((folder / "config.json").read_text())
    manifest = hf_nm.sparsify(llama()).config.nm_sparsity
    (folder / "config.json").write_text(json.dumps(config | {"nm_sparsity": manifest}))
    with pytest.raises(hf_nm.BrokenPatternError):
        hf_nm.verify(folder)


def test_a_repository_holds_the_last_push_only(tmp_path: Path, hub: HubServer) -> None:
    """Shards, then one file, then packed. Red if weights of an earlier push stay beside the new ones, or
    the card of a packed model says that transformers alone reads it."""
    from huggingface_hub import HfApi, hf_hub_download

    shards = saved(tmp_path / "shards", max_shard_size="20KB")
    whole = saved(tmp_path / "whole")
    packed = hf_nm.pack(whole, tmp_path / "packed")
    for folder in (shards, whole, packed):
        hf_nm.push_to_hub(folder, "alice/forms")
        there = {name for name in HfApi().list_repo_files("alice/forms") if "safetensors" in name}
        assert there == {path.name for path in folder.glob("*safetensors*")}
        card = Path(hf_hub_download("alice/forms", "README.md")).read_text()
        assert ("import hf_nm" in card) is (folder == packed)
        assert ("Nothing but transformers is needed" in card) is (folder != packed)


def test_names() -> None:
    """Red if two packed files can get one plain name."""
    for name in ("model.safetensors", "model-00001-of-00002.safetensors"):
        assert plain_name(packed_name(name)) == name
    assert plain_name(packed_name(packed_name("m.safetensors"))) == packed_name("m.safetensors")


def test_what_stays_here(tmp_path: Path, hub: HubServer) -> None:
    """Red if a push takes pickles, secrets, dense weights in another form or what only resuming needs,
    from whatever folder."""
    from huggingface_hub import HfApi

    folder = saved(tmp_path / "run")
    for name in (
        *("tokenizer.json", ".env", "pytorch_model.bin", "evil.pkl", "optimizer_0/x.distcp"),
        *("last/optimizer.pt", "sub/training_args.bin", "1_Pooling/config.json"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    hf_nm.push_to_hub(folder, "alice/clean")
    pushed = set(HfApi().list_repo_files("alice/clean")) - {".gitattributes", "README.md"}
    kept = {"config.json", "generation_config.json", "model.safetensors"}
    assert pushed == kept | {"tokenizer.json", "1_Pooling/config.json"}
