"""The translation recipe's scores: the BLEU of older papers, and the smaller WMT14 test set."""

import math

import pytest
import sacrebleu
from recipe_loading import importing

with importing("translation"):
    from bleu import multi_bleu, split_compounds, tokenized_bleu
    from corpus import embedded_corpus
    from scoring import numbers_of_subset


def test_multi_bleu_on_paper():
    """Red if counts are not clipped, the precisions are averaged otherwise, or the penalty is another.

    "the the the cat sat on" against "the cat sat on the mat .": 1-grams the (2 of 3), cat, sat, on: 5 of
    6; 2-grams the-cat, cat-sat, sat-on: 3 of 5; 3-grams the-cat-sat, cat-sat-on: 2 of 4; 4-grams
    the-cat-sat-on: 1 of 3. 6 tokens for 7.
    """
    precisions = 5 / 6 * 3 / 5 * 2 / 4 * 1 / 3
    expected = 100 * math.exp(1 - 7 / 6) * precisions**0.25
    found = multi_bleu(["the the the cat sat on"], ["the cat sat on the mat ."])
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(45.4802, abs=1e-4)
    assert multi_bleu(["a b c d"], ["a b c d"]) == 100
    assert multi_bleu(["a b c d e f"], ["a b c d"]) < 100  # longer: no penalty, lower precision
    assert multi_bleu(["a b c"], ["a b c"]) == 0  # no 4-gram, and nothing is smoothed
    assert multi_bleu(["", "x"], ["a", "b"]) == 0


def test_multi_bleu_is_sacrebleus_arithmetic():
    """Red if the sum over the corpus differs from a second implementation's on the same tokens."""
    pairs = embedded_corpus().splits["train"][:200]
    references = [german for _, german in pairs]
    predictions = [
        " ".join(word for place, word in enumerate(text.split()) if (place + number) % 7)
        for number, text in enumerate(references)
    ]
    options = {"tokenize": "none", "smooth_method": "none", "force": True}
    theirs = sacrebleu.corpus_bleu(predictions, [references], **options).score
    assert 30 < theirs < 90
    assert multi_bleu(predictions, references) == pytest.approx(theirs, rel=1e-12)


def test_compounds_literal():
    """Red if a hyphen alone is split, or the Perl line's way with neighbours is not kept."""
    assert split_compounds("rich-text - format") == "rich ##AT##-##AT## text - format"
    assert split_compounds("-5 a- -b") == "-5 a- -b"
    assert split_compounds("ab-cd-ef") == "ab ##AT##-##AT## cd ##AT##-##AT## ef"
    assert split_compounds("a-b-c") == "a ##AT##-##AT## b-c"


def test_tokens_are_moses():
    """Red if the language does not reach Moses: German's ordinals keep their full stop."""
    pytest.importorskip("sacremoses")
    reference = ["Am 3. Mai, z.B. um 5 Uhr, sagte er: „Das Wort-für-Wort-Modell ist gut.“ Ja!"]
    found = tokenized_bleu(reference, reference, "de")
    assert found["score"] == pytest.approx(100)
    assert found["signature"].startswith(
        "nrefs:1|case:mixed|tok:moses-de|compounds:split|smooth:none|"
    )
    # Written as tokens by hand; the score against the plain text says that these are the same.
    tokens = (
        "Am 3. Mai , z.B. um 5 Uhr , sagte er : „ Das Wort ##AT##-##AT## für ##AT##-##AT## Wort"
    )
    tokens += " ##AT##-##AT## Modell ist gut . “ Ja !"
    import sacremoses

    cut = sacremoses.MosesTokenizer(lang="de").tokenize(reference[0], return_str=True)
    assert split_compounds(cut) == tokens


def test_the_smaller_test_set(monkeypatch, tmp_path):
    """Red if sentences are taken by place, a repeated one twice, or a foreign one without a word."""
    (tmp_path / "src").write_text("b\na  a\nb\n", "utf-8")
    (tmp_path / "ref").write_text("B\nA A\nB2\n", "utf-8")
    monkeypatch.setattr("sacrebleu.get_source_file", lambda *name: str(tmp_path / "src"))
    monkeypatch.setattr("sacrebleu.get_reference_files", lambda *name: [str(tmp_path / "ref")])
    sources, references = ["x", "b", "a a", "b"], ["X", "B2", "A A ", "B"]
    assert numbers_of_subset("wmt14", "en-de", sources, references) == [3, 2, 1]
    with pytest.raises(
        ValueError, match=r"line 3 of sacreBLEU's wmt14 \(en-de\) is not in the test set"
    ):
        numbers_of_subset("wmt14", "en-de", sources, ["X", "B9", "A A", "B"])
