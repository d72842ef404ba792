"""Where the splits of a data set come from, whatever its rows hold: files, the Hub, or drawings."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test"}


class Rows(Protocol):
    """Rows of a split, not opened yet."""

    def __len__(self) -> int: ...

    def part(self, numbers: Sequence[int] | np.ndarray) -> Self:
        """Some of them."""


R = TypeVar("R", bound=Rows)


def find_splits(
    data: dict[str, str | None],
    hub: tuple[str, str | None] | None,
    *,
    read: Callable[[str, str], R],
    take: Callable[[Dataset, str], R],
    draw: Callable[[str], R],
    drawn: str,
    task: str | None = None,
    test_split: str | None = None,
) -> tuple[dict[str, R], str, str]:
    """Local data if there is any, else that of the Hub, else drawn by the recipe.

    Args:
        data: for train, validation (may be None) and test a folder or a file.
        hub: a data set there, and its configuration.
        read: a split and its path to rows.
        take: a split of the Hub and what to call it to rows.
        draw: a split to rows.
        drawn: what drawn data is called.
        task: what to call the data.
        test_split: of a data set of the Hub; `test`, or else `validation`.

    Returns:
        Rows by split, the data's name, and what is scored, in words.

    Raises:
        ValueError, OSError: there is no such data, or something in it is wrong: one line.
    """
    if any(data.values()):
        for split in ("train", "test"):
            if not data[split]:
                raise ValueError(
                    f"no --{split}_data; local data needs --train_data and --test_data."
                )
        given = {split: str(path) for split, path in data.items() if path}
        whole = Path(given["train"]).resolve()
        name = whole.parent.name if whole.stem in SPLIT_NAMES else whole.stem
        splits = {split: read(split, path) for split, path in given.items()}
        return splits, task or name, Path(given["test"]).name
    if hub:
        found, test = _of_the_hub(*hub, test_split)
        splits = {split: take(rows, name) for split, (rows, name) in found.items()}
        return splits, task or hub[0].rpartition("/")[2], test
    return {split: draw(split) for split in SPLITS}, task or drawn, "test"


def with_validation(splits: dict[str, R], rows: int) -> dict[str, R]:
    """Train, validation and test; where there is no validation split it leaves the training rows, the
    same ones for every seed.

    Raises:
        ValueError: so many rows cannot leave.
    """
    if "validation" not in splits:
        count = len(splits["train"])
        if not 0 < rows < count:
            raise ValueError(
                f"--validation_rows is {rows}, but must leave something of the {count} training rows; "
                "or give --validation_data."
            )
        order = np.random.default_rng(0).permutation(count)
        held, rest = (splits["train"].part(np.sort(n)) for n in (order[:rows], order[rows:]))
        splits = splits | {"validation": held, "train": rest}
    return {split: splits[split] for split in SPLITS}


def _of_the_hub(
    path: str, configuration: str | None, test: str | None
) -> tuple[dict[str, tuple[Dataset, str]], str]:
    """Our splits of a data set there, with what to call them, and which of them is scored."""
    try:
        hub: Any = datasets.load_dataset(path, configuration)
    except Exception as error:  # many kinds, whatever is wrong with a name, a network or a file
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--dataset_name {path}: {said}; without a network give --train_data and --test_data."
        ) from error
    test = test or ("test" if "test" in hub else "validation")
    for split in ("train", test):
        if split not in hub:
            raise ValueError(
                f"{path}: no split {split!r} among {', '.join(hub)}; see --test_split, or download it "
                "and give --train_data and --test_data."
            )
    kept = {"train": "train", "test": test}
    if "validation" in hub and test != "validation":
        kept["validation"] = "validation"
    return {ours: (hub[theirs], f"{path}, {theirs}") for ours, theirs in kept.items()}, test


def read_parquet(files: list[str], name: str) -> Dataset:
    """Parquet files as one table.

    Raises:
        ValueError: they cannot be read: one line with `name`.
    """
    try:
        return Dataset.from_parquet(files)
    except Exception as error:  # pyarrow's and datasets' errors share no class
        cause = error.__cause__ or error
        said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ValueError(f"{name}: cannot be read as parquet ({said}).") from error


def undecoded(rows: Dataset, name: str, image: str) -> Dataset:
    """A table whose column of images gives files, not pixels.

    Raises:
        ValueError: the column holds no images: one line with `name`.
    """
    try:
        return rows.cast_column(image, datasets.Image(decode=False))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name}: the column {image!r} holds no images ({rows.features[image]}); see --image_column."
        ) from error


def as_file(pixels: np.ndarray) -> dict[str, Any]:
    """A drawn image, uint8 ``[height, width, 3]``, as a file in memory."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "bmp")  # nothing to compress, nothing lost
    return {"bytes": file.getvalue(), "path": None}
