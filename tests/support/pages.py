"""What the Python blocks of README and of the site's pages leave out: a model, data, arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from models import VOCABULARY, batch, bert

import hf_nm


def python_blocks(page: str) -> list[str]:
    """The Python blocks of a Markdown text, in order."""
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def surroundings() -> dict[str, Any]:
    """Names that a page's blocks may use, in the current folder, where ``my-org/my-bert`` becomes a
    checkpoint."""
    from transformers import AutoModelForSequenceClassification, TrainingArguments

    bert().save_pretrained("my-org/my-bert")
    generator = torch.Generator().manual_seed(0)
    dataset = [
        {
            "input_ids": torch.randint(3, VOCABULARY, (7,), generator=generator),
            "labels": torch.randint(0, 3, (), generator=generator),
        }
        for _ in range(64)
    ]
    return {
        "model": bert(),
        "args": TrainingArguments("runs/first", max_steps=3, report_to="none"),
        "dataset": dataset,
        "batches": [batch(bert(), seed=seed) for seed in range(3)],
        "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
    }


def assert_saved_sparse() -> None:
    """Every checkpoint below the current folder but the one that was there holds its pattern."""
    saved = [path.parent for path in Path().rglob("model.safetensors") if "my-org" not in str(path)]
    assert saved
    for folder in saved:
        hf_nm.verify(folder)  # red if a block saved a dense checkpoint
