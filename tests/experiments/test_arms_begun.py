"""How far a run has come: what is finished, resumed, begun again, and refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recipe_loading import TRANSLATION, importing

from hf_nm.experiments.arms import begun
from hf_nm.experiments.output import described, write_json

with importing("translation"):
    import options as translation_options

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "old" / "trainer"
LOG = logging.getLogger("recipe")


def asked_for(folder: Path, *options: object) -> tuple[Any, Any]:
    """The options of a run in a folder."""
    module: ModuleType = translation_options
    config = str(TRANSLATION / "configs" / "embedded.yaml")
    return module.parse([config, *map(str, options), "--output_dir", str(folder)])


def left(folder: Path, *options: object, finished: bool = False) -> Path:
    """What a run with these options left."""
    folder.mkdir(parents=True)
    write_json(folder / "options.json", described("translation", *asked_for(folder, *options)))
    if finished:
        score = {"metric": "BLEU", "test": 1.0, "signature": "s"}
        run = {"method": "ste", "score": score, "time": {"train_s": 1.0}, "steps": 9}
        write_json(folder / "results.json", run)
    return folder


def to_go_on(folder: Path, *options: object) -> Any:
    return begun.to_go_on("translation", *asked_for(folder, *options), LOG)


def with_checkpoint(folder: Path) -> Path:
    shutil.copytree(CHECKPOINTS / "checkpoint-2", folder / "checkpoint-2")
    return folder


def test_new(tmp_path: Path) -> None:
    """Red if a run that was killed before its first checkpoint cannot begin again."""
    assert list(to_go_on(tmp_path / "nothing")) == []
    assert list(to_go_on(left(tmp_path / "killed", "--seed", 3))) == []


def test_finished(tmp_path: Path) -> None:
    """Red if what is finished is run once more, or one of another budget is taken for it."""
    folder = left(tmp_path / "a", "--max_steps", 9, finished=True)
    assert to_go_on(folder, "--max_steps", 9) is begun.FINISHED
    # embedded.yaml's schedule does not look ahead, so train.py itself would go on with it.
    for options in (["--max_steps", 10], ["--max_steps", 9, "--learning_rate", 1]):
        with pytest.raises(ValueError, match=f"this run began with {options[-2]}"):
            to_go_on(folder, *options)


def test_resumed(tmp_path: Path) -> None:
    """Red if a run with a whole checkpoint begins again, or one of other options goes on."""
    folder = with_checkpoint(left(tmp_path / "a", "--method", "ste"))
    assert list(to_go_on(folder, "--method", "ste")) == ["--resume_from_checkpoint", "True"]
    with pytest.raises(ValueError, match="began with --method ste"):
        to_go_on(folder, "--method", "sr-ste")


def test_only_half_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Red if a run that was killed while it saved for the first time can never be finished."""
    folder = with_checkpoint(left(tmp_path / "a"))
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    with caplog.at_level(logging.INFO, "recipe"):
        assert list(to_go_on(folder)) == ["--start_over", "true"]
    assert "begins again" in caplog.text


def test_of_unknown_options(tmp_path: Path) -> None:
    """Red if results of who knows what count as the run asked for."""
    folder = left(tmp_path / "a", finished=True)
    (folder / "options.json").unlink()
    with pytest.raises(ValueError, match="without options"):
        to_go_on(folder)


def test_damaged_results(tmp_path: Path) -> None:
    folder = left(tmp_path / "a", finished=True)
    (folder / "results.json").write_text('{"method": "ste"', "utf-8")
    with pytest.raises(ValueError, match="not whole JSON"):
        to_go_on(folder)


def test_saving(tmp_path: Path) -> None:
    """Red if a run of a comparison saves nothing to go on from, or its own way of saving is lost."""
    _, plain = asked_for(tmp_path / "a")
    assert list(begun.saving(plain))[:4] == ["--save_strategy", "steps", "--save_steps", "0.1"]
    _, own = asked_for(tmp_path / "a", "--save_strategy", "epoch")
    assert list(begun.saving(own)) == []


def test_no_option_of_results(tmp_path: Path) -> None:
    """Red if a checkpoint's interval counts as another run."""
    folder = with_checkpoint(left(tmp_path / "a"))
    options = ["--save_strategy", "steps", "--save_steps", 7]
    assert list(to_go_on(folder, *options)) == ["--resume_from_checkpoint", "True"]
    assert json.loads((folder / "options.json").read_text())["recipe"] == "translation"
