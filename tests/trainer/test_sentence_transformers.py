"""sentence-transformers and setfit: a model around a model, and trainers that call it something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from models import KEEPS_NAMES
from sentences import sentence, sentence_transformer
from trainers import train_logs
from training import assert_same_state, assert_sparse, state_of
from transformers import AutoModel

import hf_nm

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="its models and its trainer are what is tested"
)


def pairs(rows: int = 16) -> Dataset:
    return Dataset.from_dict(
        {
            "sentence1": [sentence(row) for row in range(rows)],
            "sentence2": [sentence(row + 1) for row in range(rows)],
        }
    )


def trainer_of(model: Any, folder: Path) -> Any:
    from sentence_transformers.sentence_transformer import losses

    return sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
            str(folder),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            logging_steps=2,
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=pairs(),
        loss=losses.MultipleNegativesRankingLoss(model),
    )


def test_saved_and_opened_again(tmp_path: Path) -> None:
    """Red if the saved folder is called incomplete, because its config has the outer model's names."""
    model = hf_nm.sparsify(sentence_transformer(tmp_path / "dense"))
    names = [w.name for w in hf_nm.sparse_weights(model)]
    assert len(names) == 6
    assert all(name.startswith("0.") for name in names)
    assert [row.name for row in hf_nm.report(model).layers] == names
    model.save(str(tmp_path / "sparse"))
    assert len(hf_nm.verify(tmp_path / "sparse").layers) == 6
    hf_nm.verify(AutoModel.from_pretrained(tmp_path / "sparse"))

    opened = sentence_transformers.SentenceTransformer(str(tmp_path / "sparse"), device="cpu")
    assert sorted(row.name for row in hf_nm.verify(opened).layers) == sorted(names)
    hf_nm.restore(opened)
    assert [w.name for w in hf_nm.sparse_weights(opened)] == names
    assert_sparse(opened)


@pytest.mark.skipif(
    not KEEPS_NAMES, reason="resuming a BERT that was loaded needs transformers >= 5.6"
)
def test_trained_and_resumed(tmp_path: Path) -> None:
    """Red if its checkpoints cannot be verified, or a resumed run departs."""
    whole = trainer_of(hf_nm.sparsify(sentence_transformer(tmp_path / "dense")), tmp_path / "whole")
    hf_nm.NMCallback().install(whole)
    whole.train()
    assert [line["step"] for line in train_logs(whole)] == [2, 4]
    assert train_logs(whole)[-1]["nm/sad_init"] > 0
    for step in (2, 4):
        assert len(hf_nm.verify(tmp_path / "whole" / f"checkpoint-{step}").layers) == 6
    again = trainer_of(hf_nm.sparsify(sentence_transformer(tmp_path / "dense")), tmp_path / "again")
    hf_nm.NMCallback().install(again)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_state(
        state_of(again.model, again.optimizer), state_of(whole.model, whole.optimizer)
    )


@pytest.mark.parametrize("outer", [True, False])
def test_setfit(outer: bool, tmp_path: Path) -> None:
    """Red if install looks for the model in setfit's own trainer, or the callback takes the object that
    setfit calls the model (body and head together, no module) for it."""
    # not in the `test` extra: it asks for a newer evaluate than the oldest that is supported
    setfit = pytest.importorskip("setfit", reason="its trainer is what is tested (setfit>=1.2)")
    body = hf_nm.sparsify(sentence_transformer(tmp_path / "dense"))
    model = setfit.SetFitModel(model_body=body, model_head=None)
    trainer = setfit.Trainer(
        model=model,
        args=setfit.TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=3,
            batch_size=4,
            body_learning_rate=0.01,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            show_progress_bar=False,
        ),
        train_dataset=Dataset.from_dict(
            {"text": [sentence(row) for row in range(8)], "label": [row % 2 for row in range(8)]}
        ),
    )
    callback = hf_nm.NMCallback().install(trainer if outer else trainer.st_trainer)
    trainer.train_embeddings(*trainer.dataset_to_parameters(trainer.train_dataset))
    assert callback.attachment.model is body
    assert callback.attachment.step == 3
    assert callback.attachment.sad() > 0
    assert_sparse(body)
