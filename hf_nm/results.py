"""What a run achieved, written so that it can be compared: results.json, results.md, the SAD plot.

Shared by the recipes and the model card. A result is a dict of plain values; the keys read here are
`method`, `pattern`, `data`, `score` (`metric`, `test`, `signature`), `sad` (from `sad_summary`),
`time` (`train_s`) and `steps`.
"""

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from hf_nm.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "sacrebleu")
WIDEST = 80  # characters of a value in the table of results.md
SAD_FILE = "nm_sad.jsonl"  # what the Trainers write, one line for each log


@dataclass(frozen=True)
class Score:
    """What a model reached on a data set.

    Args:
        metric: its name, such as ``"BLEU"`` or ``"accuracy"``.
        value: in the metric's own unit.
        data: the data set: its id on the Hub, or a name.
        split: which part of it.
        dense: what the dense model reached in the same way.
        signature: how exactly it was computed, such as sacreBLEU's signature.
        higher_is_better: False for a loss, perplexity or error rate.
    """

    metric: str
    value: float
    data: str
    split: str = "test"
    dense: float | None = None
    signature: str | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        for name, value in (("value", self.value), ("dense", self.dense)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"Score.{name} of {self.metric} must be finite, but is {value}")
        if not self.metric or not self.data:
            raise ValueError(
                "a Score needs the name of its metric, and of the data it was taken on"
            )

    @property
    def recovery(self) -> float | None:
        """Sparse over dense score (the other way round where lower is better): 1.0 is no loss."""
        if not self.value or not self.dense:
            return None
        ratio = self.value / self.dense
        return ratio if self.higher_is_better else 1 / ratio


def environment(world_size: int = 1) -> dict[str, Any]:
    """Hardware and versions, so that a time or a score can be judged.

    Args:
        world_size: processes that took part.
    """
    import torch

    hardware = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "processes": world_size,
        "threads_per_process": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    versions = {
        "hf_nm": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"hardware": hardware, "versions": versions}


def processor() -> str:
    """The processor's name; where the system keeps a file of it, more than Python tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def sad_summary(log_history: Sequence[dict]) -> dict[str, float | int] | None:
    """How far the masks moved over a whole run, from the lines a Trainer logged; None for a dense
    run.

    Returns:
        total: SAD summed over the logging intervals, in mask entries: for each interval how many
            entries differ between its two ends.
        from_start: SAD between the masks at the start and at the last log, in mask entries.
        mean_flip_rate: mask entries that flipped per step, as a fraction of all N:M weights, mean
            over the steps.
        intervals, steps: how many logging intervals went in, and the step of the last.
    """
    rows = [row for row in log_history if "nm/flip_rate" in row]
    total, flips, previous = 0, 0.0, 0
    for row in rows:
        total += row["nm/sad"]
        flips += row["nm/flip_rate"] * (row["step"] - previous)
        previous = row["step"]
    if not previous:
        return None
    return {
        "total": total,
        "from_start": rows[-1]["nm/sad_init"],
        "mean_flip_rate": flips / previous,
        "intervals": len(rows),
        "steps": previous,
    }


def blank_figure(path: str | Path) -> "Figure":
    """What a plot is drawn on, before it is saved to `path`.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"drawing {path} needs {error.name}, which is missing: pip install 'hf_nm[recipes]'"
        ) from error

    # Figure and canvas directly, not pyplot: no global state, no display, no change of the user's
    # backend.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_sad(
    log_history: Sequence[dict], path: str | Path, title: str = "", loss_unit: str = "nats"
) -> None:
    """Draw SAD of each logging interval (mask entries) beside the training loss into a PNG file.

    A dense run has no SAD: the loss is drawn alone.
    """
    figure = blank_figure(path)
    axis = figure.subplots()
    losses = [(row["step"], row["loss"]) for row in log_history if "loss" in row]
    flips = [(row["step"], row["nm/sad"]) for row in log_history if "nm/sad" in row]
    axis.set_xlabel("step")
    axis.set_ylabel(f"training loss ({loss_unit})")
    if losses:
        axis.plot(*zip(*losses, strict=True), color="tab:gray", label="training loss")
    if flips:
        right = axis.twinx()
        right.plot(*zip(*flips, strict=True), color="tab:red", label="SAD")
        right.set_ylabel("SAD per logging interval (mask entries)", color="tab:red")
        right.set_ylim(bottom=0)
    axis.set_title(title)
    figure.savefig(path, dpi=120)


