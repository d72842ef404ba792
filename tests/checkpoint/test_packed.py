"""Packed folders: smaller, complete, and back again byte for byte."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MODELS, VIT_IS_RENAMED, bert, llama, vit
from safetensors.torch import load_file, save_file
from tolerances import assert_same_bits
from torch import Tensor

import hf_nm
from hf_nm.formats.safetensors_file import TensorFile
from hf_nm.sparsity.mask import MASKABLE_DTYPES

WEIGHT = "bert.encoder.layer.1.intermediate.dense.weight"
PACKED = "model.nm_packed.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sparse BERT with a tokenizer's file and a folder beside it."""
    plain = tmp_path / "plain"
    hf_nm.sparsify(bert()).save_pretrained(plain)
    (plain / "tokenizer.json").write_text('{"a": 1}')
    (plain / "assets").mkdir()
    (plain / "assets" / "card.md").write_text("a card")
    return plain


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rewrite(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a plain folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_there_and_back(kind: str, shards: str | None, tmp_path: Path) -> None:
    """Red if a byte of any file differs, or the packed folder lacks one."""
    model = hf_nm.sparsify(MODELS[kind](), 1, 4, patterns={"*0*": "2:4"})
    model.save_pretrained(tmp_path / "a", max_shard_size=shards or "5GB")
    assert hf_nm.pack(tmp_path / "a", tmp_path / "b") == tmp_path / "b"
    names = set(contents(tmp_path / "b"))
    assert {name.replace(".nm_packed", "") for name in names} == set(contents(tmp_path / "a"))
    plain = {name for name in names if "nm_packed" not in name}
    assert plain <= {"config.json", "generation_config.json"}
    hf_nm.unpack(str(tmp_path / "b"), str(tmp_path / "c"))
    assert contents(tmp_path / "c") == contents(tmp_path / "a")
    claimed = hf_nm.verify(tmp_path / "a").layers
    assert sorted(hf_nm.verify(tmp_path / "b").layers) == sorted(claimed)


def test_other_files_come_along(folder: Path, tmp_path: Path) -> None:
    """Red if a tokenizer stays behind, or the weights come along a second time."""
    (folder / "pytorch_model.bin").touch()
    hf_nm.pack(folder, tmp_path / "b")
    assert set(contents(tmp_path / "b")) == {
        "config.json",
        PACKED,
        "tokenizer.json",
        "assets/card.md",
    }
    hf_nm.unpack(tmp_path / "b", tmp_path / "c")
    (folder / "pytorch_model.bin").unlink()
    assert contents(tmp_path / "c") == contents(folder)


def test_size(tmp_path: Path) -> None:
    """Red if 2:4 weights in bf16 take more than 0.57 of the dense file."""
    model = hf_nm.sparsify(llama(hidden_size=256, intermediate_size=1024, num_hidden_layers=4))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "a")
    hf_nm.pack(tmp_path / "a", tmp_path / "b")
    with (
        TensorFile(tmp_path / "a" / "model.safetensors") as dense,
        TensorFile(tmp_path / "b" / PACKED) as packed,
    ):
        names = [w.name for w in hf_nm.sparse_weights(model)]
        sizes = [sum(file.entries[name].size for name in names) for file in (dense, packed)]
    assert sizes[1] / sizes[0] < 0.57
    files = [os.path.getsize(tmp_path / "a" / "model.safetensors")]
    files.append(os.path.getsize(tmp_path / "b" / PACKED))
    assert files[1] / files[0] < 0.57


