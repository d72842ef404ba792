"""The detection recipe's data: every form of it, boxes clipped, and one line for what is wrong."""

import re

import datasets
import numpy as np
import pytest
from boxes import BRIEF, YOLOS, boxed, changed, coco, parquet
from datasets import DatasetDict, Value
from PIL import Image
from recipe_loading import importing
from vision import detect

with importing("vision"):
    import scenes
    from annotated import load_annotated, read_annotated
    from images import ImageError

NONE = {"train": None, "validation": None, "test": None}


def assert_same(rows, first=0):
    for i in range(len(rows)):
        image, boxes, classes = boxed(first + i)
        assert np.array_equal(np.asarray(rows.open(i)), np.asarray(image))
        assert rows.boxes[i].tolist() == boxes
        assert rows.labels[i] == [("dark", "bright")[kind] for kind in classes]


def test_coco_and_parquet_are_read_alike(tmp_path):
    """Red if a category's id is taken for its number, or a box for two corners."""
    assert_same(read_annotated(str(coco(tmp_path / "coco"))))
    assert_same(read_annotated(str(parquet(tmp_path / "a.parquet"))))
    words = read_annotated(str(parquet(tmp_path / "words" / "a.parquet", kind=Value("string"))))
    assert_same(words)
    assert words.classes is None
    parquet(tmp_path / "words" / "b.parquet", 3, kind=Value("string"))
    assert len(read_annotated(str(tmp_path / "words"))) == 15


def test_images_elsewhere_and_without_sizes(tmp_path):
    """Red if --train_images is not followed, or a size that the json lacks is not read."""
    file = coco(tmp_path / "coco")

    def change(found):
        for image in found["images"]:
            del image["width"], image["height"]

    bare = changed(file, change).rename(tmp_path / "bare.json")
    rows = read_annotated(str(bare), str(tmp_path / "coco"))
    assert_same(rows)
    assert rows.sizes[0] == (40, 32)


def test_splits_and_labels(tmp_path):
    """Red if validation images are trained on, or a checkpoint's order of classes is lost."""
    train, test = coco(tmp_path / "train", 12), coco(tmp_path / "test", 5, 50)
    data = load_annotated(NONE | {"train": str(train), "test": str(test)}, validation_rows=4)
    assert data.labels == ["dark", "bright"]
    assert [len(rows) for rows in data.splits.values()] == [8, 4, 5]
    both = {*data.splits["train"].names} | {*data.splits["validation"].names}
    assert len(both) == 12
    number = int(re.search(r"\((\d+)\.png", data.splits["validation"].names[1])[1])
    image, boxes, _ = boxed(number)
    assert np.array_equal(np.asarray(data.splits["validation"].open(1)), np.asarray(image))
    assert data.splits["validation"].boxes[1].tolist() == boxes
    given = NONE | {"train": str(train), "test": str(test)}
    known = load_annotated(given, validation_rows=4, known_labels=("Bright", "Dark"))
    assert known.labels == ["bright", "dark"]


def test_boxes_outside_are_clipped_and_counted(tmp_path):
    """Red if a box keeps what is outside its image, or one of no area reaches the loss."""
    boxes = [[-4, 2, 10, 5], [30, 28, 20, 20], [40, 0, 5, 5], [1, 2, 3, 4]]

    def change(found):
        first = found["annotations"][0]
        found["annotations"] = [
            first | {"id": i, "bbox": box, "image_id": 100} for i, box in enumerate(boxes, 1)
        ]

    rows = read_annotated(str(changed(coco(tmp_path / "coco"), change)))
    assert rows.boxes[0].tolist() == [[0, 2, 6, 5], [30, 28, 10, 4], [1, 2, 3, 4]]
    assert (rows.clipped, rows.dropped) == (2, 1)
    assert [len(each) for each in rows.boxes[1:]] == [0] * 11


def first(key, **values):
    return lambda found: found[key][0].update(values)


