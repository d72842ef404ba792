"""Accuracy, F1, Matthews and the correlations: by hand, batched as scikit-learn and scipy have each."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats
from sklearn import metrics as sklearn

from hf_nm.experiments.agreement import METRICS, accuracy, f1, matthews, mean_of, pearson, spearman

NAMES = list(METRICS)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # as tolerances.py has it for float64


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def drawn(
    random: np.random.Generator, classes: int, examples: int = 57, rows: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers that agree on about half of the examples, ``[rows, examples]``."""
    references, guesses = random.integers(classes, size=(2, rows, examples))
    return np.where(random.random((rows, examples)) < 0.4, references, guesses), references


def expect(own: Callable, other: Callable, predictions: np.ndarray, references: np.ndarray) -> None:
    """`own` in one call equals `other` (references first) row by row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn where a correlation is undefined
        rows = [other(row, guess) for guess, row in zip(predictions, references, strict=True)]
    found = own(predictions, references)
    assert found.dtype == np.float64
    assert_allclose(found, rows, **CLOSE)  # a nan equals a nan alone


def sklearn_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    return sklearn.f1_score(references, predictions, zero_division=0.0)


def test_by_hand() -> None:
    """Red if a side, a tie rule or the case without a positive changes.

    Six examples, of which TP 2, FP 1, FN 1, TN 2: F1 = 4 / 6, MCC = (2*2 - 1*1) / sqrt(3*3*3*3).
    Ranks of 10, 20, 20, 40 are 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    """
    references, predictions = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]
    assert_allclose(accuracy(predictions, references), 4 / 6, **CLOSE)
    assert_allclose(f1(predictions, references), 4 / 6, **CLOSE)
    assert_allclose(matthews(predictions, references), 3 / 9, **CLOSE)
    order = np.array([1, 2, 3, 4])
    assert_allclose(spearman([10.0, 20.0, 20.0, 40.0], order), 4.5 / 22.5**0.5, **CLOSE)
    assert_allclose(pearson(2 * order + 1, -order), -1.0, **CLOSE)
    assert f1([0, 0, 0], [0, 0, 0]) == 0.0
    assert matthews([0, 0, 0], [0, 0, 0]) == 0.0


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classes_equal_scikit_learn(random, classes: int) -> None:
    """Red if a class is missed in R_K, or precision taken for F1: random, missing and constant."""
    predictions, references = drawn(random, classes)
    predictions[1] = 1  # constant
    references[2] = 0
    predictions[3], references[3] = 1, 1
    references[4] = references[4].clip(max=classes - 2)  # predictions know a class more
    predictions[5] = predictions[5].clip(min=1)
    expect(accuracy, sklearn.accuracy_score, predictions, references)
    expect(matthews, sklearn.matthews_corrcoef, predictions, references)
    if classes == 2:
        expect(f1, sklearn_f1, predictions, references)
    alone = slice(4, 5)  # no other row knows that class either
    expect(matthews, sklearn.matthews_corrcoef, predictions[alone], references[alone])


def test_class_numbers_are_names(random) -> None:
    """Red if a class is found by counting up from 0."""
    predictions, references = drawn(random, 3)
    wide = np.array([-7, 2, 10**12])
    found = matthews(wide[predictions], wide[references])
    assert_allclose(found, matthews(predictions, references), **CLOSE)


def test_correlations_equal_scipy(random) -> None:
    """Red if ties get their first or last rank, or a constant side 0: also without any tie."""
    predictions, references = random.standard_normal((2, 6, 83))
    references[0] += predictions[0]
    predictions[1:3] = (predictions[1:3] * 2).round()  # many ties
    references[2] = (references[2] * 3).round()
    predictions[3] = 0.1  # its mean is not exactly 0.1
    references[4] = predictions[4] * 3 + 1e6
    references[5] = np.exp(predictions[5])
    expect(pearson, lambda r, p: stats.pearsonr(p, r).statistic, predictions, references)
    expect(spearman, lambda r, p: stats.spearmanr(p, r).statistic, predictions, references)
    assert np.isnan([pearson(np.full(n, 0.1), np.arange(n)) for n in range(1, 90)]).all()


def test_correlations_are_exact(random) -> None:
    """Red if a float32 is not widened first, or rounding carries a correlation past 1."""
    single = random.standard_normal((2, 10_001)).astype(np.float32)
    assert_allclose(pearson(*single), pearson(*single.astype(np.float64)), rtol=0)
    many = random.standard_normal((500, 11))
    straight = pearson(many, 3 * many + 1)
    assert straight.max() == 1.0
    assert_allclose(straight, np.ones(500), **CLOSE)


def test_nan_is_kept() -> None:
    """Red if a run that diverged gets a rank, and so a correlation."""
    values = [[1.0, np.nan, 3.0], [1.0, 2.0, 4.0]]
    for correlation in (pearson, spearman):
        assert np.isnan(correlation(values, [1.0, 2.0, 3.0])).tolist() == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_leading_dimensions_broadcast(random, name: str) -> None:
    """Red if a resample is scored with another's examples, or a shape is squeezed."""
    predictions, references = drawn(random, 2, examples=40, rows=12)
    predictions, references = predictions.reshape(3, 4, 40), references[:4]
    found = METRICS[name](predictions, references)
    assert found.shape == (3, 4)
    assert found.dtype == np.float64
    for i in range(3):
        for j in range(4):
            alone = METRICS[name](predictions[i, j], references[j])
            assert_allclose(found[i, j], alone, **CLOSE)
    assert METRICS[name](predictions, references[0]).shape == (3, 4)
    tensors = METRICS[name](torch.tensor(predictions), torch.tensor(references))
    assert tensors.tolist() == found.tolist()


def test_mean_of(random) -> None:
    """Red if a metric is left out of the mean, or a misspelt one passes."""
    predictions, references = drawn(random, 2)
    expected = (accuracy(predictions, references) + f1(predictions, references)) / 2
    assert_allclose(mean_of(["accuracy", "f1"])(predictions, references), expected, **CLOSE)
    for names in ([], ["acc"], "f1"):
        with pytest.raises(ValueError, match="metrics out of accuracy, f1, matthews_correlation"):
            mean_of(names)


@pytest.mark.parametrize("name", NAMES)
def test_refused(name: str) -> None:
    """Red if one reference serves many predictions, or a mean over nothing is nan."""
    metric = METRICS[name]
    with pytest.raises(ValueError, match=r"same number of examples .* \[3\] and \[1\]"):
        metric(np.ones(3), np.ones(1))
    with pytest.raises(ValueError, match=r"same number of examples .* \[\] and \[\]"):
        metric(1, 1)
    with pytest.raises(ValueError, match="no examples"):
        metric(np.ones((2, 0)), np.ones((2, 0)))


def test_f1_takes_two_classes() -> None:
    """Red if class 2 counts as negative without a word."""
    with pytest.raises(ValueError, match="the references hold 2; take accuracy or matthews"):
        f1([0, 1, 1], [0, 1, 2])
