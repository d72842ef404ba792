"""How well predictions agree with references: accuracy, F1, Matthews and two correlations, on
tensors.

Every function takes predictions ``[..., examples]`` and references ``[..., examples]`` and returns
float64 ``[...]``. The leading dimensions (bootstrap resamples, runs) broadcast, and nothing loops
over them. Each raises ValueError for no examples or for different numbers of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def accuracy(predictions: Tensor, references: Tensor) -> Tensor:
    """Fraction of the examples on which the two are equal, 0 to 1."""
    _check(predictions, references)
    return (predictions == references).double().mean(-1)


def f1(predictions: Tensor, references: Tensor) -> Tensor:
    """Harmonic mean of precision and recall of class 1, against class 0.

    0.0 where neither side holds a 1, as scikit-learn's ``zero_division=0``.

    Raises:
        ValueError: there are classes other than 0 and 1.
    """
    _check(predictions, references)
    for name, classes in (("predictions", predictions), ("references", references)):
        other = classes[(classes != 0) & (classes != 1)]
        if other.numel():
            raise ValueError(
                f"f1 takes classes 0 and 1, but the {name} hold {other[0].item()}; take accuracy "
                "or matthews where there are more classes."
            )
    both = ((predictions == 1) & (references == 1)).sum(-1)
    either = (predictions == 1).sum(-1) + (references == 1).sum(-1)
    return 2 * both.double() / either.clamp(min=1)


def matthews(predictions: Tensor, references: Tensor) -> Tensor:
    """Matthews correlation of class numbers, -1 to 1; for any number of classes Gorodkin's R_K.

    0.0 where it is undefined because one side holds a single class, as in scikit-learn.

    Source:
        Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient",
        Computational Biology and Chemistry 28 (2004), equation 8.
    """
    _check(predictions, references)
    examples = predictions.shape[-1]
    correct = (predictions == references).sum(-1).double()
    # Counts stay below 2**53, so these sums of products are exact up to 94 million examples.
    products, predicted, referred = (torch.zeros_like(correct) for _ in range(3))
    for label in torch.cat([predictions.unique(), references.unique()]).unique():
        in_predictions = (predictions == label).sum(-1).double()
        in_references = (references == label).sum(-1).double()
        products += in_predictions * in_references
        predicted += in_predictions**2
        referred += in_references**2
    covariance = correct * examples - products
    variances = (examples**2 - predicted) * (examples**2 - referred)
    found = covariance / variances.sqrt()
    return torch.where(variances == 0, 0.0, found)


def pearson(predictions: Tensor, references: Tensor) -> Tensor:
    """Pearson's linear correlation, -1 to 1; nan where one side is constant, as in scipy."""
    _check(predictions, references)
    first, constant = _centred(predictions)
    second, constant_too = _centred(references)
    products = (first * second).sum(-1).clamp(-1, 1)  # rounding may carry it past 1
    return products.masked_fill(constant | constant_too, torch.nan)


def spearman(predictions: Tensor, references: Tensor) -> Tensor:
    """Spearman's rank correlation, -1 to 1, ties at their average rank; nan where one side is
    constant or holds a nan, as in scipy."""
    _check(predictions, references)
    return pearson(_ranks(predictions), _ranks(references))


# Under the names of evaluate's results, which a run's results.json uses too.
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews,
    "pearsonr": pearson,
    "spearmanr": spearman,
}


def mean_of(names: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
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

    def mean(predictions: Tensor, references: Tensor) -> Tensor:
        return torch.stack([each(predictions, references) for each in functions]).mean(0)

    return mean


def _check(predictions: Tensor, references: Tensor) -> None:
    shapes = tuple(predictions.shape), tuple(references.shape)
    if not all(shapes) or shapes[0][-1] != shapes[1][-1]:
        raise ValueError(
            "predictions and references need the same number of examples in their last dimension, "
            f"but their shapes are {list(shapes[0])} and {list(shapes[1])}"
        )
    if not shapes[0][-1]:
        raise ValueError("there are no examples to score; predictions and references are empty")


def _centred(values: Tensor) -> tuple[Tensor, Tensor]:
    """Around the mean and of length 1, float64 ``[..., examples]``; and which are constant, bool
    ``[...]``."""
    values = values.double()
    # Not from the length below: the mean of equal numbers is not always that number.
    constant = (values == values[..., :1]).all(-1)
    centred = values - values.mean(-1, keepdim=True)
    return centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True), constant


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, ties at their average: float64 ``[..., examples]``."""
    ordered, order = values.double().sort(-1)
    examples = values.shape[-1]
    places = torch.arange(examples, device=values.device)
    changes = ordered[..., 1:] != ordered[..., :-1]
    edge = changes.new_ones(*changes.shape[:-1], 1)
    first = torch.where(torch.cat([edge, changes], -1), places, 0).cummax(-1).values
    # The last place of a run of equals: the nearest end at or behind this one.
    ends = torch.where(torch.cat([changes, edge], -1), places, examples)
    last = ends.flip(-1).cummin(-1).values.flip(-1)
    ranks = torch.empty_like(ordered).scatter_(-1, order, (first + last).double() / 2 + 1)
    return torch.where(values.isnan(), torch.nan, ranks)
