"""Which files of a folder are copied or published, where some of them are links.

- A link to a folder is not followed. One that stays inside shows what is there under its own name
  anyway; one that leads out is refused.
- A link to a file is read through where the file lies in the same folder; where it is a blob of the same
  repository in the Hub's cache (``models--me--model/snapshots/<commit>/file`` links to
  ``models--me--model/blobs/<hash>``); and where it is named as weights or their config and is that,
  since people keep weights on another disk.
- Any other link is refused by name, and so is what is neither file nor folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from hf_nm.formats.safetensors_file import TensorFile

_WEIGHTS = "*.safetensors"
_DESCRIBED = ("config.json", "*.safetensors.index.json")
_KNOWN = {"model_type", "architectures", "_class_name", "nm_sparsity", "weight_map"}
_LARGEST = 1 << 28  # bytes of an index
_CACHED = ("models--*", "datasets--*", "spaces--*")


def files_of(folder: Path, is_left: Callable[[Path], bool]) -> Iterator[Path]:
    """The files below a folder, relative to it, sorted; every one can be read.

    Args:
        folder: which.
        is_left: of a file's, a folder's or a link's path, relative to ``folder``: whether it is nobody's
            business here. What lies in such a folder is not looked at.

    Raises:
        ValueError: a link leaves the folder or leads nowhere, or something is neither file nor folder.
    """
    yield from _below(folder, Path(), folder.resolve(), is_left)


def _below(
    folder: Path, inside: Path, root: Path, is_left: Callable[[Path], bool]
) -> Iterator[Path]:
    with os.scandir(folder / inside) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        relative, path = inside / name, folder / inside / name
        if is_left(relative):
            continue
        if path.is_symlink():
            if _is_file_to_read(path, root):
                yield relative
        elif path.is_dir():
            yield from _below(folder, relative, root, is_left)
        elif path.is_file():
            yield relative
        else:
            raise ValueError(f"{path} is neither a file nor a folder; remove it first")


def _is_file_to_read(link: Path, root: Path) -> bool:
    """Whether a link is read through (else it shows a folder that lies beside it)."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop, before Python 3.13
        raise ValueError(
            f"{link} is a link to nothing ({os.readlink(link)}); remove it, or bring back what it "
            "links to"
        ) from error
    is_inside = target.is_relative_to(root)
    if is_inside and target.is_dir():
        return False
    if target.is_file() and (is_inside or _is_blob(target, root) or _is_weights(link)):
        return True
    raise ValueError(
        f"{link} is a link that leaves the folder, to {target}; only weights and their config are "
        "read from elsewhere: put a copy in its place, or remove it"
    )


def _is_blob(target: Path, root: Path) -> bool:
    """Whether a file is a blob of the repository in the Hub's cache that a folder is a snapshot of."""
    for snapshots in root.parents:
        repository = snapshots.parent
        if snapshots.name == "snapshots" and any(fnmatch(repository.name, k) for k in _CACHED):
            return target.parent == repository / "blobs"
    return False


def _is_weights(link: Path) -> bool:
    """Whether a link to elsewhere is named as weights or their config.

    Raises:
        ValueError: it is, and is no such thing: nobody's private file is published under that name.
    """
    if fnmatch(link.name, _WEIGHTS):
        TensorFile(link).close()
        return True
    if any(fnmatch(link.name, kind) for kind in _DESCRIBED):
        if link.stat().st_size > _LARGEST or _KNOWN.isdisjoint(_json_of(link)):
            raise ValueError(
                f"{link} is a link that leaves the folder, to a file that describes no model; put a "
                "copy in its place, or remove it"
            )
        return True
    return False


def _json_of(file: Path) -> dict[str, object]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    return data if isinstance(data, dict) else {}
