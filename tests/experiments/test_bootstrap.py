"""Recovery and its interval: scipy's paired bootstrap of the ratio, and what must be exact."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from scipy import stats

from hf_nm.experiments import bootstrap
from hf_nm.experiments.agreement import accuracy, mean_of, pearson
from hf_nm.experiments.bootstrap import Interval, Task, UndefinedRecoveryError, paired_bootstrap


def made_up(examples: int = 300, metric=accuracy) -> Task:
    """Classes 0 and 1; the arms are wrong where the dense run is, and elsewhere: pairing narrows the
    interval."""
    random = np.random.default_rng(0)

    def guesses(classes: np.ndarray, wrong: float) -> np.ndarray:
        return np.where(random.random(examples) < wrong, 1 - classes, classes)

    references = random.integers(2, size=examples)
    dense = [guesses(references, 0.1) for _ in range(2)]
    better, worse = ([guesses(run, wrong) for run in dense] for wrong in (0.03, 0.1))
    return Task(references, {"dense": dense, "sr-ste": better, "asp": worse}, metric)


def test_by_hand() -> None:
    """Red if the mean over seeds, the ratio or the mean over tasks is taken in another order.

    Task a: dense 1 and 1/2 -> 3/4, sparse 1/2 -> recovery 2/3. Task b: 1/2 over 1.
    """
    references = [1, 1, 0, 0]
    right, half = references, [1, 0, 1, 0]
    tasks = {
        "a": Task(references, {"dense": [right, half], "ste": [half], "asp": [right]}, accuracy),
        "b": Task(references, {"dense": [right], "ste": [half], "asp": [right]}, accuracy),
    }
    found = paired_bootstrap(tasks, "dense", resamples=1, seed=1)
    assert found.score("a", "dense").value == 0.75
    assert found.recovery("a", "ste").value == pytest.approx(2 / 3)
    assert found.mean_recovery("ste").value == pytest.approx((2 / 3 + 1 / 2) / 2)
    expected = (4 / 3 + 1) / 2 - (2 / 3 + 1 / 2) / 2
    assert found.difference("asp", "ste").value == pytest.approx(expected)
    recovery = found.recovery("b", "ste")  # a single resample is both bounds, and not the value
    assert recovery.low == recovery.high != recovery.value


def test_equals_scipy() -> None:
    """Red if the arms are resampled apart, or the interval is not the percentiles asked for.

    Of the same seed scipy's own paired bootstrap of the ratio draws the same resamples, whatever the
    size of a batch. Unpaired, the interval would be more than twice as wide.
    """
    task = made_up()
    hits = [
        np.mean([run == task.references for run in task.predictions[arm]], axis=0)
        for arm in ("sr-ste", "dense")
    ]
    for confidence in (0.95, 0.8):
        other = stats.bootstrap(
            hits,
            lambda sparse, dense, axis: sparse.mean(axis) / dense.mean(axis),
            paired=True,
            method="percentile",
            n_resamples=10_000,
            confidence_level=confidence,
            rng=np.random.default_rng(zlib.crc32(b"0/t")),
        )
        found = paired_bootstrap({"t": task}, "dense", confidence=confidence)
        recovery = found.recovery("t", "sr-ste")
        assert recovery.value == pytest.approx(hits[0].mean() / hits[1].mean())
        assert recovery.low == pytest.approx(other.confidence_interval.low, rel=1e-12)
        assert recovery.high == pytest.approx(other.confidence_interval.high, rel=1e-12)


def test_tasks_are_independent() -> None:
    """Red if two tasks share their draws: the mean's interval would not shrink by sqrt(2)."""
    task = made_up()
    found = paired_bootstrap({"a": task, "b": task}, "dense", resamples=4_000)
    one, two, mean = found.recovery("a", "asp"), found.recovery("b", "asp"), found.mean_recovery
    assert one.value == two.value == mean("asp").value
    ratio = (mean("asp").high - mean("asp").low) / (one.high - one.low)
    assert ratio == pytest.approx(math.sqrt(0.5), rel=0.1)


def test_identical_arms_are_exact() -> None:
    """Red if arms, or the two sides of a difference, are scored on different examples."""
    task = made_up(metric=mean_of(["accuracy", "f1"]))
    same = {"dense": task.predictions["dense"], "copy": task.predictions["dense"]}
    found = paired_bootstrap(
        {name: Task(task.references, same, task.metric) for name in "abc"}, "dense", resamples=500
    )
    assert found.recovery("a", "copy") == Interval(1.0, 1.0, 1.0)
    assert found.mean_recovery("copy") == Interval(1.0, 1.0, 1.0)
    assert found.difference("copy", "dense") == Interval(0.0, 0.0, 0.0)


