"""Hardware and versions, so that a time or a score can be judged."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from hf_nm.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "sacrebleu")


def environment(world_size: int = 1) -> dict[str, Any]:
    """Hardware and versions, so that a time or a score can be judged.

    Args:
        world_size: processes that took part.
    """
    import torch

    hardware = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "processes": world_size,
        "threads_per_process": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    versions = {
        "hf_nm": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"hardware": hardware, "versions": versions}


def commit() -> str | None:
    """The commit that this package stands in, with a plus where tracked files differ from it; None where
    the package is not in a clone of its own repository."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):  # no git, or a folder that it does not trust
        return None


def processor() -> str:
    """The processor's name; where the system keeps a file of it, more than Python tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command that started this program, as somebody would type it."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    launcher = ["accelerate", "launch"] if launched else [Path(sys.executable).name]
    return shlex.join([*launcher, *sys.argv])
