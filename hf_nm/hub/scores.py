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


class DamagedRunError(ValueError):
    """A recipe's `results.json` that holds what no recipe writes."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


# What is read of a run, here, in cards and in comparisons: where it stands, and what it must be.
_FORMS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("method",), _is_text, "a text"),
    (("score",), lambda value: isinstance(value, dict), "an object"),
    (("score", "metric"), _is_text, "a text"),
    (("score", "test"), _is_number, "a number"),
    (("score", "signature"), _or_none(_is_text), "a text"),
    (("time",), lambda value: isinstance(value, dict), "an object"),
    (("time", "train_s"), _or_none(_is_number), "a number"),
    (("steps",), lambda value: type(value) is int and value >= 0, "a whole number"),
    (("steps_before",), _or_none(_is_number), "a number"),
    (("pattern",), _or_none(_is_text), "a text"),
    (("data",), _or_none(_is_text), "a text"),
    (("recipe",), _or_none(_is_text), "a text"),
    (("command",), _or_none(_is_text), "a text"),
    (("versions",), _or_none(lambda value: isinstance(value, dict)), "an object"),
    (("sad",), _or_none(lambda value: isinstance(value, dict)), "an object"),
    *((("sad", key), _or_none(_is_number), "a number") for key in ("total", "from_start")),
    (("sad", "mean_flip_rate"), _or_none(_is_number), "a number"),
)


def read_scores(folder: str | Path, dense_run: str | Path | None = None) -> list[Score]:
    """The test score in a run's `results.json`; nothing if the folder has none, another's, or one that
    is not finite.

    Args:
        folder: the output directory of a recipe.
        dense_run: that of the same recipe's dense run, to compare with.

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
    score = run["score"]
    if not math.isfinite(score["test"]):  # the correlation with a constant has no value
        return []
    data = run.get("data") or run.get("recipe", "test set")
    return [Score(score["metric"], score["test"], data, dense=dense, signature=score["signature"])]


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
        run = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not whole JSON ({error}); run the recipe again.") from error
    keys = ("method", "score", "time", "steps")
    missing = [key for key in keys if not isinstance(run, dict) or key not in run]
    if missing:
        raise ValueError(
            f"{path}: no key {', '.join(missing)}; this is not a recipe's results.json."
        )
    for place, is_right, wanted in _FORMS:
        value: Any = run
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if not is_right(value):
            raise DamagedRunError(
                f"{path}: {'.'.join(place)} must be {wanted}, but is {str(value)[:80]!r}; run the "
                "recipe again."
            )
    return run
