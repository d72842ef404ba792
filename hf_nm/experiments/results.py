"""What a run leaves so that it can be compared: results.json, results.md, and what it predicted.

A result is a dict of plain values; the keys read by others are `method`, `pattern`, `data`, `score`
(`metric`, `test`, `signature`), `sad` (from `sad_summary`), `time` (`train_s`) and `steps`.

predictions.tsv has one line for each example, under the header ``reference<TAB>prediction``. Class
numbers are written as integers, numbers so that they read back as the same float64.
translations.jsonl has an object for each sentence, with ``source``, ``translation`` and ``reference``.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hf_nm.experiments.output import write_json

WIDEST = 80  # characters of a value in the table of results.md


def write_results(results: dict[str, Any], folder: str | Path, heading: str) -> str:
    """Write `results.json` and `results.md` into `folder`; returns the text of the latter.

    JSON has no number for what is not finite, such as the correlation with a constant: `results.json`
    has null there, `results.md` nan.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# {heading}\n\n{_markdown(results)}"
    write_json(folder / "results.json", _finite(results))
    (folder / "results.md").write_text(text, "utf-8")
    return text


def _finite(value: Any) -> Any:
    """The same with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown(results: dict[str, Any]) -> str:
    """A table of the plain values, nested keys joined by dots, below it those too long for one, then
    one table per list of rows."""
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
    # A signature such as nrefs:1|case:mixed would end its cell.
    table = pd.DataFrame(rows, columns=columns, dtype=object).replace(r"\|", r"\\|", regex=True)
    table.columns = table.columns.str.replace("|", r"\|")
    text = table.to_markdown(index=False, tablefmt="github", disable_numparse=True)
    return f"{text}\n"


PREDICTIONS_FILE = "predictions.tsv"
COLUMNS = ["reference", "prediction"]
HEADER = "\t".join(COLUMNS)


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
    sides = [_column(references), _column(predictions)]
    if len(sides[0]) != len(sides[1]) or not len(sides[0]):
        raise ValueError(
            f"every example needs a reference and a prediction, got {len(sides[0])} references and "
            f"{len(sides[1])} predictions"
        )
    path = Path(folder) / PREDICTIONS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(dict(zip(COLUMNS, sides, strict=True)))
    table.to_csv(path, sep="\t", index=False, na_rep="nan", lineterminator="\n")


def read_predictions(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
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
            "hf_nm.experiments.results.write_predictions."
        )
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); write it again.") from error
    if lines[0] != HEADER or lines.pop() or len(lines) < 2:
        raise ValueError(
            f"{path}: needs the header {HEADER!r}, then one line for each example; the file may "
            "have been cut short."
        )
    try:
        # The header as a row too: below a header a row with a cell more is an index to pandas.
        cells = pd.read_csv(
            path,
            sep="\t",
            header=None,
            dtype=str,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            skip_blank_lines=False,
        )
        wrong = (cells.apply(pd.to_numeric, errors="coerce").isna() & (cells != "nan")).any(axis=1)
        at = wrong[1:].idxmax() if wrong[1:].any() else None
    except pd.errors.ParserError as error:
        at = int(re.findall(r"line (\d+)", str(error))[0]) - 1
    if at is not None:
        raise ValueError(
            f"{path}, line {at + 1}: {lines[at]!r} is not a reference and a prediction, two "
            "numbers with a tab between them"
        )
    return _numbers(cells[0][1:]), _numbers(cells[1][1:])


def _numbers(cells: pd.Series) -> np.ndarray:
    # From text, because pandas' own reading of floats is not exact to the last digit everywhere.
    texts = cells.to_numpy(dtype=object)
    try:
        return texts.astype(np.int64)
    except (ValueError, OverflowError):
        return texts.astype(np.float64)


def _column(values: Any) -> pd.Series:
    """A column of integers or of float64; an array's or a tensor's ``tolist`` keeps all its digits."""
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    column = pd.Series(values, dtype=None if values else float)
    if column.dtype.kind not in "biuf":
        raise TypeError(
            f"a prediction is a class number or a float, but got {type(values[0]).__name__}: give "
            "[examples], such as logits.argmax(-1)"
        )
    return column.astype(int) if column.dtype.kind == "b" else column


TRANSLATIONS_FILE = "translations.jsonl"
SIDES = ("source", "translation", "reference")


def write_translations(
    folder: str | Path,
    sources: Sequence[str],
    translations: Sequence[str],
    references: Sequence[str],
) -> None:
    """Write `translations.jsonl` into `folder`, which is made where it is missing.

    Raises:
        ValueError: different numbers of sentences.
    """
    rows = zip(sources, translations, references, strict=True)
    lines = [json.dumps(dict(zip(SIDES, row, strict=True)), ensure_ascii=False) for row in rows]
    path = Path(folder) / TRANSLATIONS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def read_translations(folder: str | Path) -> tuple[list[str], list[str], list[str]]:
    """Sources, translations and references that :func:`write_translations` wrote into `folder`.

    Raises:
        FileNotFoundError: the folder holds no such file.
        ValueError: the file is not of this form; it says which line.
    """
    path = Path(folder) / TRANSLATIONS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no translations here; the translation recipe writes them with its score."
        )
    columns: tuple[list[str], list[str], list[str]] = ([], [], [])
    # Not splitlines: a sentence may hold a line separator of Unicode.
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            row = json.loads(line)
            texts = [row[side] for side in SIDES]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError):
            texts = []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{path}, line {number}: needs an object with the texts {', '.join(SIDES)}; the file "
                "may have been cut short: score the run again."
            )
        for column, text in zip(columns, texts, strict=True):
            column.append(text)
    return columns
