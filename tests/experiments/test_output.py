"""Whose output directory it is: options compared, a lock, starting over."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from transformers import TrainingArguments

from hf_nm.experiments.options import SparseArguments
from hf_nm.experiments.output import claim, read_json, write_json

LOG = logging.getLogger("test")


@dataclass
class Options(SparseArguments):
    """A recipe's options."""

    train_file: str | None = None
    d_model: int = 8
    arm: str | None = None


@contextmanager
def claimed(out: Path, resumed: str | None = None, **given: Any) -> Iterator[None]:
    """What :func:`claim` does for a run with these options, released afterwards."""
    own = {name: given.pop(name) for name in tuple(given) if name in Options.__dataclass_fields__}
    arguments = TrainingArguments(str(out), report_to="none", use_cpu=True, **given)
    lock = claim("tiny", Options(**own), arguments, resumed and str(out / resumed), LOG)
    yield
    lock.release(force=True)


def run_with_checkpoints(out: Path, *steps: int, **given: Any) -> Path:
    """An output directory in which a run has left checkpoints."""
    with claimed(out, **given):
        for step in steps:
            (out / f"checkpoint-{step}").mkdir()
            (out / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    return out


def test_a_new_run_refuses_the_checkpoints_of_another(tmp_path: Path) -> None:
    """Red if a new run mixes its checkpoints with another's, or the message says not what to type."""
    out = run_with_checkpoints(tmp_path / "out", 9, 10)
    message = (
        r"out holds checkpoints of another run \(checkpoint-10\).*--resume_from_checkpoint True"
    )
    with pytest.raises(ValueError, match=message + r".*--start_over true") as error, claimed(out):
        pass
    assert "\n" not in str(error.value)
    elsewhere = run_with_checkpoints(tmp_path / "other", 3)
    arguments = TrainingArguments(str(out), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="checkpoint-10"):
        claim("tiny", Options(), arguments, str(elsewhere / "checkpoint-3"), LOG)
    with claimed(out, "checkpoint-10"):  # its own
        pass


def test_starting_over_removes_what_the_run_left_and_nothing_else(tmp_path: Path) -> None:
    """Red if a model, a file or a folder of the user goes, or an old result stays."""
    out = run_with_checkpoints(tmp_path / "out", 5)
    away = tmp_path / "away"
    away.mkdir()
    (away / "kept").touch()
    (out / "checkpoint-7").symlink_to(away)
    (out / "checkpoint-best").mkdir()
    kept = {"model.safetensors", "notes.txt", "tokenizer.json", "checkpoint-best"}
    gone = {"results.json", "results.md", "nm_sad.jsonl", "predictions.tsv", "trainer_state.json"}
    for name in (kept | gone) - {"checkpoint-best"}:
        (out / name).write_text("text")
    with claimed(out, start_over=True, seed=7):
        left = {path.name for path in out.iterdir()}
        assert left == kept | {"options.json", "_running.lock", "_running.json"}
        assert read_json(out / "options.json", "")["seed"] == 7
    assert (away / "kept").exists()
    with pytest.raises(ValueError, match="exclude each other"), claimed(out, "x", start_over=True):
        pass


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, r"--seed 42 \(now 2\)"),
        ({"method": "dense"}, r"--method sr-ste \(now dense\)"),
        ({"n": 1, "m": 8}, r"--n 2 \(now 1\), --m 4 \(now 8\)"),
        ({"decay": 0.5}, r"--decay 0.0002 \(now 0.5\)"),
        ({"d_model": 16}, r"--d_model 8 \(now 16\)"),
        ({"learning_rate": 1.0}, r"--learning_rate 5e-05 \(now 1.0\)"),
        ({"per_device_train_batch_size": 4}, r"--per_device_train_batch_size 8 \(now 4\)"),
        ({"gradient_accumulation_steps": 2}, r"_steps x processes 1 \(now 2\)"),
        ({"max_steps": 9}, r"--max_steps -1 \(now 9\)"),
        ({"eval_strategy": "epoch"}, r"--eval_strategy no \(now epoch\)"),
        ({"teacher": "x"}, r"--teacher not given \(now x\)"),
    ],
)
def test_a_resumed_run_is_the_same_run(tmp_path: Path, changed: dict, message: str) -> None:
    """Red if an option that changes the result may be another at resume, or one of the two values is not
    named."""
    out = run_with_checkpoints(tmp_path, 5)
    with pytest.raises(ValueError, match=message), claimed(out, "checkpoint-5", **changed):
        pass
    before = read_json(out / "options.json", "")
    harmless = {"logging_steps": 3, "save_steps": 7, "arm": "mine", "disable_tqdm": True}
    with claimed(out, "checkpoint-5", **harmless):
        pass
    assert read_json(out / "options.json", "") == before


