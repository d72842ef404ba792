"""What a model reached: one score, read from a run's results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        interval: between which bounds the difference to the dense model lies, in 95% of the resamples of
            a paired bootstrap over the data's examples.
    """

    metric: str
    value: float
    data: str
    split: str = "test"
    dense: float | None = None
    signature: str | None = None
    higher_is_better: bool = True
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, value in (("value", self.value), ("dense", self.dense)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"Score.{name} of {self.metric} must be finite, but is {value}")
        low, high = self.interval or (0.0, 0.0)
        if self.interval is not None and (
            self.dense is None or not -math.inf < low <= high < math.inf
        ):
            raise ValueError(
                f"Score.interval of {self.metric} is {self.interval}; it needs two finite bounds of the "
                "difference to dense, the lower first, and dense."
            )
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


class DamagedRunError(ValueError):
    """A recipe's `results.json` that holds what no recipe writes."""


def read_scores(folder: str | Path, dense_run: str | Path | None = None) -> list[Score]:
    """The test score in a run's `results.json`; nothing if the folder has none, another's, or one that
    is not finite.

    Args:
        folder: the output directory of a recipe.
        dense_run: that of the same recipe's dense run, to compare with; the one that stands in the
            results if none is given.

    Raises:
        DamagedRunError: (a ``ValueError``) a recipe's results have a value of another kind.
        ValueError: the two runs were not scored in the same way.
        FileNotFoundError: there is a `dense_run`, but one of the two has no results.
    """
    try:
        run = read_run(Path(folder) / "results.json")
    except DamagedRunError:
        raise
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
    beside = run.get("vs_dense")  # written with the run, where its dense run was named
    if beside is not None and dense in (None, beside["score"]):
        dense = beside["score"]
        interval = (beside["low"], beside["high"]) if beside["low"] is not None else None
    else:
        interval = None
    score = run["score"]
    if not math.isfinite(score["test"]):  # the correlation with a constant has no value
        return []
    data = run.get("data") or run.get("recipe", "test set")
    return [
        Score(
            score["metric"],
            score["test"],
            data,
            dense=dense,
            interval=interval,
            signature=score["signature"],
        )
    ]


def read_run(path: Path) -> dict[str, Any]:
    """A run's `results.json`.

    Raises:
        FileNotFoundError: it is not there.
        DamagedRunError: (a ``ValueError``) it has the keys of a recipe's, but a value of another kind.
        ValueError: it is not whole JSON, or lacks a key that every recipe writes.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no results here; a recipe writes results.json when it has finished."
        )
    try:
        run = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"{path}: not whole JSON ({said}); run the recipe again.") from error
    missing = [key for key in NEEDED if not isinstance(run, dict) or key not in run]
    if missing:
        raise ValueError(
            f"{path}: no key {', '.join(missing)}; this is not a recipe's results.json."
        )
    for name, fits in HELD.items():
        *outer, last = name.split(".")
        inside: Any = run
        for key in outer:
            inside = inside.get(key)
        if inside is None:  # a dense run has no SAD
            continue
        if last not in inside and (not outer or name in OPTIONAL):
            continue
        if last not in inside or not fits(inside[last]):
            found = f"is {str(inside[last])[:60]!r}" if last in inside else "is missing"
            raise DamagedRunError(
                f"{path}: {name} {found}, which no recipe writes; run the recipe again."
            )
    if run["score"]["test"] is None:
        run["score"]["test"] = math.nan  # JSON has no word for it
    return run


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 2**1000


def _number_or_none(value: Any) -> bool:
    # Older recipes wrote NaN, which is not JSON, but Python reads it.
    return value is None or _number(value) or (isinstance(value, float) and math.isnan(value))


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


NEEDED = ("method", "score", "time", "steps")
# What may stand in a results.json: where, and whether it is that.
HELD: dict[str, Callable[[Any], bool]] = {
    "method": _text,
    "score": _object,
    "time": _object,
    "steps": _count,
    "sad": lambda value: value is None or _object(value),
    "score.test": _number_or_none,
    "score.metric": _text,
    "score.signature": lambda value: value is None or _text(value),
    "time.train_s": lambda value: _number(value) and value >= 0,
    "time.steps": _count,
    "sad.total": _number,
    "sad.from_start": _number,
    "sad.mean_flip_rate": _number,
    "steps_before": lambda value: value is None or _count(value),
    "pattern": lambda value: value is None or _text(value),
    "command": lambda value: value is None or _text(value),
    "versions": _object,
    "seed": lambda value: type(value) is int,
    "metrics": lambda value: isinstance(value, list) and all(map(_text, value)),
    "vs_dense": lambda value: value is None or _object(value),
    "vs_dense.score": _number,
    # Both None where nothing could be resampled.
    "vs_dense.low": lambda value: value is None or _number(value),
    "vs_dense.high": lambda value: value is None or _number(value),
    **dict.fromkeys(("arm", "task", "data", "recipe"), _text),
}
OPTIONAL = {"time.steps"}  # older recipes did not write it
