"""How runs compare: a table of runs on one data set, one of arms over tasks and seeds, their SAD
curves.

Everything is read from what the runs left in their folders: `results.json`, `predictions.tsv`,
`trainer_state.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from hf_nm.experiments.agreement import Metric, mean_of
from hf_nm.experiments.bootstrap import (
    Interval,
    Resampled,
    Task,
    UndefinedRecoveryError,
    paired_bootstrap,
)
from hf_nm.experiments.results import markdown_table, read_predictions
from hf_nm.hub.figures import blank_figure
from hf_nm.hub.scores import read_run
from hf_nm.optim.sad_log import read_history

ROUNDING = 1e-4  # a score in results.json may be rounded to four places


def compare(folders: Sequence[str | Path], write_to: str | Path | None = None) -> str:
    """One Markdown table of several runs, from the `results.json` in each folder, in the order
    given.

    Columns: run, method, pattern, steps, test score (two decimals, four where no score is above 1),
    its difference to the dense run, recovery (per cent of the dense score), mean flip rate
    (fraction of the N:M weights per step), SAD summed over the logging intervals and against the
    start (mask entries), training time relative to the dense run. Differences and ratios need
    exactly one dense run among them. Scores of different signatures are not put into one table.

    Args:
        folders: output directories of recipes, or paths of `results.json`.
        write_to: also write the table into this file.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: no folder, or the scores were computed in different ways.
    """
    runs = [(path.parent.name, read_run(path)) for path in map(results_file, folders)]
    if not runs:
        raise ValueError("nothing to compare; give at least one output directory.")
    signatures = {(run["score"]["metric"], run["score"]["signature"]) for _, run in runs}
    if len(signatures) > 1:
        raise ValueError(
            "these scores cannot be compared, their signatures differ: "
            f"{sorted(map(str, signatures))}; score them again with one version and setting."
        )
    metric, signature = signatures.pop()
    dense = [run for _, run in runs if run["method"] == "dense"]
    base = dense[0] if len(dense) == 1 else None
    whole = base["score"]["test"] if base else 0.0
    seconds = base["time"]["train_s"] if base else 0.0
    digits = 4 if all(abs(run["score"]["test"]) <= 1 for _, run in runs) else 2
    rows = []
    for name, run in runs:
        score, sad = run["score"]["test"], run.get("sad") or {}
        rows.append(
            [
                name,
                run["method"],
                run.get("pattern") or "-",
                str(run["steps"]),
                f"{score:.{digits}f}",
                f"{score - whole:+.{digits}f}" if base else "-",
                _recovered(score, whole, run["score"].get("higher_is_better", True)),
                f"{sad['mean_flip_rate']:.3e}" if sad else "-",
                f"{sad['total']:,.0f}" if sad else "-",
                f"{sad['from_start']:,.0f}" if sad else "-",
                f"{run['time']['train_s'] / seconds:.2f}" if seconds else "-",
            ]
        )
    columns = ["run", "method", "pattern", "steps", metric, "vs dense", "recovery"]
    columns += ["flip rate per step", "SAD", "SAD from start", "time vs dense"]
    text = f"{metric} on the test set, signature `{signature}`; recovery in % of the dense score"
    higher = all(run["score"].get("higher_is_better", True) for _, run in runs)
    text += ".\n" if higher else ", dense over sparse, since lower is better.\n"
    return _written(f"{markdown_table(columns, rows)}\n{text}", write_to)


def _recovered(score: float, dense: float, higher_is_better: bool) -> str:
    """A score in per cent of the dense one; the other way round where lower is better."""
    above, below = (score, dense) if higher_is_better else (dense, score)
    return f"{100 * above / below:.1f}" if dense > 0 and below > 0 else "-"


def compare_tasks(
    folders: Sequence[str | Path],
    write_to: str | Path | None = None,
    resamples: int = 10_000,
    against: str | None = None,
) -> str:
    """Two Markdown tables of the arms of a classification recipe, over its tasks and seeds.

    The first: number of seeds, score on each task (x 100, mean over seeds), mean flip rate
    (fraction of the N:M weights per step, mean over runs), time of an update relative to the mean of
    the dense runs of the same task (median over runs). The second: recovery, in per cent of the
    dense score, on each task and in the mean, with 95% intervals from
    :func:`~hf_nm.experiments.bootstrap.paired_bootstrap`. Below: each task's metrics, signature and
    number of examples, and why a recovery is left out. An arm is a run's `arm`; the dense one has the
    method ``"dense"`` and no pattern.

    Args:
        folders: output directories, or paths of `results.json`, each with a `predictions.tsv`
            beside it.
        write_to: also write the text into this file.
        resamples: of the examples of each task.
        against: a sparse arm; a last column says by how many percentage points the other arms'
            mean recovery is above its own, with the interval.

    Raises:
        FileNotFoundError: a folder lacks `results.json` or `predictions.tsv`.
        ValueError: no runs, or runs that cannot be compared: one twice, an arm of two methods, no
            dense run on a task, different references or signatures on a task, a score that is not
            that of the predictions beside it; or `against` is no sparse arm.
    """
    runs = [_read_task_run(results_file(folder)) for folder in folders]
    dense = _dense_arm(runs)
    arms = list(dict.fromkeys([dense, *(run.arm for run in runs)]))
    tasks = {name: _task(name, runs) for name in dict.fromkeys(run.task for run in runs)}
    missing = [name for name, task in tasks.items() if dense not in task.predictions]
    if missing:
        raise ValueError(
            f"no dense run on {', '.join(missing)}; recovery is relative to the dense score of the "
            "same task: add its folders, or leave the task out."
        )
    if against is not None and against not in arms[1:]:
        raise ValueError(
            f"against={against!r} is no sparse arm among {', '.join(map(repr, arms[1:])) or 'none'}"
        )
    found = paired_bootstrap(tasks, dense, resamples=resamples)
    notes = [_task_note(name, runs) for name in tasks]
    text = f"Scores x 100, mean over seeds:\n\n{_score_table(arms, runs, found)}"
    if arms[1:]:
        text += (
            "\nRecovery in % of the dense score, with its 95% interval (percentiles of "
            f"{resamples:,} paired resamples of each task's examples; seeds are averaged, not "
            f"resampled):\n\n{_recovery_table(arms[1:], found, against, notes)}"
        )
    return _written(text + "\n" + "".join(f"- {note}\n" for note in notes), write_to)


def plot_arms(runs: Mapping[str, str | Path], path: str | Path, title: str = "") -> None:
    """Draw the flip rate per step (fraction of the N:M weights, log scale) of several runs into one
    PNG file.

    Args:
        runs: name in the legend -> a run's output directory. Logs in which nothing flipped leave a
            gap, and a run of them alone its name.
        path: of the PNG file.
        title: above the plot.

    Raises:
        ValueError: no run, or one that logged no flip rate.
    """
    curves = {name: _flip_rates(folder) for name, folder in runs.items()}
    if not curves:
        raise ValueError("nothing to draw; give at least one run.")
    figure = blank_figure(path)
    axis = figure.subplots()
    for name, points in curves.items():
        still = all(math.isnan(rate) for _, rate in points)
        axis.plot(*zip(*points, strict=True), label=f"{name} (no flips)" if still else name)
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("flip rate per step (fraction of N:M weights)")
    axis.set_title(title)
    axis.legend()
    figure.savefig(path, dpi=120)


def _flip_rates(folder: str | Path) -> list[tuple[int, float]]:
    rows = [row for row in read_history(folder) if "nm/flip_rate" in row]
    if not rows:
        raise ValueError(
            f"{folder}: no nm/flip_rate in its trainer_state.json or nm_sad.jsonl; leave dense runs "
            "out of the plot."
        )
    return [(row["step"], row["nm/flip_rate"] or math.nan) for row in rows]


@dataclass(frozen=True)
class _TaskRun:
    """One arm on one task with one seed."""

    path: Path
    facts: dict[str, Any]
    references: np.ndarray
    predictions: np.ndarray

    @property
    def arm(self) -> str:
        return self.facts["arm"]

    @property
    def task(self) -> str:
        return self.facts["task"]

    @property
    def seconds(self) -> float:
        """Of an update: arms that start from another run's checkpoint take fewer."""
        time = self.facts["time"]
        return time["train_s"] / max(1, time.get("steps", self.facts["steps"]))

    @property
    def scored_as(self) -> tuple[str, tuple[str, ...], str]:
        score = self.facts["score"]
        return score["metric"], tuple(self.facts["metrics"]), score["signature"]

    @property
    def metric(self) -> Metric:
        return mean_of(self.facts["metrics"])


