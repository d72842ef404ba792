"""Which of a Trainer's checkpoints are whole, judged by what is in their files, and which one to resume.

transformers' Trainer names a checkpoint's folder before anything is in it, so that a run that is killed
while it saves leaves a half-written one behind, newest of all. Nothing here unpickles, and nothing large
is read: of safetensors files the header and the length count, of torch's archives the directory at their
end, and the checksums of small ones.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerState

from hf_nm.formats.folder import INDEX, SINGLE, read_json, weight_map
from hf_nm.formats.safetensors_file import TensorFile

STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_OPTIMIZER, _SCHEDULER, _SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"
_BIN, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_NUMBERS = {"epoch", "total_flos", "num_input_tokens_seen", "train_batch_size", "best_metric"}
_MOST_READ = 1 << 26  # bytes of an archive whose checksums are compared

# What one process sees in an output directory: a checkpoint's name to what is damaged in it (None for
# nothing) and the random states that are missing.
View = dict[str, tuple[str | None, list[str]]]


def damage(folder: str | Path) -> str | None:
    """What keeps a Trainer from resuming from a folder: a file's name and what it lacks; else None.

    Random states are left to :func:`missing_random_states`: without them a run goes on, though not
    exactly.
    """
    folder = Path(folder)
    for path, cause in _damages(folder):
        text = str(cause).removeprefix(f"{path} ").removeprefix(f"{path}: ")
        return f"{path.relative_to(folder)}: {text}"
    return None


def _damages(folder: Path) -> Iterator[tuple[Path, str | Exception]]:
    state = folder / STATE
    if not state.is_file():
        # Written last of all.
        yield state, "it is missing, so the checkpoint was not saved to its end, or is none"
        return
    try:
        held = read_json(state)
    except (OSError, ValueError) as error:
        yield state, error
        return
    if cause := _damaged_state(held):
        yield state, cause
    step = held.get("global_step")
    named = _NAME.fullmatch(folder.resolve().name)
    if isinstance(step, bool) or not isinstance(step, int):
        yield state, f"its global_step is {step!r}, not a step"
    elif named and step != int(named[1]):
        yield state, f"it is of step {step}, not of step {named[1]}"
    yield from _damaged_weights(folder)

    sharded = sorted(folder.glob("optimizer_*/"))
    kept = [folder / name for name in (_OPTIMIZER, _SCHEDULER)]
    there = [path.is_file() for path in kept]
    if any(there) and not all(there) and not sharded and not any(folder.glob("global_step*")):
        yield kept[there.index(False)], "it is missing"
    archives = [*kept, folder / _SCALER, folder / "optimizer.bin", *folder.glob("rng_state*.pth")]
    for path in archives:
        if path.is_file() and (cause := _damaged_archive(path)):
            yield path, cause
    for path in sharded:
        yield from _damaged_sharded(path)


def _damaged_state(held: dict[str, Any]) -> str | None:
    """What is wrong with entries of a ``trainer_state.json``, which transformers takes as they are."""
    known = {field.name for field in fields(TrainerState)}
    if unknown := sorted(held.keys() - known):
        return (
            f"it has {unknown[0]!r}, which transformers {transformers.__version__} does not know (it is "
            "damaged, or of a newer transformers)"
        )
    for name in _NUMBERS & held.keys():
        value = held[name]
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            return f"its {name} is not a number"
    history = held.get("log_history")
    if history is not None and not (
        isinstance(history, list) and all(isinstance(row, dict) for row in history)
    ):
        return "its log_history is not a list of logs"
    if not isinstance(held.get("stateful_callbacks"), dict | None):
        return "its stateful_callbacks is not an object"
    return None


def _damaged_weights(folder: Path) -> Iterator[tuple[Path, str | Exception]]:
    adapters = [
        path for name in _ADAPTERS for path in (*folder.glob(name), *folder.glob(f"*/{name}"))
    ]
    fsdp = sorted(folder.glob("pytorch_model_fsdp*"))
    whole = [folder / name for name in (SINGLE, _BIN) if (folder / name).is_file()]
    indices = [folder / name for name in (INDEX, _BIN_INDEX) if (folder / name).is_file()]
    if not (adapters or fsdp or whole or indices or any(folder.glob("global_step*"))):
        yield folder / SINGLE, "it is missing, and no other weights are there"
    for path in [*whole, *adapters]:
        if cause := _damaged_file(path, set()):
            yield path, cause
    for index in [] if whole else indices:
        try:
            files = _files_of(index)
        except (OSError, ValueError) as error:
            yield index, error
            continue
        for name, tensors in files.items():
            if cause := _damaged_file(folder / name, tensors):
                yield folder / name, cause
    for path in fsdp:
        if path.is_dir():
            yield from _damaged_sharded(path)
        elif cause := _damaged_archive(path):
            yield path, cause


def _files_of(index: Path) -> dict[str, set[str]]:
    """The tensors that an index says are in each file."""
    if index.name == INDEX:
        tensors = weight_map(index)
    else:
        tensors = read_json(index).get("weight_map", {})
        if not isinstance(tensors, dict) or not all(
            isinstance(file, str) and file == Path(file).name for file in tensors.values()
        ):
            raise ValueError("it is not an index of files in its own folder")
    files: dict[str, set[str]] = {}
    for name, file in tensors.items():
        files.setdefault(file, set()).add(name)
    return files


def _damaged_file(path: Path, tensors: set[str]) -> str | Exception | None:
    """What is wrong with a file of weights that has to hold these tensors."""
    if path.suffix != ".safetensors":
        return _damaged_archive(path) if path.is_file() else "it is missing"
    try:
        with TensorFile(path) as opened:
            lacking = tensors - opened.entries.keys()
    except (OSError, ValueError) as error:
        return error
    return f"it lacks {min(lacking)}, which the index says it holds" if lacking else None


def _damaged_archive(path: Path) -> str | None:
    """What is wrong with a file that ``torch.save`` wrote."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if not any(Path(entry.filename).name == "data.pkl" for entry in entries):
                return "it is not an archive that torch.save wrote"
            if torch.serialization.get_crc32_options():
                left = _MOST_READ
                for entry in sorted(entries, key=lambda entry: entry.file_size):
                    left -= entry.file_size
                    if left < 0:
                        break
                    with archive.open(entry) as opened:
                        while opened.read(1 << 20):  # compares the checksum at the end
                            pass
    except Exception as error:  # zipfile has no one error for bytes that make no sense
        return f"it is not a whole archive of torch.save ({error or type(error).__name__})"
    return None


