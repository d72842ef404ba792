"""What a run builds on: its own last checkpoint, the runs it starts from, the dense run beside it."""

import logging
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from hf_nm.experiments.arms.sentences import task_of
from hf_nm.experiments.bootstrap import paired_bootstrap
from hf_nm.hub.scores import read_run
from hf_nm.trainer.checkpoints import STATE, check_whole, newest_whole, view

RESAMPLES = 10_000


def last_checkpoint(arguments: TrainingArguments) -> tuple[str | None, int]:
    """The checkpoint to resume from and its update; None and 0 for a new run.

    Args:
        arguments: `resume_from_checkpoint` is a folder, or `True` for the newest in `output_dir` that is
            whole; a warning names newer ones that are not.

    Raises:
        ValueError: there is no such checkpoint, or it is not whole.
    """
    given = arguments.resume_from_checkpoint
    if not given:
        return None, 0
    if given in ("True", "true"):
        out = str(arguments.output_dir)
        ranks = int(os.environ.get("WORLD_SIZE", "1"))  # they have not met yet
        folder = str(newest_whole(out, [view(out, ranks)]))
    else:
        folder = str(given)
        if not Path(folder, STATE).is_file():
            raise ValueError(f"nothing to resume: no checkpoint in {folder}; name another one.")
        check_whole(folder)
    state = TrainerState.load_from_json(str(Path(folder, STATE)))
    return folder, state.global_step


def updates_before(folder: str | None) -> int | None:
    """Updates of the run in this folder and of those it started from; None if it is no run."""
    try:
        run = read_run(Path(folder or "") / "results.json")
    except (FileNotFoundError, ValueError):
        return None
    return run["steps"] + (run.get("steps_before") or 0)


def check_dense_run(folder: str | None, signature: str) -> None:
    """Check, before anything is trained, that a dense run can stand beside this one.

    Args:
        folder: its output directory; None if there is none to check.
        signature: how this run will be scored.

    Raises:
        ValueError: it is not dense, or was scored in another way.
        FileNotFoundError: it has no results.
    """
    if not folder:
        return
    dense = read_run(Path(folder) / "results.json")
    if (dense["method"], dense["score"]["signature"]) != ("dense", signature):
        raise ValueError(
            f"--dense_run {folder}: a {dense['method']} run scored as "
            f"{dense['score']['signature']}, but this one needs a dense one scored as {signature}."
        )


def difference_to_dense(
    folder: Path, results: dict[str, Any], dense_run: str, log: logging.Logger
) -> dict[str, Any]:
    """How a run stands beside its dense one, for its `results.json`.

    Args:
        folder: the run's output directory, with what it predicted.
        results: what goes into its `results.json`.
        dense_run: the dense run's output directory.
        log: hears why there is no interval.

    Returns:
        score: the dense run's, in the metric's unit.
        difference, low, high: this run's score less that one, and its 95% interval from a paired
            bootstrap over the test set; both bounds None where nothing could be resampled.
        resamples: of the test set.
    """
    dense = read_run(Path(dense_run) / "results.json")
    said = {"score": dense["score"]["test"], "difference": None, "low": None, "high": None}
    said["difference"] = results["score"]["test"] - dense["score"]["test"]
    try:
        runs = {"run": (folder, results), "dense": (Path(dense_run), dense)}
        found = paired_bootstrap({"test": task_of(runs)}, "dense", resamples=RESAMPLES)
    except ValueError as error:  # a trained run does not fail of it
        log.info(f"no interval of the difference to {dense_run}: {error}")
        return said
    gap = found.gap("test", ["run"], ["dense"])
    return said | {"low": gap.low, "high": gap.high, "resamples": RESAMPLES}


class ToldTheEpoch(TrainerCallback):
    """Sets the epoch of the whole data loader, before the Trainer skips what a resumed run has seen.

    Through accelerate's wrapper that skips, Trainers before transformers 5.17 reach no sampler of a
    recipe's own (seen up to 5.13), and the rest of a later epoch would be in the first one's order.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        loader: Any = others.get("train_dataloader")
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(int(state.epoch or 0))