def test_a_clear_difference_is_significant() -> None:
    """Red if a difference has the wrong sign or leaves its interval."""
    found = paired_bootstrap({"a": made_up()}, "dense", resamples=2_000)
    gain = found.difference("sr-ste", "asp")
    assert 0.0 < gain.low < gain.value < gain.high
    assert 0.0 not in gain
    assert gain.value in gain


def test_draws_depend_on_seed_and_task_alone(monkeypatch) -> None:
    """Red if another arm, another task or the size of a chunk changes a figure."""
    task, other = made_up(), made_up(examples=50)
    found = paired_bootstrap({"a": task}, "dense", resamples=300).recovery("a", "asp")
    both = paired_bootstrap({"b": other, "a": task}, "dense", resamples=300)
    assert both.recovery("a", "asp") == found
    fewer = {arm: task.predictions[arm] for arm in ("dense", "asp")}
    monkeypatch.setattr(bootstrap, "CHUNK", 7_000)
    chunked = paired_bootstrap(
        {"a": Task(task.references, fewer, accuracy)}, "dense", resamples=300
    )
    assert chunked.recovery("a", "asp") == found
    reseeded = paired_bootstrap({"a": task}, "dense", resamples=300, seed=1)
    assert reseeded.recovery("a", "asp") != found


def test_memory_is_bounded() -> None:
    """Red if all resamples, or more than a chunk of them, are scored at once."""
    sizes = []

    def metric(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
        sizes.append(predictions.size)
        return accuracy(predictions, references)

    paired_bootstrap({"a": made_up(1_043, metric)}, "dense", resamples=500)
    assert max(sizes) <= bootstrap.CHUNK
    assert sum(sizes) == 501 * 6 * 1_043


def test_undefined_recovery() -> None:
    """Red if a ratio to a dense score of 0 or less, or to nan, gets an interval."""
    references = np.arange(30.0)
    for dense in (-references, np.ones(30)):
        runs = {"dense": [dense], "asp": [references]}
        found = paired_bootstrap({"sts": Task(references, runs, pearson)}, "dense", resamples=50)
        with pytest.raises(UndefinedRecoveryError, match=r"on sts .* in 50 of 50 resamples"):
            found.recovery("sts", "asp")
        with pytest.raises(UndefinedRecoveryError, match="on sts"):
            found.mean_recovery("asp")
    assert found.score("sts", "asp").value == pytest.approx(1.0)
    barely = np.where(references == 0, references, -1.0)  # some resamples miss the one hit
    runs = {"dense": [barely], "asp": [references]}
    found = paired_bootstrap({"sts": Task(references, runs, accuracy)}, "dense", resamples=200)
    assert found.scores["sts"]["dense"][0] == pytest.approx(1 / 30)
    with pytest.raises(UndefinedRecoveryError, match="leave the task out"):
        found.recovery("sts", "asp")


def test_refused() -> None:
    """Red if what cannot be compared is compared, or the error does not name task and arm."""
    task = made_up(20)
    runs = dict(task.predictions)

    def run(references=task.references, metric=accuracy, **settings):
        settings = {"resamples": 5, **settings}
        return paired_bootstrap({"rte": Task(references, runs, metric)}, "dense", **settings)

    found = run()
    with pytest.raises(ValueError, match="'ste' has no run on rte, only dense, sr-ste, asp"):
        found.recovery("rte", "ste")
    with pytest.raises(ValueError, match="no task 'mnli', only rte"):
        found.recovery("mnli", "asp")
    with pytest.raises(ValueError, match=r"rte: predictions of 'dense' .* \[20\].* \[19\]"):
        run(task.references[1:])
    with pytest.raises(ValueError, match=r"rte: references must be .* at least two .* \[1\]"):
        run(task.references[:1])
    with pytest.raises(ValueError, match=r"the metric gave the shape \[\]"):
        run(metric=lambda predictions, references: (predictions == references).mean())
    for settings in ({"resamples": 0}, {"confidence": 95}):
        with pytest.raises(ValueError, match="at least one resample and a confidence between"):
            run(**settings)
    with pytest.raises(ValueError, match="0 tasks"):
        paired_bootstrap({}, "dense")
    runs["ste"] = []
    with pytest.raises(ValueError, match="rte: 'ste' has no runs"):
        run()
    del runs["dense"], runs["ste"]
    with pytest.raises(ValueError, match=r"rte: no run of 'dense', .* only of 'sr-ste', 'asp'"):
        run()
