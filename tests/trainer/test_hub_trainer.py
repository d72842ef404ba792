"""Trainers that push to the Hub: checkpoints, cards, resuming, over HTTP with a stand-in for the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_client import opened
from hub_server import HubServer
from trainers import CrashError, StopAt, build, logits, one_layer_bert
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

import hf_nm

REPO = "alice/run"


def pushing(
    folder: Path, trainer_class: type[Trainer] = hf_nm.NMTrainer, **changes: Any
) -> Trainer:
    """A run of twelve steps that saves and pushes every fourth."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "push_to_hub": True}
    trainer = build(folder / "run", trainer_class, **options | {"hub_model_id": REPO} | changes)
    trainer.add_callback(EachPush(trainer))
    return trainer


class EachPush(TrainerCallback):
    """Waits for each push of a checkpoint: the Trainer skips one while another is under way."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.failed: list[BaseException] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        jobs = self.trainer.push_in_progress.jobs if self.trainer.push_in_progress else []
        self.failed += [error for job in jobs if (error := job.exception()) is not None]


def assert_pushed(trainer: Trainer) -> None:
    """No push of a checkpoint failed."""
    waited = next(c for c in trainer.callback_handler.callbacks if isinstance(c, EachPush))
    assert waited.failed == []


def assert_published(trainer: Trainer, tmp_path: Path, repo: str = REPO) -> None:
    """What is on the Hub is the trained model, without the local files and with no cache."""
    expected = logits(trainer.model)
    shutil.rmtree(tmp_path / "run")
    loaded, snapshot = opened(repo)
    assert torch.equal(logits(loaded), expected)
    assert {row.kept for row in hf_nm.verify(snapshot).layers} == {512, 1024}


def test_every_save(hub: HubServer, tmp_path: Path) -> None:
    """Red if a checkpoint is pushed without our part in the card, or with that of other weights."""
    trainer = pushing(tmp_path)
    trainer.train()
    assert_pushed(trainer)
    commits = hub.repos[REPO].branches["main"]
    titles = [f"Training in progress, step {step}" for step in (4, 8, 12)]
    assert [commit.title for commit in commits[1:]] == titles
    for step, commit in zip((4, 8, 12), commits[1:], strict=True):
        card = commit.files["README.md"].data.decode()
        assert f"| steps | {step} |" in card
        assert "| 2:4 | 6 | 8,192 | 4,096 | 50.00% |" in card
        assert "sad.png" in commit.files
        assert "# run\n" in card
    trainer.push_to_hub(scores=hf_nm.Score("accuracy", 0.5, "glue", dense=0.5))
    card = hub.card(REPO)
    assert "generated automatically according to the information the Trainer had" in card
    assert "| accuracy | glue, test | 0.5 | 0.5 | +0 | 100.0% |" in card
    assert "| masks | computed every step |" in card
    assert "| optimizer | AdamW, learning rate 0.01 |" in card
    assert "| batch | 4 (4 in each of 1 processes, 1 accumulated) |" in card
    assert f"torch {torch.__version__}" in card
    assert card.index("## N:M sparsity") < card.index("## Model description")
    data = huggingface_hub.ModelCard.load(REPO).data
    assert {"generated_from_trainer", "2:4", "hf-nm"} <= set(data.tags)
    assert data.eval_results[0].metric_value == 0.5
    last = trainer.state.log_history[-2]
    assert f"{last['nm/sad_init']:,} between the start and the end" in card
    assert_published(trainer, tmp_path)


@pytest.mark.parametrize("strategy", ["end", "all_checkpoints"])
def test_strategies(strategy: str, hub: HubServer, tmp_path: Path) -> None:
    trainer = pushing(tmp_path, hub_strategy=strategy)
    trainer.train()
    trainer.push_to_hub()
    assert_pushed(trainer)
    files = hub.files(REPO)
    assert ("checkpoint-4/optimizer.pt" in files) == (strategy == "all_checkpoints")
    assert "## N:M sparsity" in hub.card(REPO)
    assert_published(trainer, tmp_path)


def test_resumed_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """Red if a run cannot go on from the checkpoint it pushed, bit for bit, after a lost machine."""
    whole = build(tmp_path / "whole")
    whole.train()
    stopped = pushing(tmp_path, hub_strategy="checkpoint")
    stopped.add_callback(StopAt(6))
    with pytest.raises(CrashError):
        stopped.train()
    assert_pushed(stopped)
    shutil.rmtree(tmp_path / "run")
    huggingface_hub.snapshot_download(REPO, local_dir=tmp_path / "run")
    resumed = pushing(tmp_path, hub_strategy="checkpoint")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "last-checkpoint"))
    resumed.push_to_hub()
    assert "last-checkpoint/optimizer.pt" in hub.files(REPO)
    assert torch.equal(logits(resumed.model), logits(whole.model))
    assert_published(resumed, tmp_path)


def test_own_text_survives(hub: HubServer, tmp_path: Path) -> None:
    """Red if the Trainer's new card replaces a text that somebody wrote on the Hub, or a license."""
    trainer = pushing(tmp_path, save_steps=12)
    trainer.train()
    trainer.push_to_hub()
    add = ("library_name: transformers\n", "library_name: transformers\nlicense: mit\n")
    hub.edit(REPO, "README.md", lambda text: text.replace(*add))
    trainer.args.max_steps = 13
    trainer.train(resume_from_checkpoint=True)
    trainer.push_to_hub()
    assert "- training_steps: 13\n" in hub.card(REPO)
    assert "license: mit" in hub.card(REPO)
    hub.edit(REPO, "README.md", lambda text: text.replace("# run\n", "# run\n\nIt is mine.\n"))
    trainer.args.max_steps = 14
    trainer.train(resume_from_checkpoint=True)
    for _ in range(2):
        trainer.push_to_hub()
        card = hub.card(REPO)
        assert "# run\n\nIt is mine.\n" in card
        assert "| steps | 14 |" in card
        assert card.count("## N:M sparsity") == 1
        assert "license: mit" in card


