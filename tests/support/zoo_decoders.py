"""Text decoders of the zoo."""

from __future__ import annotations

from zoo_entry import VOCABULARY, WIDTH, Entry, text

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NEOX = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 32,
}

DECODERS = {
    "gpt2": Entry(  # Conv1D: [inputs, outputs]
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 32},
        text,
        dense=("lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"),
        sparse=("transformer.h.*.attn.c_attn.weight", "transformer.h.*.mlp.c_proj.weight"),
        dims={"transformer.h.*": -2},
    ),
    "openai-gpt": Entry(  # Conv1D in blocks without gradient checkpointing
        "OpenAIGPTLMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 32},
        text,
        dense=("lm_head.weight", "transformer.tokens_embed.weight"),
        sparse=("transformer.h.*.attn.c_attn.weight", "transformer.h.*.mlp.c_fc.weight"),
        dims={"transformer.h.*": -2},
    ),
    "gpt_neox": Entry(
        "GPTNeoXForCausalLM",
        _NEOX,
        text,
        dense=("lm_head.weight|embed_out.weight", "gpt_neox.embed_in.weight"),
        sparse=("gpt_neox.layers.*.attention.query_key_value.weight",),
    ),
    "llama": Entry(
        "LlamaForCausalLM",
        _DECODER,
        text,
        dense=("lm_head.weight", "model.embed_tokens.weight"),
        sparse=("model.layers.*.self_attn.k_proj.weight", "model.layers.*.mlp.down_proj.weight"),
    ),
    "opt": Entry(
        "OPTForCausalLM",
        _DECODER | {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": 16},
        text,
        dense=("lm_head.weight", "model.decoder.embed_*.weight", "model.decoder.project_*.weight"),
        sparse=("model.decoder.layers.*.fc1.weight",),
    ),
    "bloom": Entry(
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4},
        text,
        dense=("lm_head.weight", "transformer.word_embeddings.weight"),
        sparse=("transformer.h.*.self_attention.query_key_value.weight",),
    ),
    "falcon": Entry(
        "FalconForCausalLM",
        _NEOX | {"new_decoder_architecture": False},
        text,
        dense=("lm_head.weight", "transformer.word_embeddings.weight"),
        sparse=("transformer.h.*.mlp.dense_h_to_4h.weight",),
    ),
    "phi3": Entry(
        "Phi3ForCausalLM",
        {name: size for name, size in _DECODER.items() if name != "head_dim"},
        text,
        dense=("lm_head.weight", "model.embed_tokens.weight"),
        sparse=("model.layers.*.self_attn.qkv_proj.weight", "*.gate_up_proj.weight"),
    ),
    "gemma3": Entry(
        "Gemma3ForCausalLM",
        _DECODER,
        text,
        dense=("lm_head.weight", "model.embed_tokens.weight"),
        sparse=("model.layers.*.mlp.gate_proj.weight",),
    ),
    "qwen3": Entry(
        "Qwen3ForCausalLM",
        _DECODER,
        text,
        dense=("lm_head.weight", "model.embed_tokens.weight"),
        sparse=("model.layers.*.self_attn.o_proj.weight",),
    ),
    "mamba": Entry(
        "MambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8},
        text,
        dense=("lm_head.weight", "backbone.embeddings.weight", "backbone.layers.*.mixer.A_log"),
        sparse=("backbone.layers.*.mixer.in_proj.weight", "*.mixer.out_proj.weight"),
    ),
    "mamba2": Entry(
        "Mamba2ForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 4,
        },
        text,
        dense=("lm_head.weight", "backbone.embeddings.weight"),
        sparse=("backbone.layers.*.mixer.in_proj.weight", "*.mixer.out_proj.weight"),
    ),
    "rwkv": Entry(
        "RwkvForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "context_length": 16,
        },
        text,
        dense=("head.weight", "rwkv.embeddings.weight"),
        sparse=(
            "rwkv.blocks.*.attention.receptance.weight",
            "rwkv.blocks.*.feed_forward.key.weight",
        ),
    ),
    "ctrl": Entry(
        "CTRLLMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": WIDTH,
            "dff": 2 * WIDTH,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
        },
        text,
        dense=("lm_head.weight", "transformer.w.weight"),
        sparse=("transformer.h.*.multi_head_attention.Wq.weight", "transformer.h.*.ffn.*.weight"),
    ),
}
