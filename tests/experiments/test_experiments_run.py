"""What recipes share around their own data, model and score."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_nm.environment import command_line
from hf_nm.experiments.earlier_runs import check_dense_run, last_checkpoint, updates_before
from hf_nm.experiments.run import CLOCK_FILE, Clock, same_outputs


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, which passes when a test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("hf_nm.experiments.run.time.perf_counter", lambda: now.seconds)
    return now


def saved(folder: Path, step: int, of: Clock) -> Path:
    """A checkpoint as the Trainer announces it to the clock."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    state = SimpleNamespace(global_step=step, is_world_process_zero=True)
    of.on_save(SimpleNamespace(output_dir=str(folder)), state, None)
    return checkpoint


def test_a_resumed_run_counts_all_of_its_time(tmp_path: Path, now: SimpleNamespace) -> None:
    """Red if only the last stretch counts, or what was trained twice, or the pause between."""
    first = Clock()
    first.start()
    now.seconds += 7
    checkpoint = saved(tmp_path, 20, first)
    now.seconds += 50  # lost in the interruption, and the time until somebody resumes
    second = Clock(str(checkpoint), 20)
    second.start()
    now.seconds += 3
    later = saved(tmp_path, 30, second)
    now.seconds += 2
    second.stop(35)
    assert (second.seconds, second.steps) == (12, 35)
    now.seconds += 9
    assert json.loads((later / CLOCK_FILE).read_text()) == {"seconds": 10, "steps": 30, "at": 30}
    third = Clock(str(later), 30)
    third.start()
    now.seconds += 1
    third.stop(31)
    assert (third.seconds, third.steps) == (11, 31)


def test_a_kill_between_a_checkpoint_and_its_count(tmp_path: Path, now: SimpleNamespace) -> None:
    """Red if a process that dies when its checkpoint is whole, but not yet its count, loses the time; or
    the count beside is taken for another checkpoint's."""
    first = Clock()
    first.start()
    now.seconds += 7
    state = SimpleNamespace(global_step=20, is_world_process_zero=True)
    arguments = SimpleNamespace(output_dir=str(tmp_path))
    first.on_step_end(arguments, state, SimpleNamespace(should_save=True))
    state.global_step = 21
    first.on_step_end(arguments, state, SimpleNamespace(should_save=False))
    for step, seconds, steps in ((20, 7, 21), (19, 0, 2)):
        second = Clock(str(tmp_path / f"checkpoint-{step}"), step)
        second.stop(21)
        assert (second.seconds, second.steps) == (seconds, steps)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"seconds": NaN, "steps": 3}',
        b'{"seconds": "1", "steps": 3}',
        b'{"seconds": 1, "steps": -3}',
        b'{"seconds": 1' + b"0" * 400 + b', "steps": 3}',
    ],
)
def test_damaged_count(tmp_path: Path, damage: bytes) -> None:
    """Red if damage ends in anything but one line with the file's name."""
    (tmp_path / CLOCK_FILE).write_bytes(damage)
    with pytest.raises(ValueError, match=r"training_time\.json: .*remove it to go on") as error:
        Clock(str(tmp_path), 20)
    assert "\n" not in str(error.value)


def test_updates_that_nobody_timed(tmp_path: Path, now: SimpleNamespace) -> None:
    """Red if the seconds since a checkpoint without a count are said to be of all updates."""
    second = Clock(str(tmp_path), 20)
    second.start()
    now.seconds += 4
    checkpoint = saved(tmp_path, 28, second)
    second.stop(28)
    assert (second.seconds, second.steps) == (4, 8)
    third = Clock(str(checkpoint), 28)
    third.start()
    now.seconds += 1
    third.stop(30)
    assert (third.seconds, third.steps) == (5, 10)


def test_which_checkpoint_a_run_goes_on_from(tmp_path: Path) -> None:
    """Red if an older checkpoint is taken, or a missing one starts a new run unsaid."""

    def chosen(given: str | None) -> tuple[str | None, int]:
        arguments = TrainingArguments(str(tmp_path / "out"), report_to="none")
        arguments.resume_from_checkpoint = given
        return last_checkpoint(arguments)

    assert chosen(None) == (None, 0)
    for given in ("True", "true"):
        with pytest.raises(ValueError, match=r"nothing to resume: no checkpoint in .*out; leave"):
            chosen(given)
    for step in (9, 10):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        TrainerState(global_step=step).save_to_json(str(folder / "trainer_state.json"))
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    assert chosen("True") == (str(folder), 10)
    older = str(tmp_path / "out" / "checkpoint-9")
    assert chosen(older) == (older, 9)
    with pytest.raises(ValueError, match="no checkpoint in nowhere"):
        chosen("nowhere")
    os.truncate(folder / "model.safetensors", 30)
    with pytest.warns(UserWarning, match=r"checkpoint-10 \(model.safetensors: "):
        assert chosen("True") == (older, 9)
    with pytest.raises(
        ValueError, match=r"10 is not .*\(model.safetensors: .*checkpoint-9 is whole"
    ):
        chosen(str(folder))
    os.truncate(Path(older, "model.safetensors"), 30)
    with pytest.raises(ValueError, match=r"no checkpoint in .* give another output directory"):
        chosen("True")


def results(folder: Path, **facts: object) -> str:
    folder.mkdir()
    score = {"metric": "BLEU", "test": 30.0, "signature": "a"}
    run = {"method": "dense", "score": score, "time": {"train_s": 9.0}, "steps": 30}
    (folder / "results.json").write_text(json.dumps(run | facts))
    return str(folder)


def test_updates_before(tmp_path: Path) -> None:
    """Red if a run that itself started from another counts its own updates only."""
    assert updates_before(None) is updates_before(str(tmp_path)) is None
    assert updates_before(results(tmp_path / "first")) == 30
    assert updates_before(results(tmp_path / "second", steps_before=30)) == 60


def test_the_dense_run_beside(tmp_path: Path) -> None:
    """Red if a run trains for hours before its dense run turns out to be scored on other data."""
    check_dense_run(None, "a")
    dense, sparse = results(tmp_path / "dense"), results(tmp_path / "ste", method="ste")
    check_dense_run(dense, "a")
    with pytest.raises(ValueError, match=r"a dense run scored as a, but .* one scored as b"):
        check_dense_run(dense, "b")
    with pytest.raises(ValueError, match=r"a ste run scored as a, but .* a dense one"):
        check_dense_run(sparse, "a")
    with pytest.raises(FileNotFoundError, match="no results here"):
        check_dense_run(str(tmp_path / "nowhere"), "a")


class Answers(nn.Module):
    """Logits with dropout before them."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": nn.functional.dropout(x, 0.5, self.training) * self.weight, "boxes": x}


def test_same_outputs() -> None:
    """Red if dropout is left on, or a checkpoint that differs in the last bit passes."""
    inputs = {"x": torch.randn(4, 100)}
    assert same_outputs(Answers(1.0), Answers(1.0), inputs)
    other = Answers(1 + 2**-23)
    assert not same_outputs(Answers(1.0), other, inputs)
    assert same_outputs(Answers(1.0), other, inputs, names=["boxes"])
    assert not same_outputs(Answers(1.0), other, inputs, names=["boxes", "logits"])


def test_the_command_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a command pasted from results.json into a shell would start something else."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--arm", "my arm"])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert command_line() == f"{Path(sys.executable).name} train.py --arm 'my arm'"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert command_line() == "accelerate launch train.py --arm 'my arm'"
