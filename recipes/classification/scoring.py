"""How good the answers are: the task's metrics, of what the saved checkpoint's pipeline says."""

from collections.abc import Iterable, Sequence
from typing import Any

import evaluate
from data import Labelled
from transformers import TextClassificationPipeline

from hf_nm.experiments.metrics import F1, Accuracy, MatthewsCorrelation, Pearson, Spearman

METRICS = {metric.key: metric for metric in (Accuracy, F1, MatthewsCorrelation, Pearson, Spearman)}


def score(
    names: Iterable[str], predictions: Sequence[float], references: Sequence[float]
) -> dict[str, float]:
    """The task's metrics, each in its own unit."""
    combined = evaluate.combine([METRICS[name](keep_in_memory=True) for name in names])
    return combined.compute(predictions=predictions, references=references)


def as_scored(data: Labelled, numbers: Iterable[Any]) -> list[Any]:
    """The model's class numbers as the scores count them; numbers of a regression as they are."""
    return list(numbers) if data.labels is None else [data.scored[i] for i in numbers]


def answers(
    classify: TextClassificationPipeline, data: Labelled, batch_size: int, max_length: int
) -> list[float]:
    """What the pipeline says of every test row: the model's class number, or the value of a regression.

    Args:
        classify: the checkpoint's pipeline.
        data: the test split's texts.
        batch_size: rows at a time.
        max_length: tokens; longer texts are cut.
    """
    test = data.splits["test"]
    inputs = [
        dict(zip(("text", "text_pair"), texts, strict=False))
        for texts in zip(*(test[column] for column in data.texts), strict=True)
    ]
    found: Any = classify(
        inputs,
        batch_size=batch_size,
        truncation=True,
        max_length=max_length,
        function_to_apply="none" if data.labels is None else "softmax",
    )
    if data.labels is None:
        return [row["score"] for row in found]
    number: Any = classify.model.config.label2id
    return [number[row["label"]] for row in found]
