"""Starting other Python processes in a test, so that it passes on a machine that is busy or slow.

Each has one thread, from ``conftest.py``'s environment: with another number of threads a matrix
product may sum in another order, and comparing bits would depend on the cores of the machine.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hf_nm

TWO_PROCESSES = Path(__file__).parents[2] / "recipes/translation/configs/accelerate_cpu2.yaml"
PATIENCE = 1800  # seconds: only a process that hangs takes so long, however busy the machine is


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """That environment (this process's if None), where ``hf_nm`` and the tests' files are found."""
    env = dict(os.environ if env is None else env)
    paths = [Path(hf_nm.__file__).parents[1], Path(__file__).parent, env.get("PYTHONPATH")]
    return env | {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path)}


def run_python(
    *arguments: object, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS``, which has to end well; what it printed is in the result or the failure."""
    done = subprocess.run(
        _command(arguments),
        env=_environment(env),
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done


def launch_two(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A script with its options in two processes, as the recipes' READMEs launch it."""
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    options = ["--config_file", TWO_PROCESSES, "--main_process_port", quiet_port()]
    return run_python(*launcher, *options, *arguments)


def quiet_port() -> int:
    """A free port that no connection is given meanwhile: they get higher ones on every system.

    (accelerate's own choice, 0, is a port of theirs that is let go and taken again seconds later.)
    """
    first = 20_000 + os.getpid() % 10_000
    for port in range(first, first + 1_000):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("", port))
            return port
    raise OSError(f"no free port among {first} to {first + 999}")


@contextlib.contextmanager
def running(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """``python ARGUMENTS`` with pipes to talk to it; killed at the end of the block."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    env = _environment(options.pop("env", None))
    with subprocess.Popen(_command(arguments), env=env, **pipes, **options) as process:
        patience = threading.Timer(PATIENCE, process.kill)
        patience.daemon = True
        patience.start()
        try:
            yield process
        finally:
            patience.cancel()
            process.kill()
