"""How far a planned run has come: not begun, to resume, to begin again, or finished."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_nm.experiments.output import (
    CHECKPOINT,
    OPTIONS_FILE,
    compare_options,
    described,
)
from hf_nm.hub.scores import read_run
from hf_nm.trainer.checkpoints import newest_whole, view

FINISHED = None  # in place of options: there is nothing to start


def to_go_on(
    recipe: str, options: Any, arguments: TrainingArguments, log: logging.Logger
) -> Sequence[str] | None:
    """What a run needs beside its own options to come to its end; :data:`FINISHED` if it has.

    Args:
        recipe: its name.
        options: the recipe's, of this run.
        arguments: the training arguments, whose `output_dir` is looked at.
        log: hears that checkpoints are of no use.

    Raises:
        ValueError: what is there began with other options, or does not say with which; or its results
            are damaged.
    """
    out = Path(str(arguments.output_dir))
    checkpoints = (
        [path for path in out.iterdir() if CHECKPOINT.fullmatch(path.name)] if out.is_dir() else []
    )
    results = out / "results.json"
    if not (checkpoints or results.is_file()):
        return ()
    if not (out / OPTIONS_FILE).is_file():
        raise ValueError(
            f"{out} holds a run without {OPTIONS_FILE}, so nobody can tell whether it is the one asked "
            "for; give another --out, and --from for runs that were made elsewhere."
        )
    compare_options(
        out / OPTIONS_FILE, described(recipe, options, arguments), log, may_be_longer=False
    )
    if results.is_file():
        read_run(results)
        return FINISHED
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself says which it passes over
            newest_whole(out, [view(out, 1)])
    except ValueError as error:
        log.info(f"{out.name}: begins again: {error}")
        return ("--start_over", "true")
    return ("--resume_from_checkpoint", "True")


def saving(arguments: TrainingArguments) -> Sequence[str]:
    """Options by which a run can be resumed, where its own save nothing: a checkpoint after each tenth
    of the updates, the newest kept."""
    if str(getattr(arguments.save_strategy, "value", arguments.save_strategy)) != "no":
        return ()
    return ("--save_strategy", "steps", "--save_steps", "0.1", "--save_total_limit", "1")
