"""Which images hold what, and where: COCO json, parquet, a data set of the Hub, or embedded scenes.

Boxes are left, top, width, height in pixels of the image as it is shown, turned as its EXIF says. Those
that reach out of their image are clipped to it, those with nothing inside are left out; both are
counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import scenes
from boxed_rows import AnnotatedRows, Boxes, size_of
from datasets import ClassLabel, Dataset
from sources import as_file, find_splits, read_parquet, undecoded, with_validation

from hf_nm.experiments.output import read_json


@dataclass(frozen=True)
class Annotated:
    """Images ready to be learned from.

    Args:
        splits: train, validation and test.
        labels: names of the classes by their number in the model.
        task: what the data is called.
        test: what is scored, in words.
    """

    splits: dict[str, AnnotatedRows]
    labels: list[str]
    task: str
    test: str


def load_annotated(
    data: dict[str, str | None],
    hub: tuple[str, str | None] | None = None,
    *,
    folders: dict[str, str | None] | None = None,
    task: str | None = None,
    image: str | None = None,
    objects: str = "objects",
    test_split: str | None = None,
    validation_rows: int = 100,
    known_labels: Sequence[str] = (),
) -> Annotated:
    """Images with boxes: local ones if there are any, else from the Hub or the embedded scenes.

    Args:
        data: for train, validation (may be None) and test a file, or a folder of parquet.
        hub: a data set there, and its configuration.
        folders: where the images of a COCO json lie; the json's own folder if not given.
        task: what to call it.
        image, objects: columns; the image's is found by its kind if not given.
        test_split: of a data set of the Hub; `test`, or else `validation`.
        validation_rows: taken out of the training rows where there is no validation split.
        known_labels: those of a trained detector; its order is kept if it has the same ones.

    Raises:
        ValueError, OSError: there is no such data, or something in it is wrong: one line.
    """
    splits, name, test = find_splits(
        data,
        hub,
        read=lambda split, path: read_annotated(path, (folders or {}).get(split), image, objects),
        take=lambda rows, called: _from_dataset(rows, called, image, objects),
        draw=_embedded,
        drawn="embedded scenes",
        task=task,
        test_split=test_split,
    )
    labels = _labels(splits, known_labels)
    if not any(map(len, splits["test"].boxes)):
        raise ValueError(f"{test}: no box in the test data, so nothing could be scored.")
    return Annotated(with_validation(splits, validation_rows), labels, name, test)


def read_annotated(
    path: str, folder: str | None = None, image: str | None = None, objects: str = "objects"
) -> AnnotatedRows:
    """One split of local data.

    Args:
        path: a COCO json, a `.parquet` file, or a folder of these.
        folder: where a COCO json's images lie; its own folder if not given.
        image, objects: columns of parquet.

    Raises:
        ValueError, OSError: there is no such data, or something in it is wrong: one line.
    """
    where = Path(path)
    if not where.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    files = sorted(map(str, where.glob("*.parquet"))) if where.is_dir() else [path]
    if files and files[0].endswith(".parquet"):
        return _from_dataset(read_parquet(files, path), path, image, objects)
    if where.suffix == ".json":
        return _from_coco(where, Path(folder) if folder else where.parent)
    raise ValueError(
        f"{path}: give annotations in COCO's form (.json), a .parquet file, or a folder of these."
    )


def _from_coco(file: Path, folder: Path) -> AnnotatedRows:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder for the images of {file}.")
    found: Any = read_json(file, "give annotations in COCO's form.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(found.get(key), list) or (not found[key] and key != "annotations"):
            raise ValueError(f"{file}: needs a list {key!r}, as COCO's annotations have.")
    try:
        categories = {each["id"]: str(each["name"]) for each in found["categories"]}
        of_image: dict[Any, list[dict]] = {each["id"]: [] for each in found["images"]}
        for each in found["annotations"]:
            if each["image_id"] not in of_image:
                raise ValueError(
                    f"{file}, annotation {each.get('id')}: no image has the id {each['image_id']}; "
                    "correct it, or take it out."
                )
            if each["category_id"] not in categories:
                given = ", ".join(f"{id} {name}" for id, name in list(categories.items())[:20])
                raise ValueError(
                    f"{file}, annotation {each.get('id')}: no category has the id "
                    f"{each['category_id']} among {given}; correct it, or add the category."
                )
            of_image[each["image_id"]].append(each)
        collected = Boxes()
        images, names, sizes = [], [], []
        for each in found["images"]:
            path = folder / each["file_name"]
            name = f"{file}, image {each['id']} ({each['file_name']})"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{name}: no such file: {path}; see --train_images and --test_images."
                )
            source = {"bytes": None, "path": str(path)}
            size = size_of(source, name, each.get("width"), each.get("height"))
            boxes = [
                (one["bbox"], categories[one["category_id"]], bool(one.get("iscrowd", 0)))
                for one in of_image[each["id"]]
            ]
            collected.add(name, size, boxes)
            images.append(source)
            names.append(name)
            sizes.append(size)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: not in COCO's form ({type(error).__name__}: {error}); images need id and "
            "file_name, annotations image_id, category_id and bbox, categories id and name."
        ) from error
    return collected.rows(images, names, sizes, list(categories.values()))


def _from_dataset(rows: Dataset, name: str, image: str | None, objects: str) -> AnnotatedRows:
    if not len(rows):
        raise ValueError(f"{name}: no rows.")
    of_kind = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    image = image or next(iter(of_kind), "image")
    for column, option in ((image, "image"), (objects, "objects")):
        if column not in rows.features:
            raise ValueError(
                f"{name}: no column {column!r} among {', '.join(rows.features)}; see --{option}_column."
            )
    rows = undecoded(rows, name, image)
    boxed = rows.select_columns(objects)[:][objects]
    kind: Any = rows.features[objects]
    kind = getattr(kind, "feature", kind)  # a list of objects, or an object of lists
    kind = kind.get("category", kind.get("label")) if isinstance(kind, dict) else None
    kind = getattr(kind, "feature", kind)
    named = isinstance(kind, ClassLabel)
    widths, heights = (
        rows.select_columns(key)[:][key] if key in rows.features else [None] * len(rows)
        for key in ("width", "height")
    )
    images, collected = rows.select_columns(image)[image], Boxes()
    names, sizes = [f"{name}, row {i + 1}" for i in range(len(rows))], []
    for i, row in enumerate(boxed):
        source = {"bytes": None, "path": None} if widths[i] and heights[i] else images[i]
        size = size_of(source, names[i], widths[i], heights[i])
        given = []
        for box, label, crowd in _objects(row, names[i], objects):
            if named and not (isinstance(label, int) and 0 <= label < len(kind.names)):
                raise ValueError(
                    f"{names[i]}: the category {label!r} is none of the {len(kind.names)} names."
                )
            given.append((box, kind.names[label] if named else str(label), crowd))
        collected.add(names[i], size, given)
        sizes.append(size)
    return collected.rows(images, names, sizes, list(kind.names) if named else None)


def _objects(row: Any, name: str, column: str) -> list[tuple[Any, Any, bool]]:
    """Boxes, categories and crowds of a row, of an object of lists or a list of objects."""
    if isinstance(row, list) and all(isinstance(each, dict) for each in row):
        row = {key: [each.get(key) for each in row] for key in (row[0] if row else {"bbox": []})}
        row.setdefault("category", [])
    key = "category" if isinstance(row, dict) and "category" in row else "label"
    if not isinstance(row, dict) or "bbox" not in row or key not in row:
        raise ValueError(
            f"{name}: the column {column!r} must hold lists bbox and category, not {str(row)[:60]}; see "
            "--objects_column."
        )
    boxes, labels = row["bbox"] or [], row[key] or []
    if len(boxes) != len(labels):
        raise ValueError(f"{name}: {len(boxes)} boxes, but {len(labels)} categories; correct it.")
    crowds = row.get("iscrowd") or [False] * len(boxes)
    return list(zip(boxes, labels, map(bool, crowds), strict=True))


def _embedded(split: str) -> AnnotatedRows:
    images, names, sizes, collected = [], [], [], Boxes()
    for i in range(scenes.ROWS[split]):
        pixels, boxes, classes = scenes.drawn(split, i)
        images.append(as_file(pixels))
        names.append(f"embedded, {split} {i}")
        sizes.append((scenes.SIDE, scenes.SIDE))
        labels = [scenes.LABELS[kind] for kind in classes]
        given = [(box, label, False) for box, label in zip(boxes.tolist(), labels, strict=True)]
        collected.add(names[-1], sizes[-1], given)
    return collected.rows(images, names, sizes, list(scenes.LABELS))


def _labels(splits: dict[str, AnnotatedRows], known: Sequence[str]) -> list[str]:
    """The classes in the model's order: the checkpoint's, or the data's own."""
    train = splits["train"]
    labels = train.classes or sorted({label for row in train.labels for label in row})
    if not labels:
        raise ValueError("no box in the training data.")
    for split, rows in splits.items():
        for name, row in zip(rows.names, rows.labels, strict=True):
            missing = next((label for label in row if label not in labels), None)
            if missing is not None:
                raise ValueError(
                    f"{name}: the class {missing!r} of the {split} data is not among those of training: "
                    f"{', '.join(labels[:20])}; correct it, or add training images of it."
                )
    given = {label.casefold(): label for label in labels}
    wanted = [label.casefold() for label in known]
    if len(given) == len(labels) and sorted(wanted) == sorted(given):
        return [given[label] for label in wanted]
    return labels
