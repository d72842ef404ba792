"""Tokens a second of a sparse Llama that writes one sequence: dense and compressed.

    python recipes/benchmark/generate.py --rounds 5

A Llama with random weights, pruned once to 2:4: speed does not depend on what they are. Each round lets
both models write the same number of tokens, greedily, from the same prompt; the first tokens are
compared. ``--compile`` adds both under ``torch.compile`` with a static cache, where the time that Python
takes for each layer is gone.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import torch
from measured import (
    Record,
    clock_of,
    common_options,
    kept_if_stopped,
    prepare,
    quartiles,
    ratios,
    rounds_of,
    shown,
)
from transformers import LlamaConfig, LlamaForCausalLM

import hf_nm
from hf_nm.inference.packed_tensor import PackedWeight

# hidden size, feed-forward size, layers, heads, key-value heads, vocabulary
SIZES = {
    "tiny": (64, 128, 2, 4, 2, 100),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128256),
}
COLUMNS = ("model", "weights, MiB", "tokens a second", "speed (dense = 1)", "same tokens")


def build(size: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama whose blocks are 2:4."""
    hidden, inner, layers, heads, key_heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    return hf_nm.finalize(hf_nm.sparsify(model.to(device, dtype).eval()))


def size_of(model: Any) -> float:
    """MiB of the parameters as they lie in memory."""
    each = [p.packed_bytes if isinstance(p, PackedWeight) else p.nbytes for p in model.parameters()]
    return sum(each) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common_options(parser, "benchmark-results")
    parser.set_defaults(rounds=5)
    parser.add_argument(
        "--size", default=None, choices=list(SIZES), help="default 1B; on a CPU 135M"
    )
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32")
    parser.add_argument(
        "--tokens", type=int, default=None, help="to write (default 128; on a CPU 16)"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    args = parser.parse_args()
    device, dtype = prepare(args), getattr(torch, args.dtype)
    size = "tiny" if args.tiny else args.size or ("135M" if device.type == "cpu" else "1B")
    tokens = 8 if args.tiny else args.tokens or (16 if device.type == "cpu" else 128)
    dense = build(size, dtype, device)
    models = {"dense": dense, "compressed": hf_nm.compress(copy.deepcopy(dense))}
    prompt = torch.arange(3, 19, device=device)[None]
    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    options |= {"do_sample": False, "pad_token_id": 0}
    calls = {name: partial(model.generate, prompt, **options) for name, model in models.items()}
    if args.compile:
        static = options | {"cache_implementation": "static"}  # which transformers compiles
        for name, model in models.items():
            calls[f"{name}, compiled"] = partial(model.generate, prompt, **static)
    record = Record(args, "generate", COLUMNS)
    with kept_if_stopped(record), torch.no_grad():
        written = {name: call()[0, prompt.shape[1] :] for name, call in calls.items()}
        seconds = rounds_of(calls, device, args.rounds, warmup=1, clock=clock_of(args))
        for name in calls:
            speed = quartiles([tokens / value for value in seconds[name]])
            base = "dense, compiled" if name.endswith("compiled") else "dense"
            gain = ratios(seconds[base], seconds[name])
            same = int((written[name] == written["dense"]).cumprod(0).sum())
            weights = size_of(models[name.partition(",")[0]])
            figures = {"model": name, "mib": weights, "tokens_a_second": speed, "speed": gain}
            figures |= {"same_tokens": same, "seconds": seconds[name]}
            cells = [f"{weights:.0f}", shown(speed, 1), shown(gain, 2), f"first {same} of {tokens}"]
            record.add(figures, [name, *cells])
    print(
        f"Llama {size}, 2:4 in its blocks, {args.dtype}, batch 1, {tokens} tokens, {device}, "
        f"{args.rounds} interleaved rounds: median (quartiles)\n"
    )
    record.finish()


if __name__ == "__main__":
    main()
