"""Text encoders of the zoo, alone and with a decoder."""

from __future__ import annotations

import torch
from zoo_entry import (
    LABELS,
    ROWS,
    VOCABULARY,
    WIDTH,
    Batch,
    Entry,
    text,
    texts,
    tokens,
    translation,
)

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 32,
    "num_labels": LABELS,
}
_ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 2,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _replaced_tokens() -> Batch:
    return {"input_ids": tokens(), "labels": torch.tensor([[0, 1, 0, 0, 1, 0]] * ROWS)}


ENCODERS = {
    "bert": Entry(
        "BertForSequenceClassification",
        _ENCODER,
        texts,
        dense=("classifier.weight", "bert.pooler.dense.weight", "bert.embeddings.*"),
        sparse=("bert.encoder.layer.*.attention.self.query.weight", "*.output.dense.weight"),
    ),
    "roberta": Entry(
        "RobertaForMaskedLM",
        _ENCODER,
        text,
        dense=("lm_head.*", "roberta.embeddings.*"),
        sparse=("roberta.encoder.layer.*.intermediate.dense.weight",),
    ),
    "albert": Entry(  # both layers are one module; the embedding is smaller than the blocks
        "AlbertForMaskedLM",
        _ENCODER | {"embedding_size": 16, "num_hidden_groups": 1},
        text,
        dense=(
            "predictions.*",
            "albert.embeddings.*",
            "albert.encoder.embedding_hidden_mapping_in.weight",
        ),
        sparse=("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",),
    ),
    "deberta_v2": Entry(
        "DebertaV2ForSequenceClassification",
        _ENCODER
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        texts,
        dense=("classifier.weight", "pooler.dense.weight", "*embeddings*"),
        sparse=("deberta.encoder.layer.*.attention.self.query_proj.weight",),
    ),
    "electra": Entry(
        "ElectraForPreTraining",
        _ENCODER | {"embedding_size": 16},
        _replaced_tokens,
        dense=("discriminator_predictions.*", "electra.embeddings*"),
        sparse=("electra.encoder.layer.*.attention.output.dense.weight",),
    ),
    "distilbert": Entry(
        "DistilBertForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "dim": WIDTH,
            "hidden_dim": 2 * WIDTH,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 32,
            "num_labels": LABELS,
        },
        texts,
        dense=("pre_classifier.weight", "classifier.weight", "distilbert.embeddings.*"),
        sparse=("distilbert.transformer.layer.*.ffn.lin1.weight",),
    ),
    "modernbert": Entry(
        "ModernBertForMaskedLM",
        _ENCODER | _SPECIAL | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 4},
        text,
        dense=("head.dense.weight", "decoder.weight", "model.embeddings.*"),
        sparse=("model.layers.*.attn.Wqkv.weight", "model.layers.*.mlp.Wo.weight"),
    ),
    "xlm": Entry(  # attentions and feed-forward networks are two lists, without layers
        "XLMWithLMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "emb_dim": WIDTH,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 32,
        },
        text,
        dense=("pred_layer.proj.weight", "transformer.embeddings.weight"),
        sparse=("transformer.attentions.*.q_lin.weight", "transformer.ffns.*.lin1.weight"),
    ),
    "funnel": Entry(
        "FunnelForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "d_model": WIDTH,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 2 * WIDTH,
            "num_labels": LABELS,
        },
        texts,
        dense=("classifier.*.weight", "funnel.embeddings.*"),
        sparse=(
            "funnel.encoder.blocks.*.*.attention.q_head.weight",
            "funnel.encoder.blocks.*.*.ffn.linear_2.weight",
        ),
        dims={"*.r_kernel": -3},
    ),
    "mpnet": Entry(
        "MPNetForMaskedLM",
        _ENCODER,
        text,
        dense=("lm_head.*", "mpnet.encoder.relative_attention_bias.weight", "mpnet.embeddings.*"),
        sparse=("mpnet.encoder.layer.*.attention.attn.q.weight",),
    ),
    "xlnet": Entry(  # its projections are [d_model, heads, head size]: no experts, though 3-D
        "XLNetLMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "n_layer": 2,
            "n_head": 4,
            "d_inner": 2 * WIDTH,
        },
        text,
        dense=(
            "lm_loss.weight",
            "transformer.word_embedding.weight",
            "transformer.layer.*.rel_attn.seg_embed",
            "transformer.layer.*.rel_attn.r_w_bias",
        ),
        sparse=("transformer.layer.*.ff.layer_1.weight",),
        dims={"*.rel_attn.[qkvr]": -3},
    ),
}

ENCODER_DECODERS = {
    "t5": Entry(
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 2 * WIDTH,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        translation,
        dense=("lm_head.weight", "shared.weight", "*.relative_attention_bias.weight"),
        sparse=("decoder.block.*.layer.1.EncDecAttention.q.weight", "*.DenseReluDense.wo.weight"),
    ),
    "bart": Entry(
        "BartForConditionalGeneration",
        _ENCODER_DECODER,
        translation,
        dense=("lm_head.weight", "model.shared.weight", "model.*.embed_positions.weight"),
        sparse=("model.encoder.layers.*.fc1.weight", "*.encoder_attn.k_proj.weight"),
    ),
    "marian": Entry(
        "MarianMTModel",
        _ENCODER_DECODER,
        translation,
        dense=("lm_head.weight", "model.shared.weight"),
        sparse=("model.decoder.layers.*.fc2.weight",),
    ),
    "pegasus": Entry(
        "PegasusForConditionalGeneration",
        _ENCODER_DECODER,
        translation,
        dense=("lm_head.weight", "model.shared.weight"),
        sparse=("model.encoder.layers.*.self_attn.out_proj.weight",),
    ),
    "prophetnet": Entry(
        "ProphetNetForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "encoder_ffn_dim": 2 * WIDTH,
            "decoder_ffn_dim": 2 * WIDTH,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "max_position_embeddings": 32,
        },
        translation,
        dense=(
            "lm_head.weight",
            "prophetnet.word_embeddings.weight",
            "*position_embeddings.weight",
        ),
        sparse=(
            "prophetnet.encoder.layers.*.feed_forward.intermediate.weight",
            "prophetnet.decoder.layers.*.self_attn.query_proj.weight",
        ),
    ),
    "encoder_decoder": Entry(  # two models in one
        "EncoderDecoderModel",
        {
            "encoder": _ENCODER | {"model_type": "bert"},
            "decoder": _ENCODER
            | {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
        },
        translation,
        dense=("decoder.cls.predictions.*", "encoder.embeddings.*", "encoder.pooler.dense.weight"),
        sparse=(
            "encoder.encoder.layer.*.attention.self.query.weight",
            "decoder.bert.encoder.layer.*.crossattention.self.query.weight",
        ),
    ),
}
