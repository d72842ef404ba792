"""What else verify takes: one file, a manifest of one's own, a model on the Hub; and that it reads large
files piece by piece."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from launching import run_python
from models import VIT_IS_RENAMED, bert, vit
from safetensors.torch import load_file, save_file

import hf_nm
from hf_nm.sparsity.check import PieceCheck, check_pattern

WEIGHT = "bert.encoder.layer.1.intermediate.dense.weight"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Run by another Python: how much memory verify takes beyond what the process had.
PEAK = """
import sys, hf_nm
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
for folder in sys.argv[1:]:
    assert len(hf_nm.verify(folder).layers) == 2
    print(peak() - before)
    import transformers.models.vit.modeling_vit
    before = peak()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf_nm.sparsify(bert()).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def break_group(file: Path) -> None:
    tensors = load_file(file)
    tensors[WEIGHT][7, 12:16] = torch.tensor([1.0, float("nan"), 0.0, -2.0])
    save_file(tensors, file, metadata={"format": "pt"})


def test_one_file(folder: Path, tmp_path: Path) -> None:
    """Red if a file alone is not checked against the config beside it."""
    file = folder / "model.safetensors"
    rows = hf_nm.verify(folder).layers
    assert hf_nm.verify(file).layers == rows
    packed = hf_nm.pack(folder, tmp_path / "packed") / "model.nm_packed.safetensors"
    assert hf_nm.verify(packed).layers == rows
    break_group(file)
    with pytest.raises(hf_nm.BrokenPatternError, match=WEIGHT):
        hf_nm.verify(file)


def test_one_file_of_several(tmp_path: Path) -> None:
    """Red if a shard is blamed for what lies in the others."""
    model = hf_nm.sparsify(bert())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    rows = []
    for file in sorted(tmp_path.glob("*.safetensors")):
        with_claims = set(load_file(file)) & set(model.config.nm_sparsity["modules"])
        if with_claims:
            rows += hf_nm.verify(file).layers
        else:
            with pytest.raises(ValueError, match="holds none of the 12 weights"):
                hf_nm.verify(file)
    assert sorted(rows) == sorted(hf_nm.verify(tmp_path).layers)


def test_one_file_without_a_config(folder: Path, tmp_path: Path) -> None:
    """Red if a claim that is passed is ignored, or what a packed file says of itself."""
    manifest = json.loads((folder / "config.json").read_text())["nm_sparsity"]
    rows = hf_nm.verify(folder).layers
    packed = hf_nm.pack(folder, tmp_path / "packed")
    for source in (folder / "model.safetensors", packed / "model.nm_packed.safetensors"):
        alone = tmp_path / f"alone-{source.name}"
        shutil.copy(source, alone)
        assert sorted(hf_nm.verify(alone, manifest=manifest).layers) == sorted(rows)
    assert sorted(hf_nm.verify(alone).layers) == sorted(rows)
    with pytest.raises(ValueError, match="nothing claims to be N:M"):
        hf_nm.verify(tmp_path / "alone-model.safetensors")
    wrong = manifest | {"modules": {WEIGHT: "1:4"}}
    with pytest.raises(hf_nm.BrokenPatternError, match=rf"{WEIGHT} is not 1:4"):
        hf_nm.verify(tmp_path / "alone-model.safetensors", manifest=wrong)
    with pytest.raises(hf_nm.BrokenPatternError, match=rf"{WEIGHT} is not 1:4"):
        hf_nm.verify(folder, manifest=wrong)
    model = hf_nm.finalize(hf_nm.sparsify(bert()))
    with pytest.raises(hf_nm.BrokenPatternError, match=rf"{WEIGHT} is not 1:4"):
        hf_nm.verify(model, manifest=wrong)


def cached(cache: Path, name: str, source: Path) -> None:
    """Put a folder into a Hub cache, as a download of its main branch leaves it."""
    root = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)


