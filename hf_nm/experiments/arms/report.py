"""Table, figures and lines of a comparison, written into one folder; `results.md` embeds them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_nm.experiments.arms.figures import write_figures
from hf_nm.experiments.arms.finished import FinishedRun, read_finished
from hf_nm.experiments.arms.table import lines_of, resampled, rows_of, scale_of, table
from hf_nm.experiments.output import write_json
from hf_nm.experiments.results import markdown_table

TRANSLATED = "translations"  # folder for translations of runs that kept none


def write_comparison(
    folders: Sequence[str | Path],
    out: Path,
    log: logging.Logger,
    *,
    resamples: int = 10_000,
    commit: str | None = None,
    data: str | None = None,
    notes: Sequence[str] = (),
    times: bool = True,
) -> str:
    """Write `results.md`, `table.json`, `runs.jsonl` and the figures.

    Args:
        folders: the runs'.
        out: what is written into; `translations/` in it holds those of runs that kept none.
        log: hears what was left out.
        resamples: of the test set.
        commit: of the code of runs that do not say it themselves.
        data: name of the data set; None for the runs' own word.
        notes: paragraphs below the table, about what the runs themselves do not say.
        times: whether update times are shown; on a machine with other work they say nothing.

    Returns:
        The table, and the sentence on its intervals.

    Raises:
        ValueError: the runs do not belong into one table.
    """
    runs = read_finished(folders, log)
    found, on_intervals = resampled(runs, resamples, out / TRANSLATED)
    rows = rows_of(runs, found)
    shown = table(rows, times)
    out.mkdir(parents=True, exist_ok=True)
    figures = write_figures(runs, out)
    (out / "runs.jsonl").write_text(lines_of(runs, commit, data), "utf-8")
    write_json(out / "table.json", {"rows": [_plain(row) for row in rows]})
    title = data or runs[0].facts.get("data") or "the test set"
    parts = [
        f"# Arms on {title}\n",
        shown,
        *(f"{line}\n" for line in [*_notes(runs, on_intervals), *notes]),
    ]
    parts += ["## Each run\n", _each(runs, times)]
    for name, caption in figures.items():
        parts.append(
            f"## {caption.split(':')[0].split(',')[0]}\n\n![{caption}]({name})\n\n{caption}.\n"
        )
    parts.append("## Conditions\n\n" + "".join(f"- {line}\n" for line in _conditions(runs, commit)))
    parts.append("Every run's command, versions and figures: [runs.jsonl](runs.jsonl).\n")
    (out / "results.md").write_text("\n".join(parts), "utf-8")
    return f"{shown}\n{on_intervals}\n"


def _plain(row: Any) -> dict[str, Any]:
    """A row as JSON has it."""

    def difference(found: Any) -> dict[str, Any] | None:
        if found is None:
            return None
        ends = found.interval and {"low": found.interval.low, "high": found.interval.high}
        return {"value": found.value, "seeds": list(found.seeds), "interval": ends}

    return {
        "arm": row.arm,
        "runs": [run.name for run in row.runs],
        "seeds": [run.seed for run in row.runs],
        "scores": [run.score for run in row.runs],
        "updates": list(row.runs[0].updates),
        "mean": row.mean,
        "spread": row.spread,
        "less_dense": difference(row.to_dense),
        "less_ste": difference(row.to_ste),
        "sad": row.sad,
        "flip_rate": row.flip_rate,
        "update_time_over_dense": row.time,
        "nm_weights_kept": row.kept and row.kept[0],
        "nm_weights": row.kept and row.kept[1],
    }


def _notes(runs: Sequence[FinishedRun], on_intervals: str) -> list[str]:
    score = runs[0].facts["score"]
    lines = [
        f"{score['metric']} on the test set (signature `{score['signature']}`), mean and standard "
        "deviation over seeds; differences are between runs of the same seeds. " + on_intervals,
        "SAD is summed over the logging intervals, in mask entries. N:M weights kept: counted in the "
        "saved checkpoints, no group above its pattern.",
    ]
    budgets = sorted({sum(run.updates) for run in runs})
    if len(budgets) > 1:
        lines.append(
            f"The arms have different budgets: {' to '.join(f'{each:,}' for each in budgets)} updates."
        )
    if any(len(run.updates) > 1 and run.method == "fixed" for run in runs):
        lines.append(
            "ASP's updates are divided: first dense, then of its magnitude masks' weights alone, with "
            "the learning rate's schedule from its beginning."
        )
    return lines


def _each(runs: Sequence[FinishedRun], times: bool) -> str:
    scale, digits = scale_of(runs)
    metric = runs[0].facts["score"]["metric"]
    rows = []
    for run in runs:
        seconds = run.seconds_per_update
        validation, sad = run.facts["score"].get("validation"), run.facts.get("sad")
        rows.append(
            [
                run.arm,
                str(run.seed),
                f"{scale * run.score:.{digits}f}",
                f"{scale * validation:.{digits}f}" if isinstance(validation, float) else "-",
                f"{sad['total']:,.0f}" if sad else "-",
                f"{1000 * seconds:,.0f}" if seconds is not None else "-",
            ]
        )
    columns = ["arm", "seed", f"{metric}, test", f"{metric}, validation", "SAD", "ms per update"]
    used = len(columns) - (not times)
    return markdown_table(columns[:used], [row[:used] for row in rows])


def _conditions(runs: Sequence[FinishedRun], commit: str | None) -> list[str]:
    """What the runs have in common, and whatever they have not."""

    def all_of(what: str, values: Sequence[Any]) -> list[str]:
        kinds = list(dict.fromkeys(str(value) for value in values if value))
        return [f"{what}: {'; '.join(kinds)}"] if kinds else []

    hardware = [run.facts.get("hardware") or {} for run in runs]
    versions = [run.facts.get("versions") or {} for run in runs]
    threads = [
        f"{each.get('processes')} process of {each.get('threads_per_process')} thread"
        for each in hardware
        if each
    ]
    pairs = [run.facts.get("pairs") or run.facts.get("rows") or {} for run in runs]
    weights = [run.facts.get("model", {}).get("parameters") or 0 for run in runs]
    epochs = [run.facts.get("epochs") or 0 for run in runs]
    sizes = [", ".join(f"{split} {count:,}" for split, count in each.items()) for each in pairs]
    named = [", ".join(f"{name} {version}" for name, version in each.items()) for each in versions]
    return [
        *all_of("commit of hf_nm", [run.facts.get("commit") or commit for run in runs]),
        *all_of("examples", sizes),
        *all_of("updates of an arm", [f"{sum(run.updates):,}" for run in runs]),
        *all_of("epochs of an arm's last part", [f"{each:g}" for each in epochs]),
        *all_of("parameters", [f"{each:,}" for each in weights]),
        *all_of("processor", [each.get("processor") for each in hardware]),
        *all_of("GPUs", [", ".join(each.get("accelerators") or []) for each in hardware]),
        *all_of("of a run", threads),
        *all_of("versions", named),
        *all_of("seeds", [", ".join(str(seed) for seed in sorted({run.seed for run in runs}))]),
    ]
