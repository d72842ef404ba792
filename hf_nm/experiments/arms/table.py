"""The table of a comparison: one row for each arm, over its seeds, and one line for each run.

Differences are taken between runs of the same seeds, where both arms have some in common; their
intervals are those of a paired bootstrap over the examples of the test set, means over the seeds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import fmean, stdev
from typing import Any

import numpy as np

from hf_nm.experiments.arms.finished import FinishedRun, arms_of
from hf_nm.experiments.arms.sentences import NothingToResampleError, task_of
from hf_nm.experiments.bootstrap import Interval, Resampled, paired_bootstrap
from hf_nm.experiments.results import markdown_table

TASK = "test"  # the one that is resampled
CONFIDENCE = 0.95
# What runs.jsonl says of each run, beside its arm and its commit: keys of results.json.
SAID = ["data", "method", "pattern", "decay", "seed", "steps", "steps_before", "score", "sad"]
SAID += ["validation_loss", "time", "versions", "hardware"]


@dataclass(frozen=True)
class Difference:
    """How much better one arm scored than another.

    Args:
        value: of the seeds that are compared, in the metric's unit.
        seeds: that both arms have; none where the means over all of each arm's are compared.
        interval: of the bootstrap; None where nothing could be resampled.
    """

    value: float
    seeds: tuple[int, ...]
    interval: Interval | None = None


@dataclass(frozen=True)
class ArmRow:
    """What an arm achieved.

    Args:
        arm: its name.
        runs: one for each seed.
        mean: of the scores, in the metric's unit.
        spread: their standard deviation (of a sample); None for one seed.
        to_dense: difference to the dense arm; None for it, or without one.
        to_ste: difference to STE of the same pattern; None for it, for the dense arm, or without one.
        sad: SAD summed over the logging intervals, mask entries, mean over seeds; None for a dense arm.
        flip_rate: flips per N:M weight and step, a fraction, mean over seeds; None for a dense arm.
        time: of an update relative to the dense arm's, mean over seeds; None without a dense arm.
        kept: the N:M weights' entries that are not zero, and all of them, of one run; None for dense.
    """

    arm: str
    runs: Sequence[FinishedRun]
    mean: float
    spread: float | None
    to_dense: Difference | None
    to_ste: Difference | None
    sad: float | None
    flip_rate: float | None
    time: float | None
    kept: tuple[int, int] | None


def rows_of(runs: Sequence[FinishedRun], found: Resampled | None) -> list[ArmRow]:
    """The arms' rows, the dense one first.

    Args:
        runs: of :func:`~hf_nm.experiments.arms.finished.read_finished`.
        found: their scores, resampled, from :func:`resampled`; None for no intervals.
    """
    arms = arms_of(runs)
    dense = [run for run in runs if run.method == "dense"]
    dense_time = _time(dense)
    rows = []
    for arm, own in arms.items():
        scores = [run.score for run in own]
        sads = [run.facts["sad"] for run in own if run.facts.get("sad")]
        ste = [run for run in runs if run.method == "ste" and run.pattern == own[0].pattern]
        time = _time(own)
        is_dense, is_ste = own[0].method == "dense", own[0].method == "ste"
        rows.append(
            ArmRow(
                arm,
                own,
                fmean(scores),
                stdev(scores) if len(scores) > 1 else None,
                None if is_dense or not dense else _difference(own, dense, found),
                None if is_dense or is_ste or not ste else _difference(own, ste, found),
                fmean(sad["total"] for sad in sads) if sads else None,
                fmean(sad["mean_flip_rate"] for sad in sads) if sads else None,
                time / dense_time if time and dense_time else None,
                own[0].kept,
            )
        )
    return rows


def resampled(
    runs: Sequence[FinishedRun], resamples: int, translations: Path | None = None
) -> tuple[Resampled | None, str]:
    """The runs' scores on resamples of the test set, and a sentence on them.

    Args:
        runs: to compare.
        resamples: how many.
        translations: holds folders with the translations of runs that kept none themselves.

    Returns:
        The scores by the runs' names, or None, and why.

    Raises:
        ValueError: they are of different test sets, or their score is not that of the results.
    """
    where = {}
    for run in runs:
        again = translations / run.name if translations else None
        own = again if again is not None and again.is_dir() else run.folder
        where[_key(run)] = (own, run.facts)
    try:
        task = task_of(where)
    except NothingToResampleError as error:
        return None, f"No intervals: {error}."
    found = paired_bootstrap({TASK: task}, next(iter(where)), resamples=resamples)
    said = (
        f"Intervals: {CONFIDENCE:.0%}, percentiles of {resamples:,} paired resamples of the "
        f"{np.size(task.references):,} test examples, drawn once for all runs; seeds are averaged, not "
        "resampled, so they say how far the choice of examples moves a difference, not the training."
    )
    return found, said


def _time(runs: Sequence[FinishedRun]) -> float | None:
    """Seconds of an update, mean over the runs that say it."""
    known = [run.seconds_per_update for run in runs if run.seconds_per_update is not None]
    return fmean(known) if known else None


def _key(run: FinishedRun) -> str:
    return f"{run.arm}|{run.seed}"


def _difference(
    ours: Sequence[FinishedRun], others: Sequence[FinishedRun], found: Resampled | None
) -> Difference:
    common = sorted({run.seed for run in ours} & {run.seed for run in others})
    if common:
        ours, others = ([run for run in side if run.seed in common] for side in (ours, others))
    value = fmean(run.score for run in ours) - fmean(run.score for run in others)
    interval = found.gap(TASK, [*map(_key, ours)], [*map(_key, others)]) if found else None
    return Difference(value, tuple(common), interval)


def table(rows: Sequence[ArmRow], times: bool = True) -> str:
    """The arms as Markdown; update times are left out where they say nothing."""
    metric = rows[0].runs[0].facts["score"]["metric"]
    scale, digits = scale_of([run for row in rows for run in row.runs])
    cells = []
    for row in rows:
        spread = f" ± {scale * row.spread:.{digits}f}" if row.spread is not None else ""
        parts = " + ".join(f"{part:,}" for part in row.runs[0].updates)
        kept = row.kept
        cells.append(
            [
                row.arm,
                parts,
                ", ".join(str(run.seed) for run in row.runs),
                f"{scale * row.mean:.{digits}f}{spread}",
                _said(row.to_dense, row, scale, digits),
                _said(row.to_ste, row, scale, digits),
                f"{row.sad:,.0f}" if row.sad is not None else "-",
                f"{row.flip_rate:.2e}" if row.flip_rate is not None else "-",
                f"{row.time:.2f}" if times and row.time is not None else "-",
                f"{kept[0]:,} of {kept[1]:,} ({kept[0] / kept[1]:.1%})" if kept else "all",
            ]
        )
    columns = ["arm", "updates", "seeds", f"{metric} x 100" if scale != 1 else metric]
    columns += ["less dense", "less STE", "SAD", "flips per weight and step", "update time / dense"]
    columns += ["N:M weights kept"]
    used = [at for at in range(len(columns)) if any(row[at] != "-" for row in cells)]
    return markdown_table([columns[at] for at in used], [[row[at] for at in used] for row in cells])


def scale_of(runs: Sequence[FinishedRun]) -> tuple[float, int]:
    """What scores are multiplied by where they are shown, and their digits: fractions as x 100."""
    return (100.0, 2) if all(abs(run.score) <= 1 for run in runs) else (1.0, 2)


def _said(difference: Difference | None, row: ArmRow, scale: float, digits: int) -> str:
    if difference is None:
        return "-"
    text = f"{scale * difference.value:+.{digits}f}"
    if difference.interval is not None:
        ends = (difference.interval.low, difference.interval.high)
        text += " [{}]".format(", ".join(f"{scale * end:+.{digits}f}" for end in ends))
    if not difference.seeds:
        return f"{text} (other seeds)"
    own = [run.seed for run in row.runs]
    return text if list(difference.seeds) == own else f"{text} (seeds {_listed(difference.seeds)})"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def lines_of(runs: Sequence[FinishedRun], commit: str | None, data: str | None) -> str:
    """One JSON object a run, as `runs.jsonl` has them.

    Args:
        runs: to describe.
        commit: of the code that made those runs which do not say it themselves.
        data: name of the data set; None for the runs' own word.
    """
    lines = []
    for run in runs:
        facts: Mapping[str, Any] = run.facts
        said = {"run": run.name, "arm": run.arm, "commit": facts.get("commit") or commit}
        said |= {key: facts[key] for key in SAID if key in facts}
        said |= {"data": data or facts.get("data")}
        said |= {"command": without_places(facts.get("command") or "")}
        if run.before is not None:
            said["command_before"] = without_places(run.before.facts.get("command") or "")
            said["time_before"] = run.before.facts["time"]
        lines.append(json.dumps(said, ensure_ascii=False) + "\n")
    return "".join(lines)


def without_places(command: str) -> str:
    """A command with the last part of each absolute path in its place: the rest says something about a
    machine, nothing about a run."""
    words = shlex.split(command)
    script = next((at for at, word in enumerate(words) if word.endswith("train.py")), None)
    shown = []
    for at, word in enumerate(words):
        path = PurePosixPath(word)
        if not path.is_absolute():
            shown.append(word)
        elif at == script or path.suffix in (".yaml", ".yml"):
            # The recipe's own files, from the repository's root.
            parts = path.parts
            start = len(parts) - 1 - parts[::-1].index("recipes") if "recipes" in parts else -1
            shown.append(str(PurePosixPath(*parts[start:])))
        else:
            shown.append(path.name)
    return shlex.join(shown)
