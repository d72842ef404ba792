"""``hf-nm``: look at, prune, check, pack and push sparse checkpoints.

Exit codes: 0 well, 1 a weight breaks its pattern, 2 anything else that was wrong with what was asked.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from hf_nm.pattern import NMPattern
from hf_nm.report import Report
from hf_nm.state import BrokenPatternError

_INTERRUPTED = 130  # as shells count Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="N:M sparse checkpoints of Hugging Face transformers: n weights kept of every m.",
)
# Whole names where nobody's terminal sets the width.
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 200)

Source = Annotated[str, typer.Argument(help="A folder, or a model's id on the Hub.")]
Destination = Annotated[Path, typer.Argument(help="A folder to write: new, or empty.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in DESTINATION.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Pattern = Annotated[str, typer.Option("--pattern", "-p", help="n:m, weights kept of every m.")]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--patterns", help="GLOB=n:m: another pattern for some weights. Repeatable."),
]
Targets = Annotated[
    list[str] | None,
    typer.Option("--targets", help="Glob: these instead of the rule. Repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="Glob: these stay dense. Repeatable.")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")]
Token = Annotated[
    str | None, typer.Option("--token", help="Of the Hub; by default the one you logged in with.")
]


@app.command()
def inspect(
    source: Annotated[
        str, typer.Argument(help="A config.json, a folder with one, or a model's id on the Hub.")
    ],
    pattern: Pattern = "2:4",
    patterns: Patterns = None,
    targets: Targets = None,
    exclude: Exclude = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the checkpoint, for its size; the config's own if unset.")
    ] = None,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """What would be sparse in a model, and how large it would be, without its weights.

    Of a sparse checkpoint: what it claims.
    """
    from hf_nm.inspection import inspect as look

    parsed = NMPattern.parse(pattern)
    found = look(
        source,
        parsed.n,
        parsed.m,
        targets=targets,
        exclude=exclude,
        patterns=_patterns(patterns),
        dtype=dtype,
        **_download(revision, token),
    )
    if as_json:
        _print_json(found.to_dict())
        return
    table = Table("weight", "count", "shape", "pattern", "kept, or why dense")
    for row in found.groups():
        kept = NMPattern.parse(row["pattern"]) if "pattern" in row else None
        table.add_row(
            row["name"],
            str(row["count"]),
            "x".join(map(str, row["shape"])),
            "dense" if kept is None else str(kept),
            row["reason"] if kept is None else f"{kept.n / kept.m:.1%}",
        )
    out.print(table)
    out.print(
        f"{found.architecture}: {found.parameters:,} parameters, {found.share:.1%} of them in "
        f"{len(found.report.layers)} N:M weights{' as it claims' if found.claimed else ''}\n"
        f"checkpoint {_size(found.dense_bytes)}, packed {_size(found.packed_bytes)} "
        f"({found.packed_bytes / found.dense_bytes:.2f} of it)"
    )


@app.command()
def verify(
    source: Annotated[
        str,
        typer.Argument(help="A folder, packed or not, a safetensors file, or an id on the Hub."),
    ],
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Check from the weights alone that every weight claimed to be N:M is. Exit code 1 if one is not."""
    import hf_nm
    from hf_nm.inspection import existing

    existing(source)
    with _progress("verify", quiet=as_json) as progress:
        report = hf_nm.verify(source, progress=progress, **_download(revision, token))
    _print_report(report, as_json)


