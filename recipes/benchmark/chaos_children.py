"""A job in a forked process or two ranks, of which one is killed at a write or a moment, or which find
the disk full."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
        disk: KiB that are free on the disk; None for plenty.
        rank: which of two processes is killed.
    """

    write: int = 0
    cut: float | None = None
    seconds: float = 0.0
    room: int | None = None
    disk: int | None = None
    rank: int = 0


class Disk:
    """A disk in memory, on which room can be made scarce; a folder like others where this process may
    mount none.

    Args:
        folder: an empty one.
    """

    PLENTY = 1 << 20  # KiB

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.PLENTY}k", "tmpfs", str(folder)]
        try:
            self.mounted = not subprocess.run(command, capture_output=True).returncode
        except OSError:
            self.mounted = False

    def leave(self, kib: int | None) -> None:
        """Leave so much room; None for plenty."""
        if self.mounted:
            used = os.statvfs(self.folder)
            kept = (used.f_blocks - used.f_bfree) * used.f_frsize // 1024
            size = self.PLENTY if kib is None else kept + kib
            options = ["mount", "-o", f"remount,size={size}k", str(self.folder)]
            subprocess.run(options, check=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


class Writes:
    """Counts writes below a folder, and ends the process at one of them."""

    def __init__(self, folder: Path, fate: Fate) -> None:
        self.folder, self.fate, self.count, self.last = str(folder), fate, 0, ""
        self.rank = 0
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
        if self.count == self.fate.write and self.rank == self.fate.rank:
            for each in {path, self.last}:
                if self.fate.cut is not None and os.path.isfile(each):
                    os.truncate(each, int(os.path.getsize(each) * self.fate.cut))
            os.kill(os.getpid(), signal.SIGKILL)
        self.last = path


EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


_present: Writes | None = None  # of the job that this process does


def in_two(job: Callable[[], None]) -> None:
    """Do a job as two ranks: in this process, and in a second one that is forked from it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    second = os.fork()
    rank = "0" if second else "1"
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"}
    if second:
        job()
        os.waitpid(second, 0)
        return
    try:
        if _present is not None:
            _present.rank = 1
            if _present.fate.rank == 1 and _present.fate.seconds:
                end = partial(os.kill, os.getpid(), signal.SIGKILL)
                threading.Timer(_present.fate.seconds, end).start()
        job()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def in_child(job: Callable[[], None], out: Path, log: Path, fate: Fate = Fate()) -> End:
    """Do a job in a forked process, to which something may happen."""
    reader, writer = os.pipe()
    begun = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            os.setpgid(0, 0)
            # The log has no room either.
            where = log if fate.room is None and fate.disk is None else os.devnull
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
            due = fate.seconds and not fate.rank and now - begun >= fate.seconds
            if now > deadline or (due and not killed):
                os.kill(child, signal.SIGKILL)
                killed = True
            time.sleep(0.005)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):  # a second rank, as its launcher would
            os.killpg(child, signal.SIGKILL)
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
    global _present
    _present = writes
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
