"""How sure a recovery is: sparse over dense score, resampled over the examples of each task.

The percentile bootstrap, paired: in a resample the same examples are drawn for every arm and every
seed of a task, so that what makes an example hard for all of them cancels out. The runs' seeds are
not resampled: an interval says how far the choice of examples moves the result, not the training.

A task's examples are drawn by `scipy.stats.bootstrap`. What is ours is what it has no statistic for:
the ratio to the dense arm, means over tasks and differences of arms, all of the same draws. One call
for all tasks would do that too, but then a further task would change every other one's draws.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from hf_nm.experiments.agreement import Metric

Scores = NDArray[np.float64]
CHUNK = 2**19  # predictions scored in one go: 4 MiB in each of a metric's intermediate tensors


class UndefinedRecoveryError(ValueError):
    """The dense score is not above 0, so that there is no ratio to it."""


@dataclass(frozen=True)
class Task:
    """What several arms predicted on one data set.

    Args:
        references: ``[examples]``.
        predictions: for each arm its runs, one for each seed, ``[examples]`` each.
        metric: (predictions ``[runs, resamples, examples]``, references ``[resamples, examples]``)
            -> scores ``[runs, resamples]``, higher is better; such as those of
            :mod:`hf_nm.experiments.agreement`.
    """

    references: ArrayLike
    predictions: Mapping[str, Sequence[ArrayLike]]
    metric: Metric


@dataclass(frozen=True)
class Interval:
    """A value on the examples as they are, and between which bounds its resamples lie."""

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Resampled:
    """Scores of every task and arm, means over the seeds, and what follows from them.

    Args:
        scores: task -> arm -> float64 ``[1 + resamples]``; the first on the examples as they are.
        baseline: the dense arm.
        confidence: what an interval covers, such as 0.95.
    """

    scores: Mapping[str, Mapping[str, Scores]]
    baseline: str
    confidence: float

    def score(self, task: str, arm: str) -> Interval:
        """The arm's score in the metric's unit, mean over its seeds."""
        return self._interval(self._of(task, arm))

    def recovery(self, task: str, arm: str) -> Interval:
        """The arm's score over the dense one's: 1.0 is no loss.

        Raises:
            UndefinedRecoveryError: the dense score is not above 0, on the task or in a resample.
            ValueError: there is no such task, or the arm has no run on it.
        """
        return self._interval(self._recovery(task, arm))

    def mean_recovery(self, arm: str) -> Interval:
        """Mean of the recoveries over all tasks. Raises as :meth:`recovery` does."""
        return self._interval(self._mean_recovery(arm))

    def difference(self, arm: str, other: str) -> Interval:
        """The mean recovery of `arm` less that of `other`; significant where 0 is not in it.

        Both are taken on the same resamples. Raises as :meth:`recovery` does.
        """
        return self._interval(self._mean_recovery(arm) - self._mean_recovery(other))

    def gap(self, task: str, arms: Sequence[str], others: Sequence[str]) -> Interval:
        """The mean score of some arms less that of others, in the metric's unit, on the same resamples:
        significant where 0 is not in it.

        Raises:
            ValueError: there is no such task, or an arm has no run on it.
        """
        ours, theirs = ([self._of(task, arm) for arm in side] for side in (arms, others))
        return self._interval(np.mean(ours, axis=0) - np.mean(theirs, axis=0))

    def _mean_recovery(self, arm: str) -> Scores:
        return np.mean([self._recovery(task, arm) for task in self.scores], axis=0)

    def _recovery(self, task: str, arm: str) -> Scores:
        dense = self._of(task, self.baseline)
        unusable = np.count_nonzero(~(dense[1:] > 0))  # a nan is not above 0 either
        if unusable or not dense[0] > 0:
            raise UndefinedRecoveryError(
                f"recovery on {task} is undefined: the score of {self.baseline} is "
                f"{dense[0]:.4g}, and not above 0 in {unusable} of {len(dense) - 1} "
                "resamples; train the dense runs for longer, or leave the task out."
            )
        return self._of(task, arm) / dense

    def _of(self, task: str, arm: str) -> Scores:
        if task not in self.scores:
            raise ValueError(f"there is no task {task!r}, only {', '.join(self.scores)}")
        if arm not in self.scores[task]:
            raise ValueError(f"{arm!r} has no run on {task}, only {', '.join(self.scores[task])}")
        return self.scores[task][arm]

    def _interval(self, values: Scores) -> Interval:
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(values[1:], [tail, 1 - tail]).tolist()
        return Interval(values[0].item(), low, high)


def paired_bootstrap(
    tasks: Mapping[str, Task],
    baseline: str,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Resampled:
    """Draw the examples of each task anew, `resamples` times, and score every arm on each draw.

    Examples are drawn with replacement, as many as the task has, once for all arms and seeds of the
    task; tasks are drawn independently of each other. The draws of a task depend on `seed`, its
    name and its number of examples alone: another arm or another task changes no other figure.

    Args:
        tasks: by name.
        baseline: the arm of the dense runs; every task needs it.
        resamples: how many draws.
        confidence: what the intervals cover, 0.95 for 95%.
        seed: of the draws.

    Raises:
        ValueError: no task, a task with fewer than two examples, without the baseline or with an arm
            without runs; predictions and references of different lengths; a number out of range.

    Source:
        Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 8 and 13.
    """
    if not tasks or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "a bootstrap needs a task, at least one resample and a confidence between 0 and 1, got "
            f"{len(tasks)} tasks, {resamples} resamples, confidence {confidence}"
        )
    for name, task in tasks.items():
        _check(name, task, baseline)
    scores = {name: _resample(name, task, resamples, seed) for name, task in tasks.items()}
    return Resampled(scores, baseline, confidence)


def _check(name: str, task: Task, baseline: str) -> None:
    shape = np.shape(task.references)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"{name}: references must be [examples], at least two of them to draw from, but their "
            f"shape is {list(shape)}"
        )
    if baseline not in task.predictions:
        raise ValueError(
            f"{name}: no run of {baseline!r}, to which the others are compared, only of "
            f"{', '.join(map(repr, task.predictions)) or 'nothing'}"
        )
    for arm, runs in task.predictions.items():
        if not runs:
            raise ValueError(f"{name}: {arm!r} has no runs; leave the arm out or give one")
        for run in runs:
            if np.shape(run) != shape:
                raise ValueError(
                    f"{name}: predictions of {arm!r} have the shape {list(np.shape(run))}, the "
                    f"references {list(shape)}; give one for each example."
                )


def _resample(name: str, task: Task, resamples: int, seed: int) -> dict[str, Scores]:
    """Every arm's scores, ``[1 + resamples]``, the first on the examples as they are."""
    references = np.asarray(task.references)
    runs = np.stack([np.asarray(run) for arm in task.predictions.values() for run in arm])
    count, examples = runs.shape

    def scored(drawn: NDArray[np.int64], axis: int) -> Scores:
        """Numbers of examples ``[resamples, examples]`` -> ``[runs, resamples]``."""
        predictions = runs[:, drawn]
        scores = task.metric(predictions, references[drawn])
        if np.shape(scores) != predictions.shape[:-1]:
            raise ValueError(
                f"{name}: the metric gave the shape {list(np.shape(scores))} for predictions of "
                f"the shape {list(predictions.shape)}; it must keep all but the last dimension."
            )
        return np.asarray(scores)

    everything = np.arange(examples)
    with warnings.catch_warnings():
        # Of the interval (nan) and the standard error (one resample) that scipy makes of each run.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.filterwarnings("ignore", "Degrees of freedom|invalid value encountered in divide")
        found = stats.bootstrap(
            (everything,),
            scored,
            n_resamples=resamples,
            batch=max(1, CHUNK // (count * examples)),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(zlib.crc32(f"{seed}/{name}".encode())),
        )
    scores = np.hstack([scored(everything[None], axis=-1), found.bootstrap_distribution])
    ends = np.cumsum([len(arm) for arm in task.predictions.values()])
    each = np.split(scores, ends[:-1])
    return {arm: own.mean(0) for arm, own in zip(task.predictions, each, strict=True)}
