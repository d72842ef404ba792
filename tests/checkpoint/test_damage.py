"""Damaged packed checkpoints: some hundreds of the cases of ``recipes/benchmark/fuzz.py``."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmark" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(fuzz: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    fuzz.build(folder)
    return folder


def test_damage_is_an_error_or_changes_nothing(
    fuzz: ModuleType, built: Path, tmp_path: Path
) -> None:
    """Red if damage ends in other weights, in something left behind, or in an error of anyone else."""
    ended = Counter(
        fuzz.run_case(built, tmp_path, 1_000_000 + seed, load=seed % 10 == 0) for seed in range(400)
    )
    assert not [text for text in ended if "BAD" in text]
    kinds = Counter({text.split(":")[0]: 0 for text in ended})
    for text, count in ended.items():
        kinds[text.split(":")[0]] += count
    assert {"file", "forged", "config", "manifest", "index"} <= kinds.keys()
    errors = sum(count for text, count in ended.items() if "Error" in text)
    assert errors > 300


def test_every_bit_of_the_header_matters(fuzz: ModuleType, built: Path, tmp_path: Path) -> None:
    """Red if a byte of the header or of a weight's description is covered by no checksum."""
    import hf_nm

    for path in (built / "packed").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "model.nm_packed.safetensors"
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little") + 200
    for at in [*range(64), *range(64, end, 37), *range(end, len(whole), 997), len(whole) - 1]:
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        file.write_bytes(changed)
        with pytest.raises(hf_nm.PackedError):
            hf_nm.verify(tmp_path)
