"""What a run achieved, written so that it can be compared: results.json, results.md, the SAD plot.

Shared by the recipes and the model card. A result is a dict of plain values; the keys read here are
`method`, `pattern`, `data`, `score` (`metric`, `test`, `signature`), `sad` (from `sad_summary`),
`time` (`train_s`) and `steps`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
    """A table of the plain values, nested keys joined by dots, then one table per list of rows."""
    plain, tables = [], []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            tables.append((prefix, value))
        else:
            plain.append((prefix, value))

    walk("", results)
    parts = [markdown_table(("what", "value"), [(key, _shown(value)) for key, value in plain])]
    for name, rows in tables:
        columns = list(rows[0])
        cells = [[_shown(row.get(column)) for column in columns] for row in rows]
        parts.append(f"## {name}\n\n" + markdown_table(columns, cells))
    return "\n".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    elif isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    # A signature such as nrefs:1|case:mixed would end the table cell.
    return str(value).replace("|", "\\|")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that hold no ``|``."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
