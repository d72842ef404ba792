"""How well predictions agree with references, on many resamples in one call: accuracy, F1, Matthews
and two correlations.

Every function takes predictions ``[..., examples]`` and references ``[..., examples]``, arrays or
tensors in main memory, and returns float64 ``[...]``. The leading dimensions (bootstrap resamples,
runs) broadcast. Each raises ValueError for no examples or for different numbers of them.

The correlations are scipy's and F1 is scikit-learn's, which score many rows in one call. Accuracy and
Matthews are not: scikit-learn's take one row a call, 0.5 ms and 2 ms of a Xeon core for 408 examples
against 4 and 23 microseconds here, so five minutes for 10,000 resamples of 16 runs. For one set of
predictions :mod:`hf_nm.experiments.metrics` calls them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.metrics import f1_score

Metric = Callable[[ArrayLike, ArrayLike], NDArray[np.float64]]


def accuracy(predictions: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Fraction of the examples on which the two are equal, 0 to 1."""
    predictions, references = _checked(predictions, references)
    return np.mean(predictions == references, axis=-1)


def f1(predictions: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Harmonic mean of precision and recall of class 1, against class 0.

    0.0 where neither side holds a 1, as scikit-learn's ``zero_division=0``.

    Raises:
        ValueError: there are classes other than 0 and 1.
    """
    sides = _checked(predictions, references)
    for name, classes in zip(("predictions", "references"), sides, strict=True):
        other = classes[(classes != 0) & (classes != 1)]
        if other.size:
            raise ValueError(
                f"f1 takes classes 0 and 1, but the {name} hold {other.flat[0]}; take accuracy "
                "or matthews where there are more classes."
            )
    found, truth = np.broadcast_arrays(*sides)
    # A row as a label of its own; one more, all 0, because a single label is read as two classes.
    labels = [
        np.pad(side.reshape(-1, side.shape[-1]), [(0, 1), (0, 0)]).T for side in (truth, found)
    ]
    scores = f1_score(*labels, average=None, zero_division=0.0)
    return scores[:-1].reshape(found.shape[:-1])


def matthews(predictions: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Matthews correlation of class numbers, -1 to 1; for any number of classes Gorodkin's R_K.

    0.0 where it is undefined because one side holds a single class, as in scikit-learn.

    Source:
        Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient",
        Computational Biology and Chemistry 28 (2004), equation 8.
    """
    predictions, references = _checked(predictions, references)
    examples = predictions.shape[-1]
    # Counts stay below 2**53, so these sums of products are exact up to 94 million examples.
    correct = np.sum(predictions == references, axis=-1, dtype=np.float64)
    products, predicted, referred = (np.zeros_like(correct) for _ in range(3))
    for label in np.union1d(predictions, references):
        in_predictions = np.sum(predictions == label, axis=-1, dtype=np.float64)
        in_references = np.sum(references == label, axis=-1, dtype=np.float64)
        products += in_predictions * in_references
        predicted += in_predictions**2
        referred += in_references**2
    covariance = correct * examples - products
    variances = (examples**2 - predicted) * (examples**2 - referred)
    return np.where(variances == 0, 0.0, covariance / np.sqrt(np.where(variances, variances, 1)))


def pearson(predictions: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Pearson's linear correlation, -1 to 1, scipy's: nan where one side is constant."""
    sides = (side.astype(np.float64) for side in _checked(predictions, references))
    predictions, references = np.broadcast_arrays(*sides)
    if predictions.shape[-1] == 1:  # constant, but too short for scipy
        return np.full(predictions.shape[:-1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of a constant
        return np.asarray(stats.pearsonr(predictions, references, axis=-1).statistic)


def spearman(predictions: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Spearman's rank correlation, -1 to 1, ties at their average rank; nan where one side is
    constant or holds a nan. Of scipy's ranks: its spearmanr correlates each row with every other."""
    sides = _checked(predictions, references)
    return pearson(*(stats.rankdata(side, axis=-1, nan_policy="propagate") for side in sides))


# Under the names of evaluate's results, which a run's results.json uses too.
METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews,
    "pearsonr": pearson,
    "spearmanr": spearman,
}


def mean_of(names: Sequence[str]) -> Metric:
    """The metric that is the mean of several, as GLUE scores MRPC by accuracy and F1.

    Args:
        names: keys of :data:`METRICS`.

    Returns:
        A function of (predictions, references) like those of this module.

    Raises:
        ValueError: no name, or one that is not known.
    """
    unknown = [name for name in names if name not in METRICS]
    if isinstance(names, str) or not names or unknown:
        raise ValueError(f"a list of metrics out of {', '.join(METRICS)} is needed, got {names!r}")
    functions = [METRICS[name] for name in names]

    def mean(predictions: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
        return np.mean([each(predictions, references) for each in functions], axis=0)

    return mean


def _checked(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    sides = np.asarray(predictions), np.asarray(references)
    shapes = sides[0].shape, sides[1].shape
    if not all(shapes) or shapes[0][-1] != shapes[1][-1]:
        raise ValueError(
            "predictions and references need the same number of examples in their last dimension, "
            f"but their shapes are {list(shapes[0])} and {list(shapes[1])}"
        )
    if not shapes[0][-1]:
        raise ValueError("there are no examples to score; predictions and references are empty")
    return sides
