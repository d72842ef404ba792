"""Which files a saved checkpoint is made of, and how a new folder is written: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_nm.formats.leftovers import NEW, OLD, hidden_folder, sweep
from hf_nm.formats.links import files_of
from hf_nm.formats.safetensors_file import sync

Progress = Callable[[int, int, str], None]

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What diffusers calls them, and how its config.json is told.
DIFFUSERS_SINGLE = "diffusion_pytorch_model.safetensors"
DIFFUSERS_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_DIFFUSERS = "_diffusers_version"
_PACKED = ".nm_packed"
PACKED_SINGLE = f"model{_PACKED}.safetensors"
PACKED_INDEX = f"model{_PACKED}.safetensors.index.json"
_LARGEST_JSON = 1 << 28

# The same weights in another form or an older state: what is written anew takes their place.
WEIGHTS = (
    *("model.safetensors*", "model-*-of-*.safetensors", "model*.nm_packed.safetensors*"),
    *("pytorch_model*.bin", "pytorch_model*.bin.index.json", "*.h5", "*.msgpack", "*.ot"),
    *("*.onnx", "*.onnx_data", "*.gguf"),
)
# What only resuming a run needs (pickles above all), and what is nobody else's business.
RESUMING = (
    *("checkpoint-*", "runs", "optimizer.*", "optimizer_*", "scheduler.pt", "scaler.pt"),
    *("rng_state*.pth", "training_args.bin", "*.distcp", "*.pkl", ".git", ".cache", ".env*"),
)


class Count:
    """Bytes done, told to whoever draws a progress bar.

    Args:
        progress: called with bytes done, bytes in all, and what is being done; None for nobody.
        total: bytes in all.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self.total, self.done = progress, total, 0

    def add(self, size: int, what: str) -> None:
        """``size`` more bytes are done."""
        self.done += size
        if self._progress is not None:
            self._progress(min(self.done, self.total), self.total, what)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: it is not one.
        FileNotFoundError: there is no such file.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(
            f"{path} is not valid JSON for a model: it is over {_LARGEST_JSON:,} bytes"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object as transformers does, the keys in their order."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path, asked_by: str) -> dict[str, Any]:
    """A folder's ``config.json``.

    Args:
        folder: where ``save_pretrained`` wrote.
        asked_by: the function that needs it, for the message.

    Raises:
        FileNotFoundError: there is no folder, or no config in it.
        ValueError: it is not valid.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"{asked_by} found no folder {folder}; pass the folder that save_pretrained wrote"
        )
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json, so nothing says which weights are N:M; pass the folder "
            "that save_pretrained wrote"
        )
    return read_json(folder / CONFIG)


def weight_map(index: Path) -> dict[str, str]:
    """Which file each tensor of a sharded checkpoint is in.

    Raises:
        ValueError: the index is not valid, or points outside its folder.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(
        _is_plain(file) and file.endswith(".safetensors") for file in found.values()
    ):
        raise ValueError(f"{index} is not an index of files in its own folder")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that transformers or diffusers would load, sorted; they need not
    be there.

    Saving a single file over shards leaves the shards' index behind: the single file comes first.
    """
    for single, index in ((SINGLE, INDEX), (DIFFUSERS_SINGLE, DIFFUSERS_INDEX)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / file for file in sorted(set(weight_map(folder / index).values()))]
    return [folder / SINGLE]


def is_diffusers(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a diffusers model."""
    return _DIFFUSERS in config


def packed_name(file: str) -> str:
    """``model-00001-of-00002.safetensors`` to ``model-00001-of-00002.nm_packed.safetensors``."""
    stem, dot, rest = file.partition(".safetensors")
    return f"{stem}{_PACKED}{dot}{rest}"


def plain_name(file: str) -> str:
    """Undo :func:`packed_name`."""
    ending = ".safetensors"
    return file.removesuffix(f"{_PACKED}{ending}") + ending


def is_packed_name(file: Any) -> bool:
    """Whether :func:`packed_name` can have given this name."""
    return _is_plain(file) and file.endswith(f"{_PACKED}.safetensors")


def copy_rest(source: Path, destination: Path, leave: set[str]) -> None:
    """Copy a folder's other files: tokenizer, generation config, model card and so on. Neither other
    weights of the model nor what only resuming needs, and nothing over what is there already.

    Args:
        source: the folder.
        destination: another one, which is there.
        leave: names of files in ``source`` itself that are not copied.

    Raises:
        ValueError: a link leaves the folder or leads nowhere; see :mod:`hf_nm.formats.links`.
    """

    there = {file.name for file in destination.iterdir()}

    def is_left(file: Path) -> bool:
        if any(fnmatch(file.name, kind) for kind in RESUMING):
            return True
        top = file.parent == Path()
        return top and (
            any(fnmatch(file.name, kind) for kind in WEIGHTS) or file.name in leave | there
        )

    for file in list(files_of(source, is_left)):
        (destination / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / file, destination / file)


@contextmanager
def new_folder(destination: Path, source: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is written: interrupted or failed, nothing
    is left of it. What calls for the same destination left that were killed goes first.

    Args:
        destination: its name afterwards.
        source: the folder that is read, which must not be touched.
        overwrite: whether to replace another model's folder.

    Raises:
        FileExistsError: something is there already.
        ValueError: the destination lies in the source, or the other way round.
    """
    destination = Path(os.path.abspath(destination))
    ours, read = destination.resolve(), source.resolve()
    if ours == read or ours.is_relative_to(read) or read.is_relative_to(ours):
        raise ValueError(
            f"the destination {destination} and the folder that is read, {source}, must lie apart; "
            "choose a folder beside it"
        )
    sweep(destination)
    if destination.is_file():
        raise FileExistsError(f"{destination} is a file; choose the name of a new folder")
    if destination.exists() and any(destination.iterdir()):
        if not overwrite:
            raise FileExistsError(
                f"{destination} is there and not empty; choose another folder, or pass overwrite=True "
                "(--overwrite)"
            )
        if not (destination / CONFIG).is_file():
            raise FileExistsError(
                f"{destination} is not a model's folder (it has no config.json), so it is not "
                "overwritten; choose another one"
            )
    destination.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(destination) as beside:
        written = beside / NEW
        yield written
        for file in written.rglob("*"):
            if file.is_file():
                sync(file)
        if destination.exists():
            try:
                destination.rename(beside / OLD)
                written.rename(destination)
            except BaseException:
                if (beside / OLD).exists() and not destination.exists():
                    (beside / OLD).rename(destination)
                raise
        else:
            written.rename(destination)


def _is_plain(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and file.isprintable() and file != ""
