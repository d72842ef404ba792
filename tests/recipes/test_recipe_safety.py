"""What a recipe refuses before it trains, a run that ended in NaN, and one that found the disk full."""

import importlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import classification
import pytest
from classification import TINY, toy_files
from recipe_loading import importing
from recipe_loading import run as run_recipe

from hf_nm.trainer.checkpoints import damage

translate = partial(run_recipe, "translation")
classify = classification.run
SAVING = [*TINY.split(), "--save_strategy", "steps", "--save_steps", 3]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_files(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """A run that left checkpoints."""
    out = tmp_path_factory.mktemp("first")
    classify(*data, *SAVING, "--output_dir", out)
    return out


def refused(capsys, run, *arguments):
    """The one line with which a recipe ends, before it trained."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    text = str(error.value.code)
    if text == "2":  # the parser's own
        text = capsys.readouterr().err.strip().splitlines()[-1]
    assert "\n" not in text
    return text


def test_a_new_run_in_the_folder_of_another(first, data, capsys):
    """Red if a new run with another seed writes between the checkpoints of the first, which a resume
    would then go on from."""
    before = {path: path.stat().st_mtime_ns for path in first.rglob("checkpoint-*/*")}
    given = [*data, *SAVING, "--output_dir", first]
    text = refused(capsys, classify, *given, "--seed", 7)
    assert "holds checkpoints of another run (checkpoint-6)" in text
    assert "--start_over true" in text
    for changed, said in {
        ("--seed", 7): "--seed 42 (now 7)",
        ("--method", "dense"): "--method sr-ste (now dense)",
        ("--decay", 0.5): "--decay 0.02 (now 0.5)",
    }.items():
        text = refused(capsys, classify, *given, *changed, "--resume_from_checkpoint", "True")
        assert said in text
    assert {path: path.stat().st_mtime_ns for path in first.rglob("checkpoint-*/*")} == before


def test_starting_over(first, data, tmp_path):
    """Red if a run that starts over keeps anything of the first, or costs a file that is not ours."""
    out = shutil.copytree(first, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    classify(*data, *TINY.split(), "--output_dir", out, "--seed", 7, "--start_over", "true")
    assert json.loads((out / "results.json").read_text())["seed"] == 7
    assert json.loads((out / "options.json").read_text())["seed"] == 7
    assert not list(out.glob("checkpoint-*"))
    assert (out / "notes.txt").read_text() == "mine"


def test_a_run_that_ends_in_nan(data, tmp_path, capsys):
    """Red if it ends as if it were good, or leaves a score."""
    options = [*data, *TINY.split(), "--learning_rate", "1e38", "--max_grad_norm", 0]
    text = refused(capsys, classify, *options, "--warmup_steps", 0, "--output_dir", tmp_path)
    assert "NaN" in text
    assert "--learning_rate" in text
    assert not (tmp_path / "results.json").exists()


def test_a_validation_loss_that_is_nan(data, tmp_path, capsys, monkeypatch):
    """Red if a run whose weights are finite but whose validation loss is not ends as if it were good, or
    its results.json is no strict JSON."""
    with importing("classification"):
        train = importlib.import_module("train")
    loss = train.classification_loss

    def broken(*args, **kwargs):
        found = loss(*args, **kwargs)
        return found if found.requires_grad else found * float("nan")

    monkeypatch.setattr(train, "classification_loss", broken)
    text = refused(capsys, classify, *data, *TINY.split(), "--output_dir", tmp_path)
    assert (
        "the loss on the validation set is nan; its results are written, but not published" in text
    )
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found["validation"]["loss"] is None
    assert found["steps"] == 6


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may become larger than so many bytes: writing on fails as on a full disk."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1_000, 5_000, 30_000, 60_000])
def test_no_room(size, data, tmp_path, capsys):
    """Red if a full disk ends in a traceback or well, or half a file counts as a whole one. The sizes
    are met by the options, the tokenizer, the model's file and the optimizer's."""
    with room(size):
        text = refused(capsys, classify, *data, *SAVING, "--output_dir", tmp_path)
    assert text.startswith("train.py: error: ")
    assert any(said in text for said in ("File too large", "os error 27", "torch.save: "))
    assert not (tmp_path / "results.json").exists()
    assert all(damage(folder) for folder in tmp_path.glob("checkpoint-*"))


BAD = {
    "translation": {
        "--num_beams 0": "--num_beams is 0; it must be at least 1",
        "--vocab_size 1": "--vocab_size is 1; it must be at least 258",
        "--d_model -4": "--d_model is -4",
        "--layers 0": "--layers is 0",
        "--heads 3": "--heads 3 does not divide --d_model 128",
        "--dropout 1.5": "--dropout is 1.5; it must be at least 0 and below 1",
        "--max_length 2": "no sentence pair is left; raise max_length",
        "--max_tokens 3": "raise max_tokens or lower max_length",
        "--length_penalty nan": "--length_penalty is nan; it must be a finite number",
        "--learning_rate inf": "--learning_rate is inf",
        "--max_steps 0": "--max_steps 0",
    },
    "classification": {
        "--vocab_size 1": "--vocab_size is 1; it must be at least 6",
        "--max_length 0": "--max_length is 0",
        "--validation_rows 0": "--validation_rows is 0",
        "--per_device_train_batch_size 0": "--per_device_train_batch_size is 0",
        "--gradient_accumulation_steps -1": "--gradient_accumulation_steps is -1",
        "--decay nan": "--decay is nan",
        "--learning_rate -1": "--learning_rate is -1.0",
        "--max_steps -1 --num_train_epochs 0": "no training",
        "--config_overrides hidden_size=10,num_attention_heads=3,num_hidden_layers=1": "multiple of",
    },
}


@pytest.mark.parametrize(
    ("recipe", "options"), [(recipe, options) for recipe in BAD for options in BAD[recipe]]
)
def test_options_that_cannot_work(recipe, options, tmp_path, capsys):
    """Red if they fail after hours of training, or with a traceback."""
    text = refused(capsys, partial(run_recipe, recipe), *options.split(), "--output_dir", tmp_path)
    assert BAD[recipe][options] in text
    assert not list(tmp_path.glob("*.safetensors"))


def test_nobody_else_trains_in_the_folder(first, data):
    """Red if a second process of a recipe writes where the first one does."""
    code = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
    code += "lock.acquire(); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(first / "_running.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline()
        with pytest.raises(SystemExit, match="is training here; wait for it or end it"):
            classify(*data, *SAVING, "--output_dir", first, "--resume_from_checkpoint", "True")
        holder.kill()
