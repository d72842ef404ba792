"""Accuracy, F1, Matthews and the correlations: by hand, against scikit-learn and scipy, batched."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn
from tolerances import assert_close
from torch import Tensor, tensor

from hf_nm.experiments.agreement import METRICS, accuracy, f1, matthews, mean_of, pearson, spearman

NAMES = list(METRICS)


def drawn(classes: int, examples: int = 57, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Class numbers that agree on about half of the examples, ``[rows, examples]``."""
    references = torch.randint(classes, (rows, examples))
    guesses = torch.randint(classes, (rows, examples))
    return torch.where(torch.rand(rows, examples) < 0.4, references, guesses), references


def expect(own: Callable, other: Callable, predictions: Tensor, references: Tensor) -> None:
    """`own` in one call equals `other` (references first) row by row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn where a correlation is undefined
        rows = [
            float(other(row.numpy(), guess.numpy()))
            for guess, row in zip(predictions, references, strict=True)
        ]
    found = own(predictions, references)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, tensor(rows, dtype=torch.float64), equal_nan=True)
    finite = ~found.isnan()
    assert_close(found[finite], tensor(rows, dtype=torch.float64)[finite])


def sklearn_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    return sklearn.f1_score(references, predictions, zero_division=0.0)


def test_by_hand() -> None:
    """Red if a formula, a tie rule or the case without a positive changes.

    Six examples, of which TP 2, FP 1, FN 1, TN 2: F1 = 4 / 6, MCC = (2*2 - 1*1) / sqrt(3*3*3*3).
    Ranks of 10, 20, 20, 40 are 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    """
    references, predictions = tensor([1, 1, 1, 0, 0, 0]), tensor([1, 1, 0, 1, 0, 0])
    assert_close(accuracy(predictions, references), tensor(4 / 6, dtype=torch.float64))
    assert_close(f1(predictions, references), tensor(4 / 6, dtype=torch.float64))
    assert_close(matthews(predictions, references), tensor(3 / 9, dtype=torch.float64))
    values, order = tensor([10.0, 20.0, 20.0, 40.0]), tensor([1.0, 2.0, 3.0, 4.0])
    expected = tensor(4.5 / 22.5**0.5, dtype=torch.float64)
    assert_close(spearman(values, order), expected)
    assert_close(pearson(2 * order + 1, -order), tensor(-1.0, dtype=torch.float64))
    nothing = torch.zeros(3, dtype=torch.long)
    assert f1(nothing, nothing) == 0.0
    assert matthews(nothing, nothing) == 0.0


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classes_equal_scikit_learn(classes: int) -> None:
    """Red if a class is missed in R_K, or precision taken for F1: random, missing and constant."""
    predictions, references = drawn(classes)
    predictions[1] = 1  # constant
    references[2] = 0
    predictions[3], references[3] = 1, 1
    references[4] = references[4].clamp(max=classes - 2)  # predictions know a class more
    predictions[5] = predictions[5].clamp(min=1)
    expect(accuracy, sklearn.accuracy_score, predictions, references)
    expect(matthews, sklearn.matthews_corrcoef, predictions, references)
    if classes == 2:
        expect(f1, sklearn_f1, predictions, references)
    alone = slice(4, 5)  # no other row knows that class either
    expect(matthews, sklearn.matthews_corrcoef, predictions[alone], references[alone])


def test_class_numbers_are_names() -> None:
    """Red if a class is found by counting up from 0."""
    predictions, references = drawn(3)
    wide = tensor([-7, 2, 10**12])
    assert_close(matthews(wide[predictions], wide[references]), matthews(predictions, references))


def test_correlations_equal_scipy() -> None:
    """Red if ties get their first or last rank, or a constant side 0: also without any tie."""
    predictions, references = torch.randn(2, 6, 83, dtype=torch.float64)
    references[0] += predictions[0]
    predictions[1:3] = (predictions[1:3] * 2).round()  # many ties
    references[2] = (references[2] * 3).round()
    predictions[3] = 0.1  # its mean is not exactly 0.1
    references[4] = predictions[4] * 3 + 1e6
    references[5] = predictions[5].exp()
    expect(pearson, lambda r, p: stats.pearsonr(p, r).statistic, predictions, references)
    expect(spearman, lambda r, p: stats.spearmanr(p, r).statistic, predictions, references)
    lengths = range(2, 90)
    constants = [
        pearson(torch.full((n,), 0.1, dtype=torch.float64), torch.arange(n)) for n in lengths
    ]
    assert torch.stack(constants).isnan().all()


def test_correlations_are_exact() -> None:
    """Red if sums are held in float32, or rounding carries a correlation past 1."""
    values = torch.arange(70_001, dtype=torch.float64).repeat_interleave(2)[1:]
    other = torch.randn(140_001, dtype=torch.float64)
    expected = tensor(stats.spearmanr(values, other).statistic, dtype=torch.float64)
    assert_close(spearman(values, other), expected)
    many = torch.randn(500, 11, dtype=torch.float64)
    straight = pearson(many, 3 * many + 1)
    assert straight.max() == 1.0
    assert_close(straight, torch.ones(500, dtype=torch.float64))


def test_nan_is_kept() -> None:
    """Red if a run that diverged gets a rank, and so a correlation."""
    values = tensor([[1.0, torch.nan, 3.0], [1.0, 2.0, 4.0]])
    for correlation in (pearson, spearman):
        assert correlation(values, tensor([1.0, 2.0, 3.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_leading_dimensions_broadcast(name: str) -> None:
    """Red if a resample is scored with another's examples, or a shape is squeezed."""
    predictions, references = drawn(2, examples=40, rows=12)
    predictions, references = predictions.view(3, 4, 40), references[:4]
    found = METRICS[name](predictions, references)
    assert found.shape == (3, 4)
    assert found.dtype == torch.float64
    for i in range(3):
        for j in range(4):
            assert_close(found[i, j], METRICS[name](predictions[i, j], references[j]))
    assert METRICS[name](predictions, references[0]).shape == (3, 4)


def test_mean_of() -> None:
    """Red if a metric is left out of the mean, or a misspelt one passes."""
    predictions, references = drawn(2)
    expected = (accuracy(predictions, references) + f1(predictions, references)) / 2
    assert_close(mean_of(["accuracy", "f1"])(predictions, references), expected)
    for names in ([], ["acc"], "f1"):
        with pytest.raises(ValueError, match="metrics out of accuracy, f1, matthews_correlation"):
            mean_of(names)


@pytest.mark.parametrize("name", NAMES)
def test_refused(name: str) -> None:
    """Red if one reference serves many predictions, or a mean over nothing is nan."""
    metric = METRICS[name]
    with pytest.raises(ValueError, match=r"same number of examples .* \[3\] and \[1\]"):
        metric(torch.ones(3), torch.ones(1))
    with pytest.raises(ValueError, match=r"same number of examples .* \[\] and \[\]"):
        metric(tensor(1), tensor(1))
    with pytest.raises(ValueError, match="no examples"):
        metric(torch.ones(2, 0), torch.ones(2, 0))


def test_f1_takes_two_classes() -> None:
    """Red if class 2 counts as negative without a word."""
    with pytest.raises(ValueError, match="the references hold 2; take accuracy or matthews"):
        f1(tensor([0, 1, 1]), tensor([0, 1, 2]))