def _damaged_sharded(folder: Path) -> Iterator[tuple[Path, str]]:
    """What is wrong with a distributed checkpoint of torch, whose metadata are written last."""
    metadata = folder / ".metadata"
    if not metadata.is_file() or not metadata.stat().st_size:
        yield metadata, "it is missing or empty, so the folder was not written to its end"


def missing_random_states(folder: str | Path, ranks: int, rank: int | None = None) -> list[str]:
    """Which random states a checkpoint lacks for going on exactly.

    Args:
        folder: the checkpoint.
        ranks: processes that resume.
        rank: the process whose state is looked for; None for all of them.

    Returns:
        The files' names. None is missed of a checkpoint without an optimizer (``save_only_model``), nor
        of one saved by another kind of run: one process alone, or several.
    """
    folder = Path(folder)
    alone, several = (folder / "rng_state.pth").is_file(), any(folder.glob("rng_state_*.pth"))
    if not (alone or several):
        names = random_states(ranks, rank)
        return names if (folder / _OPTIMIZER).is_file() else []
    if alone != (ranks == 1) and several != (ranks > 1):
        return []
    return [name for name in random_states(ranks, rank) if not (folder / name).is_file()]


def random_states(ranks: int, rank: int | None = None) -> list[str]:
    """The names of the random states' files of so many processes, or of one of them."""
    if ranks == 1:
        return ["rng_state.pth"]
    return [f"rng_state_{number}.pth" for number in (range(ranks) if rank is None else [rank])]


def view(output_dir: str | Path, ranks: int, rank: int | None = None) -> View:
    """What there is to resume from in an output directory, the newest first.

    Args:
        output_dir: a run's; it need not be there.
        ranks: processes that resume.
        rank: the process that looks, if it looks for its own random state alone.
    """
    out = Path(output_dir)
    found = [path for path in out.iterdir() if path.is_dir()] if out.is_dir() else []
    steps = {path: int(name[1]) for path in found if (name := _NAME.fullmatch(path.name))}
    return {
        path.name: (damage(path), missing_random_states(path, ranks, rank))
        for path in sorted(steps, key=lambda path: -steps[path])
    }


def newest_whole(output_dir: str | Path, views: Sequence[View]) -> Path:
    """The newest checkpoint that is whole for every process, with a warning about newer ones.

    Among those that lack nothing but random states the newest is taken only where no other has them.

    Args:
        output_dir: the run's.
        views: of :func:`view`, one of each process or one for all: all processes choose alike.

    Raises:
        ValueError: there is none.
    """
    out = Path(output_dir)
    names = sorted(set().union(*views), key=lambda name: -int(name.rpartition("-")[2]))
    if not names:
        raise ValueError(
            f"nothing to resume: no checkpoint in {out}; leave out resume_from_checkpoint to start a "
            "run there"
        )
    causes, usable = {}, []
    for name in names:
        seen = [view.get(name, ("it is not there for every process", [])) for view in views]
        damaged = [cause for cause, _ in seen if cause]
        lacking = [f"{file} is missing" for _, files in seen for file in files]
        causes[name] = next(iter([*damaged, *lacking]), "")
        if not damaged:
            usable.append(name)
    whole = [name for name in usable if not causes[name]]
    if not usable:
        raise ValueError(
            f"no checkpoint in {out} is whole, so nothing can be resumed from: {_said(causes, names)}. "
            "Nothing was changed there; to start anew give another output directory"
        )
    chosen = (whole or usable)[0]
    skipped = names[: names.index(chosen)]
    if skipped:
        warnings.warn(
            f"resuming from {out / chosen}, the newest checkpoint that is whole; newer ones are not: "
            f"{_said(causes, skipped)}",
            stacklevel=3,
        )
    return out / chosen


def check_whole(folder: str | Path) -> None:
    """Raise ``ValueError`` with the file's name where a checkpoint that somebody named is not whole."""
    cause = damage(folder)
    if cause is None:
        return
    beside = view(Path(folder).resolve().parent, 1)
    whole = [name for name, (other, _) in beside.items() if other is None]
    instead = f"beside it {whole[0]} is whole" if whole else "no other beside it is whole"
    raise ValueError(f"{folder} is not a whole checkpoint to resume from ({cause}); {instead}")


def warn_of_random_states(folder: str | Path, ranks: int, rank: int) -> None:
    """Warn where a process goes on from a checkpoint without its random state."""
    (name,) = random_states(ranks, rank)
    if (Path(folder) / name).is_file() or not (Path(folder) / _OPTIMIZER).is_file():
        return
    warnings.warn(
        f"{folder} has no {name} (it was saved by another number of processes, or the file is lost): "
        "dropout and whatever else is random does not continue exactly",
        stacklevel=3,
    )


def _said(causes: dict[str, str], names: Sequence[str]) -> str:
    return "; ".join(f"{name} ({causes[name]})" for name in names)
