"""Mixtures of experts in the zoo: experts fused into one parameter, in both layouts, or apart."""

from __future__ import annotations

from zoo_entry import LABELS, VOCABULARY, WIDTH, Entry, ids, text, translation

EXPERTS = 4
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DENSE = ("lm_head.weight", "model.embed_tokens.weight")
_FUSED = ("model.layers.*.mlp.experts.gate_up_proj", "model.layers.*.mlp.experts.down_proj")

# [experts, outputs, inputs]
LAST = {
    "mixtral": Entry(
        "MixtralForCausalLM",
        _DECODER | {"num_local_experts": EXPERTS, "output_router_logits": True},
        text,
        dense=(*_DENSE, "model.layers.*.mlp.gate.weight"),
        sparse=(*_FUSED, "model.layers.*.self_attn.q_proj.weight"),
    ),
    "qwen3_moe": Entry(
        "Qwen3MoeForCausalLM",
        _DECODER | {"num_experts": EXPERTS, "moe_intermediate_size": 48, "head_dim": 8},
        text,
        dense=(*_DENSE, "model.layers.*.mlp.gate.weight"),
        sparse=_FUSED,
    ),
    "qwen2_moe": Entry(  # a gate of one output before the shared expert
        "Qwen2MoeForCausalLM",
        _DECODER
        | {
            "num_experts": EXPERTS,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
        },
        text,
        dense=(*_DENSE, "model.layers.*.mlp.gate.weight", "*.mlp.shared_expert_gate.weight"),
        sparse=(*_FUSED, "model.layers.*.mlp.shared_expert.up_proj.weight"),
    ),
    "deepseek_v3": Entry(  # the first block has no experts; projections of low rank
        "DeepseekV3ForCausalLM",
        _DECODER
        | {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 48,
            "n_routed_experts": EXPERTS,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_mtp_layers": 0,
        },
        text,
        dense=(*_DENSE, "model.layers.1.mlp.gate.weight"),
        sparse=(
            *_FUSED,
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.1.mlp.shared_experts.up_proj.weight",
            "model.layers.*.self_attn.kv_b_proj.weight",
        ),
    ),
    "granitemoe": Entry(
        "GraniteMoeForCausalLM",
        _DECODER | {"num_local_experts": EXPERTS},
        text,
        dense=(*_DENSE, "model.layers.*.block_sparse_moe.router.*"),
        sparse=(
            "model.layers.*.block_sparse_moe.experts.*"
            "|model.layers.*.block_sparse_moe.*put_linear.weight",
        ),
    ),
    "olmoe": Entry(
        "OlmoeForCausalLM",
        _DECODER | {"num_experts": EXPERTS},
        text,
        dense=(*_DENSE, "model.layers.*.mlp.gate.weight"),
        sparse=_FUSED,
    ),
    "ernie4_5_moe": Entry(
        "Ernie4_5_MoeForCausalLM",
        _DECODER
        | {
            "moe_intermediate_size": 48,
            "moe_k": 2,
            "moe_num_experts": EXPERTS,
            "moe_num_shared_experts": 1,
            "num_experts_per_tok": 2,
        },
        text,
        dense=(*_DENSE, "model.layers.1.mlp.gate.weight"),
        sparse=(*_FUSED, "model.layers.1.mlp.shared_experts.down_proj.weight"),
    ),
    "jetmoe": Entry(  # attention is a mixture too; the routers are linear layers
        "JetMoeForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": 32,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "pad_token_id": None,  # transformers 5.0 has no default
        },
        text,
        dense=(*_DENSE, "model.layers.*.mlp.router.layer.weight", "*.experts.router.layer.weight"),
        sparse=(
            "model.layers.*.mlp.input_linear.weight",
            "model.layers.*.self_attention.experts.output_linear.weight",
            "model.layers.*.self_attention.kv_proj.weight",
        ),
    ),
    "phimoe": Entry(  # its router's class derives from nn.Linear
        "PhimoeForCausalLM",
        _DECODER | {"num_local_experts": EXPERTS},
        text,
        dense=(*_DENSE, "model.layers.*.mlp.router.weight"),
        sparse=_FUSED,
    ),
    "nemotron_h": Entry(  # a state-space block, an attention block and a mixture
        "NemotronHForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "layers_block_type": ["mamba", "attention", "moe"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 32,
            "intermediate_size": 2 * WIDTH,
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "chunk_size": 4,
            "n_routed_experts": EXPERTS,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 48,
            "use_mamba_kernels": False,
        },
        text,
        dense=("lm_head.weight", "model.embeddings.weight", "model.layers.2.mixer.gate.weight"),
        sparse=(
            "model.layers.0.mixer.in_proj.weight",
            "model.layers.1.mixer.q_proj.weight",
            "model.layers.2.mixer.experts.up_proj",
            "model.layers.2.mixer.experts.down_proj",
        ),
        since="5.3",
    ),
}

