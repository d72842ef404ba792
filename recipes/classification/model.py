"""What is trained: a classifier of a checkpoint, or from scratch, with a head for the data's classes."""

import re
from typing import Any

import torch
from data import Labelled
from options import RecipeArguments
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_nm.experiments.options import new_config, opened


def load_model(
    recipe: RecipeArguments, data: Labelled, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model, with a head for the data's classes.

    Args:
        recipe: names the checkpoint, or what to build.
        data: whose classes they are.
        tokenizer: the model's, or the one it is built for.

    Raises:
        ValueError: the checkpoint has a head of other classes, a text could have a token or a position
            that the model has no embedding for, or an option is wrong.
    """
    head: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if data.labels is not None:
        head = {
            "id2label": dict(enumerate(data.labels)),
            "label2id": {label: i for i, label in enumerate(data.labels)},
            "problem_type": "single_label_classification",
        }
    if recipe.config_name:
        sizes = {"vocab_size": len(tokenizer)}
        config = new_config(recipe.config_name, recipe.config_overrides, head, sizes)
        config.pad_token_id = tokenizer.pad_token_id
        try:
            model = AutoModelForSequenceClassification.from_config(config)
        except TypeError as error:  # configs of transformers 5.0 take anything
            raise ValueError(f"--config_overrides {recipe.config_overrides}: {error}") from error
    else:
        start = str(recipe.model_name_or_path)
        _check_head(start, recipe, data)
        model = AutoModelForSequenceClassification.from_pretrained(
            start,
            dtype=torch.float32,  # small updates round away in a bf16 checkpoint's own dtype
            **head,
            ignore_mismatched_sizes=recipe.ignore_mismatched_sizes,
        )
        model.config.pad_token_id = tokenizer.pad_token_id
    _check_sizes(recipe, model, tokenizer)
    return model


def known_labels(recipe: RecipeArguments) -> list[str]:
    """The classes of the checkpoint, in its order; none from scratch."""
    if not recipe.model_name_or_path:
        return []
    config = opened(AutoConfig, "model_name_or_path", recipe.model_name_or_path)
    return list(map(str, config.id2label.values()))


def _check_head(source: str, recipe: RecipeArguments, data: Labelled) -> None:
    """Raise unless the checkpoint has no head yet, one for these classes, or is to get a new one."""
    config = opened(AutoConfig, "model_name_or_path", source)
    if not any("ForSequenceClassification" in name for name in config.architectures or []):
        return
    had, has = list(map(str, config.id2label.values())), data.labels or ["a number"]
    unnamed = data.labels is None or all(re.fullmatch(r"LABEL_\d+", name) for name in had)
    alike = unnamed or {*map(str.casefold, had)} == {*map(str.casefold, has)}
    new_head = recipe.ignore_mismatched_sizes and len(had) != len(has)
    if not new_head and (len(had) != len(has) or not alike):
        raise ValueError(
            f"{source} is a classifier of {len(had)} labels ({', '.join(had)}), but {recipe.task} "
            f"has {len(has)} ({', '.join(has)}); start from the pretrained model, or name the labels "
            "alike (another number of them: --ignore_mismatched_sizes True makes a new head)."
        )


def _check_sizes(
    recipe: RecipeArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise if a text could have a token or a position that the model has no embedding for."""
    source = recipe.model_name_or_path or recipe.config_name
    embeddings: Any = model.get_input_embeddings()
    tokens = embeddings.num_embeddings
    if len(tokenizer) > tokens:
        raise ValueError(
            f"{source} has embeddings of {tokens} tokens, but its tokenizer {len(tokenizer)}; give "
            "the tokenizer it was made with (--tokenizer_name), or set vocab_size in "
            "--config_overrides."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name:
            # RoBERTa's first position comes after its padding's.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            positions = module.num_embeddings - first
            if recipe.max_length > positions:
                raise ValueError(
                    f"--max_length is {recipe.max_length}, but {source} has {positions} positions; "
                    "lower it, or from scratch set max_position_embeddings in --config_overrides."
                )
