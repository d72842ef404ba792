"""Which way to a product is taken: measured once, remembered, and never a reason to fail."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from hf_nm.inference import choice

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "_chosen", {})
    return tmp_path / "hf_nm" / "ways.json"


def ways(calls: list[str]) -> dict:
    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02)

    return {"slow": slow, "fast": lambda: calls.append("fast")}


def test_measured_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the slower way is taken, or a shape is measured again, here or in another process."""
    calls: list[str] = []
    name = choice.key(5, 32, 64, "2:4", torch.bfloat16)
    assert name == choice.key(8, 32, 64, "2:4", torch.bfloat16) == "2:4 bfloat16 32x64 rows 8"
    assert choice.fastest(name, ways(calls), CPU) == "fast"
    assert calls
    calls.clear()
    assert choice.fastest(name, ways(calls), CPU) == "fast"
    monkeypatch.setattr(choice, "_chosen", {})  # as in another process
    assert choice.fastest(name, ways(calls), CPU) == "fast"
    assert not calls
    assert choice.remembered() == {choice.device_name(CPU): {name: "fast"}}


@pytest.mark.parametrize("text", ["", "[1]", '{"cpu": 3}', "{" * 2000, '{"x": {"y": 1}}'])
def test_a_damaged_file(text: str, file: Path) -> None:
    """Red if it is believed, or an error."""
    file.parent.mkdir()
    file.write_text(text)
    assert choice.fastest("a shape", ways([]), CPU) == "fast"
    assert json.loads(file.read_text())[choice.device_name(CPU)] == {"a shape": "fast"}


def test_a_way_that_is_not_there_any_more(file: Path) -> None:
    """Red if a name in the file is taken for a way that this device does not have."""
    file.parent.mkdir()
    file.write_text(json.dumps({choice.device_name(CPU): {"a shape": "gone"}}))
    assert choice.fastest("a shape", ways([]), CPU) == "fast"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "a file"))
    monkeypatch.setattr(choice, "_chosen", {})
    assert choice.fastest("a shape", ways([]), CPU) == "fast"


def test_a_way_that_fails(file: Path) -> None:
    """Red if a kernel that does not compile ends the forward pass, or is left out without a word."""

    def broken() -> None:
        raise RuntimeError("no such instruction")

    with pytest.warns(UserWarning, match=r"not used: kernel \(RuntimeError: no such instruction\)"):
        assert choice.fastest("a shape", {"kernel": broken, "sure": lambda: None}, CPU) == "sure"
    with pytest.raises(RuntimeError, match="every way to this product fails"):
        choice.fastest("another", {"kernel": broken}, CPU)