def plain_folder(
    folder: Path, tensors: dict[str, Tensor], claims: dict[str, tuple[str, int]]
) -> None:
    """A published folder of any tensors."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = {
        "version": 1,
        "n": 2,
        "m": 4,
        "method": "sr-ste",
        "decay": 2e-4,
        "modules": {name: pattern for name, (pattern, _) in claims.items()},
        "hf_nm": "0.1.0",
        "dims": {name: dim for name, (_, dim) in claims.items()},
    }
    (folder / "config.json").write_text(json.dumps({"nm_sparsity": manifest}, indent=2) + "\n")


@pytest.mark.parametrize(
    "dtype",
    sorted(MASKABLE_DTYPES, key=str),
    ids=str,
)
def test_any_weight_in_any_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """Red if a layout of weights, a dtype or an odd value does not survive; read by safetensors."""
    claims = {
        "linear": ("2:4", -1),
        "conv1d": ("1:4", -2),
        "experts": ("1:3", -2),
        "kernel": ("1:6", -3),
    }
    shapes = {
        "linear": (64, 64),
        "conv1d": (64, 48),
        "experts": (4, 24, 40),
        "kernel": (16, 12, 3, 3),
    }
    tensors = {"other.bias": torch.randn(7), "ids": torch.arange(5), "flag": torch.tensor([True])}
    for name, (pattern, dim) in claims.items():
        n, m = (int(number) for number in pattern.split(":"))
        weight = torch.randn(shapes[name])
        weight.view(-1)[:4] = torch.tensor([float("nan"), -0.0, 1e-5, float("-inf")])
        mask = hf_nm.nm_mask(weight, n, m, dim)
        weight[weight.abs() < 0.3] = 0  # some groups have fewer than n
        # selected, not multiplied: a pruned entry is zero in every bit
        tensors[name] = torch.where(mask, weight, 0.0).to(dtype)
    plain_folder(tmp_path / "a", tensors, claims)
    hf_nm.pack(tmp_path / "a", tmp_path / "b")
    with TensorFile(tmp_path / "b" / PACKED) as file:
        assert {name for name, entry in file.entries.items() if entry.dtype == "U8"} == set(claims)
    hf_nm.unpack(tmp_path / "b", tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "a")
    for name, tensor in load_file(tmp_path / "c" / "model.safetensors").items():
        assert_same_bits(tensor, tensors[name], name)
    assert hf_nm.verify(tmp_path / "b").layers == hf_nm.verify(tmp_path / "a").layers


def test_what_cannot_be_packed_stays(folder: Path, tmp_path: Path) -> None:
    """Red if a minus zero is lost, or a weight grows."""

    def minus_zeros(tensors: dict[str, Tensor]) -> None:
        weight = tensors[WEIGHT]
        weight[weight == 0] = -0.0

    rewrite(folder, minus_zeros)
    hf_nm.pack(folder, tmp_path / "b")
    with TensorFile(tmp_path / "b" / PACKED) as file:
        assert file.entries[WEIGHT].dtype == "F32"
        assert sum(entry.dtype == "U8" for entry in file.entries.values()) == 11
    assert hf_nm.verify(tmp_path / "b").layers == hf_nm.verify(folder).layers
    hf_nm.unpack(tmp_path / "b", tmp_path / "c")
    assert contents(tmp_path / "c") == contents(folder)


def test_names_that_only_transformers_knows(tmp_path: Path) -> None:
    """Red if a model that is saved under other names stays dense, or is not checked."""
    hf_nm.sparsify(vit()).save_pretrained(tmp_path / "a")
    hf_nm.pack(tmp_path / "a", tmp_path / "b")
    with TensorFile(tmp_path / "b" / PACKED) as file:
        assert sum(entry.dtype == "U8" for entry in file.entries.values()) == 12

    def dense(tensors: dict[str, Tensor]) -> None:
        name = next(n for n in tensors if n.endswith("1.intermediate.dense.weight"))
        tensors[name].fill_(1.0)

    rewrite(tmp_path / "a", dense)
    name = "vit.layers.1.mlp.fc1" if VIT_IS_RENAMED else "vit.encoder.layer.1.intermediate.dense"
    with pytest.raises(hf_nm.BrokenPatternError, match=re.escape(f"{name}.weight")):
        hf_nm.pack(tmp_path / "a", tmp_path / "c")


def test_broken_weights_are_not_packed(folder: Path, tmp_path: Path) -> None:
    """Red if weights that break their pattern get a packed form, or something of it stays behind."""
    rewrite(folder, lambda tensors: tensors[WEIGHT][0, :4].fill_(1.0))
    with pytest.raises(hf_nm.BrokenPatternError, match=WEIGHT):
        hf_nm.pack(folder, tmp_path / "b")
    assert os.listdir(tmp_path) == ["plain"]


def test_interrupted(folder: Path, tmp_path: Path) -> None:
    """Red if Ctrl-C leaves a half-written folder, or takes the old one away."""
    hf_nm.pack(folder, tmp_path / "b")
    before = contents(tmp_path / "b")

    for job, source in ((hf_nm.pack, folder), (hf_nm.unpack, tmp_path / "b")):
        doing = set[str]()

        def press(done: int, total: int, what: str, seen: set[str] = doing) -> None:
            seen.add(what)
            if what in ("packing", "unpacking") and done > 0.8 * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job(source, tmp_path / "c", progress=press)
        assert len(doing) == 2
        other = tmp_path / "b" if job is hf_nm.pack else folder
        with pytest.raises(KeyboardInterrupt):
            job(source, other, progress=press, overwrite=True)
        assert sorted(os.listdir(tmp_path)) == ["b", "plain"]
    assert contents(tmp_path / "b") == before
    hf_nm.verify(folder)


def test_progress(folder: Path, tmp_path: Path) -> None:
    """Red if a progress bar would run backwards, or not to its end."""
    for job, source, destination in (
        (hf_nm.pack, folder, "b"),
        (hf_nm.unpack, tmp_path / "b", "c"),
    ):
        calls = list[tuple[int, int, str]]()
        job(source, tmp_path / destination, progress=lambda *call, seen=calls: seen.append(call))
        assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
        assert calls[-1][0] == calls[-1][1]
        assert len({total for _, total, _ in calls}) == 1
    for source in (folder, tmp_path / "b"):
        calls.clear()
        hf_nm.verify(source, progress=lambda *call, seen=calls: seen.append(call))
        assert calls[-1][0] == calls[-1][1]


def test_destinations(folder: Path, tmp_path: Path) -> None:
    """Red if something that is there is overwritten unasked, or anything but a model's folder is."""
    hf_nm.pack(folder, tmp_path / "b")
    with pytest.raises(FileExistsError, match=r"not empty; choose another folder, or .*overwrite"):
        hf_nm.pack(folder, tmp_path / "b")
    hf_nm.pack(folder, tmp_path / "b", overwrite=True)
    (tmp_path / "home").mkdir()
    hf_nm.pack(folder, tmp_path / "home")  # empty
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not a model's folder"):
        hf_nm.unpack(tmp_path / "b", tmp_path / "mine", overwrite=True)
    for destination in (folder, folder / "inside", tmp_path):
        with pytest.raises(ValueError, match="must lie apart"):
            hf_nm.pack(folder, destination, overwrite=True)
    hf_nm.pack(folder, tmp_path / "deep" / "er")
    assert sorted(os.listdir(tmp_path)) == ["b", "deep", "home", "mine", "plain"]


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    hf_nm.pack(folder, tmp_path / "b")
    with pytest.raises(ValueError, match=r"packed already; unpack it with hf_nm\.unpack"):
        hf_nm.pack(tmp_path / "b", tmp_path / "c")
    with pytest.raises(ValueError, match="is not packed"):
        hf_nm.unpack(folder, tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="found no folder"):
        hf_nm.pack(tmp_path / "nowhere", tmp_path / "c")
    for key, value, message in (
        ("quantization_config", {"quant_method": "bitsandbytes"}, "is quantized"),
        ("transformers_weights", "other.safetensors", "keeps its weights in"),
    ):
        edit_config(folder, lambda config, k=key, v=value: config.update({k: v}))
        with pytest.raises(ValueError, match=message):
            hf_nm.pack(folder, tmp_path / "c")
        edit_config(folder, lambda config, k=key: config.pop(k))
    edit_config(folder, lambda config: config.pop("nm_sparsity"))
    with pytest.raises(ValueError, match="nothing claims to be N:M"):
        hf_nm.pack(folder, tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["b", "plain"]


def test_a_tensor_that_looks_packed(tmp_path: Path) -> None:
    """Red if bytes of a plain checkpoint would be taken for a packed weight."""
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0]]).repeat(64, 4)
    looks = torch.tensor(list(b"nm_pack1" + bytes(8)), dtype=torch.uint8)
    plain_folder(tmp_path / "a", {"w": weight, "x": looks}, {"w": ("2:4", -1)})
    with pytest.raises(ValueError, match="packed already"):
        hf_nm.pack(tmp_path / "a", tmp_path / "b")


