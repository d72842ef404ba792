"""Damage to the files that the package reads, one at a time, which are then read."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fuzz

import hf_nm
from hf_nm.experiments import output
from hf_nm.experiments.comparison import compare, compare_tasks
from hf_nm.experiments.earlier_runs import last_checkpoint
from hf_nm.experiments.results import read_predictions
from hf_nm.experiments.rows import read_rows
from hf_nm.experiments.run import Clock
from hf_nm.hub.scores import read_scores
from hf_nm.optim.sad_log import read_history

SECONDS = 10  # until a reader hangs
ROWS = [(f"text {row}", f"other {row}") for row in range(8)]


class Damaged:
    """Files as runs leave them, ready to be damaged.

    Args:
        scratch: holds the folder ``whole-<subject>`` of each run.
        subjects: which runs there are.
    """

    def __init__(self, scratch: Path, subjects: list[str]) -> None:
        self.folder = scratch / "damaged"
        self.built, self.case = scratch / "built", scratch / "case"
        for folder in (self.folder, self.built, self.case):
            folder.mkdir()
        fuzz.build(self.built)
        files: list[tuple[Path, Callable[[Path], Any]]] = []
        for subject in subjects:
            run = scratch / f"whole-{subject}"
            checkpoint = max(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
            files += [
                (run / "nm_sad.jsonl", lambda path: read_history(path.parent)),
                (run / "trainer_state.json", lambda path: read_history(path.parent)),
                (checkpoint / "trainer_state.json", resumed),
                (run / "config.json", lambda path: hf_nm.verify(path.parent)),
                (run / "model.safetensors", lambda path: hf_nm.verify(path.parent)),
            ]
            if subject not in ("trainer", "ranks"):
                files += [
                    (run / "results.json", lambda path: read_scores(path.parent)),
                    (run / "results.json", lambda path: compare([path.parent])),
                    (run / "options.json", compared),
                    (checkpoint / "training_time.json", lambda path: Clock(str(path.parent), 6)),
                ]
            if subject == "classification":
                files += [
                    (run / "results.json", self.tasks),
                    (run / "predictions.tsv", lambda path: read_predictions(path.parent)),
                ]
        for ending, text in {
            ".tsv": "en\tde\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS),
            ".csv": "en,de\n" + "".join(f'{a},"{b}"\n' for a, b in ROWS),
            ".jsonl": "".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in ROWS),
        }.items():
            path = scratch / f"rows{ending}"
            path.write_text(text)
            files.append((path, lambda path: list(read_rows(path, ("en", "de")))))
        self.files = files
        signal.signal(signal.SIGALRM, fuzz.hang)

    def tasks(self, path: Path) -> None:
        """Read results as the comparison of tasks does."""
        compare_tasks([path.parent], resamples=2)

    def trial(self, random_: random.Random) -> str:
        """Damage a file and read it: what it was, and how it ended."""
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                return self._trial(random_)
        finally:
            signal.alarm(0)

    def _trial(self, random_: random.Random) -> str:
        if random_.random() < 0.4:
            seed = random_.randrange(1 << 30)
            ended = fuzz.run_case(self.built, self.case, seed)
            return (
                f"packed, {ended.split(':')[0]}: {ended}" if "BAD" in ended else "packed: survived"
            )
        path, read = random_.choice(self.files)
        for other in self.folder.iterdir():
            other.unlink()
        for other in path.parent.iterdir() if path.parent.name != "data" else [path]:
            if other.is_file() and not other.name.startswith("_"):
                shutil.copy(other, self.folder)
        damaged = self.folder / path.name
        if path.suffix == ".json" and random_.random() < 0.7:
            fuzz.damage_json(damaged, [], random_)
        else:
            damaged.write_bytes(fuzz.damage_bytes(damaged.read_bytes(), random_))
        ended = fuzz.outcome(lambda: read(damaged))
        return f"{path.name}: {ended if 'BAD' in ended else 'survived'}"


def resumed(path: Path) -> None:
    """Read a checkpoint's state as a resume does."""
    arguments: Any = SimpleNamespace(
        resume_from_checkpoint=str(path.parent), output_dir=str(path.parent)
    )
    last_checkpoint(arguments)


def compared(path: Path) -> None:
    """Read the options that a run began with as a resume does."""
    output.compare_options(path, {"recipe": "translation", "seed": 42}, logging.getLogger("chaos"))