@app.command()
def prune(
    source: Source,
    destination: Destination,
    pattern: Pattern = "2:4",
    patterns: Patterns = None,
    targets: Targets = None,
    exclude: Exclude = None,
    overwrite: Overwrite = False,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Prune a dense checkpoint once by magnitude: where ASP starts its fine-tuning from.

    Accuracy falls until it is trained again: hf_nm.restore(model), then NMTrainer.
    """
    from hf_nm.oneshot import prune as prune_once

    parsed = NMPattern.parse(pattern)
    report = prune_once(
        source,
        destination,
        parsed.n,
        parsed.m,
        targets=targets,
        exclude=exclude,
        patterns=_patterns(patterns),
        overwrite=overwrite,
        **_download(revision, token),
    )
    _print_report(report, as_json)


@app.command()
def pack(source: Source, destination: Destination, overwrite: Overwrite = False) -> None:
    """Write a sparse checkpoint in packed form: kept values and one bit for each weight, lossless."""
    import hf_nm
    from hf_nm.oneshot import local_folder

    folder = local_folder(source)
    with _progress("pack") as progress:
        hf_nm.pack(folder, destination, overwrite=overwrite, progress=progress)
    _print_sizes(folder, destination)


@app.command()
def unpack(source: Source, destination: Destination, overwrite: Overwrite = False) -> None:
    """Write a packed checkpoint as plain safetensors again, which everything opens."""
    import hf_nm
    from hf_nm.oneshot import local_folder

    folder = local_folder(source)
    with _progress("unpack") as progress:
        hf_nm.unpack(folder, destination, overwrite=overwrite, progress=progress)
    _print_sizes(folder, destination)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A sparse checkpoint's folder.")],
    repo_id: Annotated[str, typer.Argument(help="NAME or ORGANISATION/NAME on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create it private.")] = False,
    revision: Revision = None,
    token: Token = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
) -> None:
    """Verify a sparse checkpoint, write its model card, and upload both to the Hub."""
    import hf_nm

    url = hf_nm.push_to_hub(
        folder,
        repo_id,
        private=private or None,
        revision=revision,
        token=token,
        commit_message=message,
    )
    out.print(str(url))


@app.command()
def bench(
    source: Annotated[
        str, typer.Argument(help="A config.json, a folder with one, or a model's id on the Hub.")
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Rows of the inputs: batch x length.")] = 512,
    pattern: Pattern = "2:4",
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each, interleaved.")] = 20,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; cuda if there is one.")] = None,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Time a model's layers on this machine: dense, on 2:4 kernels, and a training step's masks."""
    from hf_nm.layer_timing import time_layers

    rows = time_layers(
        source,
        NMPattern.parse(pattern),
        tokens=tokens,
        rounds=rounds,
        device=device,
        **_download(revision, token),
    )
    if as_json:
        _print_json([row._asdict() for row in rows])
        return
    table = Table("shape", "layers", "dense, ms", "2:4 kernel, ms", "speed-up", "masks a step, ms")
    for row in rows:
        kernel = row.kernel_ms
        table.add_row(
            "x".join(map(str, row.shape)),
            str(row.layers),
            f"{row.dense_ms:.3f}",
            row.why_no_kernel if kernel is None else f"{kernel:.3f}",
            "" if kernel is None else f"{row.dense_ms / kernel:.2f}",
            f"{row.masks_ms:.3f}",
        )
    out.print(table)
    out.print(f"medians of {rounds} interleaved rounds, {tokens} rows, {rows[0].machine}")


def main() -> None:
    """The command. Errors of the package become one line and an exit code."""
    try:
        code = (
            app(standalone_mode=False) or 0
        )  # typer returns the code where a command is left early
        if code == _INTERRUPTED:
            err.print("stopped; nothing half-written is left", highlight=False)
        sys.exit(code)
    except BrokenPatternError as error:
        _fail(error, 1)
    except (ValueError, TypeError, OSError) as error:
        _fail(error, 2)
    except Exception as error:  # click's own: a wrong option, a missing argument
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


def _fail(error: Exception, code: int) -> None:
    err.print(f"[red]error:[/red] {type(error).__name__}: ", end="")
    err.print(str(error), markup=False, highlight=False)
    sys.exit(code)


def _patterns(values: list[str] | None) -> dict[str, str | NMPattern] | None:
    found: dict[str, str | NMPattern] = {}
    for value in values or []:
        glob, sign, pattern = value.rpartition("=")
        if not sign or not glob:
            raise ValueError(f"--patterns takes GLOB=n:m, such as '*.fc1=1:4', but got {value!r}")
        found[glob] = pattern
    return found or None


def _download(revision: str | None, token: str | None) -> dict[str, Any]:
    given = {"revision": revision, "token": token}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def _progress(what: str, quiet: bool = False) -> Iterator[Callable[[int, int, str], None] | None]:
    """A progress bar in bytes, on standard error."""
    if quiet:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(what, total=None)

        def report(done: int, total: int, name: str) -> None:
            bars.update(task, completed=done, total=total, description=f"{what} {name}"[:60])

        yield report


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        layers = [
            {"name": r.name, "pattern": str(r.pattern), "shape": list(r.shape), "kept": r.kept}
            for r in report.layers
        ]
        skipped = [r._asdict() | {"shape": list(r.shape)} for r in report.skipped]
        _print_json({"layers": layers, "skipped": skipped})
        return
    table = Table("weight", "shape", "claimed", "kept")
    for row in report.layers:
        entries = 1
        for size in row.shape:
            entries *= size
        shape = "x".join(map(str, row.shape))
        table.add_row(row.name, shape, str(row.pattern), f"{row.kept / entries:.1%}")
    out.print(table)
    out.print(str(report).splitlines()[-1], highlight=False)


def _print_sizes(source: Path, destination: Path) -> None:
    before, after = (
        sum(os.path.getsize(file) for file in folder.glob("*.safetensors"))
        for folder in (source, destination)
    )
    out.print(f"{_size(before)} to {_size(after)} ({after / max(before, 1):.3f})")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


if __name__ == "__main__":
    main()
