"""A tiny model of sentence-transformers, made from a config, and sentences for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "sees", "likes", "red", "blue", "big", "small", "and", "runs"]
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words above."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)


def sentence(number: int) -> str:
    """Eight of the words."""
    return " ".join(WORDS[(number + place * place) % len(WORDS)] for place in range(8))


def sentence_transformer(folder: Path) -> Any:
    """A one-layer encoder with mean pooling, opened from a folder that is written first."""
    from sentence_transformers import SentenceTransformer

    models.bert(num_hidden_layers=1).bert.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")
