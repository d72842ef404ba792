"""Which sentences get which label: GLUE and others by name, local files, the embedded reviews."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from reviews import LABELS, embedded_reviews

from hf_nm.experiments.rows import read_rows


@dataclass(frozen=True)
class Task:
    """Where a task's data is on the Hub, and how it is scored.

    Args:
        hub: data set and configuration on the Hub; None for local files.
        texts: columns of the one or two sentences.
        label: column of the label.
        metrics: what the field reports for it; their mean is the score, as GLUE counts it.
        test: the split that is scored. GLUE's test labels are not public, so its validation split is
            scored, and rows for validation are taken out of the training split.
        regression: whether the label is a number.
        positive: the class that F1 is of.
        revision: of the data set on the Hub.
    """

    hub: tuple[str, str | None] | None = None
    texts: tuple[str, ...] = ("text",)
    label: str = "label"
    metrics: tuple[str, ...] = ()
    test: str = "validation"
    regression: bool = False
    positive: str = "1"
    revision: str | None = None


GLUE = "nyu-mll/glue"
PAIR = ("sentence1", "sentence2")
CORRELATIONS = ("pearsonr", "spearmanr")
ACCURACY = ("accuracy",)
TASKS = {
    "sst2": Task((GLUE, "sst2"), ("sentence",), metrics=ACCURACY),
    "cola": Task((GLUE, "cola"), ("sentence",), metrics=("matthews_correlation",)),
    "mrpc": Task((GLUE, "mrpc"), PAIR, metrics=("accuracy", "f1"), positive="equivalent"),
    "rte": Task((GLUE, "rte"), PAIR, metrics=ACCURACY),
    "qnli": Task((GLUE, "qnli"), ("question", "sentence"), metrics=ACCURACY),
    "qqp": Task(
        (GLUE, "qqp"),
        ("question1", "question2"),
        metrics=("accuracy", "f1"),
        positive="duplicate",
    ),
    "mnli": Task(
        (GLUE, "mnli"), ("premise", "hypothesis"), metrics=ACCURACY, test="validation_matched"
    ),
    "stsb": Task((GLUE, "stsb"), PAIR, metrics=CORRELATIONS, regression=True),
    "ag_news": Task(("fancyzhx/ag_news", None), metrics=ACCURACY, test="test"),
    # the data set's own form needs a script that `datasets` no longer runs
    "trec": Task(
        ("CogComp/trec", None),
        label="coarse_label",
        metrics=ACCURACY,
        test="test",
        revision="refs/convert/parquet",
    ),
}
COLUMNS = ("first", "second")
SPLITS = ("train", "validation", "test")
Row = tuple[tuple[str, ...], int | float]


@dataclass(frozen=True)
class Labelled:
    """Data ready to be tokenized.

    Args:
        splits: train, validation and test with columns `first`, `second` (of pairs) and `label`: the
            class's number in the model, or a float.
        labels: names of the classes by their number in the model; None for a regression.
        scored: for each of these classes its number in scores and predictions, whatever order a
            trained model has them in; for F1 1 is the positive one.
        task: how it is scored.
    """

    splits: DatasetDict
    labels: list[str] | None
    scored: list[int]
    task: Task

    @property
    def texts(self) -> list[str]:
        """The columns with a sentence: `first`, or `first` and `second`."""
        return [column for column in COLUMNS if column in self.splits["train"].features]


def load_data(
    name: str,
    files: dict[str, str | None],
    *,
    texts: Sequence[str] | None = None,
    label: str | None = None,
    metrics: Sequence[str] | None = None,
    positive: str | None = None,
    regression: bool = False,
    validation_rows: int = 500,
    known_labels: Sequence[str] = (),
) -> Labelled:
    """The data of a task: from local files if there are any, else embedded or from the Hub.

    Args:
        name: a key of `TASKS`, `embedded`, or anything for local files.
        files: train, validation (may be None) and test.
        texts, label, metrics, positive, regression: in place of the task's own.
        validation_rows: taken out of the training rows where there is no validation split.
        known_labels: those of a trained classifier; its order is kept if it has the same ones.
    """
    local = any(files.values())
    if not local and name not in (*TASKS, "embedded"):
        raise ValueError(
            f"no task {name!r}; known: {', '.join(TASKS)}, embedded; or give --train_file and "
            "--test_file."
        )
    if not local and name == "embedded" and (texts or label or regression):
        raise ValueError(
            "--text_columns, --label_column and --regression are for other data than the embedded; "
            "give --task or --train_file and --test_file."
        )
    task = _task(name, local, texts, label, metrics, regression)
    if local:
        splits, labels = _from_files(files, task)
    elif name == "embedded":
        splits, labels = _embedded()
    else:
        assert task.hub is not None  # of TASKS
        splits, labels = _from_hub(*task.hub, task)
    scored: list[int] = []
    if labels is not None:
        own = _positive_last(labels, task, positive)
        splits, labels = _in_known_order(splits, labels, known_labels)
        scored = [own.index(name) for name in labels]
    if "validation" not in splits:
        if not 0 < validation_rows < len(splits["train"]):
            raise ValueError(
                f"--validation_rows is {validation_rows}, but must leave something of the "
                f"{len(splits['train'])} training rows; or give --validation_file."
            )
        halves = splits["train"].train_test_split(test_size=validation_rows, seed=0)
        splits = {**splits, "train": halves["train"], "validation": halves["test"]}
    return Labelled(DatasetDict({split: splits[split] for split in SPLITS}), labels, scored, task)


def _task(
    name: str,
    local: bool,
    texts: Sequence[str] | None,
    label: str | None,
    metrics: Sequence[str] | None,
    regression: bool,
) -> Task:
    """The named task, or one for local files, with what was given in its place."""
    task = TASKS.get(name, Task(test="test"))
    if regression and name in TASKS and not task.regression:
        raise ValueError(f"{name} has classes, not numbers; leave out --regression.")
    regression = regression or task.regression
    metrics = tuple(metrics or task.metrics or (CORRELATIONS if regression else ACCURACY))
    wrong = [metric for metric in metrics if (metric in CORRELATIONS) != regression]
    if wrong:
        raise ValueError(
            f"--metrics {wrong[0]} is for {'classes' if regression else 'a regression'}; this task "
            f"has {'numbers' if regression else 'classes'}: take "
            f"{' '.join(CORRELATIONS) if regression else 'accuracy, f1 or matthews_correlation'}."
        )
    texts = tuple(texts or task.texts)
    if len(texts) > 2:
        raise ValueError(f"--text_columns takes one or two columns, but got {list(texts)}.")
    return replace(
        task,
        texts=texts,
        label=label or ("label" if local else task.label),
        metrics=metrics,
        regression=regression,
    )


def _positive_last(labels: list[str], task: Task, positive: str | None) -> list[str]:
    """The classes in the order of their scored numbers."""
    if "f1" not in task.metrics:
        return labels
    # GLUE's files number what the Hub names.
    candidates = [positive] if positive else [task.positive, "1"]
    found = next((label for label in candidates if label in labels), None)
    if len(labels) != 2 or found is None:
        raise ValueError(
            f"f1 is of one class against another ({' or '.join(candidates)}), but the labels are "
            f"{', '.join(labels[:20])}; give --positive_label, or --metrics accuracy."
        )
    return sorted(labels, key=lambda label: label == found)


def _in_known_order(
    splits: dict[str, Dataset], labels: list[str], known: Sequence[str]
) -> tuple[dict[str, Dataset], list[str]]:
    """The same rows with the numbers that a trained classifier gives these labels, if it has them:
    MNLI checkpoints, for one, come in several orders."""
    number = {label.casefold(): i for i, label in enumerate(known)}
    new = [number.get(label.casefold(), -1) for label in labels]
    if sorted(new) != [*range(len(known))] or new == sorted(new):
        return splits, labels
    return {
        split: rows.map(lambda label: {"label": new[label]}, input_columns="label")
        for split, rows in splits.items()
    }, [labels[new.index(i)] for i in range(len(new))]


def _from_files(
    files: dict[str, str | None], task: Task
) -> tuple[dict[str, Dataset], list[str] | None]:
    for split in ("train", "test"):
        if not files[split]:
            raise ValueError(f"no --{split}_file; local data needs --train_file and --test_file.")
    given = {split: file for split, file in files.items() if file}
    remedy = f"see --text_columns ({' '.join(task.texts)}) and --label_column ({task.label})"
    # per split: line number, texts, label as written
    rows = {
        split: [
            (line, tuple(str(row[column]) for column in task.texts), row[task.label])
            for line, row in read_rows(file, (*task.texts, task.label), remedy=remedy)
        ]
        for split, file in given.items()
    }
    if task.regression:
        return {
            split: _dataset([(texts, _number(given[split], n, value)) for n, texts, value in found])
            for split, found in rows.items()
        }, None
    labels = sorted({str(value) for _, _, value in rows["train"]}, key=_natural)
    if len(labels) < 2:
        raise ValueError(
            f"{given['train']}: every row has the label {labels[0]!r}; a classifier needs two or "
            "more (for numbers to predict give --regression True)."
        )
    if len(labels) > len(rows["train"]) // 2:
        raise ValueError(
            f"{given['train']}: {len(labels)} different labels in {len(rows['train'])} rows, such "
            f"as {labels[0]!r}; see --label_column, or give --regression True for numbers."
        )
    number = {label: i for i, label in enumerate(labels)}
    for split, found in rows.items():
        for line, _, value in found:
            if str(value) not in number:
                raise ValueError(
                    f"{given[split]}, line {line}: the label {str(value)!r} is not among those of "
                    f"{given['train']}: {', '.join(labels[:20])}; correct it, or add training rows "
                    "of it."
                )
    return {
        split: _dataset([(texts, number[str(value)]) for _, texts, value in found])
        for split, found in rows.items()
    }, labels


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers by size, before anything else."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label


def _number(file: str, line: int, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number - number != 0:
        raise ValueError(
            f"{file}, line {line}: the label {value!r} is not a finite number, which a regression "
            "needs; correct it, or leave out --regression."
        )
    return number


def _embedded() -> tuple[dict[str, Dataset], list[str]]:
    return {
        split: _dataset([((text,), LABELS.index(label)) for text, label in rows])
        for split, rows in embedded_reviews().items()
    }, list(LABELS)


def _from_hub(
    path: str, configuration: str | None, task: Task
) -> tuple[dict[str, Dataset], list[str] | None]:
    try:
        hub = datasets.load_dataset(path, configuration, revision=task.revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; without a network give --train_file and --test_file."
        ) from error
    features = hub["train"].features
    for column in (*task.texts, task.label):
        if column not in features:
            raise ValueError(
                f"{path}: no column {column!r} among {', '.join(features)}; leave out "
                "--text_columns and --label_column for the task's own."
            )
    names = None if task.regression else list(features[task.label].names)

    def rows(split: str) -> Dataset:
        columns = [hub[split][column] for column in task.texts]
        return _dataset(list(zip(zip(*columns, strict=True), hub[split][task.label], strict=True)))

    return {"train": rows("train"), "test": rows(task.test)}, names


def _dataset(rows: Sequence[Row]) -> Dataset:
    columns = {
        column: [texts[i] for texts, _ in rows]
        for i, column in enumerate(COLUMNS[: len(rows[0][0])])
    }
    return Dataset.from_dict({**columns, "label": [label for _, label in rows]})
