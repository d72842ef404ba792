"""The classification recipe on a toy: a tiny model, a few updates, a few reviews."""

import importlib
from functools import partial
from pathlib import Path

import recipe_loading
from recipe_loading import importing

with importing("classification"):
    reviews = importlib.import_module("reviews")

run = partial(recipe_loading.run, "classification")

# A model of some thousand weights, a few updates.
TINY = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"
TINY = f"--config_name bert --config_overrides {TINY},max_position_embeddings=64"
TINY += ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"  # two processes draw other masks
TINY += " --vocab_size 300 --max_length 32 --max_steps 6 --logging_steps 1 --eval_steps 3"
TINY += " --per_device_train_batch_size 4 --warmup_steps 2 --learning_rate 0.01"


def toy_files(folder: Path) -> list[str]:
    """48 training, 8 validation and 12 test reviews as TSV: the options that name them."""

    options = []
    for split, count in {"train": 48, "validation": 8, "test": 12}.items():
        rows = reviews.embedded_reviews()[split][:count]
        text = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
        (folder / f"{split}.tsv").write_text(text, "utf-8")
        options += [f"--{split}_file", str(folder / f"{split}.tsv")]
    return [*options, "--text_columns", "sentence"]