# [experts, inputs, outputs]
FIRST = {
    "llama4": Entry(
        "Llama4ForCausalLM",
        _DECODER
        | {
            "head_dim": 8,
            "num_experts_per_tok": 1,
            "num_local_experts": EXPERTS,
            "intermediate_size_mlp": 2 * WIDTH,
            "attention_chunk_size": 8,
        },
        text,
        dense=(*_DENSE, "model.layers.*.feed_forward.router.weight"),
        sparse=(
            "model.layers.*.feed_forward.experts.gate_up_proj",
            "model.layers.*.feed_forward.experts.down_proj",
            "model.layers.*.feed_forward.shared_expert.up_proj.weight",
        ),
        dims={"*.experts.*": -2},
        config="Llama4TextConfig",
    ),
    "gpt_oss": Entry(
        "GptOssForCausalLM",
        _DECODER | {"head_dim": 8, "num_local_experts": EXPERTS, "sliding_window": 4},
        text,
        dense=(*_DENSE, "model.layers.*.mlp.router.weight", "*.experts.gate_up_proj_bias"),
        sparse=_FUSED,
        dims={"*.experts.*": -2},
    ),
    "aria": Entry(
        "AriaTextForCausalLM",
        _DECODER | {"moe_num_experts": EXPERTS, "moe_topk": 2, "moe_num_shared_experts": 1},
        text,
        dense=(*_DENSE, "model.layers.*.mlp.router.weight"),
        sparse=(
            "model.layers.*.mlp.experts.gate_up_proj|model.layers.*.mlp.experts.fc1.weight",
            "model.layers.*.mlp.experts.down_proj|model.layers.*.mlp.experts.fc2.weight",
            "model.layers.*.mlp.shared_experts.gate_proj.weight",
        ),
        dims={"*.experts.*": -2},
        config="AriaTextConfig",
    ),
    "openai_privacy_filter": Entry(
        "OpenAIPrivacyFilterForTokenClassification",
        _DECODER
        | {"head_dim": 8, "num_local_experts": EXPERTS, "sliding_window": 4, "num_labels": LABELS},
        ids,
        dense=("score.weight", "model.embed_tokens.weight", "model.layers.*.mlp.router.weight"),
        sparse=_FUSED,
        dims={"*.experts.*": -2},
        since="5.6",
    ),
}

# [experts * outputs, inputs], or every expert a module
APART = {
    "dbrx": Entry(
        "DbrxForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 32,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            "ffn_config": {
                "ffn_hidden_size": 48,
                "moe_num_experts": EXPERTS,
                "moe_top_k": 2,
                "hidden_size": WIDTH,
            },
        },
        text,
        dense=("lm_head.weight", "transformer.wte.weight", "*.ffn.router.layer.weight"),
        sparse=("transformer.blocks.*.norm_attn_norm.attn.Wqkv.weight",),
        dims={"*.mlp.w2": -2},  # [experts * inputs, outputs]
        since="5.17",  # before, the router's width had to be the experts'
    ),
    "switch_transformers": Entry(
        "SwitchTransformersForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 2 * WIDTH,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_heads": 4,
            "num_experts": EXPERTS,
            "expert_capacity": 8,
            "decoder_start_token_id": 0,
        },
        translation,
        dense=(
            "lm_head.weight",
            "shared.weight",
            "*.relative_attention_bias.weight",
            "*.mlp.router.classifier.weight",
        ),
        sparse=("*.mlp.experts.expert_0.wi.weight", "*.mlp.wo.weight"),
    ),
    "nllb_moe": Entry(
        "NllbMoeForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 2 * WIDTH,
            "decoder_ffn_dim": 2 * WIDTH,
            "max_position_embeddings": 32,
            "num_experts": EXPERTS,
            "expert_capacity": 8,
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 2,
        },
        translation,
        dense=("lm_head.weight", "model.shared.weight", "*.ffn.router.classifier.weight"),
        sparse=("*.ffn.experts.expert_1.fc1.weight", "model.encoder.layers.0.ffn.fc2.weight"),
    ),
}

MIXTURES = LAST | FIRST | APART
