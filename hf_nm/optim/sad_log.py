"""``nm_sad.jsonl``: SAD per weight and log, written, cut back, read and summed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAD_FILE = "nm_sad.jsonl"  # what the Trainers write, one line for each log


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


def cut_back(path: Path, step: int) -> None:
    """Drop the lines after ``step``: they belong to a run that this one replaces."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # half a line, from a run that was stopped while writing
            continue
    beside = path.with_suffix(".jsonl.new")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)
