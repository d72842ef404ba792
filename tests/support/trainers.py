"""Small runs of transformers' Trainer, and what was seen of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import models
import torch
from torch import Tensor
from training import State, masks
from transformers import (
    PreTrainedModel,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import hf_nm

NM_KEYS = ("nm/sad", "nm/flip_rate", "nm/sad_init")


def one_layer_bert() -> PreTrainedModel:
    """The model of these runs: six N:M weights."""
    return models.bert(num_hidden_layers=1)


def rows(model: PreTrainedModel, count: int = 48) -> list[dict[str, Tensor]]:
    """A data set for one of the test models: the same at every call."""
    examples = models.batch(model, count, seed=3)
    return [{name: tensor[row] for name, tensor in examples.items()} for row in range(count)]


def arguments(folder: Path, seq2seq: bool = False, **changes: Any) -> TrainingArguments:
    """Twelve steps on the CPU that log every third, with large steps so that masks move."""
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 3,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    kind = Seq2SeqTrainingArguments if seq2seq else TrainingArguments
    return kind(**options | changes)


def build(
    folder: Path,
    trainer_class: type[Trainer] = hf_nm.NMTrainer,
    *,
    model: PreTrainedModel | None = None,
    sparsify: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Trainer:
    """A trainer of a sparse BERT; ``options`` go to the trainer, the rest to its arguments."""
    if model is None:
        model = hf_nm.sparsify(one_layer_bert(), **sparsify or {})
    seq2seq = issubclass(trainer_class, hf_nm.NMSeq2SeqTrainer)
    data = rows(model)
    return trainer_class(
        model=model,
        args=arguments(folder, seq2seq, **changes),
        train_dataset=data,
        eval_dataset=data[:8],
        **options or {},
    )


class Recorder(TrainerCallback):
    """Keeps the masks after each step, and what each log looked like when it came here."""

    def __init__(self) -> None:
        self.masks: list[State] = []
        self.logs: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.masks = [masks(kwargs["model"])]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.masks.append(masks(kwargs["model"]))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.logs.append(dict(logs or {}) | {"step": state.global_step})

    def expected(self, log_steps: list[int]) -> list[dict[str, Any]]:
        """The three figures at each log, computed from the masks alone."""
        found = []
        entries = sum(mask.numel() for mask in self.masks[0].values())
        for before, now in itertools.pairwise([0, *log_steps]):
            flips = sum(
                distance(one, two) for one, two in itertools.pairwise(self.masks[before : now + 1])
            )
            found.append(
                {
                    "nm/sad": distance(self.masks[before], self.masks[now]),
                    "nm/flip_rate": flips / (entries * (now - before)),
                    "nm/sad_init": distance(self.masks[0], self.masks[now]),
                }
            )
        return found


def distance(before: State, after: State) -> int:
    """SAD over all weights."""
    return sum(int((before[name] != after[name]).sum()) for name in before)


class StopAt(TrainerCallback):
    """Ends a run in the middle, as a crash does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise CrashError


class CrashError(Exception):
    """What :class:`StopAt` raises."""


def train_logs(trainer: Trainer) -> list[dict[str, Any]]:
    """The log lines with a training loss."""
    return [line for line in trainer.state.log_history if "loss" in line]


def figures(line: dict[str, Any]) -> dict[str, Any]:
    """The ``nm/`` part of a log line."""
    return {key: value for key, value in line.items() if key.startswith("nm/")}


def sad_file(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``nm_sad.jsonl``."""
    text = (folder / "nm_sad.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def logits(model: PreTrainedModel) -> Tensor:
    """What a model answers to a fixed batch."""
    model.eval()
    with torch.no_grad():
        return model(**models.batch(model)).logits
