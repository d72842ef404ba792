"""What a run builds on: its own last checkpoint, the runs it starts from, the dense run beside it."""

from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_nm.hub.scores import read_run
from hf_nm.optim.sad_log import read_state

STATE = "trainer_state.json"  # in every checkpoint of transformers' Trainer


def last_checkpoint(arguments: TrainingArguments) -> tuple[str | None, int]:
    """The checkpoint to resume from and its update; None and 0 for a new run.

    Args:
        arguments: `resume_from_checkpoint` is a folder, or `True` for the last one in `output_dir`.

    Raises:
        ValueError: there is no such checkpoint.
    """
    given = arguments.resume_from_checkpoint
    if not given:
        return None, 0
    out = Path(str(arguments.output_dir))
    latest = given in ("True", "true")
    folder = (get_last_checkpoint(str(out)) if out.is_dir() else None) if latest else given
    if folder is None or not Path(folder, STATE).is_file():
        raise ValueError(
            f"nothing to resume: no checkpoint in {out if latest else given}; leave out "
            "--resume_from_checkpoint."
        )
    state = read_state(Path(folder, STATE))
    if "global_step" not in state:
        raise ValueError(
            f"{Path(folder, STATE)} has no global_step; resume from another checkpoint"
        )
    return str(folder), state["global_step"]


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
