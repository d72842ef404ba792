"""How text becomes token numbers where no checkpoint brings a tokenizer: WordPiece, as BERT's."""

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

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a lower-case vocabulary: one text becomes `[CLS] a [SEP]`, two `[CLS] a [SEP] b [SEP]`.

    Args:
        texts: the training sentences.
        vocab_size: tokens wanted, the 5 special ones included; small texts yield fewer.
    """
    pieces = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk"]))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    pieces.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), show_progress=False
        ),
    )
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, pieces.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, **{f"{name}_token": token for name, token in SPECIAL.items()}
    )
