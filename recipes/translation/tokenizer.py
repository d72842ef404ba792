"""How text becomes token numbers: one byte-level BPE for both languages, as a fast tokenizer."""

from collections.abc import Iterable

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "</s>"


def train_bpe(
    sentences: Iterable[str] | Iterable[list[str]], vocab_size: int, *, progress: bool = False
) -> PreTrainedTokenizerFast:
    """Learn merges from the sentences of both languages together.

    Works on bytes, so no text is ever unknown, and `decode(encode(text), skip_special_tokens=True)`
    returns the text as it was. Encoding appends end-of-sentence. Padding is token 0,
    end-of-sentence token 1.

    Args:
        sentences: all training sentences, source and target, one by one or in lists.
        vocab_size: tokens wanted, the 256 bytes and 2 special tokens included; small texts yield
            fewer.
        progress: whether bars are shown.
    """
    if vocab_size < 258:
        raise ValueError(
            f"vocab_size is {vocab_size}; the 256 bytes and the 2 special tokens need at least 258."
        )
    bpe = Tokenizer(models.BPE())
    # A space before the first word makes it the same token as inside a sentence; the decoder takes
    # it off again.
    bpe.normalizer = normalizers.Prepend(" ")
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    bpe.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=progress,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        # "</s>" written in a sentence is text, not the end of it.
        split_special_tokens=True,
    )
