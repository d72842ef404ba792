"""A recipe's files in a test: imported and run by their bare names, one recipe at a time.

A recipe is a folder of flat files that import each other as a script's neighbours do (`from options
import parse`), and every recipe has an `options.py`, a `data.py`, a `model.py`. In a process that knows
several recipes these names mean the one inside `with importing("translation"):`.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from hf_nm.experiments.run import CLOCK_FILE

RECIPES = Path(__file__).parents[2] / "recipes"
TRANSLATION = RECIPES / "translation"
CLASSIFICATION = RECIPES / "classification"
VISION = RECIPES / "vision"

_loaded: dict[str, dict[str, ModuleType]] = {}


@contextmanager
def importing(recipe: str) -> Iterator[None]:
    """Inside, the files of this recipe are imported by their bare names; outside, no recipe's are.

    A file is executed once, however often it is imported.
    """
    folder = str(RECIPES / recipe)
    names = {path.stem for path in Path(folder).glob("*.py")}
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    loaded = _loaded.setdefault(recipe, {})
    sys.modules.update(loaded)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        loaded.update({name: sys.modules.pop(name) for name in names & sys.modules.keys()})
        sys.modules.update(others)


def checkpoint_after(seconds: int, checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint in another folder, which says that it took so long to train."""
    copied = shutil.copytree(checkpoint, folder / checkpoint.name)
    counted = json.loads((copied / CLOCK_FILE).read_text("utf-8")) | {"seconds": seconds}
    (copied / CLOCK_FILE).write_text(json.dumps(counted), "utf-8")
    return copied


def run(recipe: str, *arguments: object, script: str = "train") -> None:
    """A recipe's `train.py`, or another of its scripts, with these arguments in this process, on one
    thread, as OMP_NUM_THREADS=1 would have it."""
    threads, argv = torch.get_num_threads(), sys.argv
    torch.set_num_threads(1)
    sys.argv = [str(RECIPES / recipe / f"{script}.py"), *map(str, arguments)]
    try:
        with importing(recipe):
            importlib.import_module(script).main()
    finally:
        torch.set_num_threads(threads)
        sys.argv = argv


def results_of(folder: Path) -> dict:
    """What a run wrote of itself."""
    return json.loads((folder / "results.json").read_text())


def history(folder: Path) -> list[dict]:
    """Everything that was logged, without times."""
    state = json.loads((folder / "trainer_state.json").read_text())
    dropped = ("runtime", "per_second", "flos", "train_loss")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in dropped)}
        for row in state["log_history"]
    ]
