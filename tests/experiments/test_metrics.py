"""Metrics for `evaluate` without a network: sacrebleu's own figures, scikit-learn's and scipy's."""

import evaluate
import numpy as np
import pytest
import sacrebleu
from scipy import stats
from sklearn import metrics as sklearn

from hf_nm.experiments.metrics import (
    F1,
    Accuracy,
    ChrF,
    MatthewsCorrelation,
    Pearson,
    SacreBLEU,
    Spearman,
)

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


CLASSES = [1, 0, 1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 1, 1, 0]  # predictions, references
NUMBERS = [0.1, 2.5, 2.5, 4.0, 1e-9, 3.3], [0.0, 3.0, 2.0, 5.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        (Accuracy, CLASSES, {"accuracy": sklearn.accuracy_score(*CLASSES[::-1])}),
        (F1, CLASSES, {"f1": sklearn.f1_score(*CLASSES[::-1])}),
        (
            MatthewsCorrelation,
            CLASSES,
            {"matthews_correlation": sklearn.matthews_corrcoef(*CLASSES[::-1])},
        ),
        (Pearson, NUMBERS, {"pearsonr": stats.pearsonr(*NUMBERS).statistic}),
        (Spearman, NUMBERS, {"spearmanr": stats.spearmanr(*NUMBERS).statistic}),
    ],
)
def test_agreement_equals_others(metric, values, expected):
    """Red if a key differs from evaluate's own, or a number is kept in float32."""
    lists = metric().compute(predictions=values[0], references=values[1])
    assert lists == pytest.approx(expected, abs=1e-14, rel=1e-14)
    assert [type(value) for value in lists.values()] == [float]
    arrays = dict(zip(("predictions", "references"), map(np.array, values), strict=True))
    assert metric().compute(**arrays) == lists
    batches = metric()
    batches.add_batch(predictions=values[0][:3], references=values[1][:3])
    batches.add_batch(predictions=values[0][3:], references=values[1][3:])
    assert batches.compute() == lists


def test_agreement_by_hand():
    """Red if the classes' two sides, or precision and recall, are mixed up: TP 3, FP 1, FN 1."""
    predictions, references = CLASSES
    both = evaluate.combine([Accuracy(), F1(), MatthewsCorrelation()])
    result = both.compute(predictions=predictions, references=references)
    assert result == {"accuracy": 6 / 8, "f1": 6 / 8, "matthews_correlation": (9 - 1) / 16}


def test_correlations_combine():
    """Red if a combination loses a correlation, or batches given to it are scored apart."""
    both = evaluate.combine([Pearson(), Spearman()])
    both.add_batch(predictions=[1.0, 2.0], references=[1.0, 4.0])
    both.add_batch(predictions=[3.0, 4.0], references=[9.0, 16.0])
    result = both.compute()
    assert result == {"pearsonr": pytest.approx(25 / 645**0.5), "spearmanr": pytest.approx(1.0)}


def test_options_are_not_dropped():
    """Red if evaluate's `average` is taken without effect."""
    with pytest.raises(TypeError, match="average"):
        F1().compute(predictions=[0, 1], references=[0, 1], average="macro")


def test_agreement_without_a_value():
    """Red if a test set of one class, or a constant prediction, warns or ends a run."""
    zeros, ones = [0, 0, 0], [1, 1, 1]
    assert F1().compute(predictions=zeros, references=zeros) == {"f1": 0.0}
    for predictions, references in ((zeros, zeros), (ones, [0, 1, 0])):
        found = MatthewsCorrelation().compute(predictions=predictions, references=references)
        assert found == {"matthews_correlation": 0.0}
    for metric in (Pearson(), Spearman()):
        for length in (1, 3):
            constant = metric.compute(predictions=[0.1] * length, references=NUMBERS[1][:length])
            assert np.isnan(list(constant.values())).all()
    with pytest.raises(ValueError, match="the predictions hold 2; take accuracy or matthews"):
        F1().compute(predictions=[2, 2], references=[1, 1])
