"""Programs run several at a time, each in its slot of the machine, none left behind.

Every program is the head of a process group of its own, so that Ctrl-C at the terminal reaches the
runner alone: it ends the programs, with whatever they have started, and then itself. What they had saved
up to there is what the next comparison goes on from.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from hf_nm.experiments.arms.machine import Slot

PATIENCE = 20.0  # seconds that a program has to end once it is asked to
LOOK = 0.2  # seconds between two looks at the programs
TAIL = 12  # lines of a failed program's log that are shown


@dataclass(frozen=True)
class Job:
    """A program to run.

    Args:
        name: unique among the jobs.
        command: the program and its arguments.
        log: the file that its output is added to.
        after: the job that must have succeeded before.
    """

    name: str
    command: Sequence[str]
    log: Path
    after: str | None = None


class Stopped(BaseException):
    """The runner was asked to end, by Ctrl-C or a signal.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    slot: Slot
    log: IO[bytes]
    since: float


def run_all(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    say: Callable[[str], Any] = tqdm.write,
    finished: Callable[[Job], str] = lambda job: "",
) -> dict[str, str]:
    """Run the jobs, in their order as far as slots and `after` allow.

    Args:
        jobs: what to run; a job whose `after` is not among them starts at once.
        slots: as many jobs go at the same time.
        say: hears one line when a job starts and one when it ends.
        finished: called after each job that succeeded; what it returns ends the job's line.

    Returns:
        Name and reason of each job that failed, or was left out because the one before it failed.

    Raises:
        Stopped: a signal came; all programs have been ended.
    """
    waiting, failed = list(jobs), {}
    done = {None} | ({job.after for job in jobs} - {job.name for job in jobs})
    free, running = list(slots), list[_Running]()
    number = {job.name: f"[{at}/{len(jobs)}]" for at, job in enumerate(jobs, 1)}
    with (
        _signals_as_errors(),
        tqdm(total=len(jobs), unit="run", disable=not sys.stderr.isatty()) as bar,
    ):
        try:
            while waiting or running:
                for job in [job for job in waiting if job.after in failed]:
                    waiting.remove(job)
                    failed[job.name] = f"left out, because {job.after} failed"
                    say(f"{number[job.name]} {job.name}: {failed[job.name]}")
                    bar.update()
                for job in [job for job in waiting if job.after in done][: len(free)]:
                    waiting.remove(job)
                    running.append(_start(job, free.pop(0)))
                    say(f"{number[job.name]} {job.name}: started, log in {job.log}")
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    free.append(each.slot)
                    each.log.close()
                    name, code = each.job.name, each.process.returncode
                    _kill_group(each.process)  # workers that a crash left
                    took = _duration(time.monotonic() - each.since)
                    if code:
                        failed[name] = f"failed with exit status {code}"
                        tail = "".join(f"    {line}\n" for line in _tail(each.job.log))
                        say(f"{number[name]} {name}: {failed[name]} after {took}\n{tail}".rstrip())
                    else:
                        done.add(name)
                        say(f"{number[name]} {name}: {took} {finished(each.job)}".rstrip())
                    bar.update()
                if running:
                    bar.set_postfix_str(", ".join(each.job.name for each in running), refresh=True)
                    time.sleep(LOOK)
        finally:
            _end(running)
    return failed


def _start(job: Job, slot: Slot) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("ab")
    apart: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
    try:
        process = subprocess.Popen(
            list(job.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | slot.environment | {"PYTHONUNBUFFERED": "1"},
            **apart,
        )
    except BaseException:
        log.close()
        raise
    return _Running(job, process, slot, log, time.monotonic())


def _end(running: Sequence[_Running]) -> None:
    """End what still runs: asked first, then not."""
    with _ignored_signals():
        for each in running:
            _signal_group(each.process, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for each in running:
            with suppress(subprocess.TimeoutExpired):
                each.process.wait(max(0.0, until - time.monotonic()))
            _kill_group(each.process)
            each.process.wait()
            each.log.close()


def _kill_group(process: subprocess.Popen) -> None:
    _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))


def _signal_group(process: subprocess.Popen, number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.terminate()
    except (ProcessLookupError, PermissionError):  # it has ended; macOS says the second
        pass


_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextmanager
def _signals_as_errors() -> Iterator[None]:
    """In here a signal to end raises :class:`Stopped`."""

    def raised(number: int, frame: Any) -> None:
        raise Stopped(number)

    with _handled(raised):
        yield


@contextmanager
def _ignored_signals() -> Iterator[None]:
    """In here a second Ctrl-C does not keep programs from being ended."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    # What nohup ignores stays ignored.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _tail(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines()[-TAIL:]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
