"""Image models of the zoo: transformers, convolutions, detection and segmentation."""

from __future__ import annotations

from typing import Any

import torch
from zoo_entry import LABELS, ROWS, VOCABULARY, WIDTH, Batch, Entry, images, numbers, pictures

_VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": LABELS,
}
_RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 2],
    "layer_type": "basic",
}
_DETR = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "num_queries": 4,
    "num_labels": LABELS,
    "backbone_config": _RESNET | {"model_type": "resnet", "out_features": ["stage2"]},
    # transformers 5.0 wants to know that it is not timm's ResNet-50
    "backbone": None,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
}
_SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 2,
}
_MASK_FORMER: dict[str, Any] = {
    "hidden_dim": WIDTH,
    "encoder_feedforward_dim": 2 * WIDTH,
    "dim_feedforward": 2 * WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 4,
    "backbone_config": _SWIN
    | {"model_type": "swin", "out_features": ["stage1", "stage2", "stage3", "stage4"]},
}


def _segmentation() -> Batch:
    return {
        "pixel_values": numbers(ROWS, 3, 32, 32),
        "labels": torch.arange(32 * 32 * ROWS).reshape(ROWS, 32, 32) % LABELS,
    }


def _points() -> Batch:
    return {
        "pixel_values": numbers(ROWS, 3, 32, 32),
        "input_points": torch.tensor([[[[5.0, 9.0]]]] * ROWS),
    }


def _task() -> Batch:
    return {
        "pixel_values": numbers(ROWS, 3, 32, 32),
        "task_inputs": torch.arange(8).repeat(ROWS, 1),
    }


IMAGES = {
    "vit": Entry(
        "ViTForImageClassification",
        _VIT,
        images(),
        dense=("classifier.weight", "vit.embeddings.*"),
        sparse=("vit.layers.*.attention.q_proj.weight|vit.encoder.layer.*.attention.query.weight",),
    ),
    "deit": Entry(
        "DeiTForImageClassification",
        _VIT,
        images(),
        dense=("classifier.weight", "deit.embeddings.*"),
        sparse=("deit.layers.*.mlp.fc1.weight|deit.encoder.layer.*.intermediate.dense.weight",),
    ),
    "dinov2": Entry(
        "Dinov2ForImageClassification",
        _VIT | {"mlp_ratio": 2},
        images(),
        dense=("classifier.weight", "dinov2.embeddings.*"),
        sparse=("dinov2.encoder.layer.*.mlp.fc1.weight",),
    ),
    "swin": Entry(
        "SwinForImageClassification",
        _SWIN | {"depths": [2, 1], "num_heads": [2, 2], "num_labels": LABELS},
        images(32),
        dense=("classifier.weight", "swin.embeddings.*", "*.relative_position_bias_table"),
        sparse=(
            "swin.encoder.layers.*.blocks.*.attention.q_proj.weight"
            "|swin.encoder.layers.*.blocks.*.attention.self.query.weight",
        ),
    ),
    "segformer": Entry(
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [3, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
            "num_labels": LABELS,
        },
        _segmentation,
        dense=(
            "decode_head.classifier.weight",
            "segformer.stages.*.patch_embeddings.*|segformer.encoder.patch_embeddings.*",
        ),
        sparse=(
            "segformer.stages.*.blocks.0.attention.q_proj.weight"
            "|segformer.encoder.block.*.attention.self.query.weight",
            "segformer.stages.*.sequence_reduction.sequence_reduction.weight"
            "|segformer.encoder.block.*.attention.self.sr.weight",
        ),
    ),
    "mobilevit": Entry(  # inverted residuals of convolutions around transformer layers
        "MobileViTForImageClassification",
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 32],
            "neck_hidden_sizes": [16, 16, 16, 16, 16, 32, 32],
            "num_attention_heads": 2,
            "expand_ratio": 2.0,
            "output_stride": 8,
            "num_labels": LABELS,
        },
        images(32),
        dense=("classifier.weight", "mobilevit.conv_stem.*"),
        sparse=("mobilevit.encoder.layer.*.transformer.layer.*.attention.attention.query.weight",),
    ),
    "convnext": Entry(  # its pointwise convolutions are linear layers
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2, "num_labels": LABELS},
        images(),
        dense=("classifier.weight", "convnext.embeddings.*", "*.dwconv.weight"),
        sparse=("convnext.encoder.stages.*.layers.*.pwconv1.weight",),
    ),
    "resnet": Entry(  # convolutions only
        "ResNetForImageClassification",
        _RESNET | {"num_labels": LABELS},
        images(32),
        dense=("classifier.1.weight", "resnet.embedder.*"),
        sparse=("resnet.encoder.stages.*.layers.*.layer.*.convolution.weight",),
    ),
}