def _read_task_run(path: Path) -> _TaskRun:
    facts = read_run(path)
    missing = [key for key in ("task", "arm", "pattern", "seed", "metrics") if key not in facts]
    if missing:
        raise ValueError(
            f"{path}: no key {', '.join(missing)}; this table takes runs of a classification "
            "recipe, and hf_nm.experiments.comparison.compare others."
        )
    run = _TaskRun(path, facts, *read_predictions(path.parent))
    said, again = facts["score"]["test"], run.metric(run.predictions, run.references).item()
    undefined = math.isnan(said) and math.isnan(again)  # a constant prediction has no correlation
    if not undefined and not math.isclose(said, again, rel_tol=0, abs_tol=ROUNDING):
        raise ValueError(
            f"{path}: the score is {said}, but that of the predictions beside it is {again:.6f}; "
            "the two files are of different runs: write both again."
        )
    return run


def _dense_arm(runs: Sequence[_TaskRun]) -> str:
    """The name of the dense arm, once nothing is there twice and each arm is one thing."""
    if not runs:
        raise ValueError("nothing to compare; give at least one output directory.")
    seen: dict[tuple, Path] = {}
    kinds: dict[str, tuple] = {}
    for run in runs:
        key = run.arm, run.task, run.facts["seed"]
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {run.path} are both {run.arm!r} on {run.task} with seed "
                f"{key[2]}; give one of them."
            )
        seen[key] = run.path
        kind = run.facts["method"], run.facts["pattern"]
        if kinds.setdefault(run.arm, kind) != kind:
            raise ValueError(
                f"{run.path}: the arm {run.arm!r} is {kind} here, but {kinds[run.arm]} in another "
                "run; give the arms different names."
            )
    dense = [arm for arm, kind in kinds.items() if kind == ("dense", None)]
    if len(dense) != 1:
        raise ValueError(
            "exactly one arm must be dense (method 'dense', no pattern), and have a run on "
            f"{', '.join(dict.fromkeys(run.task for run in runs))}, but the dense ones among "
            f"{', '.join(map(repr, kinds))} are {', '.join(map(repr, dense)) or 'none'}"
        )
    return dense[0]


