"""BLEU as papers up to about 2018 report it: of Moses' tokens, with hyphenated compounds split.

Before sacreBLEU Vaswani et al. and others computed theirs with Moses' `tokenizer.perl`, split compounds
at their hyphens ("for historical reasons", as Luong et al.'s data page puts it), and took
`multi-bleu.perl` (tensor2tensor/utils/get_ende_bleu.sh). It differs from sacreBLEU's and depends on the
tokenizer: a figure to compare with those papers, with nothing else.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

COMPOUND = re.compile(r"(\S)-(\S)")
ORDER = 4  # n-grams up to


def tokenized_bleu(
    predictions: list[str], references: list[str], language: str
) -> dict[str, Any] | None:
    """Tokenised, compound-split BLEU of plain text.

    Args:
        predictions: [sentences].
        references: [sentences], one each.
        language: its two-letter code, which decides where Moses cuts at full stops and apostrophes;
            English's rules for one that it does not know.

    Returns:
        `score`, 0 to 100, and `signature`: everything that it depends on. None where sacremoses, the
        tokenizer, is not installed.
    """
    try:
        import sacremoses
    except ImportError:
        return None
    moses = sacremoses.MosesTokenizer(lang=language)
    sides = [
        [split_compounds(moses.tokenize(text, return_str=True)) for text in side]
        for side in (predictions, references)
    ]
    signature = f"nrefs:1|case:mixed|tok:moses-{language}|compounds:split|smooth:none"
    version = f"multi-bleu.perl's arithmetic|sacremoses:{sacremoses.__version__}"
    return {"score": multi_bleu(*sides), "signature": f"{signature}|{version}"}


def split_compounds(tokens: str) -> str:
    """`rich-text` becomes `rich ##AT##-##AT## text`, as the papers' Perl line does it.

    Like that line it goes on after both characters: of `a-b-c` the first hyphen alone is split.
    """
    return COMPOUND.sub(r"\1 ##AT##-##AT## \2", tokens)


def multi_bleu(predictions: Iterable[str], references: Iterable[str]) -> float:
    """Corpus BLEU of text whose tokens stand between spaces, as `multi-bleu.perl` computes it.

    The geometric mean of the precisions of 1- to 4-grams, each clipped by its count in the reference and
    summed over the corpus, times exp(1 - reference tokens / tokens) where there are fewer tokens than in
    the references. Nothing is smoothed: 0 where one precision is.

    Returns:
        0 to 100.
    """
    matches, totals = [0] * ORDER, [0] * ORDER
    length = reference_length = 0
    for prediction, reference in zip(predictions, references, strict=True):
        words, wanted = prediction.split(), reference.split()
        length, reference_length = length + len(words), reference_length + len(wanted)
        for n in range(1, ORDER + 1):
            found, there = _ngrams(words, n), _ngrams(wanted, n)
            matches[n - 1] += (found & there).total()
            totals[n - 1] += found.total()
    if not all(matches):
        return 0.0
    precisions = [math.log(match / total) for match, total in zip(matches, totals, strict=True)]
    penalty = min(0.0, 1 - reference_length / length)
    return 100 * math.exp(penalty + sum(precisions) / ORDER)


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))