def write_results(results: dict[str, Any], folder: str | Path, heading: str) -> str:
    """Write `results.json` and `results.md` into `folder`; returns the text of the latter."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# {heading}\n\n{_markdown(results)}"
    (folder / "results.json").write_text(
        json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    (folder / "results.md").write_text(text, "utf-8")
    return text


def _markdown(results: dict[str, Any]) -> str:
    """A table of the plain values, nested keys joined by dots, below it those too long for one, then
    one table per list of rows."""
    import pandas as pd

    flat = pd.json_normalize(results).to_dict("records")[0]
    tables = {
        key: value
        for key, value in flat.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    shown = {key: _shown(value) for key, value in flat.items() if key not in tables}
    # A column is as wide as its longest cell, and the command would fill a terminal with spaces.
    short = [(key, text) for key, text in shown.items() if len(text) <= WIDEST]
    parts = [markdown_table(("what", "value"), short)]
    parts += [f"- {key}: `{text}`\n" for key, text in shown.items() if len(text) > WIDEST]
    for name, rows in tables.items():
        cells = pd.DataFrame(rows, dtype=object).map(_shown)
        parts.append(f"## {name}\n\n{markdown_table(list(cells), cells.to_numpy().tolist())}")
    return "\n".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells as they are written, by pandas and tabulate."""
    import pandas as pd

    # A signature such as nrefs:1|case:mixed would end its cell.
    table = pd.DataFrame(rows, columns=columns, dtype=object).replace(r"\|", r"\\|", regex=True)
    table.columns = table.columns.str.replace("|", r"\|")
    text = table.to_markdown(index=False, tablefmt="github", disable_numparse=True)
    return f"{text}\n"


def read_scores(folder: str | Path, dense_run: str | Path | None = None) -> list[Score]:
    """The test score in a run's `results.json`; nothing if the folder has none, another's, or one that
    is not finite.

    Args:
        folder: the output directory of a recipe.
        dense_run: that of the same recipe's dense run, to compare with.

    Raises:
        ValueError: the two runs were not scored in the same way.
        FileNotFoundError: there is a `dense_run`, but one of the two has no results.
    """
    try:
        run = read_run(Path(folder) / "results.json")
    except (FileNotFoundError, ValueError):
        if dense_run is not None:
            raise
        return []
    dense = None
    if dense_run is not None:
        other = read_run(Path(dense_run) / "results.json")
        pair = [
            (r["score"]["metric"], r["score"]["signature"], r.get("data")) for r in (run, other)
        ]
        if pair[0] != pair[1] or other["method"] != "dense":
            raise ValueError(
                f"{dense_run} is a {other['method']} run scored as {pair[1]}, but {folder} needs a "
                f"dense one scored as {pair[0]}; give the dense run of the same recipe and data."
            )
        dense = other["score"]["test"]
    score = run["score"]
    if not math.isfinite(score["test"]):  # the correlation with a constant has no value
        return []
    data = run.get("data") or run.get("recipe", "test set")
    return [Score(score["metric"], score["test"], data, dense=dense, signature=score["signature"])]


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """What a Trainer logged into `folder`: from `trainer_state.json`, else SAD alone."""
    state = Path(folder) / "trainer_state.json"
    if state.is_file():
        return json.loads(state.read_text("utf-8")).get("log_history") or []
    path, rows = Path(folder) / SAD_FILE, []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # half a line, from a run that was stopped while writing
            continue
    return rows


def read_run(path: Path) -> dict[str, Any]:
    """A run's `results.json`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, or lacks a key that every recipe writes.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no results here; a recipe writes results.json when it has finished."
        )
    try:
        run = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not whole JSON ({error}); run the recipe again.") from error
    keys = ("method", "score", "time", "steps")
    missing = [key for key in keys if not isinstance(run, dict) or key not in run]
    if missing:
        raise ValueError(
            f"{path}: no key {', '.join(missing)}; this is not a recipe's results.json."
        )
    return run
