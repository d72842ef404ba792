"""What a run predicted, one line for each example beside its reference: predictions.tsv.

The header is ``reference<TAB>prediction``. Class numbers are written as integers, numbers so that
they read back as the same float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PREDICTIONS_FILE = "predictions.tsv"
HEADER = "reference\tprediction"


def write_predictions(folder: str | Path, references: Any, predictions: Any) -> None:
    """Write `predictions.tsv` into `folder`, which is made where it is missing.

    Args:
        folder: a run's output directory, where its `results.json` lies.
        references: ``[examples]``, class numbers or floats: a tensor, an array or a list.
        predictions: the same.

    Raises:
        ValueError: different numbers of examples, or none.
        TypeError: a value is neither an integer nor a float, such as a row of logits.
    """
    sides = [_cells(references), _cells(predictions)]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise ValueError(
            f"every example needs a reference and a prediction, got {len(sides[0])} references and "
            f"{len(sides[1])} predictions"
        )
    lines = [HEADER, *map("\t".join, zip(*sides, strict=True))]
    path = Path(folder) / PREDICTIONS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def read_predictions(folder: str | Path) -> tuple[Tensor, Tensor]:
    """References and predictions that :func:`write_predictions` wrote into `folder`.

    Returns:
        References and predictions, ``[examples]`` each: int64 where every value is an integer, else
        float64.

    Raises:
        FileNotFoundError: the folder holds no such file.
        ValueError: the file is not of this form; it says which line.
    """
    path = Path(folder) / PREDICTIONS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no predictions here; write them with "
            "hf_nm.experiments.predictions.write_predictions."
        )
    header, *lines = path.read_text("utf-8").split("\n")
    if header != HEADER or not lines or lines.pop() or not lines:
        raise ValueError(
            f"{path}: needs the header {HEADER!r}, then one line for each example; the file may "
            "have been cut short."
        )
    columns: tuple[list, list] = [], []
    for number, line in enumerate(lines, start=2):
        try:
            for column, cell in zip(columns, line.split("\t"), strict=True):
                column.append(_value(cell))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not a reference and a prediction, two numbers "
                "with a tab between them"
            ) from error
    return _tensor(columns[0]), _tensor(columns[1])


def _cells(values: Any) -> list[str]:
    """One text for each value; an array's or a tensor's ``tolist`` keeps all its digits."""
    cells = []
    for value in values.tolist() if hasattr(values, "tolist") else values:
        if not isinstance(value, int | float):
            raise TypeError(
                f"a prediction is a class number or a float, but got {type(value).__name__}: give "
                "[examples], such as logits.argmax(-1)"
            )
        cells.append(str(int(value)) if isinstance(value, int) else repr(float(value)))
    return cells


def _value(cell: str) -> int | float:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _tensor(column: list[int | float]) -> Tensor:
    whole = all(isinstance(value, int) for value in column)
    return torch.tensor(column, dtype=torch.int64 if whole else torch.float64)