@pytest.mark.parametrize("trainer_class", [Trainer, hf_nm.NMSeq2SeqTrainer])
def test_any_trainer(trainer_class: type[Trainer], hub: HubServer, tmp_path: Path) -> None:
    """Red if the card comes with NMTrainer only, or a private repository gets none."""
    trainer = pushing(tmp_path, trainer_class, save_steps=12, hub_private_repo=True)
    if trainer_class is Trainer:
        hf_nm.NMCallback(mask_interval=2, freeze_masks_at=9).install(trainer)
    trainer.train()
    trainer.push_to_hub()
    assert hub.repos[REPO].private
    masks = "computed every " + ("2 steps up to step 9" if trainer_class is Trainer else "step")
    assert f"| masks | {masks} |" in hub.card(REPO)
    assert_published(trainer, tmp_path)


def test_failing_uploads_do_not_end_training(hub: HubServer, tmp_path: Path) -> None:
    """Red if the Hub's outage stops a run, or a later push lacks something."""
    trainer = pushing(tmp_path, save_steps=8)
    hub.fail("POST .*/commit/|GET .*/README.md", times=10_000)
    with pytest.warns(UserWarning, match="the card of checkpoint-(8|12) was not written"):
        trainer.train()
    assert hub.files(REPO) == {".gitattributes"}
    hub.faults.clear()
    trainer.push_to_hub()
    assert_published(trainer, tmp_path)


def test_card_without_a_push(tmp_path: Path) -> None:
    """Red if a card needs the Hub, or is made of weights that are not there."""
    trainer = build(tmp_path / "run")
    trainer.create_model_card()
    assert "N:M" not in (tmp_path / "run" / "README.md").read_text()
    trainer.save_model()
    trainer.create_model_card(
        scores=[hf_nm.Score("loss", 2.0, "x", dense=1.0, higher_is_better=False)]
    )
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| loss | x, test | 2 | 1 | +1 | 50.0% |" in card
    assert "| 2:4 | 6 |" in card


def test_trained_on_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """Red if the card does not name the model that training started from."""
    hf_nm.push_to_hub(one_layer_sparse(), "alice/base")
    model = AutoModelForSequenceClassification.from_pretrained("alice/base")
    trainer = pushing(tmp_path, model=hf_nm.restore(model), save_strategy="no", max_steps=2)
    trainer.train()
    trainer.push_to_hub()
    assert huggingface_hub.ModelCard.load(REPO).data.base_model == "alice/base"
    assert "Base model: [alice/base](https://huggingface.co/alice/base)." in hub.card(REPO)
    assert_published(trainer, tmp_path)
    hf_nm.push_to_hub(model, "alice/again")
    assert huggingface_hub.ModelCard.load("alice/again").data.base_model == "alice/base"


def one_layer_sparse() -> Any:
    return hf_nm.sparsify(one_layer_bert())


def test_no_unsigned_card_is_ever_there(tmp_path: Path, hub: HubServer) -> None:
    """An upload in the background may read the card at any moment. Red if the Trainer's own text is in
    the output directory before our part is in it: it would be taken for somebody's and kept for ever."""
    trainer = build(tmp_path / "run", push_to_hub=True, hub_model_id="alice/run")
    seen = []
    create = trainer.nm_callback._card._create

    def watched(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        card = tmp_path / "run" / "README.md"
        seen.append(card.is_file() and "hf_nm: begin" not in card.read_text())

    trainer.nm_callback._card._create = watched
    trainer.save_model(str(tmp_path / "run"))
    trainer.create_model_card()
    assert len(seen) == 2
    assert not any(seen)
    assert "hf_nm: begin" in (tmp_path / "run" / "README.md").read_text()
    assert trainer.args.output_dir == str(tmp_path / "run")
