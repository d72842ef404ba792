"""Tiny models from configs, with a batch for each. No network, no dropout, a fixed seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 64
LABELS = 3
WIDTH = 32
# Whether ViT's parameters have other names than its checkpoints.
VIT_IS_RENAMED = Version(transformers.__version__) >= Version("5.9")
# Whether `DistributedConfig` takes sizes (seen in 5.13.1, not in 5.12.1).
SHARDS_BY_SIZE = Version(transformers.__version__) >= Version("5.13")
# Whether the Trainer resumes in several processes without GPUs: before, it loads to "cpu:0", which torch
# cannot (5.17.0; mended in 5.18.0).
# Seen in 5.0: a DETR's backbone of the config's default beside the one that is given, a model's module
# that has to be in sys.modules, a loaded BERT's LayerNorms saved by their old names.
LIKE_5_24 = Version(transformers.__version__) >= Version("5.18")
RESUMES_ON_CPUS = Version(transformers.__version__) >= Version("5.18")
# Whether the Trainer leaves a model alone that `from_pretrained` sharded; before, it wraps it in DDP too
# (5.17.0; mended in 5.18.0).
TRAINS_SHARDED = Version(transformers.__version__) >= Version("5.18")
# Whether a BERT that was loaded is saved under its own names. Before (5.0.0 to 5.5.4), its LayerNorms
# become gamma and beta, which the Trainer, whose resume goes by names alone, leaves out.
KEEPS_NAMES = Version(transformers.__version__) >= Version("5.6")
# What transformers calls the recomputation of activations: older versions have only the second name.
RECOMPUTE = (
    "activation_checkpointing"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)


def marian(**changes: Any) -> MarianMTModel:
    """Encoder-decoder, all embeddings tied, ``lm_head`` tied to them."""
    return _seeded(MarianMTModel, MarianConfig(**_encoder_decoder() | changes))


def bart(**changes: Any) -> BartForConditionalGeneration:
    """Encoder-decoder, embeddings tied, learned positions."""
    return _seeded(BartForConditionalGeneration, BartConfig(**_encoder_decoder() | changes))


def t5(**changes: Any) -> T5ForConditionalGeneration:
    """Encoder-decoder with an embedding (relative positions) inside its blocks."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 2 * WIDTH,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
    return _seeded(T5ForConditionalGeneration, T5Config(**sizes | changes))


def bert(**changes: Any) -> BertForSequenceClassification:
    """Encoder with a pooler and a classifier."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": LABELS,
    }
    return _seeded(BertForSequenceClassification, BertConfig(**sizes | changes))


def llama(**changes: Any) -> LlamaForCausalLM:
    """Decoder with an untied output head, and key projections smaller than the query's."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }
    return _seeded(LlamaForCausalLM, LlamaConfig(**sizes | changes))


def vit(**changes: Any) -> ViTForImageClassification:
    """Encoder of images: a convolution before the blocks, a classifier behind them."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "image_size": 16,
        "patch_size": 4,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": LABELS,
    }
    return _seeded(ViTForImageClassification, ViTConfig(**sizes | changes))


MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "marian": marian,
    "bert": bert,
    "t5": t5,
    "bart": bart,
    "llama": llama,
    "vit": vit,
}


def batch(model: PreTrainedModel, rows: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs with labels for one of the models above, or a decoder of this vocabulary."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (rows, length), generator=generator)

    kind = model.config.model_type
    if kind == "vit":
        pixels = torch.randn(rows, 3, 16, 16, generator=generator).to(model.dtype)
        inputs = {"pixel_values": pixels}
    else:
        inputs = {"input_ids": tokens(7)}
    if kind in ("vit", "bert"):
        inputs["labels"] = torch.randint(0, LABELS, (rows,), generator=generator)
    else:
        encodes = getattr(model.config, "is_encoder_decoder", False)
        inputs["labels"] = tokens(5) if encodes else inputs["input_ids"].clone()
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def mlp(*sizes: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers with tanh between them: ``mlp(16, 32, 8)`` has two."""
    layers: list[nn.Module] = []
    torch.manual_seed(0)
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _encoder_decoder() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_ffn_dim": 2 * WIDTH,
        "max_position_embeddings": 32,
        "dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": 2,
    }


def _seeded(model_class: type[PreTrainedModel], config: Any) -> Any:
    torch.manual_seed(0)
    return model_class(config).eval()
