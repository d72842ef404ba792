"""What ``hf-nm`` prints: tables, progress, errors; on a terminal or into a file."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from hf_nm.model.report import Report

# What files call their tensors is printed, not obeyed.
_PLAIN: Any = {"markup": False, "emoji": False, "highlight": False}
# Whole names where no terminal sets the width.
out = Console(width=None if sys.stdout.isatty() else 200, **_PLAIN)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 200, **_PLAIN)


def shown(text: str) -> str:
    """A text that may come from a file, with what a terminal would obey written out: ``\\x1b`` for the
    character. Line ends stay."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode()
        for sign in text
    )


@contextmanager
def progress(what: str, quiet: bool = False) -> Iterator[Callable[[int, int, str], None] | None]:
    """A progress bar in bytes, on standard error."""
    if quiet:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(what, total=None)

        def report(done: int, total: int, name: str) -> None:
            bars.update(task, completed=done, total=total, description=shown(f"{what} {name}")[:60])

        yield report


def print_json(data: Any) -> None:
    """Data for other programs: nothing else goes to standard output with ``--json``."""
    print(json.dumps(data, indent=2))


def print_report(report: Report, as_json: bool) -> None:
    """What ``verify`` found, a row for each N:M weight."""
    if as_json:
        layers = [
            {"name": r.name, "pattern": str(r.pattern), "shape": list(r.shape), "kept": r.kept}
            for r in report.layers
        ]
        skipped = [r._asdict() | {"shape": list(r.shape)} for r in report.skipped]
        print_json({"layers": layers, "skipped": skipped})
        return
    table = Table("weight", "shape", "claimed", "kept")
    for row in report.layers:
        entries = max(1, math.prod(row.shape))
        shape = "x".join(map(str, row.shape))
        table.add_row(shown(row.name), shape, str(row.pattern), f"{row.kept / entries:.1%}")
    out.print(table)
    out.print(str(report).splitlines()[-1], highlight=False)


def print_timings(rows: Sequence[Any], rounds: int, tokens: int) -> None:
    """What ``bench`` measured, a row for each shape."""
    columns = (
        "shape",
        "layers",
        "dense, ms",
        "packed, ms",
        "speed-up",
        "2:4 kernel, ms",
        "speed-up",
    )
    table = Table(*columns, "masks a step, ms")
    for row in rows:
        kernel = row.kernel_ms
        table.add_row(
            "x".join(map(str, row.shape)),
            str(row.layers),
            f"{row.dense_ms:.3f}",
            f"{row.packed_ms:.3f} ({row.packed_way})",
            f"{row.dense_ms / row.packed_ms:.2f}",
            row.why_no_kernel if kernel is None else f"{kernel:.3f}",
            "" if kernel is None else f"{row.dense_ms / kernel:.2f}",
            f"{row.masks_ms:.3f}",
        )
    out.print(table)
    out.print(f"medians of {rounds} interleaved rounds, {tokens} rows, {rows[0].machine}")


def print_movements(rows: Sequence[Any]) -> None:
    """How far masks moved, a row for each N:M weight; per cent are of its entries."""
    table = Table(
        *(
            "weight",
            "pattern",
            "entries",
            "SAD, last interval",
            "largest (at step)",
            "from the start",
        )
    )
    for row in rows:
        of = 100 / max(1, row.entries)
        table.add_row(
            shown(row.name),
            row.pattern,
            f"{row.entries:,}",
            f"{row.last:,} ({row.last * of:.2f}%)",
            f"{row.largest:,} ({row.largest_at:,})",
            f"{row.from_start:,} ({row.from_start * of:.1f}%)",
        )
    out.print(table)


def print_sizes(source: Path, destination: Path) -> None:
    """Bytes of the weights in two folders, and their ratio."""
    before, after = (
        sum(os.path.getsize(file) for file in folder.glob("*.safetensors"))
        for folder in (source, destination)
    )
    out.print(f"{size(before)} to {size(after)} ({after / max(before, 1):.3f})")


def size(count: float) -> str:
    """Bytes, in units of a thousand."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def print_warning(message: Warning | str, *where: Any) -> None:
    """A warning without the line of code that gave it."""
    err.print("warning:", style="yellow", end=" ")
    err.print(shown(str(message)), soft_wrap=True)


def print_error(error: Exception) -> None:
    """What went wrong, in a line, with what to do; the whole trace where HF_NM_DEBUG is set."""
    err.print("error:", style="red", end=" ")
    err.print(shown(f"{type(error).__name__}: {error}"), soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        err.print(shown(note), soft_wrap=True)
    if os.environ.get("HF_NM_DEBUG"):
        err.print(shown("".join(traceback.format_exception(error))), soft_wrap=True)
