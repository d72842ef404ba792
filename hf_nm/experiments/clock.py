"""How long a run has trained, over all its interruptions."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

CLOCK_FILE = "training_time.json"  # in every checkpoint


class Clock(TrainerCallback):
    """Counts seconds in training, and leaves what it has counted in every checkpoint.

    A resumed run goes on from its checkpoint's count. What was trained between that checkpoint and the
    interruption is trained again, so it counts once.

    Args:
        resumed_from: the checkpoint that training goes on from; None for a new run.
        resumed_step: its update.

    Attributes:
        seconds: in training, up to the last :meth:`stop`.
        steps: updates that these seconds are of: all of the run, unless it was resumed from a checkpoint
            without a count, whose updates nobody timed.
    """

    def __init__(self, resumed_from: str | None = None, resumed_step: int = 0) -> None:
        self.seconds, self.steps = 0.0, 0
        self._untimed = resumed_step
        self._started: float | None = None
        path = Path(resumed_from or "", CLOCK_FILE)
        if resumed_from is not None and path.is_file():
            counted = json.loads(path.read_text("utf-8"))
            self.seconds = counted["seconds"]
            self._untimed = resumed_step - counted["steps"]

    def start(self) -> None:
        """Count from now on."""
        self._started = time.perf_counter()

    def stop(self, step: int) -> None:
        """Count no longer; `step` is the update that training has reached."""
        self.seconds, self.steps = self._seconds(), step - self._untimed
        self._started = None

    def _seconds(self) -> float:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self.seconds + running

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer when a checkpoint has been written."""
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and checkpoint.is_dir():
            counted = {"seconds": self._seconds(), "steps": state.global_step - self._untimed}
            (checkpoint / CLOCK_FILE).write_text(json.dumps(counted) + "\n", "utf-8")