WRONG = {
    "category": (
        first("annotations", category_id=9),
        r"annotation 1: no category has the id 9 among",
    ),
    "image": (first("annotations", image_id=9), "annotation 1: no image has the id 9"),
    "file": (
        first("images", file_name="x.png"),
        r"image 100 \(x.png\): no such file: .*--train_images",
    ),
    "flat": (
        first("annotations", bbox=[1, 2, 0, 4]),
        r"the box \[1, 2, 0, 4\] must be left, top, width",
    ),
    "three": (first("annotations", bbox=[1, 2, 3]), r"the box \[1, 2, 3\] must be"),
    "nan": (
        first("annotations", bbox=[1, 2, 3, float("nan")]),
        "must be left, top, width and height",
    ),
    "text": (first("annotations", bbox="1 2 3 4"), "the box 1 2 3 4 must be"),
    "no bbox": (lambda found: found["annotations"][0].pop("bbox"), "not in COCO's form .*'bbox'"),
    "no list": (lambda found: found.pop("categories"), "needs a list 'categories'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_coco(kind, tmp_path):
    """Red if a mistake in a json goes through, or comes as a traceback."""
    change, said = WRONG[kind]
    file = changed(coco(tmp_path / "coco"), change)
    with pytest.raises((ValueError, OSError), match=said) as error:
        read_annotated(str(file))
    assert "\n" not in str(error.value)


def test_wrong_files(tmp_path):
    """Red if a file of another kind, or a missing one, comes as a traceback."""
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "a.parquet").write_text("no")
    (tmp_path / "a.txt").write_text("no")
    file = coco(tmp_path / "coco")
    for path, folder, said in (
        ("a.json", None, "not whole JSON"),
        ("a.parquet", None, "cannot be read as parquet"),
        ("a.txt", None, "give annotations in COCO's form"),
        ("b.json", None, "no such file or folder"),
        ("coco/annotations.json", str(tmp_path / "none"), "no such folder for the images"),
    ):
        with pytest.raises((ValueError, OSError), match=said) as error:
            read_annotated(str(tmp_path / path), folder)
        assert "\n" not in str(error.value)
    rows = str(parquet(tmp_path / "good.parquet"))
    with pytest.raises(
        ValueError, match=r"no column 'boxes' among image, objects; see --objects_c"
    ):
        read_annotated(rows, objects="boxes")
    with pytest.raises(ValueError, match="must hold lists bbox and category"):
        read_annotated(rows, objects="image")
    with pytest.raises(ValueError, match="no --test_data; local data needs"):
        load_annotated(NONE | {"train": str(file)})
    with pytest.raises(ValueError, match="must leave something of the 12 training rows"):
        load_annotated(NONE | {"train": str(file), "test": str(file)})


def test_wrong_label_names(tmp_path):
    """Red if test data of other classes is scored as if these were never found."""
    train, test = coco(tmp_path / "train"), coco(tmp_path / "test")
    other = changed(test, first("categories", name="dim"))
    with pytest.raises(
        ValueError, match="the class 'dim' of the test data is not among those of tr"
    ):
        load_annotated(NONE | {"train": str(train), "test": str(other)}, validation_rows=2)


def test_images_that_are_not_what_was_annotated(tmp_path):
    """Red if boxes are scaled by a size that the image does not have."""
    file = coco(tmp_path / "coco")
    Image.new("RGB", (32, 40)).save(tmp_path / "coco" / "1.png")
    rows = read_annotated(str(file))
    with pytest.raises(ImageError, match="is 32 x 40 pixels, but its annotations are of 40 x 32"):
        rows.open(1)


def test_corrupt_image_ends_the_run_with_one_line(tmp_path):
    """Red if a damaged image ends in a traceback, or only hours into training."""
    file = coco(tmp_path / "coco")
    (tmp_path / "coco" / "5.png").write_bytes(b"no image")
    options = ["--train_data", file, "--test_data", file, "--validation_rows", 2]
    options += ["--config_name", "yolos", "--config_overrides", YOLOS, *BRIEF.split()]
    said = r"error: .*image 105 \(5.png\): cannot be read as an image"
    with pytest.raises(SystemExit, match=said) as error:
        detect(*options, "--image_size", 32, "--output_dir", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_the_hub(tmp_path, monkeypatch):
    """Red if a data set of the Hub without a test split needs options (a stand-in)."""
    rows = datasets.Dataset.from_parquet(str(parquet(tmp_path / "a.parquet")))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: DatasetDict(train=rows, validation=rows)
    )
    data = load_annotated(NONE, ("someone/things", None), validation_rows=2)
    assert (data.task, data.test, data.labels) == ("things", "validation", ["dark", "bright"])
    assert_same(data.splits["test"])


def test_embedded_scenes():
    """Red if a box is not what the shape's pixels span, or scenes differ between two runs."""
    seen = set()
    for number in range(40):
        pixels, boxes, classes = scenes.drawn("train", number)
        assert np.array_equal(pixels, scenes.drawn("train", number)[0])
        seen |= {*classes.tolist()}
        ground = np.median(pixels.reshape(-1, 3), 0)
        far = np.linalg.norm(pixels - ground, axis=2) > scenes.APART / 2
        for left, top, width, height in boxes.astype(int):
            inner = far[top : top + height, left : left + width]
            assert inner.any(1)[[0, -1]].all()
            assert inner.any(0)[[0, -1]].all()
            far[top : top + height, left : left + width] = False
        if len(boxes) < 3:  # else the shapes may be most of the image
            assert not far.any()
    assert seen == {0, 1, 2, 3}
