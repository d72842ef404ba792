"""``hf-nm``: look at, prune, check, pack and push sparse checkpoints.

Exit codes: 0 well, 1 a weight breaks its pattern, 2 anything else that was wrong with what was asked.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hf_nm.cli.terminal import (
    err,
    out,
    print_error,
    print_json,
    print_movements,
    print_report,
    print_sizes,
    print_timings,
    print_warning,
    progress,
    shown,
    size,
)
from hf_nm.sparsity.check import BrokenPatternError
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.version import __version__

_INTERRUPTED = 130  # as shells count Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="N:M sparse checkpoints of Hugging Face transformers: n weights kept of every m.",
)
Source = Annotated[str, typer.Argument(help="A folder, or a model's id on the Hub.")]
Destination = Annotated[Path, typer.Argument(help="A folder to write: new, or empty.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in DESTINATION.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Pattern = Annotated[str, typer.Option("--pattern", "-p", help="n:m, weights kept of every m.")]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--patterns", help="GLOB=1:4 gives some weights another pattern. Repeatable."),
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


def _version(asked: bool) -> None:
    if asked:
        out.print(f"hf-nm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: hf-nm inspect Qwen/Qwen3-0.6B --pattern 2:4")
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
    from hf_nm.checkpoint.inspection import inspect as look

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
        print_json(found.to_dict())
        return
    table = Table("weight", "count", "shape", "pattern", "kept, or why dense")
    for row in found.groups():
        kept = NMPattern.parse(row["pattern"]) if "pattern" in row else None
        table.add_row(
            shown(row["name"]),
            str(row["count"]),
            "x".join(map(str, row["shape"])),
            "dense" if kept is None else str(kept),
            shown(row["reason"]) if kept is None else f"{kept.n / kept.m:.1%}",
        )
    out.print(table)
    out.print(
        f"{shown(found.architecture)}: {found.parameters:,} parameters, {found.share:.1%} of them in "
        f"{len(found.report.layers)} N:M weights{' as it claims' if found.claimed else ''}\n"
        f"checkpoint {size(found.dense_bytes)}, packed {size(found.packed_bytes)} "
        f"({found.packed_bytes / found.dense_bytes:.2f} of it)"
    )


@app.command(epilog="Example: hf-nm verify out/embedded")
def verify(
    source: Annotated[
        str,
        typer.Argument(help="A folder, packed or not, a safetensors file, or an id on the Hub."),
    ],
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", "-p", help="n:m, asked of the weights; needs no manifest."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--targets", help="With --pattern: glob, which must keep it. Repeatable."),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Check from the weights alone that every weight claimed to be N:M is. Exit code 1 if one is not.

    With --pattern: which weights keep it, whatever is claimed. Exit code 1 if none does.
    """
    import hf_nm
    from hf_nm.checkpoint.source import existing

    existing(source)
    with progress("verify", quiet=as_json) as told:
        report = hf_nm.verify(
            source,
            pattern=pattern,
            targets=targets or None,
            progress=told,
            **_download(revision, token),
        )
    print_report(report, as_json)


@app.command(epilog="Example: hf-nm prune google-bert/bert-base-uncased pruned --pattern 2:4")
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
    from hf_nm.checkpoint.prune import prune as prune_once

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
    print_report(report, as_json)


