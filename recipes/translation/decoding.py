"""How sentences are translated: beam search, the sentences dealt out over the processes."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from batching import pack
from transformers import PreTrainedTokenizerBase


@torch.inference_mode()
def translate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sentences: list[str],
    *,
    max_tokens: int,
    max_length: int,
    **options: Any,
) -> tuple[list[str], int]:
    """Translate sentences in the order given; every process gets the whole result.

    Args:
        model: on the device to use; put into evaluation mode here.
        max_tokens: beams x sentences x longest source, at most, in one call of `generate` (padding
            counted).
        max_length: source tokens read; what is longer is cut.
        options: for `generate`, e.g. `num_beams=4, length_penalty=0.6`. The beam score is the sum
            of log probabilities / length ** length_penalty; GNMT's ((5 + length) / 6) ** penalty is
            not the same curve.

    Returns:
        Translations, and how many sources were cut.
    """
    if not sentences:  # fast tokenizers fail on none
        return [], 0
    state = PartialState()
    model.eval()
    tokens = tokenizer(sentences)["input_ids"]
    cut = sum(len(row) > max_length for row in tokens)
    tokens = [row if len(row) <= max_length else row[: max_length - 1] + row[-1:] for row in tokens]
    sizes = [len(row) for row in tokens]
    order = sorted(range(len(tokens)), key=lambda number: -sizes[number])
    budget = max(max_tokens // options.get("num_beams", 1), max_length)
    found: list[tuple[int, str]] = []
    for batch in pack(order, sizes, budget)[state.process_index :: state.num_processes]:
        inputs = tokenizer.pad(
            {"input_ids": [tokens[number] for number in batch]}, return_tensors="pt"
        )
        longest = inputs["input_ids"].shape[1]
        # As in Vaswani et al.: at most the source's length + 50 tokens.
        length = min(longest + 50, model.config.max_position_embeddings - 1)
        generated = model.generate(
            **inputs.to(model.device), max_length=None, max_new_tokens=length, **options
        )
        texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
        found += zip(batch, texts, strict=True)
    texts_of = dict(gather_object(found))
    return [texts_of[number] for number in range(len(sentences))], cut
