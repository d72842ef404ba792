"""A job in a forked process, which is killed at a write or a moment, or finds the disk full."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz
import safetensors.torch
import torch
import transformers

PATIENCE = 120  # seconds until a child hangs


@dataclass(frozen=True)
class End:
    """How a child ended.

    Args:
        kind: done, killed, refused (a message of ours), failed (anything else) or hung.
        said: the message.
        writes: how many writes there were.
        seconds: how long it took.
    """

    kind: str
    said: str = ""
    writes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Fate:
    """What happens to a child.

    Args:
        write: killed at this write, counted from 1; 0 for none.
        cut: what share of the file just written is left then; None to leave it whole.
        seconds: killed after these; 0 for not.
        room: largest size of a file in bytes, beyond which writing fails; None for no limit.
    """

    write: int = 0
    cut: float | None = None
    seconds: float = 0.0
    room: int | None = None


class Writes:
    """Counts writes below a folder, and ends the process at one of them."""

    def __init__(self, folder: Path, fate: Fate) -> None:
        self.folder, self.fate, self.count, self.last = str(folder), fate, 0, ""
        sys.addaudithook(self.heard)
        for module, name in (
            (torch, "save"),
            (safetensors.torch, "save_file"),
            (transformers.modeling_utils, "safe_save_file"),
            (os, "fsync"),
        ):
            if hasattr(module, name):
                setattr(module, name, self.counted(getattr(module, name)))

    def heard(self, event: str, arguments: tuple) -> None:
        """Called by Python for whatever happens."""
        if event == "open":
            path, mode, flags = arguments
            if mode is None:
                writing = bool(flags & (os.O_WRONLY | os.O_RDWR))
            else:
                writing = bool(set(mode) & set("wax+"))
        else:
            path, writing = arguments[0] if arguments else "", event in EVENTS
        if writing and str(path).startswith(self.folder):
            # What stands in a log that is only added to, a kill does not take.
            self.happens(str(path) if event != "open" or "a" not in (mode or "") else "")

    def counted(self, write: Callable) -> Callable:
        """The same function, whose end is a write."""

        def writes(*args: Any, **kwargs: Any) -> Any:
            found = write(*args, **kwargs)
            paths = [str(arg) for arg in (*args, *kwargs.values()) if isinstance(arg, str | Path)]
            self.happens(next((path for path in paths if path.startswith(self.folder)), ""))
            return found

        return writes

    def happens(self, path: str) -> None:
        self.count += 1
        if self.count == self.fate.write:
            for each in {path, self.last}:
                if self.fate.cut is not None and os.path.isfile(each):
                    os.truncate(each, int(os.path.getsize(each) * self.fate.cut))
            os.kill(os.getpid(), signal.SIGKILL)
        self.last = path


EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def in_child(job: Callable[[], None], out: Path, log: Path, fate: Fate = Fate()) -> End:
    """Do a job in a forked process, to which something may happen."""
    reader, writer = os.pipe()
    begun = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            # The log has no room either.
            where = log if fate.room is None else os.devnull
            stream = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
            os.write(writer, json.dumps(_ended(job, Writes(out, fate))).encode())
        finally:
            os._exit(0)  # never back into what the parent does
    os.close(writer)
    deadline, killed = begun + PATIENCE, False
    try:
        while not os.waitpid(child, os.WNOHANG)[0]:
            now = time.perf_counter()
            if now > deadline or (fate.seconds and not killed and now - begun >= fate.seconds):
                os.kill(child, signal.SIGKILL)
                killed = True
            time.sleep(0.005)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    text = os.read(reader, 1 << 16)
    os.close(reader)
    seconds = time.perf_counter() - begun
    if seconds > PATIENCE:
        return End("hung", f"no end in {PATIENCE} s")
    if not text:
        return End("killed", seconds=seconds)
    kind, said, writes = json.loads(text)
    return End(kind, said, writes, seconds)


def _ended(job: Callable[[], None], writes: Writes) -> tuple[str, str, int]:
    """Do the job in this process: kind and message of its end, and its writes."""
    kind, said = "done", ""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        if writes.fate.room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (writes.fate.room, resource.RLIM_INFINITY))
        job()
    except SystemExit as error:
        kind, said = ("refused" if isinstance(error.code, str) else "failed"), str(error.code)
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        kind, said = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, ValueError | OSError) and fuzz.raised_by_hf_nm(error):
            kind = "refused"
        traceback.print_exc()
    return kind, said[:1000], writes.count
