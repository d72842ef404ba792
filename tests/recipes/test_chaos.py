"""``recipes/benchmark/chaos.py``: a handful of its kills, and that a child ends as it says."""

from __future__ import annotations

import importlib
import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from launching import run_python

BENCHMARK = ROOT / "recipes" / "benchmark"


@pytest.mark.slow
def test_a_handful_of_kills() -> None:
    """Red if a killed recipe is resumed to another result, or a child is never killed at all."""
    options = "--only classification --kills 4 --damaged 0 --seed 3"
    found = run_python(BENCHMARK / "chaos.py", *options.split())
    assert "4 runs tried, 4 survived" in found.stdout
    assert re.search(r"classification: (write|moment|full disk).*, the same", found.stdout)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARK))
    return importlib.import_module("chaos_children")


def written(out: Path) -> None:
    """Three writes: a folder, and a file that is renamed."""
    out.mkdir()
    (out / "new").write_bytes(bytes(1000))
    (out / "new").rename(out / "file")


@pytest.mark.parametrize(
    ("write", "left"), [(1, None), (2, ["out"]), (3, ["out", "new"]), (0, ["out", "file"])]
)
def test_killed_at_a_write(children: Any, tmp_path: Path, write: int, left: list[str]) -> None:
    """Red if a kill comes at another write, or after it."""
    out = tmp_path / "out"
    fate = children.Fate(write=write)
    end = children.in_child(lambda: written(out), out, tmp_path / "log", fate)
    assert end.kind == ("killed" if write else "done")
    found = [out.name, *(path.name for path in out.iterdir())] if out.is_dir() else None
    assert found == left
    assert write or end.writes == 3


def test_how_a_child_ends(children: Any, tmp_path: Path) -> None:
    """Red if a crash passes for a message of ours, or a full disk for room."""

    def ended(job: Any, **fate: Any) -> str:
        return children.in_child(job, tmp_path, tmp_path / "log", children.Fate(**fate)).kind

    assert ended(lambda: None) == "done"
    assert ended(lambda: (_ for _ in ()).throw(SystemExit("out: no"))) == "refused"
    assert ended(lambda: (_ for _ in ()).throw(KeyError("x"))) == "failed"
    assert ended(lambda: random.Random(0).choice([])) == "failed"
    assert ended(lambda: (tmp_path / "x").write_bytes(bytes(5000)) and None, room=100) == "failed"
    assert ended(lambda: [None for _ in iter(int, 1)] and None, seconds=0.2) == "killed"
