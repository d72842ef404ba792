"""How many runs a machine takes at a time, and what each may use of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Slot:
    """What one of the runs that go at the same time has for itself.

    Args:
        threads: of its processor's cores.
        device: number of its GPU; None where there is none.
    """

    threads: int
    device: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a run keeps to it."""
        own = {"OMP_NUM_THREADS": str(self.threads)}
        if self.device is not None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            numbers = visible.split(",") if visible else []
            own["CUDA_VISIBLE_DEVICES"] = (
                numbers[self.device] if self.device < len(numbers) else str(self.device)
            )
        return own


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slots(jobs: int | None, runs: int) -> list[Slot]:
    """One slot for each run that goes at the same time.

    Args:
        jobs: how many; None for one a GPU, or without one as many as there are cores (each of
            `OMP_NUM_THREADS` threads where that is set). Of the whole plan, so that a comparison has the
            same threads when it is gone on with.
        runs: in the plan.

    Raises:
        ValueError: more than there are cores or GPUs, or fewer than one.
    """
    there, devices = cores(), torch.cuda.device_count()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    most_threads = int(asked) if asked.isdecimal() and int(asked) else there
    most, of_what = (devices, "GPUs") if devices else (there, "cores")
    if jobs is None:
        jobs = devices or max(1, there // (most_threads if asked else 1))
        jobs = max(1, min(jobs, runs))
    if not 1 <= jobs <= most:
        raise ValueError(
            f"--jobs {jobs}: this machine has {most} {of_what}, and each run takes at least one; give "
            f"1 to {most}."
        )
    threads = max(1, min(there // jobs, most_threads))
    return [Slot(threads, number if devices else None) for number in range(jobs)]
