"""What finished runs left: read, checked that they belong into one table, grouped into arms."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from hf_nm.checkpoint.verify import verify
from hf_nm.experiments.arms.plan import spelled
from hf_nm.experiments.options import METHODS
from hf_nm.hub.scores import read_run
from hf_nm.optim.sad_log import read_history
from hf_nm.sparsity.pattern import NMPattern

START, RESUMED = "--model_name_or_path", "--resume_from_checkpoint"


@dataclass(frozen=True)
class FinishedRun:
    """One run of a recipe.

    Args:
        folder: its output directory.
        facts: its `results.json`.
        before: the run that it started from, if that is a part of it: ASP's dense one.
    """

    folder: Path
    facts: dict[str, Any]
    before: FinishedRun | None = None

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @property
    def arm(self) -> str:
        """Such as ``SR-STE 2:4, decay 2e-4``; a name that the run was given comes first."""
        if self.facts.get("arm"):
            return self.facts["arm"]
        method = METHODS.get(self.method, self.method)
        if self.method == "fixed" and not self.facts.get("steps_before"):
            method = "fixed masks"  # of random weights, which is not ASP
        pattern = f" {self.pattern}" if self.pattern else ""
        decay = "" if self.decay is None else f", decay {self.decay}"
        return f"{method}{pattern}{decay}"

    @property
    def method(self) -> str:
        """As the recipe calls it."""
        return self.facts["method"]

    @property
    def pattern(self) -> str | None:
        """Such as ``2:4``; None for a dense run."""
        return self.facts.get("pattern")

    @property
    def decay(self) -> str | None:
        """SR-STE's, as it is written in names; None for other methods."""
        decay = self.facts.get("decay")
        return None if decay is None or self.method != "sr-ste" else spelled(decay)

    @property
    def seed(self) -> int:
        """Of weights and data; 0 where the recipe did not say."""
        return self.facts.get("seed", 0)

    @property
    def score(self) -> float:
        """On the test set, in the metric's unit."""
        return self.facts["score"]["test"]

    @property
    def updates(self) -> tuple[int, ...]:
        """Of its parts, the dense one first."""
        before = self.facts.get("steps_before")
        return (before, self.facts["steps"]) if before else (self.facts["steps"],)

    @property
    def seconds_per_update(self) -> float | None:
        """Of all its parts together; None where one was resumed and does not say how many updates its
        time is of, as older versions did not."""
        parts = [self.facts] + ([self.before.facts] if self.before else [])
        if any(
            "steps" not in part["time"] and RESUMED in (part.get("command") or "") for part in parts
        ):
            return None
        seconds = sum(part["time"]["train_s"] for part in parts)
        return seconds / max(1, sum(part["time"].get("steps", part["steps"]) for part in parts))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, row by row."""
        return read_history(self.folder)

    @cached_property
    def entries(self) -> dict[str, int]:
        """How many entries each N:M weight has, by its name; empty for a dense run."""
        if self.pattern is None:
            return {}
        rows = self.facts.get("sparsity")
        if rows:
            return {row["name"]: prod(row["shape"]) for row in rows}
        return {row.name: prod(row.shape) for row in verify(self.folder).layers}

    @cached_property
    def kept(self) -> tuple[int, int] | None:
        """Entries of the N:M weights that are not zero, and all of them, verified group by group: in the
        checkpoint, or where only results are left by the run itself. None for a dense run."""
        if self.pattern is None:
            return None
        if (self.folder / "config.json").is_file():
            layers = verify(self.folder).layers
            others = {str(layer.pattern) for layer in layers} - {self.pattern}
            if others:
                raise ValueError(
                    f"{self.folder}: its results say {self.pattern}, its weights {others.pop()}; they "
                    "are of different runs."
                )
            return sum(layer.kept for layer in layers), sum(prod(layer.shape) for layer in layers)
        model = self.facts.get("model", {})
        return model.get("nm_weights_kept", 0), model.get("nm_weights", 0)


def read_finished(folders: Sequence[str | Path], log: logging.Logger) -> list[FinishedRun]:
    """The runs of these folders: dense ones, then by pattern, method and decay.

    A run that another one started from and that lies beside it, as ASP's dense part, is that one's part.

    Args:
        folders: output directories; those without results are left out.
        log: hears which.

    Raises:
        ValueError: there is none; two are the same arm and seed; or they were scored in different ways.
    """
    found: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        if (folder / "results.json").is_file():
            found[folder.resolve()] = read_run(folder / "results.json")
        else:
            log.info(f"{folder}: no results.json, left out")
    if not found:
        raise ValueError(
            f"no finished run among {len(folders)} folders; a recipe writes results.json when it has "
            "finished."
        )
    parts, whole = dict[str, FinishedRun](), list[FinishedRun]()
    for folder, facts in found.items():
        start = started_from(facts)
        beside = folder.parent / start.name if start else None
        part = None
        if beside and facts["method"] == "fixed" and (beside / "results.json").is_file():
            part = FinishedRun(beside, read_run(beside / "results.json"))
            parts[str(beside)] = part
        whole.append(FinishedRun(folder, facts, part))
    runs = [run for run in whole if str(run.folder) not in parts]
    runs.sort(key=_place)
    _check(runs)
    return runs


def _place(run: FinishedRun) -> tuple[Any, ...]:
    """Where a run stands in the table: the denser pattern first, methods as `METHODS` has them."""
    pattern = NMPattern.parse(run.pattern) if run.pattern else None
    methods = list(METHODS)
    method = methods.index(run.method) if run.method in methods else len(methods)
    decay = run.facts.get("decay")
    known = isinstance(decay, int | float)
    return (
        pattern.sparsity if pattern else 0.0,
        method,
        not known,
        decay if known else 0.0,
        run.arm,
    )


def started_from(facts: dict[str, Any]) -> Path | None:
    """The checkpoint that a run's command says it started from."""
    words = shlex.split(facts.get("command") or "")
    if START not in words[:-1]:
        return None
    return Path(words[len(words) - 1 - words[::-1].index(START) + 1])


def _check(runs: Sequence[FinishedRun]) -> None:
    alike: list[tuple[str, Callable[[FinishedRun], Any]]] = [
        ("metric", lambda run: run.facts["score"]["metric"]),
        ("signature", lambda run: run.facts["score"]["signature"]),
        ("data", lambda run: run.facts.get("data")),
    ]
    for what, of in alike:
        other = next((run for run in runs if of(run) != of(runs[0])), None)
        if other is not None:
            raise ValueError(
                f"these scores cannot be compared: {what} of {runs[0].name} is {of(runs[0])}, of "
                f"{other.name} {of(other)}; give runs of one data set, scored in one way."
            )
    seen: dict[tuple[str, int], FinishedRun] = {}
    for run in runs:
        other = seen.setdefault((run.arm, run.seed), run)
        if other is not run:
            raise ValueError(
                f"{other.folder} and {run.folder} are both {run.arm}, seed {run.seed}; give one of them."
            )


def arms_of(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """The runs by their arm, each arm's in the order of their seeds."""
    arms: dict[str, list[FinishedRun]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return {arm: sorted(own, key=lambda run: run.seed) for arm, own in arms.items()}