@app.command(epilog="Example: hf-nm pack out/embedded packed")
def pack(
    source: Source,
    destination: Destination,
    overwrite: Overwrite = False,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write a sparse checkpoint in packed form: kept values and one bit for each weight, lossless."""
    import hf_nm

    _rewrite(hf_nm.pack, source, destination, overwrite, _download(revision, token))


@app.command(epilog="Example: hf-nm unpack packed plain")
def unpack(
    source: Source,
    destination: Destination,
    overwrite: Overwrite = False,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write a packed checkpoint as plain safetensors again, which everything opens."""
    import hf_nm

    _rewrite(hf_nm.unpack, source, destination, overwrite, _download(revision, token))


def _rewrite(
    how: Callable[..., Path],
    source: str,
    destination: Path,
    overwrite: bool,
    download: dict[str, Any],
) -> None:
    """Pack or unpack with a progress bar, and say what it came to."""
    from hf_nm.checkpoint.source import whole_folder

    folder = whole_folder(source, **download)
    with progress(how.__name__) as told:
        how(folder, destination, overwrite=overwrite, progress=told)
    print_sizes(folder, destination)


@app.command(epilog="Example: hf-nm push out/embedded you/translation-2-4 --private")
def push(
    folder: Annotated[Path, typer.Argument(help="A sparse checkpoint's folder.")],
    repo_id: Annotated[str, typer.Argument(help="NAME or ORGANISATION/NAME on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create it private.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="The Hub's id of what training started from.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Such as apache-2.0.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Such as de. Repeatable.")] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="Ids on the Hub. Repeatable.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch other than main; made if it is not there.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")
    ] = False,
    token: Token = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
) -> None:
    """Verify a sparse checkpoint, write its model card, and upload both to the Hub."""
    import hf_nm
    from hf_nm.formats.folder import read_config
    from hf_nm.formats.manifest import KEY

    if KEY not in read_config(folder, "push"):
        raise ValueError(
            f"{folder} has no {KEY!r} in its config, so nothing in it claims to be sparse; save a model "
            "made by hf_nm.sparsify, or hf-nm prune a dense one"
        )
    url = hf_nm.push_to_hub(
        folder,
        repo_id,
        base_model=base_model,
        license=license,
        language=language,
        datasets=datasets,
        create_pr=create_pr,
        private=private or None,
        revision=revision,
        token=token,
        commit_message=message,
    )
    out.print(shown(str(url)))


@app.command(epilog="Example: hf-nm bench out/embedded --tokens 1")
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
    """Time a model's layers on this machine: dense, packed (hf_nm.compress), on torch's 2:4 kernels, and
    a training step's masks. --tokens 1 is decoding."""
    from hf_nm.cli.timing import time_layers

    rows = time_layers(
        source,
        NMPattern.parse(pattern),
        tokens=tokens,
        rounds=rounds,
        device=device,
        **_download(revision, token),
    )
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    print_timings(rows, rounds, tokens)


@app.command(epilog="Example: hf-nm report out/embedded")
def report(
    run: Annotated[Path, typer.Argument(help="The output_dir of a training.")],
    write: Annotated[
        Path | None, typer.Option("--write", help="Where figures go; RUN if unset.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a run's masks moved: SAD of each layer as a table, and over time as figures."""
    from hf_nm.cli.run_report import report_run

    layers, figures = report_run(run, run if write is None else write)
    if as_json:
        print_json(
            {"layers": [row._asdict() for row in layers], "figures": list(map(str, figures))}
        )
        return
    print_movements(layers)
    for path in figures:
        out.print(shown(str(path)))


def main() -> None:
    """The command. What went wrong becomes one line and an exit code."""
    for name in ("SIGTERM", "SIGHUP"):  # unwind, so that nothing half-written is left
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    warnings.showwarning = print_warning  # type: ignore[assignment]
    code = 0
    try:
        # typer returns the code where a command is left early
        code = app(standalone_mode=False) or 0
        if code == _INTERRUPTED:
            err.print("stopped; nothing half-written is left")
    except SystemExit as done:
        # 1 is typer's, when nobody reads any more what is printed (`| head`): as shells count that
        code = 141 if done.code == 1 else int(done.code or 0)
    except BrokenPatternError as error:
        print_error(error)
        code = 1
    except Exception as error:  # whatever a file or another package made of it: never exit code 1
        show = getattr(error, "show", None)
        if show is None:
            print_error(error)
            code = 2
        else:  # click's own: a wrong option, a missing argument
            show()
            code = getattr(error, "exit_code", 2)
    sys.exit(code)


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)


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


if __name__ == "__main__":
    main()
