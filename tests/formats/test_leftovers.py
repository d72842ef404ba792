"""What a killed command leaves beside its destination, and what the next one makes of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from launching import running
from models import llama

import hf_nm
from hf_nm.formats.folder import new_folder

# Writes over a folder until it is killed: before it gives the folder its name, or between the two names.
KILLED = """
import sys, time
from pathlib import Path
from hf_nm.formats import folder

source, destination, when = sys.argv[1:]
def wait(*_):
    print("now", flush=True)
    time.sleep(600)
if when == "between":
    rename = Path.rename
    Path.rename = lambda self, to: wait() if self.name == "new" else rename(self, to)
with folder.new_folder(Path(destination), Path(source), overwrite=True) as written:
    (written / "config.json").write_text("{}")
    if when == "writing":
        wait()
"""


def killed(source: Path, destination: Path, when: str, *, meanwhile=lambda: None) -> None:
    with running("-c", KILLED, source, destination, when, text=True) as process:
        assert process.stdout.readline().strip() == "now"
        meanwhile()
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and a model's folder to write over."""
    for name in ("source", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'"{name}"')
    return tmp_path / "source", tmp_path / "b"


def overwrite(source: Path, destination: Path) -> None:
    with new_folder(destination, source, overwrite=True) as written:
        (written / "config.json").write_text('"new"')


@pytest.mark.parametrize("when", ["writing", "between"])
def test_swept_at_the_next_call(when: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Red if the hidden folder of a killed call stays there for good."""
    source, destination = folders
    killed(source, destination, when)
    assert len(os.listdir(tmp_path)) == (3 if when == "writing" else 2)
    overwrite(source, destination)
    assert sorted(os.listdir(tmp_path)) == ["b", "source"]
    assert (destination / "config.json").read_text() == '"new"'


def test_the_old_folder_comes_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed between the two names nothing has the destination's. Red if the old folder, which lies in
    the leftover, goes with it: here the next call fails."""
    source, destination = folders
    killed(source, destination, "between")
    assert not destination.exists()
    with pytest.raises(RuntimeError), new_folder(destination, source, overwrite=True):
        raise RuntimeError
    assert (destination / "config.json").read_text() == '"b"'
    assert sorted(os.listdir(tmp_path)) == ["b", "source"]
    killed(source, destination, "between")
    with (
        pytest.raises(FileExistsError, match="not empty"),
        new_folder(destination, source, overwrite=False),
    ):
        pass
    assert (destination / "config.json").read_text() == '"b"'


def test_what_is_in_use_stays(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Red if a call takes away what another one is writing just now."""
    source, destination = folders

    def meanwhile() -> None:
        overwrite(source, destination)
        assert len(os.listdir(tmp_path)) == 3

    killed(source, destination, "writing", meanwhile=meanwhile)
    with new_folder(tmp_path / "b", source, overwrite=True) as first:
        (first / "config.json").write_text('"first"')
        overwrite(source, destination)  # swept the killed one's, and not this one's
        assert first.is_dir()
        assert len(os.listdir(tmp_path)) == 3
    assert sorted(os.listdir(tmp_path)) == ["b", "source"]


def test_what_is_not_ours_stays(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Red if a folder goes that only has such a name, or belongs to another destination."""
    source, destination = folders
    mine = tmp_path / ".b.abcdefgh.partial"
    (mine / "new").mkdir(parents=True)
    (mine / "thesis.tex").touch()
    (mine / "lock").touch()
    other = tmp_path / ".c.abcdefgh.partial"
    (other / "new").mkdir(parents=True)
    (other / "lock").touch()
    (tmp_path / ".b.ijklmnop.partial").symlink_to(other)
    fresh = tmp_path / ".b.qrstuvwx.partial"  # made just now, not locked yet
    fresh.mkdir()
    overwrite(source, destination)
    assert len(os.listdir(tmp_path)) == 6
    hour_ago = time.time() - 7200
    os.utime(fresh, (hour_ago, hour_ago))
    overwrite(source, destination)
    assert not fresh.exists()
    assert (mine / "thesis.tex").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_of_pack(tmp_path: Path) -> None:
    """The same by a real command: a killed overwrite, then pack once more."""
    hf_nm.sparsify(llama()).save_pretrained(tmp_path / "plain")
    hf_nm.pack(tmp_path / "plain", tmp_path / "b")
    killed(tmp_path / "plain", tmp_path / "b", "writing")
    hf_nm.pack(tmp_path / "plain", tmp_path / "b", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["b", "plain"]
