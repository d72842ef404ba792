"""The hidden folder that a new one is written in, and those that killed calls have left.

``.NAME.xxxxxxxx.partial`` beside the destination holds ``lock``, which its call keeps locked while it
runs, ``new``, what is being written, and for a moment ``old``, what is being replaced. The lock ends
with its process, however that ends: a leftover is told from a folder in use by it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, NEW, OLD = "lock", "new", "old"
_SUFFIX = ".partial"
_FORGOTTEN = 3600  # seconds after which an empty one is no longer about to be locked


@contextmanager
def hidden_folder(destination: Path) -> Iterator[Path]:
    """A folder beside ``destination``, gone afterwards; locked before ``new`` in it is made."""
    beside = Path(
        tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=_SUFFIX, dir=destination.parent)
    )
    lock = FileLock(beside / LOCK)
    try:
        with suppress(OSError, NotImplementedError):  # a disk without locks: nothing is swept there
            lock.acquire()
        (beside / NEW).mkdir()
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        with suppress(OSError):
            lock.release()


def sweep(destination: Path) -> None:
    """Remove what killed calls for the same destination left; a folder that one of them had already
    moved away, and not replaced yet, gets its name back.

    Only what has our name, holds nothing but ours, and is locked by nobody.
    """
    ours = re.compile(re.escape(f".{destination.name}.") + "[a-z0-9_]{8}" + re.escape(_SUFFIX))
    with suppress(OSError):
        for folder in list(destination.parent.iterdir()):
            if ours.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                with suppress(OSError, NotImplementedError, Timeout):
                    _remove(folder, destination)


def _remove(folder: Path, destination: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if not names <= {LOCK, NEW, OLD}:
        return
    if names <= {LOCK}:  # its call may be about to lock it, or has ended and is removing it
        if time.time() - folder.stat().st_mtime > _FORGOTTEN:
            shutil.rmtree(folder)
        return
    if LOCK not in names:
        return
    with FileLock(folder / LOCK, timeout=0):
        if (folder / OLD).exists() and not destination.exists():
            (folder / OLD).rename(destination)
        shutil.rmtree(folder)
