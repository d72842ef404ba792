"""Which images have which class: a data set of the Hub, a folder of folders, parquet, a table of paths,
or the embedded shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import shapes
from datasets import ClassLabel, Dataset
from images import open_image
from PIL import Image
from sources import SPLIT_NAMES, as_file, find_splits, read_parquet, undecoded, with_validation

from hf_nm.experiments.rows import ENDINGS, read_rows

IMAGE_ENDINGS = {ending for ending, kind in Image.registered_extensions().items() if kind != "PDF"}
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "file_name", "path"), ("label", "labels")


@dataclass(frozen=True)
class LabelledRows:
    """Images of a split, not opened yet.

    Args:
        images: of each the `bytes` of its file, or its `path`.
        labels: of each the name of its class.
        names: of each what to call it in a message.
        classes: the names in the data's own order; None where it has none.
    """

    images: Sequence[dict[str, Any]]
    labels: Sequence[str]
    names: Sequence[str]
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, number: int) -> Image.Image:
        """An image in RGB.

        Raises:
            ValueError: it cannot be read.
        """
        return open_image(self.images[number], self.names[number])

    def part(self, numbers: Sequence[int] | np.ndarray) -> "LabelledRows":
        """Some of these rows."""
        return LabelledRows(
            _Part(self.images, numbers),
            _Part(self.labels, numbers),
            _Part(self.names, numbers),
            self.classes,
        )


class _Part(Sequence):
    """Some elements of a sequence, none of them read before it is asked for."""

    def __init__(self, whole: Sequence, numbers: Sequence[int] | np.ndarray) -> None:
        self.whole, self.numbers = whole, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        return self.whole[int(self.numbers[number])]


@dataclass(frozen=True)
class Labelled:
    """Images ready to be learned from.

    Args:
        splits: train, validation and test.
        labels: names of the classes by their number in the model.
        task: what the data is called.
        test: what is scored, in words.
    """

    splits: dict[str, LabelledRows]
    labels: list[str]
    task: str
    test: str

    def numbers(self, split: str) -> np.ndarray:
        """The classes of a split: int64 ``[rows]``."""
        number = {label: i for i, label in enumerate(self.labels)}
        return np.array([number[label] for label in self.splits[split].labels])


def load_images(
    data: dict[str, str | None],
    hub: tuple[str, str | None] | None = None,
    *,
    task: str | None = None,
    image: str | None = None,
    label: str | None = None,
    test_split: str | None = None,
    validation_rows: int = 500,
    known_labels: Sequence[str] = (),
) -> Labelled:
    """Labelled images: local ones if there are any, else from the Hub or the embedded shapes.

    Args:
        data: for train, validation (may be None) and test a folder or a file.
        hub: a data set there, and its configuration.
        task: what to call it.
        image, label: columns; found by their kind or usual name if not given.
        test_split: of a data set of the Hub; `test`, or else `validation`.
        validation_rows: taken out of the training rows where there is no validation split.
        known_labels: those of a trained classifier; its order is kept if it has the same ones.

    Raises:
        ValueError, OSError: there is no such data, or something in it is wrong: one line.
    """
    splits, name, test = find_splits(
        data,
        hub,
        read=lambda split, path: read_images(path, image, label),
        take=lambda rows, called: _from_dataset(rows, called, image, label),
        draw=_embedded,
        drawn="embedded",
        task=task,
        test_split=test_split,
    )
    labels = _labels(splits, known_labels)
    return Labelled(with_validation(splits, validation_rows), labels, name, test)


def read_images(path: str, image: str | None = None, label: str | None = None) -> LabelledRows:
    """One split of local data.

    Args:
        path: a folder with a folder of images for each class, or of parquet files; a `.parquet` file;
            `.csv`, `.tsv` or `.jsonl` with paths (from where the table lies) and labels.
        image, label: columns; found by their kind or usual name if not given.

    Raises:
        ValueError, OSError: there is no such data, or something in it is wrong: one line.
    """
    where = Path(path)
    if where.is_dir():
        parquet = sorted(map(str, where.glob("*.parquet")))
        return _from_parquet(parquet, path, image, label) if parquet else _from_folder(where)
    if not where.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if where.suffix == ".parquet":
        return _from_parquet([path], path, image, label)
    if Path(where.name.removesuffix(".gz")).suffix in ENDINGS:
        return _from_table(where, image or "file_name", label or "label")
    raise ValueError(
        f"{path}: give a folder with a folder of images for each class, a .parquet file, or a table of "
        "paths and labels (.csv, .tsv, .jsonl)."
    )


def _from_folder(folder: Path) -> LabelledRows:
    classes = sorted(inner.name for inner in folder.iterdir() if inner.is_dir())
    if {name.lower() for name in classes} <= SPLIT_NAMES and classes:
        raise ValueError(
            f"{folder}: its folders are splits ({', '.join(classes)}), not classes; give one of them, "
            f"such as --train_data {folder / classes[-1]}."
        )
    files: list[tuple[Path, str]] = []
    for name in classes:
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
        )
        if not found:
            raise ValueError(
                f"{folder / name}: no image in it (such as .jpg or .png); each folder in {folder} is a "
                "class, so take this one out, or fill it."
            )
        files += [(path, name) for path in found]
    if not files:
        raise ValueError(f"{folder}: needs a folder of images for each class, but has no folder.")
    paths = [str(path) for path, _ in files]
    images = [{"bytes": None, "path": path} for path in paths]
    return LabelledRows(images, [name for _, name in files], paths, classes)


def _from_table(table: Path, image: str, label: str) -> LabelledRows:
    remedy = f"see --image_column ({image}) and --label_column ({label})"
    paths, labels, names = [], [], []
    for line, row in read_rows(table, (image, label), remedy=remedy):
        path = table.parent / str(row[image])
        if not path.is_file():
            raise FileNotFoundError(f"{table}, line {line}: no such file: {path}.")
        paths.append({"bytes": None, "path": str(path)})
        labels.append(str(row[label]))
        names.append(f"{table}, line {line} ({row[image]})")
    return LabelledRows(paths, labels, names)


def _from_parquet(
    files: list[str], name: str, image: str | None, label: str | None
) -> LabelledRows:
    return _from_dataset(read_parquet(files, name), name, image, label)


def _from_dataset(rows: Dataset, name: str, image: str | None, label: str | None) -> LabelledRows:
    if not len(rows):
        raise ValueError(f"{name}: no rows.")
    image = _column(rows, name, image, "--image_column", datasets.Image, IMAGE_COLUMNS)
    label = _column(rows, name, label, "--label_column", ClassLabel, LABEL_COLUMNS)
    rows = undecoded(rows, name, image)
    # one column at a time: a row's image is not read for its label
    values, kind = rows.select_columns(label)[:][label], rows.features[label]
    if isinstance(kind, ClassLabel):
        if min(values) < 0:
            raise ValueError(
                f"{name}: rows without a label (first: row {values.index(min(values)) + 1}); give "
                "another split as --test_split, or take these rows out."
            )
        labels, classes = [kind.names[value] for value in values], list(kind.names)
    else:
        wrong = next(
            (i for i, value in enumerate(values) if not isinstance(value, str | int)), None
        )
        if wrong is not None:
            raise ValueError(
                f"{name}, row {wrong + 1}: the label is {values[wrong]!r}, which names no class; see "
                "--label_column."
            )
        labels, classes = [str(value) for value in values], None
    names = [f"{name}, row {i + 1}" for i in range(len(rows))]
    return LabelledRows(rows.select_columns(image)[image], labels, names, classes)


def _column(
    rows: Dataset, name: str, given: str | None, option: str, kind: type, usual: Iterable[str]
) -> str:
    """A column by its name, by its kind if only one is of it, or by what it is usually called."""
    of_kind = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    called = [column for column in usual if column in rows.features]
    if given is not None:
        if given not in rows.features:
            raise ValueError(f"{name}: no column {given!r} among {', '.join(rows.features)}.")
        return given
    if len(of_kind) == 1:
        return of_kind[0]
    both = [column for column in called if column in of_kind] or called
    if not both:
        raise ValueError(
            f"{name}: none of the columns {', '.join(rows.features)} is known to be it; give {option}."
        )
    return both[0]


def _embedded(split: str) -> LabelledRows:
    pixels, classes = shapes.drawn(split)
    files = [as_file(image) for image in pixels]
    names = [f"embedded, {split} {i}" for i in range(len(files))]
    return LabelledRows(files, [shapes.LABELS[i] for i in classes], names, list(shapes.LABELS))


def _labels(splits: dict[str, LabelledRows], known: Sequence[str]) -> list[str]:
    """The classes in the model's order: the checkpoint's, the data's own, or numbers by size."""
    train = splits["train"]
    labels = train.classes or sorted(set(train.labels), key=_natural)
    if len(labels) < 2:
        raise ValueError(
            f"the training images are all of the class {labels[0]!r}; a classifier needs two or more."
        )
    if train.classes is None and len(labels) > len(train) // 2:
        raise ValueError(
            f"{len(labels)} different labels in {len(train)} training rows, such as {labels[0]!r}; see "
            "--label_column."
        )
    for split, rows in splits.items():
        missing = [i for i, label in enumerate(rows.labels) if label not in set(labels)]
        if missing:
            raise ValueError(
                f"{rows.names[missing[0]]}: the class {rows.labels[missing[0]]!r} of the {split} data "
                f"is not among those of training: {', '.join(labels[:20])}; correct it, or add training "
                "images of it."
            )
    given = {label.casefold(): label for label in labels}
    wanted = [label.casefold() for label in known]
    if len(given) == len(labels) and sorted(wanted) == sorted(given):
        return [given[label] for label in wanted]
    return labels


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers by size, before anything else."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label
