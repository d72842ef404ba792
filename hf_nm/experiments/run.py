"""What a recipe's run does around its own data, model and score.

A recipe's `main` reads, from top to bottom::

    recipe, arguments, run = start("translation", parse)
    ...                                   # its data, tokenizer, model and Trainer
    run.train(trainer)
    model = run.save(trainer)
    ...                                   # its score, of the saved checkpoint opened plainly
    run.write(run.results(trainer, ...), "Translation", trainer, "nats per token")
    run.publish(trainer)
    run.close()
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from accelerate import PartialState
from filelock import FileLock
from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

import hf_nm
from hf_nm.environment import command_line, commit, environment
from hf_nm.experiments.earlier_runs import ToldTheEpoch, difference_to_dense, last_checkpoint
from hf_nm.experiments.options import SparseArguments, one_line_errors, opened
from hf_nm.experiments.output import claim, read_json, write_json
from hf_nm.experiments.results import write_results
from hf_nm.hub.figures import plot_sad
from hf_nm.hub.scores import read_scores
from hf_nm.optim.sad_log import sad_summary

Options = TypeVar("Options", bound=SparseArguments)
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def start(
    name: str, parse: Callable[[list[str]], tuple[Options, Arguments]]
) -> tuple[Options, Arguments, "Run"]:
    """Read the command line, start the processes, and set log, progress bars and seed.

    A mistake in the options, no checkpoint to resume from, or an output directory that is another run's,
    ends the program with one line.

    Args:
        name: the recipe's, as in its results.
        parse: gives the recipe's options and the training arguments of a command line.

    Returns:
        The two, and the run.
    """
    started = time.perf_counter()
    # accelerate's launcher does not pass on its use_cpu to several processes.
    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    log = logging.getLogger("recipe")
    log.handlers = [logging.StreamHandler(sys.stdout)]
    log.setLevel(logging.INFO)
    with one_line_errors():
        options, arguments = parse(sys.argv[1:])
        options.check(arguments)
        resumed_from, resumed_step = last_checkpoint(arguments)
        clock = Clock(resumed_from, resumed_step)
        # One process for all: what it refuses ends the others too.
        main = os.environ.get("RANK", "0") == "0"
        lock = claim(name, options, arguments, resumed_from, log) if main else None
    device = arguments.device  # this starts the process group, with the training arguments' options
    state = PartialState()
    log.setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    if arguments.disable_tqdm:
        datasets.disable_progress_bars()
        disable_progress_bar()
    set_seed(arguments.seed)
    run = Run(name, options, arguments, device, state, log, resumed_from, clock, started, lock)
    return options, arguments, run


@dataclass
class Run:
    """A run of a recipe in this process, among the others that take part.

    Args:
        name: the recipe's.
        options: how its model becomes sparse.
        arguments: how it is trained.
        device: of this process.
        state: which process this is; `main_process_first()` lets the others find a download finished.
        log: prints in the main process.
        resumed_from: the checkpoint that training goes on from; None for a new run.
        clock: seconds in training.
        started: when, in seconds of `time.perf_counter`.
        lock: keeps other runs out of the output directory; held by the main process.
        failed: why the run ends with an error although it has results.
    """

    name: str
    options: SparseArguments
    arguments: TrainingArguments
    device: torch.device
    state: PartialState
    log: logging.Logger
    resumed_from: str | None
    clock: "Clock"
    started: float
    lock: FileLock | None = None
    failed: str = ""

    @cached_property
    def out(self) -> Path:
        """The output directory."""
        return Path(str(self.arguments.output_dir))

    def made_once(self, kind: Any, make: Callable[[], Any]) -> Any:
        """What one process makes from the data and the others read, so that all have the same for sure:
        a tokenizer. A resumed run reads its checkpoint's.

        Call it inside `state.main_process_first()`.

        Args:
            kind: the Auto class that reads it.
            make: makes it; it has `save_pretrained`.
        """
        if self.resumed_from:
            return opened(kind, "resume_from_checkpoint", self.resumed_from)
        if not self.state.is_main_process:
            return kind.from_pretrained(self.out)
        made = make()
        made.save_pretrained(self.out)
        return made

    def train(self, trainer: Trainer) -> None:
        """Train, from the checkpoint on if the run is resumed.

        Raises:
            SystemExit: weights are not finite afterwards.
        """
        trainer.add_callback(self.clock)
        trainer.add_callback(ToldTheEpoch())
        self.clock.start()
        trainer.train(resume_from_checkpoint=self.resumed_from)
        self.clock.stop(trainer.state.global_step)
        broken = [
            name
            for name, parameter in trainer.accelerator.unwrap_model(
                trainer.model
            ).named_parameters()
            if not torch.isfinite(parameter.detach()).all()
        ]
        if broken:
            trainer.save_state()  # what was logged on the way there
            raise SystemExit(
                f"{self.out}: training ended in NaN: {len(broken)} weights hold values that are not "
                f"finite (first: {broken[0]}) after update {trainer.state.global_step}; nothing is "
                "scored. Lower --learning_rate, or give a longer --warmup_steps."
            )

    def save(self, trainer: Trainer) -> nn.Module:
        """Save the trained model and everything that was logged (`trainer_state.json`).

        Returns:
            The model as it was before training wrapped it.
        """
        # In mixed precision training has wrapped the forward.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        trainer.save_model(str(self.out), _internal_call=True)  # published later, with its score
        trainer.save_state()
        losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
        if losses and not math.isfinite(losses[-1]):
            self.failed = (
                f"{self.out}: the loss on the validation set is {losses[-1]}; its results are written, "
                "but not published. Lower --learning_rate, or train in another precision."
            )
        self.state.wait_for_everyone()
        return model

    @cached_property
    def layers(self) -> list[Any]:
        """The N:M weights of the saved checkpoint, verified group by group; none of a dense run."""
        return list(hf_nm.verify(self.out).layers) if self.options.sparse else []

    def results(
        self,
        trainer: Trainer,
        reloaded: PreTrainedModel,
        *,
        data: str,
        score: dict[str, Any],
        reloaded_equal: bool,
        model: dict[str, Any] | None = None,
        **own: Any,
    ) -> dict[str, Any]:
        """What the run achieved, for `results.json`.

        Args:
            trainer: after training.
            reloaded: the saved checkpoint, as it was scored.
            data: the name of the data set.
            score: `metric`, `test` and `signature`, and more.
            reloaded_equal: whether it computes what the trained model does, see :func:`same_outputs`.
            model: what the recipe says of its model.
            **own: what the recipe alone has.
        """
        options, layers = self.options, self.layers
        return {
            "recipe": self.name,
            "data": data,
            "method": options.method,
            "pattern": options.pattern,
            "decay": options.decay if options.method == "sr-ste" else None,
            "score": score,
            **own,
            "model": {
                **(model or {}),
                "parameters": reloaded.num_parameters(),
                "nm_weights": sum(prod(layer.shape) for layer in layers),
                "nm_weights_kept": sum(layer.kept for layer in layers),
            },
            "sad": sad_summary(trainer.state.log_history) if options.sparse else None,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "time": {
                "train_s": self.clock.seconds,
                "steps": self.clock.steps,
                "total_s": time.perf_counter() - self.started,
            },
            "reloaded_logits_equal": reloaded_equal,
            "seed": self.arguments.seed,
            "commit": commit(),
            "command": command_line(),
            **environment(self.state.num_processes),
        }

    def write(
        self,
        results: dict[str, Any],
        heading: str,
        trainer: Trainer,
        loss_unit: str,
        dense_run: str | None = None,
    ) -> None:
        """Write `results.json`, `results.md` and `sad.png` in the main process, and print the second.

        Beside a dense run (its output directory) the results say the difference to it, with an interval
        where both runs have written what they predicted.
        """
        if dense_run:
            results["vs_dense"] = difference_to_dense(self.out, results, dense_run, self.log)
        print(write_results(results, self.out, heading))
        plot_sad(trainer.state.log_history, self.out / "sad.png", heading, loss_unit=loss_unit)

    def publish(self, trainer: Trainer, dense_run: str | None = None) -> None:
        """Write the card of a sparse model with its score, and push it to the Hub if that was asked for.

        Args:
            trainer: after training.
            dense_run: output directory of the dense run that the score is set beside.
        """
        self.state.wait_for_everyone()  # for the results
        card: dict[str, Any] = {}
        if self.options.sparse:
            card["scores"] = read_scores(self.out, dense_run)
        if self.arguments.push_to_hub and not self.failed:
            trainer.push_to_hub(**card)
        elif self.options.sparse:
            trainer.create_model_card(**card)

    def close(self) -> None:
        """End the processes together: the launcher would stop the first when a second one is gone.

        Raises:
            SystemExit: the run ended in NaN.
        """
        self.state.wait_for_everyone()
        self.state.destroy_process_group()
        if self.lock is not None:
            self.lock.release(force=True)
        if self.failed:
            raise SystemExit(self.failed)


CLOCK_FILE = "training_time.json"  # in every checkpoint, and beside them the last one's


class Clock(TrainerCallback):
    """Counts seconds in training over all interruptions, and leaves what it has counted in every
    checkpoint.

    A resumed run goes on from its checkpoint's count. What was trained between that checkpoint and the
    interruption is trained again, so it counts once. The count of a checkpoint is written beside it too,
    before it is begun: a process that dies between the two leaves a count all the same.

    Args:
        resumed_from: the checkpoint that training goes on from; None for a new run.
        resumed_step: its update.

    Attributes:
        seconds: in training, up to the last :meth:`stop`.
        steps: updates that these seconds are of: all of the run, unless it was resumed from a checkpoint
            without a count, whose updates nobody timed.

    Raises:
        ValueError: the checkpoint's count is damaged; one line with the file's name.
    """

    def __init__(self, resumed_from: str | None = None, resumed_step: int = 0) -> None:
        self.seconds, self.steps = 0.0, 0
        self._untimed = resumed_step
        self._started: float | None = None
        if resumed_from is None:
            return
        inside, beside = Path(resumed_from, CLOCK_FILE), Path(resumed_from).parent / CLOCK_FILE
        if inside.is_file():
            self.seconds, timed, _ = _read_count(inside)
            self._untimed = resumed_step - timed
        elif beside.is_file():
            seconds, timed, step = _read_count(beside)
            if step == resumed_step:
                self.seconds, self._untimed = seconds, resumed_step - timed

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

    def _count(self, state: Any) -> dict[str, float]:
        step = state.global_step
        return {"seconds": self._seconds(), "steps": step - self._untimed, "at": step}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after an update, before the checkpoint that may follow."""
        if state.is_world_process_zero and control.should_save:
            write_json(Path(args.output_dir, CLOCK_FILE), self._count(state))

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer when a checkpoint has been written."""
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and checkpoint.is_dir():
            write_json(checkpoint / CLOCK_FILE, self._count(state))


def _read_count(path: Path) -> tuple[float, int, Any]:
    """Seconds, the updates they are of, and the update of the checkpoint."""
    remedy = "remove it to go on without the time so far."
    found = read_json(path, remedy)
    seconds: Any = found.get("seconds")
    steps: Any = found.get("steps")
    good = isinstance(seconds, int | float) and 0 <= seconds < 1e12  # and no nan
    if not good or type(steps) is not int or not 0 <= steps < 1 << 63:
        raise ValueError(
            f"{path}: needs seconds and steps, numbers of 0 or more, not {str(found)[:90]}; {remedy}"
        )
    return seconds, steps, found.get("at")


@torch.inference_mode()
def same_outputs(
    trained: nn.Module,
    reloaded: nn.Module,
    inputs: dict[str, Any],
    names: Iterable[str] = ("logits",),
) -> bool:
    """Whether a checkpoint, opened plainly, computes bit for bit what the trained model does.

    Args:
        trained: the model that was saved; put into evaluation mode here, as is the other.
        reloaded: its checkpoint, on the same device.
        inputs: a small batch, on that device too.
        names: the outputs that are compared.
    """
    ours, theirs = (model.eval()(**inputs) for model in (trained, reloaded))
    return all(torch.equal(ours[name], theirs[name]) for name in names)
