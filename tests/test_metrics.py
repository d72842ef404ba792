"""BLEU and chrF as `evaluate` metrics: sacrebleu's own figures, no network."""

import evaluate
import pytest
import sacrebleu

from hf_nm.metrics import ChrF, SacreBLEU

PREDICTIONS = ["the cat sat on the mat today", "A Dog barks .", "nothing at all"]
REFERENCES = ["the cat sat on a mat today", "A dog barks loudly .", "nothing at all here"]
OTHERS = ["today the cat sat on the mat", "a dog barks .", "there is nothing at all"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Any connection fails, and `evaluate` writes its scratch files beside the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a metric tried to reach the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)


def test_bleu_literal():
    """Red if precisions, brevity penalty or scale change: worked out by hand below.

    4 of 5 words, 2 of 4 pairs, 1 of 3 triples match; of 2 quadruples none, which exponential
    smoothing counts as a half: (4/5 * 2/4 * 1/3 * 0.5/2) ** (1/4) = 0.4273.
    """
    result = SacreBLEU().compute(predictions=["a b c d e"], references=["a b c x e"])
    assert result["counts"] == [4, 2, 1, 0]
    assert result["totals"] == [5, 4, 3, 2]
    assert result["bp"] == 1.0
    expected = 100 * (4 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25
    assert result["score"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "char"}])
def test_bleu_equals_sacrebleu(options):
    """Red if references are passed the wrong way round or an option is dropped."""
    own = SacreBLEU().compute(predictions=PREDICTIONS, references=REFERENCES, **options)
    metric = sacrebleu.BLEU(**options)
    assert own["score"] == metric.corpus_score(PREDICTIONS, [REFERENCES]).score
    assert own["signature"] == str(metric.get_signature())
    assert own["signature"].startswith("nrefs:1|case:" + ("lc" if "lowercase" in options else "m"))


def test_several_references():
    """Red if [predictions][references] is handed over without turning it round."""
    pairs = [list(pair) for pair in zip(REFERENCES, OTHERS, strict=True)]
    own = SacreBLEU().compute(predictions=PREDICTIONS, references=pairs)
    assert own["score"] == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES, OTHERS]).score
    assert own["signature"].startswith("nrefs:2|")


def test_chrf_equals_sacrebleu():
    """Red if chrF is computed with other orders than asked for."""
    own = ChrF().compute(predictions=PREDICTIONS, references=REFERENCES, word_order=2)
    assert (
        own["score"] == sacrebleu.CHRF(word_order=2).corpus_score(PREDICTIONS, [REFERENCES]).score
    )
    assert own["word_order"] == 2


def test_added_in_batches():
    """Red if batches added one after another are scored apart."""
    metric = SacreBLEU()
    metric.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    metric.add(prediction=PREDICTIONS[2], reference=REFERENCES[2])
    whole = SacreBLEU().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert metric.compute() == whole


def test_combine():
    """Red if the two metrics' scores overwrite each other under one name."""
    both = evaluate.combine([SacreBLEU(), ChrF()])
    result = both.compute(predictions=PREDICTIONS, references=REFERENCES)
    bleu = SacreBLEU().compute(predictions=PREDICTIONS, references=REFERENCES)
    chrf = ChrF().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["sacre_bleu_score"] == bleu["score"]
    assert result["chr_f_score"] == chrf["score"]
    assert result["counts"] == bleu["counts"]


def test_unequal_numbers_of_references():
    """Red if the error does not say what was received."""
    with pytest.raises(ValueError, match="same number of references, got 1 to 2"):
        SacreBLEU().compute(predictions=["a", "b"], references=[["a"], ["b", "c"]])
