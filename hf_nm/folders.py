"""Writing a folder beside its destination and renaming it at the end: nothing half-written is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(destination: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes ``destination`` when the block ends well.

    Args:
        destination: a folder that does not exist yet, or is empty.
        overwrite: whether one that has files may be replaced.

    Raises:
        FileExistsError: it has files, or is a file.
    """
    destination = Path(destination)
    filled = destination.is_dir() and any(destination.iterdir())
    if destination.is_file() or (filled and not overwrite):
        raise FileExistsError(
            f"{destination} exists already; choose a new folder, or pass overwrite=True (--overwrite) "
            "to replace the folder with all that is in it"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        yield beside
        # mkdtemp lets nobody else in; a folder made plainly has the user's own permissions.
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o777 & ~umask)
        if destination.is_dir():
            shutil.rmtree(destination)
        os.replace(beside, destination)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
