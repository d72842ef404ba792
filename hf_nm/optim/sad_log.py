"""``nm_sad.jsonl``: SAD per weight and log, written, cut back, read and summed."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_nm.optim.meter import MaskMeter

_FILE = "nm_sad.jsonl"  # what the Trainers write, one line for each log

# What a Trainer's log says of an interval, in its own lines and in the file's.
SAD, FLIP_RATE, SAD_INIT = "nm/sad", "nm/flip_rate", "nm/sad_init"
DECAY = "nm/decay"  # where it is automatic

_NUMBERS = (SAD, FLIP_RATE, SAD_INIT, "loss", "eval_loss")
_REMEDY = "copy it from a checkpoint of the same run, or move it away"


def measure(meter: MaskMeter, decay_factor: float = 1.0) -> dict[str, Any]:
    """How far the masks moved since the last mark. Where weights are sharded every rank must ask.

    Args:
        meter: of the optimizer.
        decay_factor: how far the decay has risen (``decay_warmup_steps``).

    Returns:
        optimizer_step, since_optimizer_step: effective steps at the interval's two ends.
        nm/sad: ``sum(abs(E_now - E_at_mark))``, mask entries.
        nm/flip_rate: flips summed step by step / (N:M weights x steps), a fraction.
        nm/sad_init: SAD against the masks at the start of training, mask entries.
        nm/decay: with ``decay="auto"`` the decay in force at the last step, mean over weights, gradient
            units.
        layers: sad, flips and sad_init of each weight by its name, mask entries; and its decay.
    """
    since_start, since_mark = meter.sad_per_layer("start"), meter.sad_per_layer("mark")
    flips = meter.flips_per_layer("mark")
    decays = {name: decay * decay_factor for name, decay in meter.decays().items()}
    mean = {DECAY: sum(decays.values()) / len(decays)} if decays else {}
    return {
        "optimizer_step": meter.step,
        "since_optimizer_step": meter.step_at_mark,
        SAD: sum(since_mark.values()),
        FLIP_RATE: meter.flip_rate("mark"),
        SAD_INIT: sum(since_start.values()),
        **mean,
        "layers": {
            name: {"sad": entries, "flips": flips[name], "sad_init": since_start[name]}
            | ({"decay": decays[name]} if name in decays else {})
            for name, entries in since_mark.items()
        },
    }


def totals(measured: dict[str, Any]) -> dict[str, float | int]:
    """Of what :func:`measure` returns, what belongs into a Trainer's log."""
    return {key: measured[key] for key in (SAD, FLIP_RATE, SAD_INIT, DECAY) if key in measured}


def append(folder: str | Path, step: int, measured: dict[str, Any]) -> None:
    """Write what :func:`measure` returned as a line of the folder's file.

    A full disk, or whatever else keeps the line from being written, is warned of: training goes on.

    Args:
        folder: made if it is not there.
        step: the Trainer's.
        measured: the interval up to there.
    """
    path = Path(folder) / _FILE
    line = (json.dumps({"step": step, **measured}) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # half a line, which would spoil this one too
                    line = b"\n" + line
            written = file.write(line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes were written")
    except OSError as error:
        warnings.warn(
            f"the masks' movement at step {step} was not written to {path} ({error}); training goes on",
            stacklevel=2,
        )


def sad_curve(log_history: Sequence[dict]) -> list[tuple[int, int]]:
    """The Trainer's step and the SAD up to there (mask entries) of each logging interval; empty for a
    dense run."""
    return [(row["step"], row[SAD]) for row in log_history if SAD in row]


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
    rows = [row for row in log_history if row.keys() >= {SAD, FLIP_RATE, SAD_INIT}]
    total, flips, previous = 0, 0.0, 0
    for row in rows:
        total += row[SAD]
        flips += row[FLIP_RATE] * (row["step"] - previous)
        previous = row["step"]
    if not previous:
        return None
    return {
        "total": total,
        "from_start": rows[-1][SAD_INIT],
        "mean_flip_rate": flips / previous,
        "intervals": len(rows),
        "steps": previous,
    }


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """What a Trainer logged into `folder`: from `trainer_state.json`, else SAD alone.

    Raises:
        ValueError: `trainer_state.json` is damaged.
    """
    state = Path(folder) / "trainer_state.json"
    if state.is_file():
        return read_state(state)["log_history"]
    path = Path(folder) / _FILE
    return [row for _, row in _lines(path) if _is_log(row)] if path.is_file() else []


def read_layers(folder: str | Path) -> list[tuple[int, dict[str, int]]]:
    """The Trainer's step and SAD of each weight up to there (mask entries), from the folder's
    `nm_sad.jsonl`; empty where there is none."""
    path = Path(folder) / _FILE
    if not path.is_file():
        return []
    return [
        (row["step"], {name: layer["sad"] for name, layer in row["layers"].items()})
        for _, row in _lines(path)
        if isinstance(row.get("layers"), dict)
    ]


def read_state(path: Path) -> dict[str, Any]:
    """A `trainer_state.json`, with a whole number as ``global_step`` and rows as ``log_history``.

    Raises:
        ValueError: the file is damaged, or no Trainer's.
    """
    try:
        state = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON ({error}); {_REMEDY}") from error
    history = state.get("log_history") or [] if isinstance(state, dict) else None
    if not isinstance(history, list) or not _is_step(state.get("global_step", 0)):
        raise ValueError(f"{path} is not what a Trainer writes; {_REMEDY}")
    for number, row in enumerate(history):
        if not _is_log(row):
            raise ValueError(
                f"{path}: entry {number} of its log_history is no line of a Trainer's log; {_REMEDY}"
            )
    return state | {"log_history": history}


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_log(row: Any) -> bool:
    """Whether a row has the step, and numbers where this package reads some."""
    return (
        isinstance(row, dict)
        and _is_step(row.get("step"))
        and all(isinstance(row.get(key, 0), int | float) for key in _NUMBERS)
        and (SAD not in row or row.keys() >= {FLIP_RATE, SAD_INIT})
    )


def cut_back(folder: str | Path, step: int) -> None:
    """Drop the lines after ``step``: they belong to a run that this one replaces. Damaged lines are
    dropped too, and a file that cannot be read or written stays as it is, both with a warning."""
    path = Path(folder) / _FILE
    beside = path.with_suffix(".jsonl.new")
    try:
        if not path.is_file():
            return
        kept = [line + b"\n" for line, row in _lines(path) if row["step"] <= step]
        beside.write_bytes(b"".join(kept))
        os.replace(beside, path)
    except OSError as error:
        warnings.warn(
            f"{path} was not cut back to step {step} ({error}); lines of the run before may stay in it",
            stacklevel=2,
        )
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The file's lines, as they stand there and as they read, with a warning of damaged ones."""
    damaged = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        row = _row(line)
        if row is None:  # half a line, of a run that was stopped while writing, or worse
            damaged.append(number)
        else:
            yield line, row
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines were left out (first: line {damaged[0]})",
            stacklevel=3,
        )


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is one of :func:`append`'s."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = ("step", SAD, FLIP_RATE, SAD_INIT)
    if not isinstance(row, dict) or any(
        isinstance(row.get(key), bool) or not isinstance(row.get(key), int | float)
        for key in numbers
    ):
        return None
    return row
