"""What the benchmarks share: rounds that are interleaved, a bar, tables, JSON, plots, and Ctrl-C."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hf_nm.environment import environment

try:
    from tqdm.auto import tqdm
except ImportError:  # comes with transformers
    tqdm = None


def common_options(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add the options that every benchmark has."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"cuda or cpu (here {device})")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds (default 20)")
    parser.add_argument(
        "--cpu_time", action="store_true", help="count CPU time: one thread on a busy machine"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--output", type=Path, default=Path(folder), help="folder for the figures")


def prepare(args: argparse.Namespace) -> torch.device:
    """The device that was asked for, with its threads."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return torch.device(args.device)


def clock_of(args: argparse.Namespace) -> Callable[[], float]:
    """The clock that was asked for."""
    return time.process_time if args.cpu_time else time.perf_counter


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def rounds_of(
    variants: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each variant in every round, in turning order: a busy machine disturbs all alike.

    Args:
        variants: name to what is timed.
        device: what they run on.
        rounds: that count.
        warmup: rounds before them.
        clock: in seconds; ``time.process_time`` counts this process's own time on a CPU that others use.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-warmup, rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            wait(device)
            start = clock()
            variants[name]()
            wait(device)
            if index >= 0:
                seconds[name].append(clock() - start)
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of one value three times that."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(mine: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratio, taken within each round."""
    return quartiles([one / other for one, other in zip(mine, base, strict=True)])


def shown(found: Sequence[float], digits: int) -> str:
    """``median (first to third quartile)``."""
    low, middle, high = found
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


class Record:
    """What a benchmark measures: written to its folder after every line, so that nothing is lost.

    Args:
        args: the benchmark's options, with ``output``.
        name: of the files: ``NAME.json``, ``NAME.md``, ``NAME.png``.
        columns: of the table.
    """

    def __init__(self, args: argparse.Namespace, name: str, columns: Sequence[str]) -> None:
        self.name, self.columns, self.folder = name, columns, args.output
        self.rows: list[dict[str, Any]] = []
        self.lines: list[Sequence[str]] = []
        self._arguments = {key: str(value) for key, value in vars(args).items()}
        self.machine = environment()
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict[str, Any], line: Sequence[str]) -> None:
        """Add a line: its figures for JSON, and as it is printed."""
        self.rows.append(row)
        self.lines.append(line)
        whole = {"arguments": self._arguments, "machine": self.machine, "rows": self.rows}
        (self.folder / f"{self.name}.json").write_text(
            json.dumps(whole, indent=1), encoding="utf-8"
        )
        (self.folder / f"{self.name}.md").write_text(self.table(), encoding="utf-8")

    def table(self) -> str:
        """The table in Markdown, with the machine below it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.lines]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        hardware, versions = self.machine["hardware"], self.machine["versions"]
        where = ", ".join(hardware["accelerators"]) or (
            f"{hardware['processor']}, {hardware['threads_per_process']} threads"
        )
        return f"{text}\n\n{where}, torch {versions.get('torch')}, hf_nm {versions['hf_nm']}\n"

    def finish(self, draw: Callable[[Any, list[dict[str, Any]]], None] | None = None) -> None:
        """Print the table and draw the plot, where matplotlib is there."""
        if not self.rows:
            print("nothing was measured")
            return
        print(self.table())
        if draw is None:
            return
        try:
            import matplotlib
        except ImportError:
            print("no plot: matplotlib is not installed")
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4.5))
        draw(axes, self.rows)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(self.folder / f"{self.name}.png", dpi=120)
        plt.close(figure)


@contextmanager
def kept_if_stopped(record: Record) -> Iterator[None]:
    """Let Ctrl-C end the measuring, and nothing else: what was measured is printed and drawn."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; {len(record.rows)} lines were measured", file=sys.stderr)


def bar(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The items, with a bar on standard error."""
    return items if tqdm is None else tqdm(items, desc=what, file=sys.stderr, leave=False)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a size does not fit."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "alloc" in str(error)
    )
