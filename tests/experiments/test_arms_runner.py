"""Programs several at a time: never more than slots, in order, and none is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from launching import running

from hf_nm.experiments.arms.machine import Slot
from hf_nm.experiments.arms.runner import Job, run_all

# Writes when it began and ended, by its environment and the seconds it is to take.
TIMED = """
import os, sys, time
begun = time.monotonic()
time.sleep(float(sys.argv[2]))
with open(sys.argv[1], "w") as file:
    print(begun, time.monotonic(), os.environ["OMP_NUM_THREADS"], file=file)
"""
POSIX = pytest.mark.skipif(os.name == "nt", reason="sends signals as POSIX has them")


def job(folder: Path, name: str, *arguments: object, after: str | None = None) -> Job:
    command = [sys.executable, "-c", *map(str, arguments)]
    return Job(name, command, folder / "logs" / f"{name}.log", after)


def timed(folder: Path, name: str, seconds: float, after: str | None = None) -> Job:
    return job(folder, name, TIMED, folder / name, seconds, after=after)


def spans(folder: Path, names: str) -> dict[str, tuple[float, float]]:
    texts = {name: (folder / name).read_text().split() for name in names}
    return {name: (float(begun), float(ended)) for name, (begun, ended, _) in texts.items()}


def test_as_many_as_slots(tmp_path: Path) -> None:
    """Red if three programs go at a time where there is room for two, or they go one by one."""
    lines: list[str] = []
    failed = run_all([timed(tmp_path, name, 0.6) for name in "abcde"], [Slot(3)] * 2, lines.append)
    assert failed == {}
    found = spans(tmp_path, "abcde")
    at_once = [
        sum(begun <= moment < ended for begun, ended in found.values())
        for moment in (begun for begun, _ in found.values())
    ]
    assert max(at_once) == 2
    assert {(tmp_path / name).read_text().split()[2] for name in "abcde"} == {"3"}
    assert [line.split()[:2] for line in lines if "started" in line] == [
        [f"[{number}/5]", f"{name}:"] for number, name in enumerate("abcde", 1)
    ]
    assert len(lines) == 10


def test_after_another(tmp_path: Path) -> None:
    """Red if a run starts before the one whose model it takes, or waits for one that is not there."""
    jobs = [
        timed(tmp_path, "b", 0.0, after="a"),
        timed(tmp_path, "a", 0.5),
        timed(tmp_path, "c", 0.0, after="finished before"),
    ]
    assert run_all(jobs, [Slot(1)] * 3, lambda line: None) == {}
    found = spans(tmp_path, "abc")
    assert found["b"][0] >= found["a"][1] > found["c"][1]


def test_one_that_fails(tmp_path: Path) -> None:
    """Red if a failure stops the others, is not told with its cause, or what builds on it runs."""
    broken = job(tmp_path, "a", "import sys; print('why it failed'); sys.exit(3)")
    lines: list[str] = []
    jobs = [broken, timed(tmp_path, "b", 0, after="a"), timed(tmp_path, "c", 0, after="b")]
    failed = run_all([*jobs, timed(tmp_path, "d", 0)], [Slot(1)], lines.append)
    assert failed == {
        "a": "failed with exit status 3",
        "b": "left out, because a failed",
        "c": "left out, because b failed",
    }
    assert "why it failed" in "".join(lines)
    assert (tmp_path / "d").is_file()
    assert not (tmp_path / "b").exists()


def test_what_is_said_of_one_that_succeeded(tmp_path: Path) -> None:
    lines: list[str] = []
    run_all([timed(tmp_path, "a", 0)], [Slot(1)], lines.append, lambda job: f"{job.name} is good")
    assert lines[-1].endswith("a is good")


# Starts a child that goes on for ever, as a data loader's worker would, and one that ignores SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".new", "w") as file:
    print(os.getpid(), child.pid, file=file)
os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
RUNNER = f"""
import sys
from pathlib import Path
from hf_nm.experiments.arms import runner
from hf_nm.experiments.arms.machine import Slot
runner.PATIENCE = 1.0
folder = Path(sys.argv[1])
jobs = [
    runner.Job(name, [sys.executable, "-c", {STUBBORN!r}, str(folder / name), name], folder / "log")
    for name in ("deaf", "polite")
]
try:
    runner.run_all(jobs, [Slot(1)] * 2)
except runner.Stopped as stop:
    sys.exit(stop.number)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # a zombie that nobody has asked for has ended too
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind(tmp_path: Path, number: int) -> None:
    """Red if Ctrl-C leaves a program, or what it started, running, also one that does not listen."""
    with running("-c", RUNNER, tmp_path) as runner:
        files = [tmp_path / name for name in ("deaf", "polite")]
        while not all(file.is_file() for file in files):
            assert runner.poll() is None, runner.stderr.read()
            time.sleep(0.05)
        processes = [int(each) for file in files for each in file.read_text().split()]
        assert all(map(alive, processes))
        runner.send_signal(number)
        assert runner.wait(timeout=300) == number
        until = time.monotonic() + 60  # init takes a moment to bury them
        while any(map(alive, processes)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(alive, processes))


@POSIX
def test_nohup_is_respected(tmp_path: Path) -> None:
    """Red if a comparison under nohup ends with its terminal."""
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    command = f"[sys.executable, '-c', {TIMED!r}, sys.argv[1] + '/a', '1']"
    one = f"runner.run_all([runner.Job('a', {command}, folder / 'log')]"
    program = ignored + RUNNER.replace("runner.run_all(jobs", one)
    with running("-c", program, tmp_path) as runner:
        while not (tmp_path / "log").is_file():
            time.sleep(0.05)
        runner.send_signal(signal.SIGHUP)
        assert runner.wait(timeout=300) == 0
    assert (tmp_path / "a").is_file()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_all([Job("a", ["/no/such/program"], tmp_path / "log")], [Slot(1)])
