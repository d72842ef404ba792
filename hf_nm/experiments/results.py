"""What a run achieved, written so that it can be compared: results.json, results.md, the SAD plot.

Shared by the recipes and the model card. A result is a dict of plain values; the keys read here are
`method`, `pattern`, `data`, `score` (`metric`, `test`, `signature`), `sad` (from `sad_summary`),
`time` (`train_s`) and `steps`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDEST = 80  # characters of a value in the table of results.md


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
