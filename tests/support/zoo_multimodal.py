"""Models of the zoo that read images and text."""

from __future__ import annotations

import torch
from zoo_entry import ROWS, VOCABULARY, WIDTH, Batch, Entry, numbers, tokens

IMAGE = 5  # the token that stands for an image, or for a patch of it

_PART = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "projection_dim": WIDTH,
}
_TEXT = _PART | {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = _PART | {"image_size": 16, "patch_size": 4}
_LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _unlabelled_pairs() -> Batch:
    return {"input_ids": tokens(), "pixel_values": numbers(ROWS, 3, 16, 16)}


def _pairs() -> Batch:
    return _unlabelled_pairs() | {"return_loss": torch.tensor(True)}


def _captions() -> Batch:
    return _unlabelled_pairs() | {"labels": tokens()}


def _with_patches(patches: int) -> torch.Tensor:
    return torch.cat([torch.full((ROWS, patches), IMAGE), tokens()], dim=1)


def _llava() -> Batch:
    text = _with_patches(16)
    return {"input_ids": text, "labels": text, "pixel_values": numbers(ROWS, 3, 16, 16)}


def _qwen() -> Batch:
    text = _with_patches(4)  # 4 x 4 patches, merged two by two
    return {
        "input_ids": text,
        "labels": text,
        "pixel_values": numbers(ROWS * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * ROWS),
        "mm_token_type_ids": (text == IMAGE).int(),
    }


def _mllama() -> Batch:
    text = tokens()
    return {
        "input_ids": text,
        "labels": text,
        "pixel_values": numbers(ROWS, 1, 1, 3, 16, 16),
        "aspect_ratio_mask": torch.ones(ROWS, 1, 1, dtype=torch.long),
        "aspect_ratio_ids": torch.ones(ROWS, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(ROWS, 6, 1, 1, dtype=torch.long),
    }


def _idefics() -> Batch:
    text = tokens()
    return {
        "input_ids": text,
        "labels": text,
        "attention_mask": torch.ones_like(text),
        "pixel_values": numbers(ROWS, 1, 3, 16, 16),
        "image_attention_mask": torch.ones(ROWS, 6, 1, dtype=torch.long),
    }


MULTIMODAL = {
    "clip": Entry(
        "CLIPModel",
        {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": WIDTH},
        _pairs,
        dense=("text_projection.weight", "visual_projection.weight", "*embeddings*"),
        sparse=("text_model.encoder.layers.*.mlp.fc1.weight", "vision_model.*.q_proj.weight"),
    ),
    "siglip": Entry(  # nn.MultiheadAttention in the head that pools the image
        "SiglipModel",
        {"text_config": _TEXT, "vision_config": _VISION},
        _pairs,
        dense=("*embeddings*", "text_model.head.weight", "vision_model.head.*"),
        sparse=("text_model.encoder.layers.*.mlp.fc1.weight", "vision_model.*.q_proj.weight"),
    ),
    "blip": Entry(
        "BlipForConditionalGeneration",
        {
            "text_config": _TEXT | {"encoder_hidden_size": WIDTH},
            "vision_config": _VISION | {"initializer_range": 0.02},
            "projection_dim": WIDTH,
            "image_text_hidden_size": WIDTH,
        },
        _captions,
        dense=("text_decoder.cls.predictions.*", "*embeddings*"),
        sparse=(
            "vision_model.encoder.layers.*.self_attn.qkv.weight",
            "text_decoder.bert.encoder.layer.*.crossattention.self.key.weight",
        ),
    ),
    "llava": Entry(
        "LlavaForConditionalGeneration",
        {
            "vision_config": _VISION | {"model_type": "clip_vision_model"},
            "text_config": _LLAMA,
            "image_token_index": IMAGE,
            "image_seq_length": 16,
        },
        _llava,
        dense=("lm_head.weight", "*embed_tokens.weight", "model.multi_modal_projector.*"),
        sparse=(
            "model.language_model.layers.*.mlp.up_proj.weight",
            "model.vision_tower.*.layers.*.self_attn.q_proj.weight",
        ),
    ),
    "qwen2_5_vl": Entry(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 2 * WIDTH,
                "max_position_embeddings": 32,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 1, 1],
                },
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_heads": 2,
                "patch_size": 4,
                "window_size": 16,
                "out_hidden_size": WIDTH,
                "fullatt_block_indexes": [1],
            },
            "image_token_id": IMAGE,
            "video_token_id": 4,
            "vision_start_token_id": 3,
            "vision_end_token_id": 2,
        },
        _qwen,
        dense=(
            "lm_head.weight",
            "*embed_tokens.weight",
            "model.visual.patch_embed.*",
            "model.visual.merger.*",
        ),
        sparse=("model.visual.blocks.*.attn.qkv.weight", "model.language_model.layers.*.q_proj.*t"),
    ),
    "mllama": Entry(  # the second block of the text reads the image
        "MllamaForConditionalGeneration",
        {
            "vision_config": {
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "intermediate_size": 2 * WIDTH,
                "vision_output_dim": 2 * WIDTH,
                "image_size": 16,
                "patch_size": 4,
                "max_num_tiles": 1,
                "intermediate_layers_indices": [1],
                "supported_aspect_ratios": [[1, 1]],
            },
            "text_config": {name: size for name, size in _LLAMA.items() if name != "model_type"}
            | {"cross_attention_layers": [1], "pad_token_id": 0},
            "image_token_index": IMAGE,
        },
        _mllama,
        dense=(
            "lm_head.weight",
            "*embed_tokens.weight",
            "*positional_embedding.*",
            "model.multi_modal_projector.*",
        ),
        sparse=(
            "model.language_model.layers.1.cross_attn.k_proj.weight",
            "model.vision_model.transformer.layers.*.mlp.fc1.weight",
            "model.vision_model.global_transformer.layers.*.self_attn.q_proj.weight",
        ),
    ),
    "idefics": Entry(  # gated blocks between the text's, a perceiver behind the image's
        "IdeficsForVisionText2Text",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "cross_layer_interval": 2,
            "alpha_initializer": "ones",
            "max_position_embeddings": 32,
            "freeze_text_layers": False,
            "freeze_vision_layers": False,
            "use_resampler": True,
            "vision_config": {
                "embed_dim": WIDTH,
                "image_size": 16,
                "intermediate_size": 2 * WIDTH,
                "patch_size": 4,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
            "perceiver_config": {
                "use_resampler": True,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
            },
        },
        _idefics,
        dense=("lm_head.*weight", "model.embed_tokens.weight", "*embedding*"),
        sparse=(
            "model.layers.*.mlp.gate_proj.weight",
            "model.gated_cross_attn_layers.*.cross_attn.q_proj.weight",
            "model.vision_model.encoder.layers.*.mlp.fc1.weight",
        ),
    ),
    "bridgetower": Entry(  # nn.MultiheadAttention in the image's blocks
        "BridgeTowerModel",
        {
            "hidden_size": 2 * WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "text_config": _TEXT | {"hidden_size": 2 * WIDTH, "num_hidden_layers": 1},
            "vision_config": {
                "hidden_size": 2 * WIDTH,  # one head for every 64
                "num_hidden_layers": 1,
                "patch_size": 4,
                "image_size": 16,
            },
        },
        _unlabelled_pairs,
        dense=("*embeddings*", "cross_modal_*_pooler.*", "cross_modal_*_transform.*"),
        sparse=(
            "vision_model.visual.transformer.resblocks.*.attn.in_proj_weight",
            "text_model.encoder.layer.*.intermediate.dense.weight",
            "cross_modal_text_layers.*.crossattention.self.query.weight",
        ),
    ),
}