def test_missing_shard(tmp_path: Path) -> None:
    hf_nm.sparsify(bert()).save_pretrained(tmp_path / "a", max_shard_size="20KB")
    hf_nm.pack(tmp_path / "a", tmp_path / "b")
    next((tmp_path / "b").glob("*-00002-of-*")).unlink()
    for job in (hf_nm.verify, lambda path: hf_nm.unpack(path, tmp_path / "c")):
        with pytest.raises(FileNotFoundError, match=r"00002-of-.* is missing"):
            job(tmp_path / "b")


def test_shards_of_two_models(tmp_path: Path) -> None:
    """Red if a shard of another checkpoint passes, whole as it is."""
    for name, change in (("a", 1.0), ("b", 2.0)):
        model = hf_nm.sparsify(bert())
        with torch.no_grad():
            model.get_parameter(WEIGHT).mul_(change)
        model.save_pretrained(tmp_path / name, max_shard_size="20KB")
        hf_nm.pack(tmp_path / name, tmp_path / f"{name}p")
    shard = json.loads((tmp_path / "ap" / "model.nm_packed.safetensors.index.json").read_text())
    file = shard["weight_map"][WEIGHT]
    (tmp_path / "ap" / file).write_bytes((tmp_path / "bp" / file).read_bytes())
    for job in (hf_nm.verify, hf_nm.load_packed, lambda path: hf_nm.unpack(path, tmp_path / "c")):
        with pytest.raises(hf_nm.PackedError, match=rf"{file} is not the file that config\.json"):
            job(tmp_path / "ap")