DETECTION = {
    "detr": Entry(
        "DetrForObjectDetection",
        _DETR,
        pictures(32),
        dense=("class_labels_classifier.weight", "bbox_predictor.*", "*.query_position_*.weight"),
        sparse=("model.encoder.layers.*.self_attn.q_proj.weight",),
    ),
    "conditional_detr": Entry(
        "ConditionalDetrForObjectDetection",
        _DETR,
        pictures(32),
        dense=("class_labels_classifier.weight", "bbox_predictor.*"),
        sparse=(
            "model.decoder.layers.*.self_attn.o_proj.weight"
            "|model.decoder.layers.*.self_attn.out_proj.weight",
        ),
    ),
    "rt_detr": Entry(
        "RTDetrForObjectDetection",
        {
            "encoder_hidden_dim": WIDTH,
            "encoder_in_channels": [16, 32, 32],
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 2 * WIDTH,
            "d_model": WIDTH,
            "num_queries": 4,
            "decoder_in_channels": [WIDTH] * 3,
            "decoder_ffn_dim": 2 * WIDTH,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "num_denoising": 0,
            "num_labels": LABELS,
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                "embedding_size": 16,
                "hidden_sizes": [16, 16, 32, 32],
                "depths": [1, 1, 1, 1],
                "layer_type": "basic",
                "out_features": ["stage2", "stage3", "stage4"],
            },
        },
        pictures(64),
        dense=("*class_embed*", "*bbox_embed*", "model.enc_*_head.*"),
        sparse=("model.decoder.layers.*.fc1.weight",),
    ),
    "mask2former": Entry(  # nn.MultiheadAttention in the decoder
        "Mask2FormerModel",
        _MASK_FORMER | {"feature_size": WIDTH, "mask_feature_size": WIDTH},
        pictures(32),
        dense=("*.queries_embedder.weight", "*.level_embed.weight", "*.mask_embedder.*"),
        sparse=(
            "transformer_module.decoder.layers.*.cross_attn.in_proj_weight",
            "pixel_level_module.decoder.encoder.layers.*.fc1.weight",
        ),
    ),
    "oneformer": Entry(
        "OneFormerModel",
        _MASK_FORMER
        | {
            "conv_dim": WIDTH,
            "mask_dim": WIDTH,
            "task_seq_len": 8,
            "text_encoder_width": WIDTH,
            "text_encoder_context_length": 8,
            "text_encoder_num_layers": 1,
            "text_encoder_vocab_size": VOCABULARY,
            "text_encoder_n_ctx": 2,
            "query_dec_layers": 1,
        },
        _task,
        dense=("*.queries_embedder.weight", "*.class_embed.weight", "*.mask_embed.*"),
        sparse=("*.in_proj_weight", "transformer_module.decoder.layers.*.ffn.linear1.weight"),
    ),
    "sam": Entry(  # two kinds of blocks: the image's layers and the mask decoder's
        "SamModel",
        {
            "vision_config": {
                "hidden_size": WIDTH,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
                "window_size": 2,
                "global_attn_indexes": [1],
                "mlp_ratio": 2.0,
                "num_pos_feats": 8,
                "initializer_range": 0.02,
            },
            "prompt_encoder_config": {"hidden_size": 16, "image_size": 32, "patch_size": 8},
            "mask_decoder_config": {
                "hidden_size": 16,
                "mlp_dim": 32,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        },
        _points,
        dense=(
            "vision_encoder.patch_embed.*",
            "mask_decoder.iou_token.weight",
            "mask_decoder.iou_prediction_head.*",
            "mask_decoder.output_hypernetworks_mlps.*",
            "mask_decoder.upscale_conv?.weight",
            "prompt_encoder.*",
        ),
        sparse=(
            "vision_encoder.layers.*.attn.qkv.weight",
            "mask_decoder.transformer.layers.*.self_attn.q_proj.weight",
        ),
    ),
}

VISION = IMAGES | DETECTION
