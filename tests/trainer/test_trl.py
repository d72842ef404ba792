"""TRL's trainers with an installed ``NMCallback``: somebody else's Trainer trains N:M weights."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from datasets import Dataset
from hub_server import HubServer
from packaging.version import Version
from sentences import sentence, tokenizer
from trainers import Recorder, figures, sad_file, train_logs
from training import assert_same_state, assert_sparse, state_of
from transformers import AutoModelForCausalLM

import hf_nm
from hf_nm.hub.readme import is_edited, read_metadata

trl = pytest.importorskip("trl")

# TRL sets gradient_checkpointing, and calls its functions, which transformers renames in version 6
pytestmark = pytest.mark.filterwarnings(
    "ignore:`\\w*gradient_checkpointing\\w*` is deprecated:FutureWarning"
)


def sft_trainer(folder: Path, **changes: Any) -> tuple[trl.SFTTrainer, hf_nm.NMCallback, Recorder]:
    """A tiny Llama, sentences of the words above, and a tokenizer that knows them."""
    words = tokenizer()
    recorder = Recorder()
    trainer = trl.SFTTrainer(
        model=hf_nm.sparsify(models.llama(vocab_size=len(words))),
        args=trl.SFTConfig(
            str(folder),
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            logging_steps=2,
            save_steps=3,
            max_length=16,
            bf16=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **changes,
        ),
        train_dataset=Dataset.from_dict({"text": [sentence(row) for row in range(48)]}),
        processing_class=words,
        callbacks=[recorder],
    )
    return trainer, hf_nm.NMCallback().install(trainer), recorder


def test_supervised_fine_tuning(tmp_path):
    """Red if TRL's own way to train, log or save goes past the callback, or a resumed run departs."""
    trainer, callback, recorder = sft_trainer(tmp_path / "whole")
    trainer.train()
    assert callback.attachment.step == 6
    lines = train_logs(trainer)
    assert [figures(line) for line in lines] == recorder.expected([2, 4, 6])
    assert [figures(line) for line in recorder.logs if "loss" in line] == recorder.expected(
        [2, 4, 6]
    )
    assert lines[-1]["nm/sad_init"] > 0
    assert [line["step"] for line in sad_file(tmp_path / "whole")] == [2, 4, 6]
    assert_sparse(trainer.model)
    for step in (3, 6):
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        assert len(hf_nm.verify(folder).layers) == 14
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(plain.get_parameter(name), parameter), name

    resumed, _, _ = sft_trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_state(
        state_of(resumed.model, resumed.optimizer), state_of(trainer.model, trainer.optimizer)
    )


def test_card_of_a_push(hub: HubServer, tmp_path: Path) -> None:
    """Red if TRL's card, which it writes at each checkpoint, replaces ours, or passes for a person's."""
    trainer, _, _ = sft_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="alice/sft")
    trainer.train()
    trainer.push_to_hub()
    card = hub.card("alice/sft")
    assert "It has been trained using [TRL]" in card
    assert "| 2:4 | 14 |" in card
    assert "| steps | 6 |" in card
    assert card.count("## N:M sparsity") == 1
    assert not is_edited(card)
    assert {"trl", "sft", "2:4"} <= set(read_metadata(card)["tags"])


def dpo_trainer(folder: Path, model: Any, reference: Any = None) -> Any:
    rows = {
        "prompt": [sentence(row) for row in range(16)],
        "chosen": [" " + sentence(row + 1) for row in range(16)],
        "rejected": [" " + sentence(row + 2) for row in range(16)],
    }
    return trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(
            str(folder),
            max_steps=2,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            logging_steps=1,
            save_strategy="no",
            max_length=32,
            bf16=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer(),
    )


def test_a_dense_reference_is_said(tmp_path: Path) -> None:
    """Without ``ref_model`` TRL loads the reference from where the policy was loaded from. Red if nobody
    says that it is dense, or it is not, or the loss of the first step does not tell the two apart."""
    models.llama(vocab_size=len(tokenizer())).save_pretrained(tmp_path / "dense")
    model = hf_nm.sparsify(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"))
    trainer = dpo_trainer(tmp_path / "run", model)
    if trainer.ref_model is None:
        pytest.skip("this TRL makes its reference when training starts")
    older = Version(trl.__version__) < Version("1.16")
    if older and hf_nm.sparse_weights(trainer.ref_model):
        pytest.skip("an older TRL (0.27 does) takes a copy of the policy, which is sparse")
    assert not hf_nm.sparse_weights(trainer.ref_model)
    with pytest.warns(UserWarning, match=r"dense reference.*copy\.deepcopy\(model\)") as said:
        hf_nm.NMCallback().install(trainer)
    assert len([w for w in said if "reference" in str(w.message)]) == 1
    assert said[0].filename == __file__
    trainer.train()
    assert abs(train_logs(trainer)[0]["rewards/chosen"]) > 1e-4


def test_a_sparse_reference_is_quiet(tmp_path: Path) -> None:
    """The remedy that the warning names. Red if a copy of the policy counts as dense, or training moves
    it: the first step then compares the policy with something else than itself."""
    models.llama(vocab_size=len(tokenizer())).save_pretrained(tmp_path / "dense")
    model = hf_nm.sparsify(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"))
    reference = copy.deepcopy(model)
    before = state_of(reference)
    trainer = dpo_trainer(tmp_path / "run", model, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback = hf_nm.NMCallback().install(trainer)
    trainer.train()
    assert callback.attachment.step == 2
    assert train_logs(trainer)[0]["rewards/chosen"] == 0
    assert_same_state(state_of(reference), before)
    assert_sparse(trainer.model)


def test_a_reference_from_a_sparse_checkpoint_is_quiet(tmp_path: Path) -> None:
    """Red if a plainly loaded sparse checkpoint, whose layers are dense ones, counts as dense."""
    hf_nm.sparsify(models.llama(vocab_size=len(tokenizer()))).save_pretrained(tmp_path / "sparse")
    model = hf_nm.restore(AutoModelForCausalLM.from_pretrained(tmp_path / "sparse"))
    trainer = dpo_trainer(tmp_path / "run", model)
    hf_nm.NMCallback().install(trainer)
    trainer.train()
    assert train_logs(trainer)[0]["rewards/chosen"] == 0
