"""The command `compare`: run the arms of a recipe, or read runs that are there, and write their table.

    python recipes/translation/compare.py recipes/translation/configs/local.yaml --out out/compare
        --methods dense asp ste sr-ste --patterns 2:4 1:8 --decays 2e-4 2e-3 --seeds 42 43 44
        [--jobs 2] [options of train.py, for all runs]
    python recipes/translation/compare.py --from out/runs/* --out out/table

The first runs what is not finished yet: stop it and call it again. Both write `results.md` with its
figures and `runs.jsonl` into `--out`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_nm.experiments.arms.begun import saving, to_go_on
from hf_nm.experiments.arms.machine import slots
from hf_nm.experiments.arms.plan import ARMS, PlannedRun, divided, plan, refuse_decided
from hf_nm.experiments.arms.report import TRANSLATED, write_comparison
from hf_nm.experiments.arms.runner import Job, Stopped, run_all
from hf_nm.experiments.options import one_line_errors
from hf_nm.experiments.output import CHECKPOINT
from hf_nm.hub.scores import read_run

Parse = Callable[[list[str]], tuple[Any, Any]]
LOGS, LOCK = "logs", "_compare.lock"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a comparison of arms; what a parser does not know goes to the recipe."""
    run = parser.add_argument_group("arms to run")
    run.add_argument(
        "--out", type=Path, metavar="FOLDER", help="holds the runs, tables and figures"
    )
    run.add_argument("--methods", nargs="+", default=list(ARMS), help=", ".join(ARMS))
    run.add_argument("--patterns", nargs="+", default=["2:4"], help="such as 2:4 1:8")
    run.add_argument("--decays", nargs="+", default=["2e-4"], help="of sr-ste, one arm each")
    run.add_argument("--seeds", nargs="+", type=int, default=[42])
    run.add_argument("--jobs", type=int, help="runs at a time; all cores or GPUs if not given")
    run.add_argument(
        "--asp_dense_share", type=float, default=0.5, help="of ASP's updates, before it prunes"
    )
    run.add_argument(
        "--keep_checkpoints", action="store_true", help="of runs that have finished, too"
    )
    run.add_argument("--resamples", type=int, default=10_000, help="of the paired bootstrap")
    there = parser.add_argument_group("runs that are there")
    there.add_argument("--commit", help="of the code of runs that do not say it themselves")
    there.add_argument("--notes", nargs="+", default=[], help="paragraphs below the table")
    there.add_argument(
        "--no_times", action="store_true", help="the machine had other work: show no update times"
    )
    there.add_argument("--data", metavar="NAME", help="of the data set, in titles")
    there.add_argument(
        "--from", dest="runs", nargs="+", default=[], metavar="FOLDER", help="with a results.json"
    )


def run_arms(
    recipe: str,
    parse: Parse,
    train: Path,
    given: argparse.Namespace,
    options: Sequence[str],
    from_run: Sequence[str] = ("--model_name_or_path",),
) -> tuple[list[Path], dict[str, str]]:
    """Run what is not finished of a comparison's runs.

    Args:
        recipe: its name, as it gives it to :func:`hf_nm.experiments.run.start`.
        parse: gives the recipe's options and the training arguments of a command line.
        train: the recipe's program.
        given: the options of :func:`add_options`.
        options: for all runs: a configuration's file, then options of the recipe.
        from_run: options before the folder of a run, to start from its model.

    Returns:
        The folders of the arms' runs that are finished; name and reason of each run that is not.

    Raises:
        ValueError: an option that cannot work, or a run that is there began with others.
        Stopped: Ctrl-C or a signal came.
    """
    log = logging.getLogger("recipe")
    refuse_decided(options)
    _, base = parse([*options, "--output_dir", str(given.out)])
    lengths = divided(base.max_steps, base.num_train_epochs, given.asp_dense_share)
    runs = plan(
        given.methods, given.patterns, given.decays, given.seeds, given.out, lengths, from_run
    )
    room = slots(given.jobs, len(runs))
    given.out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(given.out / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"{given.out}: another comparison runs here; wait for it, or give another --out."
        ) from error
    with lock:
        jobs = []
        for run in runs:
            command = [*options, *run.options, "--output_dir", str(given.out / run.name)]
            recipe_options, arguments = parse(command)
            recipe_options.check(arguments)
            more = to_go_on(recipe, recipe_options, arguments, log)
            if more is None:
                _tidy(given, run)
                continue
            program = [sys.executable, str(train), *command, *saving(arguments), *more]
            jobs.append(Job(run.name, program, given.out / LOGS / f"{run.name}.log", run.after))
        at_once = f"{len(room)} at a time, {room[0].threads} threads each"
        log.info(f"{len(runs)} runs, {len(runs) - len(jobs)} of them finished; {at_once}")

        def finished(job: Job) -> str:
            (run,) = (run for run in runs if run.name == job.name)
            _tidy(given, run)
            score = read_run(given.out / run.name / "results.json")["score"]
            return f"{score['metric']} {score['test']:.4g}"

        failed = run_all(jobs, room, finished=finished)
    folders = [given.out / run.name for run in runs if run.in_table and run.name not in failed]
    return folders, failed


def _tidy(given: argparse.Namespace, run: PlannedRun) -> None:
    """Remove the checkpoints of a run that has come to its end."""
    if not given.keep_checkpoints:
        for path in (given.out / run.name).iterdir():
            if CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


def compare_arms(
    recipe: str,
    parse: Parse,
    train: Path,
    given: argparse.Namespace,
    options: Sequence[str],
    from_run: Sequence[str] = ("--model_name_or_path",),
    again: Callable[[Sequence[Path], Path], Any] = lambda folders, out: None,
) -> None:
    """The whole command, after its options have been read.

    Args:
        recipe, parse, train, given, options, from_run: as :func:`run_arms` has them.
        again: called with the runs' folders and one to write into: predicts again where a run kept no
            predictions.

    Raises:
        SystemExit: an error of the user's, in one line; some runs failed; or it was stopped.
    """
    log = logging.getLogger("recipe")
    log.handlers = [logging.StreamHandler(sys.stdout)]
    log.setLevel(logging.INFO)
    folders, failed = [Path(folder) for folder in given.runs], dict[str, str]()
    with one_line_errors():
        if given.out is None:
            raise ValueError("--out is missing; it holds the runs, the table and the figures.")
        if options or not folders:
            try:
                own, failed = run_arms(recipe, parse, train, given, options, from_run)
            except Stopped as stop:
                print("stopped; the same command goes on from the last checkpoints.")
                raise SystemExit(128 + stop.number) from None
            folders = [*own, *folders]
        again(folders, given.out / TRANSLATED)
        if not folders:
            raise SystemExit(_unfinished(failed))
        print(
            write_comparison(
                folders,
                given.out,
                log,
                resamples=given.resamples,
                commit=given.commit,
                data=given.data,
                notes=given.notes,
                times=not given.no_times,
            )
        )
        print(f"written: {given.out / 'results.md'}, its figures, table.json and runs.jsonl")
    if failed:
        raise SystemExit(_unfinished(failed))


def _unfinished(failed: dict[str, str]) -> str:
    said = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
    return f"not finished:{said}\nThe same command tries them again."