def test_models_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a name is not looked up, if files other than those needed are asked for, or if being
    offline is not said. (Offline, from the cache.)"""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    shards = tmp_path / "shards"
    hf_nm.sparsify(bert()).save_pretrained(shards, max_shard_size="20KB")
    sources = {
        "org/plain": folder,
        "org/shards": shards,
        "packed": hf_nm.pack(folder, tmp_path / "packed"),
        "org/packed.shards": hf_nm.pack(shards, tmp_path / "packed-shards"),
    }
    rows = hf_nm.verify(folder).layers
    for name, source in sources.items():
        cached(tmp_path / "cache", name, source)
        monkeypatch.chdir(tmp_path / "cache")
        assert sorted(hf_nm.verify(name).layers) == sorted(rows)
        assert sorted(hf_nm.verify(name, revision=COMMIT).layers) == sorted(rows)
        assert sorted(hf_nm.verify(name, revision="main", token=False).layers) == sorted(rows)
    with pytest.raises(LocalEntryNotFoundError) as raised:
        hf_nm.verify("org/nowhere")
    assert "found no folder 'org/nowhere'" in "".join(raised.value.__notes__)
    with pytest.raises(LocalEntryNotFoundError):
        hf_nm.verify("org/plain", revision="other")
    root = tmp_path / "cache" / "models--org--plain" / "snapshots" / COMMIT
    (root / "model.safetensors").unlink()
    with pytest.raises(LocalEntryNotFoundError):
        hf_nm.verify("org/plain")
    for path in ("/no/where", "./nowhere", "a/b/c", str(tmp_path / "nowhere"), "../x"):
        with pytest.raises(FileNotFoundError, match="found no folder"):
            hf_nm.verify(path)


def test_a_name_on_disk_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert len(hf_nm.verify("plain").layers) == 12


def huge(
    folder: Path, model: Any, claims: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> str:
    """A published folder with two weights of 128 MiB: zeros, which nobody holds or writes."""
    folder.mkdir()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    manifest = {"version": 1, "n": 2, "m": 4, "method": "sr-ste", "decay": 0.0, "hf_nm": "0"}
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    config |= {"nm_sparsity": manifest | {"modules": claims}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_only_pieces_are_in_memory(tmp_path: Path) -> None:
    """Red if the weights of a folder are read whole, or all at once: 256 MiB in two."""
    shapes: dict[str, tuple[int, ...]] = {f"w{i}": (1, 1 << 26) for i in range(2)}
    named = huge(tmp_path / "named", bert(), dict.fromkeys(shapes, "2:4"), shapes)
    # Saved under other names than the parameters'.
    shapes = {
        "vit.encoder.layer.0.intermediate.dense.weight": (1 << 21, 32),
        "vit.encoder.layer.0.output.dense.weight": (32, 1 << 21),
    }
    claims = {f"vit.layers.0.mlp.fc{i}.weight": "2:4" for i in (1, 2)}
    if not VIT_IS_RENAMED:
        claims = dict.fromkeys(shapes, "2:4")
    model = vit(num_hidden_layers=1)
    model.config.intermediate_size = 1 << 21
    renamed = huge(tmp_path / "renamed", model, claims, shapes)
    done = run_python("-c", PEAK, named, renamed)
    first, second = (float(line) for line in done.stdout.split())
    assert first < 80  # of 256
    assert second < 160  # most of it is transformers


@pytest.mark.parametrize(
    ("shape", "dim"), [((6, 16), -1), ((8, 5), -2), ((3, 8, 7), -2), ((4, 12, 3, 3), -3)]
)
def test_pieces_find_what_the_whole_shows(shape: tuple[int, ...], dim: int) -> None:
    """Red if the group that is named, or a count, depends on how a weight is read."""
    pattern = hf_nm.NMPattern(2, 4)
    weight = torch.randn(shape)
    weight = torch.where(hf_nm.nm_mask(weight, 2, 4, dim), weight, -0.0)
    inner = weight[0].numel() // weight.shape[dim] if dim + len(shape) else weight.shape[-1]
    unit = 4 * (1 if dim == -1 else inner)

    def pieces(length: int) -> int:
        check = PieceCheck("w", shape, weight.dtype, pattern, dim)
        bits = weight.view(torch.int32).view(-1)
        for start in range(0, bits.numel(), length):
            check.add(bits[start : start + length])
        return check.result()

    kept = check_pattern("w", weight, pattern, dim)
    assert pieces(unit) == pieces(2 * unit) == kept == weight.count_nonzero()
    rows = weight.movedim(dim, -1).unflatten(-1, (-1, 4))
    rows[..., 0, 1, :] = 1.0  # named first, though it lies behind the next where dim is not last
    rows[..., 1, 0, :3] = float("nan")
    for length in 4 * [unit, 2 * unit]:
        with pytest.raises(hf_nm.BrokenPatternError) as whole:
            check_pattern("w", weight, pattern, dim)
        with pytest.raises(hf_nm.BrokenPatternError) as piece:
            pieces(length)
        assert str(whole.value) == str(piece.value)
        weight.view(-1)[torch.randint(weight.numel(), (6,))] = float("nan")
