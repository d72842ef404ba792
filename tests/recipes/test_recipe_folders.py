"""The recipes' folders: the same question in a file of the same name, a script that reads in one go."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from recipe_loading import RECIPES, importing

# what can be set; what is trained on; what is trained; how good it is; what happens
FILES = {"options", "data", "model", "scoring", "train"}
TRAINED = sorted(path.parent for path in RECIPES.glob("*/train.py"))


@pytest.mark.parametrize("folder", TRAINED, ids=lambda folder: folder.name)
def test_same_names_in_every_recipe(folder: Path) -> None:
    """Red if a reader who knows one recipe has to search in another."""
    assert {path.stem for path in folder.glob("*.py")} >= FILES
    assert (folder / "README.md").is_file()
    assert list(folder.glob("configs/*.yaml"))
    assert len((folder / "train.py").read_text("utf-8").splitlines()) < 200


def test_a_name_means_one_recipe_at_a_time() -> None:
    """Red if a test of one recipe gets another recipe's file of the same name."""
    found: dict[Path, ModuleType] = {}
    path = list(sys.path)
    for _ in range(2):
        for folder in TRAINED:
            with importing(folder.name):
                options = importlib.import_module("options")
            assert Path(str(options.__file__)).parent == folder
            assert found.setdefault(folder, options) is options  # executed once
    assert len(set(found.values())) == len(TRAINED) >= 2
    assert "options" not in sys.modules
    assert sys.path == path