def _task(name: str, runs: Sequence[_TaskRun]) -> Task:
    """The runs on one task, once they are known to be scored alike."""
    first, *others = [run for run in runs if run.task == name]
    for run in others:
        if run.scored_as != first.scored_as:
            raise ValueError(
                f"{name}: {first.path} is scored as {first.scored_as}, {run.path} as "
                f"{run.scored_as}; score them again with one version and setting."
            )
        if not np.array_equal(run.references, first.references):
            raise ValueError(
                f"{name}: {first.path} and {run.path} are scored on different references "
                f"({len(first.references)} and {len(run.references)} examples); score them again "
                "on one data set, in one order."
            )
    predictions: dict[str, list[np.ndarray]] = {}
    for run in (first, *others):
        predictions.setdefault(run.arm, []).append(run.predictions)
    return Task(first.references, predictions, first.metric)


def _task_note(name: str, runs: Sequence[_TaskRun]) -> str:
    run = next(run for run in runs if run.task == name)
    metrics = " and ".join(run.facts["metrics"])
    metrics = f"mean of {metrics}" if len(run.facts["metrics"]) > 1 else metrics
    signature = run.facts["score"]["signature"]
    return f"{name}: {metrics}, {len(run.references):,} examples, signature `{signature}`"


def _score_table(arms: Sequence[str], runs: Sequence[_TaskRun], found: Resampled) -> str:
    dense_seconds = {
        name: fmean(run.seconds for run in runs if (run.task, run.arm) == (name, found.baseline))
        for name in found.scores
    }
    rows = []
    for arm in arms:
        own = [run for run in runs if run.arm == arm]
        on_task = {name: sum(run.task == name for run in own) for name in found.scores}
        counts = sorted({count for count in on_task.values() if count})
        rates = [run.facts["sad"]["mean_flip_rate"] for run in own if run.facts.get("sad")]
        time = median(run.seconds / dense_seconds[run.task] for run in own)
        rows.append(
            [
                arm,
                "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
                *(
                    f"{100 * found.score(name, arm).value:.2f}" if count else "-"
                    for name, count in on_task.items()
                ),
                f"{fmean(rates):.3e}" if rates else "-",
                f"{time:.2f}",
            ]
        )
    columns = ["arm", "seeds", *found.scores, "flip rate per step"]
    columns += ["update time vs dense"]
    return markdown_table(columns, rows)


def _recovery_table(
    arms: Sequence[str], found: Resampled, against: str | None, notes: list[str]
) -> str:
    """Recoveries of the sparse arms; what had to be left out is added to `notes`."""
    undefined = set()
    for name in found.scores:
        try:
            found.recovery(name, found.baseline)
        except UndefinedRecoveryError as error:
            undefined.add(name)
            notes.append(f"{error} No mean recovery is given.")
    whole = set()
    for arm in arms:
        absent = [name for name, scores in found.scores.items() if arm not in scores]
        if absent:
            notes.append(f"{arm} has no run on {', '.join(absent)}: its mean recovery is left out.")
        elif not undefined:
            whole.add(arm)
    rows = []
    for arm in arms:
        row = [arm]
        for name, scores in found.scores.items():
            there = arm in scores and name not in undefined
            row.append(_percent(found.recovery(name, arm)) if there else "-")
        row.append(_percent(found.mean_recovery(arm)) if arm in whole else "-")
        if against is not None:
            both = arm != against and {arm, against} <= whole
            row.append(_percent(found.difference(arm, against), "+") if both else "-")
        rows.append(row)
    columns = ["arm", *found.scores, "mean"]
    if against is not None:
        columns.append(f"vs {against}")
        notes.append(
            f"vs {against}: difference in mean recovery, in percentage points; significant where 0 "
            "is outside the interval."
        )
    return markdown_table(columns, rows)


def _percent(share: Interval, sign: str = "") -> str:
    value, low, high = (f"{100 * part:{sign}.1f}" for part in (share.value, share.low, share.high))
    return f"{value} [{low}, {high}]"


def results_file(folder: str | Path) -> Path:
    folder = Path(folder)
    return folder if folder.suffix == ".json" else folder / "results.json"


def _written(text: str, write_to: str | Path | None) -> str:
    if write_to is not None:
        Path(write_to).write_text(text, "utf-8")
    return text
