"""Speech and time series models of the zoo."""

from __future__ import annotations

from typing import Any

import torch
from zoo_entry import ROWS, VOCABULARY, WIDTH, Batch, Entry, numbers, tokens

_WAVES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "conv_dim": [16, 16],
    "conv_stride": [4, 4],
    "conv_kernel": [8, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}
_SERIES = {
    "past_values": (ROWS, 16),
    "past_time_features": (ROWS, 16, 1),
    "future_values": (ROWS, 4),
    "future_time_features": (ROWS, 4, 1),
}


def _waves() -> Batch:
    return {"input_values": numbers(ROWS, 400), "labels": tokens(ROWS, 3)}


def _spectrogram() -> Batch:
    return {"input_features": numbers(ROWS, 16, 16), "labels": tokens(ROWS, 5)}


def _speaking() -> Batch:
    return {
        "input_ids": tokens(),
        "spectrogram_labels": numbers(ROWS, 6, 8),
        "duration_labels": torch.ones(ROWS, 6, dtype=torch.long),
        "pitch_labels": numbers(ROWS, 6, 1),
        "energy_labels": numbers(ROWS, 6, 1),
    }


def _patches() -> Batch:
    return {"past_values": numbers(ROWS, 16, 2), "future_values": numbers(ROWS, 4, 2)}


def _series() -> Batch:
    values = {name: numbers(*shape) for name, shape in _SERIES.items()}
    return values | {"past_observed_mask": torch.ones(ROWS, 16)}


SPEECH = {
    "wav2vec2": Entry(  # convolutions over time before the blocks
        "Wav2Vec2ForCTC",
        _WAVES,
        _waves,
        dense=("lm_head.weight", "wav2vec2.feature_extractor.*", "wav2vec2.feature_projection.*"),
        sparse=("wav2vec2.encoder.layers.*.attention.q_proj.weight",),
    ),
    "hubert": Entry(
        "HubertForCTC",
        _WAVES,
        _waves,
        dense=("lm_head.weight", "hubert.feature_extractor.*"),
        sparse=("hubert.encoder.layers.*.feed_forward.intermediate_dense.weight",),
    ),
    "wav2vec2-conformer": Entry(
        "Wav2Vec2ConformerForCTC",
        _WAVES | {"conv_depthwise_kernel_size": 3, "position_embeddings_type": "relative"},
        _waves,
        dense=(
            "lm_head.weight",
            "wav2vec2_conformer.feature_extractor.*",
            "*.conv_module.depthwise_conv.weight",
            "*.self_attn.pos_bias_u",
        ),
        sparse=(
            "wav2vec2_conformer.encoder.layers.*.ffn1.intermediate_dense.weight",
            "*.self_attn.linear_pos.weight",
            "*.conv_module.pointwise_conv1.weight",
        ),
    ),
    "whisper": Entry(
        "WhisperForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "num_mel_bins": 16,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 2 * WIDTH,
            "decoder_ffn_dim": 2 * WIDTH,
            "max_source_positions": 8,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "begin_suppress_tokens": None,
        },
        _spectrogram,
        dense=("proj_out.weight", "model.encoder.conv?.weight", "*embed_positions.weight"),
        sparse=("model.encoder.layers.*.fc1.weight", "*.encoder_attn.v_proj.weight"),
    ),
    "fastspeech2_conformer": Entry(
        "FastSpeech2ConformerModel",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_mel_bins": 8,
            "encoder_num_attention_heads": 2,
            "encoder_layers": 1,
            "encoder_linear_units": 2 * WIDTH,
            "decoder_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_linear_units": 2 * WIDTH,
            "speech_decoder_postnet_layers": 2,
            "speech_decoder_postnet_units": 16,
            "decoder_kernel_size": 7,
            "duration_predictor_channels": 16,
            "energy_predictor_channels": 16,
            "pitch_predictor_layers": 2,
            "pitch_predictor_channels": 16,
            "max_source_positions": 16,
        },
        _speaking,
        dense=("encoder.embed.weight", "*_predictor.*", "speech_decoder_postnet.*"),
        sparse=(
            "encoder.conformer_layers.*.self_attn.linear_q.weight",
            "decoder.conformer_layers.*.feed_forward.conv1.weight",  # over time
        ),
    ),
    "seamless_m4t": Entry(
        "SeamlessM4TForSpeechToText",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "max_position_embeddings": 32,
            "decoder_layers": 1,
            "decoder_ffn_dim": 2 * WIDTH,
            "decoder_attention_heads": 4,
            "speech_encoder_layers": 1,
            "speech_encoder_attention_heads": 4,
            "speech_encoder_intermediate_size": 2 * WIDTH,
            "feature_projection_input_dim": 16,
            "conv_depthwise_kernel_size": 3,
            "adaptor_kernel_size": 2,
            "adaptor_stride": 2,
            "max_source_positions": 16,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        _spectrogram,
        dense=("lm_head.weight", "shared.weight"),
        sparse=(
            "speech_encoder.encoder.layers.*.ffn1.intermediate_dense.weight",
            "speech_encoder.adapter.layers.*.ffn.intermediate_dense.weight",
            "text_decoder.layers.*.cross_attention.q_proj.weight",
        ),
    ),
}

SERIES = {
    "patchtst": Entry(
        "PatchTSTForPrediction",
        {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "num_hidden_layers": 2,
            "d_model": WIDTH,
            "num_attention_heads": 4,
            "ffn_dim": 2 * WIDTH,
            "prediction_length": 4,
            "loss": "mse",
            "scaling": "mean",
        },
        _patches,
        dense=("head.projection.weight", "model.encoder.embedder.*"),
        sparse=(
            "model.encoder.layers.*.self_attn.q_proj.weight",
            "model.encoder.layers.*.ff.0.weight",
        ),
    ),
    "autoformer": Entry(
        "AutoformerForPrediction",
        {
            "prediction_length": 4,
            "context_length": 12,
            "label_length": 4,
            "lags_sequence": [1, 2, 3, 4],
            "num_time_features": 1,
            "d_model": WIDTH,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 2 * WIDTH,
            "decoder_ffn_dim": 2 * WIDTH,
            "moving_average": 5,
        },
        _series,
        dense=(
            "parameter_projection.*",
            "model.*.value_embedding.value_projection.weight",
            "model.decoder.seasonality_projection.weight",
        ),
        sparse=("model.encoder.layers.*.fc1.weight", "model.decoder.layers.*.fc2.weight"),
    ),
}

SOUND = SPEECH | SERIES
