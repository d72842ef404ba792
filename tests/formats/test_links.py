"""Links in folders that are packed, pruned and pushed: what is read through them, and what is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer
from models import llama

import hf_nm
from hf_nm.checkpoint.prune import prune


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    hf_nm.sparsify(llama()).save_pretrained(path)
    (path / "inside").mkdir()
    (path / "inside" / "notes.txt").write_text("mine")
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "secret.txt"
    path.parent.mkdir()
    path.write_text("a secret")
    return path


def packed(folder: Path) -> Path:
    return hf_nm.pack(folder, folder.parent / "packed")


def unpacked(folder: Path) -> Path:
    """Of the packed folder, with the links of the plain one."""
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    targets = {path: os.readlink(path) for path in links}
    for path in links:
        path.unlink()
    hf_nm.pack(folder, folder.parent / "packed")
    for path, target in targets.items():
        (folder.parent / "packed" / path.relative_to(folder)).symlink_to(target)
    return hf_nm.unpack(folder.parent / "packed", folder.parent / "unpacked")


def pruned(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config.pop("nm_sparsity")
    (folder / "config.json").write_text(json.dumps(config))
    prune(folder, folder.parent / "pruned")
    return folder.parent / "pruned"


def pushed(folder: Path) -> Path:
    from huggingface_hub import snapshot_download

    hf_nm.push_to_hub(folder, "alice/linked")
    return Path(snapshot_download("alice/linked"))


JOBS: list[Callable[[Path], Path]] = [packed, unpacked, pruned, pushed]


@pytest.mark.parametrize("job", JOBS)
def test_loops_are_not_followed(job, folder: Path, hub: HubServer) -> None:
    """Red if a folder that links to itself is copied into itself again and again."""
    (folder / "loop").symlink_to(".")
    (folder / "inside" / "up").symlink_to("..")
    (folder / "latest").symlink_to("inside")
    written = job(folder)
    names = {path.relative_to(written).as_posix() for path in written.rglob("*")}
    assert "inside/notes.txt" in names
    assert not {name for name in names if "loop" in name or "up" in name or "latest" in name}


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "trainer_state.json", "inside/x"])
@pytest.mark.parametrize("job", JOBS)
def test_files_of_others_are_not_published(
    name: str, job, folder: Path, secret: Path, hub: HubServer
) -> None:
    """Red if a link takes a file from outside of the folder along."""
    (folder / name).symlink_to(secret)
    with pytest.raises(ValueError, match=rf"{name} is a link that leaves") as told:
        job(folder)
    assert str(secret) in str(told.value)
    assert not (folder.parent / job.__name__).exists()


@pytest.mark.parametrize("job", JOBS)
def test_folders_of_others_are_not_published(
    job, folder: Path, secret: Path, hub: HubServer
) -> None:
    (folder / "more").symlink_to(secret.parent)
    with pytest.raises(ValueError, match="more is a link that leaves"):
        job(folder)


@pytest.mark.parametrize("job", JOBS)
def test_a_link_to_nothing_is_named(job, folder: Path, hub: HubServer) -> None:
    """Red if a file that is not there is left out without a word."""
    (folder / "vocab.txt").symlink_to("nowhere.txt")
    with pytest.raises(ValueError, match=r"vocab\.txt is a link to nothing"):
        job(folder)


def test_a_weight_file_that_is_something_else(folder: Path, secret: Path, hub: HubServer) -> None:
    """Red if any file is published that somebody has named like weights."""
    for name in ("model-00001-of-00009.safetensors", "adapter.safetensors"):
        (folder / name).symlink_to(secret)
        with pytest.raises(ValueError, match=r"not a whole safetensors file"):
            hf_nm.push_to_hub(folder, "alice/linked")
        (folder / name).unlink()
    (folder / "inside" / "config.json").symlink_to(secret)
    with pytest.raises(ValueError, match=r"is not valid JSON"):
        hf_nm.push_to_hub(folder, "alice/linked")


@pytest.mark.parametrize("job", JOBS)
def test_weights_on_another_disk(job, folder: Path, tmp_path: Path, hub: HubServer) -> None:
    """Red if weights and config are not read through links, or links inside the folder are refused."""
    if job is unpacked:
        pytest.skip("its files are packed ones: test_packed_weights_on_another_disk")
    away = tmp_path / "disk"
    away.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(away / name)
        (folder / name).symlink_to(away / name)
    (folder / "again.txt").symlink_to("inside/notes.txt")
    if job is pruned:
        (folder / "config.json").unlink()
        (folder / "config.json").write_text((away / "config.json").read_text())
    written = job(folder)
    hf_nm.verify(written)
    assert (written / "again.txt").read_text() == "mine"


def test_packed_weights_on_another_disk(folder: Path, tmp_path: Path) -> None:
    hf_nm.pack(folder, tmp_path / "b")
    file = next((tmp_path / "b").glob("*.safetensors"))
    file.rename(tmp_path / "away.safetensors")
    file.symlink_to(tmp_path / "away.safetensors")
    hf_nm.verify(hf_nm.unpack(tmp_path / "b", tmp_path / "c"))


@pytest.mark.parametrize("job", [packed, pushed])
def test_a_snapshot_of_the_cache(job, folder: Path, tmp_path: Path, hub: HubServer) -> None:
    """A snapshot's files are links to blobs beside it. Red if one is refused, or if a blob's place is
    no condition."""
    repo = tmp_path / "models--alice--m"
    snapshot, blobs = repo / "snapshots" / "0123", repo / "blobs"
    blobs.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    for number, path in enumerate(p for p in sorted(folder.rglob("*")) if p.is_file()):
        path.rename(blobs / str(number))
        there = snapshot / path.relative_to(folder)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(os.path.relpath(blobs / str(number), there.parent))
    written = job(snapshot)
    hf_nm.verify(written)
    assert (written / "tokenizer.json").read_text() == "{}"
    assert (written / "inside" / "notes.txt").read_text() == "mine"
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("x")
    (snapshot / "other").symlink_to("../../refs/main")
    with pytest.raises(ValueError, match="other is a link that leaves"):
        hf_nm.push_to_hub(snapshot, "alice/linked")


@pytest.mark.parametrize("job", JOBS)
def test_links_of_what_stays_here(job, folder: Path, secret: Path, hub: HubServer) -> None:
    """Red if a log folder or a checkpoint on another disk, which is not copied, stops a command."""
    (folder / "runs").symlink_to(secret.parent)
    (folder / "checkpoint-5").symlink_to(secret.parent)
    written = job(folder)
    assert not (written / "runs").exists()
