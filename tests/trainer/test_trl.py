"""TRL's ``SFTTrainer`` with an installed ``NMCallback``: somebody else's Trainer trains N:M weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from datasets import Dataset
from hub_server import HubServer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from trainers import Recorder, figures, sad_file, train_logs
from training import assert_same_state, assert_sparse, state_of
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import hf_nm
from hf_nm.hub.readme import is_edited, read_metadata

trl = pytest.importorskip("trl")

# TRL sets gradient_checkpointing, and calls its functions, which transformers renames in version 6
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing\\w*` is deprecated:FutureWarning"
)
WORDS = ["the", "a", "cat", "dog", "sees", "likes", "red", "blue", "big", "small", "and", "runs"]
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def sft_trainer(folder: Path, **changes: Any) -> tuple[trl.SFTTrainer, hf_nm.NMCallback, Recorder]:
    """A tiny Llama, sentences of the words above, and a tokenizer that knows them."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    sentences = [
        " ".join(WORDS[(row + place * place) % len(WORDS)] for place in range(8))
        for row in range(48)
    ]
    recorder = Recorder()
    trainer = trl.SFTTrainer(
        model=hf_nm.sparsify(models.llama(vocab_size=len(vocabulary))),
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
        train_dataset=Dataset.from_dict({"text": sentences}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL),
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