def test_a_run_may_be_made_longer_where_its_learning_rate_does_not_mind(tmp_path: Path) -> None:
    """Red if a linear decay is stretched in the middle, or a constant rate refuses more steps."""
    out = run_with_checkpoints(tmp_path, 5, max_steps=9, lr_scheduler_type="inverse_sqrt")
    with claimed(out, "checkpoint-5", max_steps=20, lr_scheduler_type="inverse_sqrt"):
        assert read_json(out / "options.json", "")["max_steps"] == 20


def test_other_contents_of_a_data_file(tmp_path: Path) -> None:
    """Red if a run goes on with other rows under the same name, or refuses a file that was moved."""
    data = tmp_path / "train.tsv"
    data.write_text("a")
    out = run_with_checkpoints(tmp_path / "out", 5, train_file=str(data))
    moved = tmp_path / "moved.tsv"
    moved.write_text("a")
    data.write_text("b")
    with claimed(out, "checkpoint-5", train_file=str(moved)):
        pass
    message = (
        r"--train_file .*moved.tsv \(sha256 ca978112ca1b\) \(now .*train.tsv \(sha256 3e23e8160"
    )
    with (
        pytest.raises(ValueError, match=message),
        claimed(out, "checkpoint-5", train_file=str(data)),
    ):
        pass


def test_accumulation_for_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if two processes may not take over from one with twice the accumulation."""
    out = run_with_checkpoints(tmp_path, 5, gradient_accumulation_steps=2)
    arguments = TrainingArguments(str(out), report_to="none", use_cpu=True)
    monkeypatch.setenv(
        "WORLD_SIZE", "2"
    )  # now, because with it the arguments would wait for the other
    lock = claim("tiny", Options(), arguments, str(out / "checkpoint-5"), LOG)
    lock.release(force=True)


@pytest.mark.parametrize(
    "damage", [b"", b'{"seed": 1', b"[]", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"{}"]
)
def test_damaged_options(tmp_path: Path, damage: bytes) -> None:
    """Red if damage ends in anything but one line with the file's name."""
    out = run_with_checkpoints(tmp_path, 5)
    (out / "options.json").write_bytes(damage)
    message = r"options\.json: .*remove it to go on"
    with pytest.raises(ValueError, match=message) as error, claimed(out, "checkpoint-5"):
        pass
    assert "\n" not in str(error.value)
    (out / "options.json").unlink()
    with claimed(out, "checkpoint-5"):
        assert (out / "options.json").is_file()


HOLD = """
import sys, logging
sys.path[:0] = [{tests!r}, {support!r}]
from pathlib import Path
from test_output import claimed
with claimed(Path({out!r})):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_keep_out_of_one_folder(tmp_path: Path) -> None:
    """Red if a second process starts beside the first, or a dead one locks the folder for ever."""
    here = Path(__file__).parent
    paths = {"tests": str(here), "support": str(here.parent), "out": str(tmp_path)}
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{here.parent / 'support'}"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(**paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    message = rf"process {holder.pid} on .* is training here; wait .*another --output_dir"
    with pytest.raises(ValueError, match=message), claimed(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with claimed(tmp_path):
        pass


def test_json_is_strict_and_whole_or_not_there(tmp_path: Path) -> None:
    """Red if a number that JSON has not is written, or a failed write leaves half a file."""
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
