"""How text becomes token numbers: a checkpoint's tokenizer, or a WordPiece learned as BERT's was."""

from collections.abc import Iterable
from itertools import chain

from data import Labelled
from options import RecipeArguments
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    CONFIG_MAPPING,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hf_nm.experiments.options import opened
from hf_nm.experiments.run import Run

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def load_tokenizer(recipe: RecipeArguments, data: Labelled, run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer of what training starts from.

    Args:
        recipe: names the checkpoint, or what to build.
        data: from whose training texts a tokenizer is learned where none is named.
        run: whose processes share it.
    """
    if bool(recipe.model_name_or_path) == bool(recipe.config_name):
        raise ValueError(
            "give either --model_name_or_path (a checkpoint) or --config_name (from scratch)."
        )
    tokenizer = _named_or_learned(recipe, data, run)
    if recipe.config_name and tokenizer.eos_token is None:
        # BART's head reads a text at its last end-of-text token. Where the tokenizer has none, Trainers
        # before transformers 5.23 set the model's to None; later ones leave it at 2, whatever that is.
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _named_or_learned(recipe: RecipeArguments, data: Labelled, run: Run) -> PreTrainedTokenizerBase:
    if recipe.tokenizer_name:
        tokenizer = opened(AutoTokenizer, "tokenizer_name", recipe.tokenizer_name)
        if recipe.model_name_or_path:
            own = opened(AutoTokenizer, "model_name_or_path", recipe.model_name_or_path)
            if own.get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"--tokenizer_name {recipe.tokenizer_name} has other tokens than "
                    f"{recipe.model_name_or_path}, whose embeddings would be those of other words; "
                    "leave it out."
                )
        return tokenizer
    if recipe.model_name_or_path:
        return opened(AutoTokenizer, "model_name_or_path", recipe.model_name_or_path)
    if recipe.config_name and recipe.config_name not in CONFIG_MAPPING:
        return opened(AutoTokenizer, "config_name", recipe.config_name)

    def learn() -> PreTrainedTokenizerBase:
        train = data.splits["train"]
        texts = chain.from_iterable(train[column] for column in data.texts)
        tokenizer = train_wordpiece(texts, recipe.vocab_size)
        tokenizer.model_max_length = recipe.max_length
        return tokenizer

    return run.made_once(AutoTokenizer, learn)


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a lower-case vocabulary: one text becomes `[CLS] a [SEP]`, two `[CLS] a [SEP] b [SEP]`.

    The same texts give the same vocabulary in every run.

    Args:
        texts: the training sentences.
        vocab_size: tokens wanted, the 5 special ones included; small texts yield fewer.
    """
    texts = list(texts)
    learned = _pieces({})
    words = (
        word
        for text in texts
        for word, _ in learned.pre_tokenizer.pre_tokenize_str(
            learned.normalizer.normalize_str(text)
        )
    )
    # Named, because `tokenizers` would number them as they come out of a hash table, another order in
    # every run, and then break ties between merges by these numbers.
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    learned.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL.values(), *inner],
            show_progress=False,
        ),
    )
    pieces = _pieces(learned.get_vocab())  # in which `inner` is nothing special
    pieces.add_special_tokens(list(SPECIAL.values()))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, pieces.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, **{f"{name}_token": token for name, token in SPECIAL.items()}
    )


def _pieces(vocabulary: dict[str, int]) -> Tokenizer:
    """A WordPiece of these tokens, lower-case."""
    pieces = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=SPECIAL["unk"]))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    return pieces
