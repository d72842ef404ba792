"""What the paired bootstrap resamples: BLEU's counts sentence by sentence, or predicted classes.

A corpus' BLEU is a function of sums over its sentences: matching and all n-grams, lengths of both sides.
So a resample needs no translation to be scored again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
from numpy.typing import ArrayLike, NDArray

from hf_nm.experiments.agreement import mean_of
from hf_nm.experiments.bootstrap import Task
from hf_nm.experiments.results import (
    PREDICTIONS_FILE,
    TRANSLATIONS_FILE,
    read_predictions,
    read_translations,
)

ORDERS = 4  # of n-grams
ROUNDING = 1e-4  # a score in results.json may be rounded to four places


class NothingToResampleError(ValueError):
    """A run kept no predictions, or those of another kind than the first run's."""


def task_of(runs: Mapping[str, tuple[Path, dict[str, Any]]]) -> Task:
    """Runs on one test set as :func:`~hf_nm.experiments.bootstrap.paired_bootstrap` takes them.

    Args:
        runs: name -> the folder with its predictions or translations, and its `results.json`.

    Returns:
        A task with an arm of one run for each name.

    Raises:
        NothingToResampleError: (a ``ValueError``) a run kept none, or its BLEU is none of sacreBLEU's
            with one reference.
        ValueError: they are of different test sets, or their score is not that of the results.
    """
    kinds = {
        name: next(
            (kind for kind in (TRANSLATIONS_FILE, PREDICTIONS_FILE) if (folder / kind).is_file()),
            None,
        )
        for name, (folder, _) in runs.items()
    }
    lacking = [name for name, kind in kinds.items() if kind is None]
    if lacking or len(set(kinds.values())) != 1:
        raise NothingToResampleError(
            f"{', '.join(lacking) or 'the runs'} kept no {TRANSLATIONS_FILE} or {PREDICTIONS_FILE} "
            "to resample"
        )
    made = _of_translations(runs) if TRANSLATIONS_FILE in kinds.values() else _of_classes(runs)
    references = np.asarray(made.references)
    for name, (folder, facts) in runs.items():
        said = facts["score"]["test"]
        again = made.metric(np.asarray(made.predictions[name][0]), references).item()
        undefined = math.isnan(said) and math.isnan(again)
        if not undefined and not math.isclose(said, again, rel_tol=0, abs_tol=ROUNDING):
            raise ValueError(
                f"{folder}: the score of {name} is {said}, but that of its predictions is {again:.6f}; "
                "they are of different runs: score it again."
            )
    return made


def _of_classes(runs: Mapping[str, tuple[Path, dict[str, Any]]]) -> Task:
    predictions, first = {}, None
    for name, (folder, _) in runs.items():
        references, predicted = read_predictions(folder)
        first = references if first is None else first
        if not np.array_equal(first, references):
            raise ValueError(f"{folder}: other references than the first run's; score it again.")
        predictions[name] = [predicted]
    metrics = {name: facts.get("metrics") for name, (_, facts) in runs.items()}
    names = next(iter(metrics.values()))
    if not names or any(other != names for other in metrics.values()):
        raise NothingToResampleError("the runs do not say by the same metrics how they were scored")
    return Task(np.asarray(first), predictions, mean_of(names))


def _of_translations(runs: Mapping[str, tuple[Path, dict[str, Any]]]) -> Task:
    tables, first = [], None
    for folder, facts in runs.values():
        _, translations, references = read_translations(folder)
        first = references if first is None else first
        if references != first:
            raise ValueError(f"{folder}: other references than the first run's; score it again.")
        options = options_of(facts["score"]["signature"])
        tables.append(counts(translations, references, **options))
    table, size = np.concatenate(tables), len(tables[0])
    smoothing = options["smooth_method"]

    def score(rows: ArrayLike, _: ArrayLike) -> NDArray[np.float64]:
        return bleu(table[np.asarray(rows)].sum(axis=-2), smoothing)

    rows = {name: [number * size + np.arange(size)] for number, name in enumerate(runs)}
    return Task(np.arange(size), rows, score)


def options_of(signature: str | None) -> dict[str, Any]:
    """sacreBLEU's options, from its signature such as
    `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0`.

    Raises:
        NothingToResampleError: it is no such signature, or one whose score is not one of sums.
    """
    parts = dict(part.split(":", 1) for part in (signature or "").split("|") if ":" in part)
    good = {"tok", "case", "smooth"} <= parts.keys() and parts.get("nrefs") == "1"
    smooth, _, value = parts.get("smooth", "").partition("[")
    if not good or parts.get("eff") != "no" or value:
        raise NothingToResampleError(f"no interval for a score of the signature {signature}")
    return {
        "tokenize": parts["tok"],
        "lowercase": parts["case"] == "lc",
        "smooth_method": smooth,
    }


def counts(
    translations: Sequence[str], references: Sequence[str], **options: Any
) -> NDArray[np.int64]:
    """What a corpus' BLEU sums over its sentences.

    Args:
        translations, references: one text each.
        options: sacreBLEU's.

    Returns:
        int64 ``[sentences, 10]``: matching n-grams for n = 1 to 4, all n-grams of the translation for
        n = 1 to 4, tokens of the translation, tokens of the reference.
    """
    metric = sacrebleu.BLEU(effective_order=True, **options)  # which the counts do not depend on
    rows = []
    for translation, reference in zip(translations, references, strict=True):
        found: Any = metric.sentence_score(translation, [reference])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows, dtype=np.int64).reshape(-1, 2 * ORDERS + 2)


def bleu(sums: NDArray[np.int64], smoothing: str) -> NDArray[np.float64]:
    """sacreBLEU's corpus BLEU, 0 to 100, of sums of :func:`counts` ``[..., 10]``: float64 ``[...]``."""
    rows = sums.reshape(-1, 2 * ORDERS + 2).tolist()
    scores = [
        sacrebleu.BLEU.compute_bleu(
            row[:ORDERS], row[ORDERS:-2], row[-2], row[-1], smooth_method=smoothing
        ).score
        for row in rows
    ]
    return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])
