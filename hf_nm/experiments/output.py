"""Whose output directory it is: the options that a run began with, a lock, and starting over.

    options.json        what the run began with, compared when it is resumed
    _running.lock       held while a process trains here; the system releases it when the process ends
    _running.json       which process that is

(Names with `_` are left out of uploads to the Hub.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainingArguments

OPTIONS_FILE = "options.json"
LOCK_FILE, HOLDER_FILE = "_running.lock", "_running.json"
CHECKPOINT = re.compile(r"checkpoint-\d+")
# What a run writes beside its model: starting over removes it, options.json last, so that a removal that
# was interrupted leaves no checkpoint without the options that it came from.
LEFT_BY_A_RUN = (
    "trainer_state.json",
    "training_time.json",
    "nm_sad.jsonl",
    "sad.png",
    "results.json",
    "results.md",
    "predictions.tsv",
    "translations.jsonl",
    OPTIONS_FILE,
)

# Options that may change when a run is resumed: where things go, what is logged and kept, how processes
# talk. Whatever is not named here is compared, also what a later transformers adds. Evaluation is
# compared: it draws random numbers, so dropout after it is another.
HARMLESS = {
    *("output_dir", "resume_from_checkpoint", "start_over", "arm", "dense_run", "run_name"),
    *("disable_tqdm", "report_to", "project", "do_train", "do_eval", "do_predict", "local_rank"),
    *(
        "debug",
        "skip_memory_metrics",
        "torch_empty_cache_steps",
        "use_cpu",
        "enable_jit_checkpoint",
    ),
}
HARMLESS_KINDS = ("logging_", "log_", "save_", "hub_", "push_", "trackio_", "ddp_", "dataloader_")
COMPARED_AFTER_ALL = {"dataloader_drop_last"}
LENGTH = ("max_steps", "num_train_epochs")
# Their learning rate does not look ahead to the last step, so a run may be made longer.
OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
ABSENT: Any = object()


# -- files --------------------------------------------------------------------------------------------


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON: the whole file or, if that fails or the process dies, none of it.

    Raises:
        ValueError: a number in it is not finite.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    beside = path.with_name(f"_{path.name}.new")
    try:
        beside.write_text(text, "utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object of a file.

    Args:
        path: of the file.
        remedy: what to do if it is damaged.

    Raises:
        ValueError: it is no JSON object; one line with the file's name.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"{path}: not whole JSON ({said}); {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object but {type(found).__name__}; {remedy}")
    return found


# -- whose it is --------------------------------------------------------------------------------------


def claim(
    recipe: str,
    options: Any,
    arguments: TrainingArguments,
    resumed_from: str | None,
    log: logging.Logger,
) -> FileLock:
    """Make the output directory this run's: nobody else trains in it, its checkpoints are this run's,
    and `options.json` says what it began with. The main process calls it, before anything is written.

    Args:
        recipe: its name.
        options: the recipe's; `options.start_over` removes an earlier run's checkpoints and logs.
        arguments: the training arguments.
        resumed_from: the checkpoint that the run goes on from; None for a new run.
        log: hears what was removed, and of a comparison that could not be made.

    Returns:
        The lock. It is held until it is released, or the process ends.

    Raises:
        ValueError: another process trains there; a new run would mix its checkpoints with another's; or
            a resumed run has other options than it began with.
    """
    out = Path(str(arguments.output_dir))
    if out.exists() and not out.is_dir():
        raise ValueError(f"--output_dir {out}: a file; give a folder.")
    if options.start_over and resumed_from:
        raise ValueError("--start_over and --resume_from_checkpoint exclude each other; give one.")
    out.mkdir(parents=True, exist_ok=True)
    lock = _locked(out)
    try:
        if options.start_over:
            removed = list(_start_over(out))
            log.info(f"{out}: started over, removed {', '.join(removed) or 'nothing'}")
        begun = Path(resumed_from).absolute().parent.resolve() if resumed_from else None
        others = [] if begun == out.resolve() else _checkpoints(out)
        if others:
            to_resume = "" if resumed_from else " --resume_from_checkpoint True goes on from there,"
            raise ValueError(
                f"{out} holds checkpoints of another run ({others[-1].name});{to_resume} --start_over "
                "true removes them and that run's logs, another --output_dir keeps both."
            )
        now = described(recipe, options, arguments)
        if begun is not None:
            compare_options(begun / OPTIONS_FILE, now, log)
        write_json(out / OPTIONS_FILE, now)
    except BaseException:
        lock.release(force=True)
        raise
    return lock


def described(recipe: str, options: Any, arguments: TrainingArguments) -> dict[str, Any]:
    """Everything that decides a run's result, as plain values: what `options.json` holds.

    Data files are described by their contents, processes and accumulation by how many micro-batches an
    update has, which is what they come to.
    """
    given = {field.name: getattr(options, field.name) for field in fields(options) if field.init}
    given |= {name: value for name, value in arguments.to_dict().items() if name not in given}
    kept: dict[str, Any] = {"recipe": recipe}
    for name, value in given.items():
        if name in COMPARED_AFTER_ALL or not (name in HARMLESS or name.startswith(HARMLESS_KINDS)):
            is_data = name.endswith(("_file", "_files")) and value
            paths = [value] if isinstance(value, str) else value
            kept[name] = [_contents(path) for path in paths] if is_data else value
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    kept["gradient_accumulation_steps"] = arguments.gradient_accumulation_steps * processes
    return json.loads(json.dumps(kept, default=str))


def _contents(path: str) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:  # whoever reads the data says it better
        return {"file": str(path), "sha256": f"unreadable: {error.strerror}"}


def _checkpoints(out: Path) -> list[Path]:
    found = [path for path in out.iterdir() if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _start_over(out: Path) -> Iterator[str]:
    """Remove an earlier run's checkpoints and logs; their names."""
    for path in [*_checkpoints(out), *(out / name for name in LEFT_BY_A_RUN)]:
        if path.is_dir() and not path.is_symlink():
            if not CHECKPOINT.fullmatch(path.name):
                continue  # nothing that a run left
            shutil.rmtree(path)
        elif path.exists() or path.is_symlink():
            path.unlink()
        else:
            continue
        yield path.name


