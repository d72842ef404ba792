"""A half-written checkpoint stops no resume: the newest whole one is taken, skipped ones are said."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from trainers import build, sad_file
from training import assert_same_state, state_of
from transformers import Trainer

import hf_nm
from hf_nm.trainer.checkpoints import damage, missing_random_states, newest_whole, view

# In the order in which a Trainer writes them.
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of twelve steps with checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("finished")
    build(folder, save_strategy="steps", save_steps=4).train()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, for damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def other_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"global_step": 12', '"global_step": 8'))


def one_bit(path: Path) -> None:
    """Turned over in what an archive holds, not in its directory."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        held = archive.read(largest)
    data = path.read_bytes()
    assert data.count(held) == 1
    place = data.index(held) + len(held) // 2
    path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def entry_of_state(path: Path, entry: str) -> None:
    """A state of the right step with an entry that no Trainer wrote."""
    path.write_text(f'{{"global_step": 12, {entry}}}')


DAMAGES = {
    **{
        f"{name} cut at {share}": (name, lambda path, share=share: cut(path, share))
        for name in FILES
        for share in (0, 0.001, 0.3, 0.99)
    },
    **{f"{name} is missing": (name, Path.unlink) for name in FILES if name != "rng_state.pth"},
    **{f"{name} is text": (name, lambda path: path.write_text("[]")) for name in FILES},
    **{
        f"{name} has another bit": (name, one_bit)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    },
    **{
        f"{name} is zeros": (name, lambda path: path.write_bytes(bytes(path.stat().st_size)))
        for name in FILES
    },
    "another step": ("trainer_state.json", other_step),
    "a longer file": ("model.safetensors", longer),
    "a step that is none": (
        "trainer_state.json",
        lambda path: path.write_text('{"global_step": true}'),
    ),
    **{
        f"a state with {entry}": ("trainer_state.json", partial(entry_of_state, entry=entry))
        for entry in (
            '"ev`l_steps": 500',
            '"epoch": "3"',
            '"train_batch_size": true',
            '"log_history": [1]',
            '"stateful_callbacks": 5',
        )
    },
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_found(case: str, run: Path) -> None:
    """Red if a checkpoint that no Trainer could resume from is called whole, a whole one is called
    damaged, or the message does not begin with the file's name."""
    folder = run / "checkpoint-12"
    assert damage(folder) is None
    name, harm = DAMAGES[case]
    harm(folder / name)
    found = damage(folder)
    assert found is not None
    assert found.startswith(f"{name}: ")
    with pytest.warns(UserWarning, match=rf"checkpoint-12 \({name}: "):
        assert newest_whole(run, [view(run, 1)]) == run / "checkpoint-8"


@pytest.mark.parametrize("kept", range(len(FILES)))
def test_killed_at_each_write(kept: int, run: Path) -> None:
    """Red if a folder with the first files only, the last of them half-written, is called whole."""
    folder = run / "checkpoint-12"
    for name in FILES[kept + 1 :]:
        (folder / name).unlink()
    cut(folder / FILES[kept], 0.5)
    assert damage(folder) is not None


def test_every_checkpoint_of_a_whole_run_is_whole(finished: Path) -> None:
    assert list(view(finished, 1).values()) == [(None, [])] * 3
    assert newest_whole(finished, [view(finished, 1)]).name == "checkpoint-12"


@pytest.mark.parametrize("case", ["model.safetensors cut at 0.3", "trainer_state.json is missing"])
@pytest.mark.parametrize("kind", [hf_nm.NMTrainer, Trainer])
def test_resumed_past_a_half_written_one(case: str, kind: type, run: Path) -> None:
    """Red if the run stops at the half-written checkpoint, says nothing, or ends otherwise than the one
    that was never stopped."""
    stored = load((run / "checkpoint-12" / "model.safetensors").read_bytes())
    state = torch.load(run / "checkpoint-12" / "optimizer.pt", weights_only=True)
    lines = sad_file(run)
    name, harm = DAMAGES[case]
    harm(run / "checkpoint-12" / name)
    trainer = build(run, kind, save_strategy="steps", save_steps=4)
    if kind is Trainer:
        hf_nm.NMCallback().install(trainer)
    with pytest.warns(UserWarning, match=rf"from .*checkpoint-8, the newest.*-12 \({name}: "):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 12
    assert sad_file(run) == lines
    again = load_file(run / "checkpoint-12" / "model.safetensors")
    assert_same_state(again, stored)
    moments = torch.load(run / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]
    for index, entry in state["state"].items():
        assert all(torch.equal(entry[key], moments[index][key]) for key in entry)
    assert damage(run / "checkpoint-12") is None


def test_none_is_whole(run: Path) -> None:
    """Red if the error gives advice that would lose what is there, or does not name every file."""
    for step, name in ((4, "optimizer.pt"), (8, "model.safetensors"), (12, "trainer_state.json")):
        cut(run / f"checkpoint-{step}" / name, 0.5)
    with pytest.raises(ValueError, match="give another output directory") as caught:
        build(run).train(resume_from_checkpoint=True)
    for part in (
        "12 (trainer_state.json: ",
        "8 (model.safetensors: ",
        "4 (optimizer.pt: ",
        "Nothing",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="nothing to resume: no checkpoint in"):
        build(run / "empty").train(resume_from_checkpoint=True)


def test_a_damaged_one_that_was_named(run: Path) -> None:
    """Red if another checkpoint than the named one is taken, or a raw error comes through."""
    cut(run / "checkpoint-12" / "optimizer.pt", 0.5)
    trainer = build(run)
    before = state_of(trainer.model)
    with pytest.raises(ValueError, match=r"12 is not .*\(optimizer.pt: .*checkpoint-8 is whole"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-12"))
    with pytest.raises(ValueError, match=r"nowhere is not .*\(trainer_state.json: it is missing"):
        trainer.train(resume_from_checkpoint=str(run / "nowhere"))
    assert_same_state(state_of(trainer.model), before)


def test_sharded_weights(run: Path) -> None:
    """Red if a shard that is cut, lost, or lacks one of its tensors goes unseen."""
    folder = run / "checkpoint-12"
    tensors = load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-1-of-2.safetensors": names[:9], "model-2-of-2.safetensors": names[9:]}
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    where = {name: file for file, held in halves.items() for name in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert damage(folder) is None
    second = folder / "model-2-of-2.safetensors"
    save_file({names[9]: tensors[names[9]]}, second, {"format": "pt"})
    assert damage(folder) == f"{second.name}: it lacks {names[10]}, which the index says it holds"
    second.unlink()
    assert damage(folder).startswith(f"{second.name}: ")
    index.write_text("{}")
    assert damage(folder).startswith(f"{index.name}: ")


def test_random_states_of_several_processes(run: Path) -> None:
    """Red if a rank's missing random state goes unseen, or one is missed where none was ever saved: by a
    run of another kind, or without an optimizer."""
    for step in (4, 8, 12):
        folder = run / f"checkpoint-{step}"
        shutil.copy(folder / "rng_state.pth", folder / "rng_state_0.pth")
        (folder / "rng_state.pth").rename(folder / "rng_state_1.pth")
    newest = run / "checkpoint-12"
    assert missing_random_states(newest, 2) == missing_random_states(newest, 1) == []
    assert missing_random_states(newest, 4) == ["rng_state_2.pth", "rng_state_3.pth"]
    assert newest_whole(run, [view(run, 4)]) == newest  # no other has them
    (newest / "rng_state_1.pth").unlink()
    assert missing_random_states(newest, 2, 0) == []
    assert missing_random_states(newest, 2, 1) == ["rng_state_1.pth"]
    views = [view(run, 2, 0), view(run, 2, 1)]
    with pytest.warns(UserWarning, match=r"checkpoint-12 \(rng_state_1.pth is missing\)"):
        assert newest_whole(run, views) == run / "checkpoint-8"
    (newest / "rng_state_0.pth").unlink()
    assert missing_random_states(newest, 1) == ["rng_state.pth"]
    (newest / "optimizer.pt").unlink()
    (newest / "scheduler.pt").unlink()
    assert missing_random_states(newest, 2) == []
    assert damage(newest) is None


def test_processes_with_disks_of_their_own(run: Path) -> None:
    """Red if they would choose different checkpoints."""
    here, there = view(run, 1), view(run, 1)
    del there["checkpoint-12"]
    there["checkpoint-8"] = ("optimizer.pt: it is missing", [])
    with pytest.warns(UserWarning, match=r"12 \(it is not .*; checkpoint-8 \(optimizer.pt"):
        assert newest_whole(run, [here, there]) == run / "checkpoint-4"


def test_a_missing_random_state_is_said(run: Path) -> None:
    (run / "checkpoint-8" / "rng_state.pth").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-8 has no rng_state.pth"):
        build(run).train(resume_from_checkpoint=str(run / "checkpoint-8"))