# -- options ------------------------------------------------------------------------------------------


def compare_options(
    path: Path, now: dict[str, Any], log: logging.Logger, *, may_be_longer: bool = True
) -> None:
    """Raise if the options of a file differ from these in anything that changes the result.

    Args:
        path: of `options.json`; where it is missing nothing is compared.
        now: what :func:`described` says of this run.
        log: hears of a missing file.
        may_be_longer: whether another number of updates is fine where the learning rate does not look
            ahead to it.

    Raises:
        ValueError: they differ, or the file is damaged: one line.
    """
    if not path.is_file():
        log.info(f"{path}: not there, so the options of the resumed run could not be compared")
        return
    begun = read_json(path, "restore it, or remove it to go on without comparing options.")
    longer = may_be_longer and _open_ended(begun) and _open_ended(now)
    differences = []
    # In the order of the command line; what only one version of transformers knows is left out.
    for name in (name for name in now if name in begun):
        ours, theirs = _comparable(now[name]), _comparable(begun[name])
        if ours != theirs and not (longer and name in LENGTH):
            differences.append(f"--{name} {_shown(begun[name])} (now {_shown(now[name])})")
    if "recipe" not in begun:
        raise ValueError(
            f"{path}: no key recipe; restore it, or remove it to go on without comparing options."
        )
    if differences:
        said = ", ".join(differences).replace(
            "--gradient_accumulation_steps", "--gradient_accumulation_steps x processes"
        )
        raise ValueError(
            f"{path.parent}: this run began with {said.replace('--recipe', 'the recipe')}; resume it "
            "with what it began with, or give another --output_dir to a new run."
        )


def _open_ended(options: dict[str, Any]) -> bool:
    """Whether the learning rate of a step is the same however many follow."""
    warmup = options.get("warmup_steps") or 0
    return (
        options.get("lr_scheduler_type") in OPEN_ENDED
        and isinstance(warmup, int | float)
        and (warmup == 0 or warmup >= 1)  # below 1 it is a share of all steps
        and not options.get("warmup_ratio")
    )


def _comparable(value: Any) -> Any:
    if isinstance(value, list):
        return [_comparable(part) for part in value]
    return value.get("sha256", value) if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value)) or "none"
    if isinstance(value, dict) and {"file", "sha256"} <= value.keys():
        return f"{value['file']} (sha256 {str(value['sha256'])[:12]})"
    return "not given" if value is None else str(value)[:80]


# -- the lock -----------------------------------------------------------------------------------------


def _locked(out: Path) -> FileLock:
    # One for a process: a run that ended in an error does not keep the next one of a notebook out.
    lock = FileLock(out / LOCK_FILE, is_singleton=True, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"{out}: {_holder(out / HOLDER_FILE)} is training here; wait for it or end it, or give "
            "another --output_dir."
        ) from error
    holder = {
        "process": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.argv),
    }
    write_json(out / HOLDER_FILE, holder)
    return lock


def _holder(path: Path) -> str:
    try:
        held = read_json(path, "")
        return f"process {held['process']} on {held['host']} (since {held['since']})"
    except (ValueError, OSError, KeyError):  # it is just being written
        return "another process"
