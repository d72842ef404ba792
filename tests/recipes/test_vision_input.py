"""The vision recipes' images: every way of giving them, and one line for what is wrong."""

import re

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from recipe_loading import importing
from vision import PLAIN, SHORT, classify, coloured, encoded, toy_folders

with importing("vision"):
    from labelled import LabelledRows, load_images, read_images
    from options import parse
    from sources import with_validation


def load(train, test, validation=None, **options):
    options.setdefault("validation_rows", 1)
    return load_images({"train": train, "validation": validation, "test": test}, **options)


def test_folders(tmp_path):
    """Red if a class is numbered by chance, or something that is no image is taken for one."""
    toy_folders(tmp_path)
    (tmp_path / "train" / "red" / "notes.txt").write_text("mine")
    (tmp_path / "train" / "red" / ".hidden.png").write_text("mine")
    (tmp_path / "train" / "red" / "more").mkdir()
    coloured("red", 0).save(tmp_path / "train" / "red" / "more" / "a.JPG")
    data = load(str(tmp_path / "train"), str(tmp_path / "test"), validation_rows=10)
    assert data.labels == ["blue", "red"]
    assert [len(rows) for rows in data.splits.values()] == [31, 10, 16]
    both = {*data.splits["train"].names} | {*data.splits["validation"].names}
    assert len(both) == 41
    assert data.splits["test"].open(0).size == (16, 16)
    assert data.numbers("test").tolist() == [0] * 8 + [1] * 8
    known = load(str(tmp_path / "train"), str(tmp_path / "test"), known_labels=("Red", "blue"))
    assert known.labels == ["red", "blue"]
    assert known.numbers("test").tolist() == [1] * 8 + [0] * 8


def parquet(folder, name, labels, kind=None, column="label"):
    images = [encoded(coloured("red", i)) for i in range(len(labels))]
    features = {"image": datasets.Image(), column: kind or Value("string"), "file": Value("string")}
    rows = {"image": images, column: labels, "file": [str(i) for i in range(len(labels))]}
    rows = Dataset.from_dict(rows, features=Features(features))
    folder.mkdir(exist_ok=True)
    rows.to_parquet(str(folder / name))
    return str(folder / name)


def test_parquet(tmp_path):
    """Red if named classes, words or numbers as labels are read differently, or a folder of parquet."""
    kind = ClassLabel(names=["z", "a"])
    named = parquet(tmp_path / "named", "a.parquet", [1, 0, 1, 1], kind)
    words = parquet(tmp_path / "words", "a.parquet", ["a", "z", "a", "a"])
    data = load(named, words)
    assert data.labels == ["z", "a"]
    assert data.numbers("test").tolist() == [1, 0, 1, 1]
    parquet(tmp_path / "words", "b.parquet", ["z", "z"])
    assert len(read_images(str(tmp_path / "words"))) == 6
    ten = parquet(tmp_path / "ten", "a.parquet", [i % 11 for i in range(44)], Value("int64"))
    assert load(ten, ten).labels == [str(i) for i in range(11)]
    other = parquet(tmp_path / "other", "a.parquet", ["a", "z", "a", "a"], column="kind")
    data = load(other, other, label="kind")
    assert data.splits["test"].names[1] == f"{other}, row 2"


def test_tables(tmp_path):
    """Red if paths are not read from where the table lies."""
    for i in range(4):
        coloured("red", i).save(tmp_path / f"{i}.png")
    table = tmp_path / "all.csv"
    table.write_text("file_name,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    data = load(str(table), str(table))
    assert (data.labels, data.task) == (["a", "b"], "all")
    assert data.splits["test"].open(3).size == (16, 16)


def test_the_hub(monkeypatch):
    """Red if columns of other names, or a set without a test split, need options (a stand-in)."""
    features = Features({"img": datasets.Image(), "fine_label": ClassLabel(names=["a", "b"])})
    images = [encoded(coloured("red", i)) for i in range(4)]
    rows = Dataset.from_dict({"img": images, "fine_label": [0, 1, 0, 1]}, features=features)
    asked = []

    def hub(*names):
        asked.append(names)
        return DatasetDict(train=rows, validation=rows)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    none = {"train": None, "validation": None, "test": None}
    data = load_images(none, ("someone/pets", "plain"), validation_rows=1)
    assert asked == [("someone/pets", "plain")]
    assert (data.labels, data.task, data.test) == (["a", "b"], "pets", "validation")
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [3, 1, 4]
    with pytest.raises(
        ValueError, match=r"no split 'test' among train, validation; see --test_split"
    ):
        load_images(none, ("someone/pets", None), test_split="test")

    def offline(*names):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    said = (
        r"^--dataset_name someone/pets: Couldn't reach the Hub; without a network give --train_data"
    )
    with pytest.raises(ValueError, match=said):
        load_images(none, ("someone/pets", None))


def wrong_data(folder):
    """What is given as training data -> the words of the message."""
    toy_folders(folder / "splits")
    train, test = str(folder / "splits" / "train"), str(folder / "splits" / "test")
    (folder / "flat").mkdir()
    coloured("red", 0).save(folder / "flat" / "a.png")
    (folder / "empty" / "cats").mkdir(parents=True)
    (folder / "one" / "cats").mkdir(parents=True)
    coloured("red", 0).save(folder / "one" / "cats" / "a.png")
    (folder / "bad.parquet").write_bytes(b"PAR1 but no more")
    (folder / "file.png").write_bytes(b"")
    table = folder / "table.csv"
    table.write_text("file_name,label\nnowhere.png,a\n")
    other = folder / "other.csv"
    other.write_text("path,label\nnowhere.png,a\n")
    kind = ClassLabel(names=["a", "b"])
    unlabelled = parquet(folder, "unlabelled.parquet", [0, -1, 1], kind)
    strange = parquet(folder, "strange.parquet", ["a", "b"], column="kind")
    return [
        (str(folder / "nowhere"), test, "nowhere: no such file or folder"),
        (train, None, "no --test_data; local data needs"),
        (str(folder / "splits"), test, r"its folders are splits \(test, train, validation\)"),
        (str(folder / "flat"), test, "needs a folder of images for each class, but has no folder"),
        (str(folder / "empty"), test, "cats: no image in it"),
        (str(folder / "one"), str(folder / "one"), "are all of the class 'cats'"),
        (str(folder / "one"), test, "are all of the class 'cats'"),
        (str(folder / "bad.parquet"), test, "bad.parquet: cannot be read as parquet"),
        (str(folder / "file.png"), test, "file.png: give a folder with a folder of images"),
        (str(table), test, r"table.csv, line 2: no such file: .*nowhere.png"),
        (str(other), test, r"no column 'file_name'.*see --image_column \(file_name\)"),
        (unlabelled, test, r"rows without a label \(first: row 2\); give another split"),
        (strange, test, "none of the columns image, kind, file is known .* --label_column"),
        (train, parquet(folder, "c.parquet", ["red", "green"]), "row 2: the class 'green' of the"),
    ]


def test_wrong_data(tmp_path):
    """Red if one of these trains on something, or ends in more than one line."""
    for train, test, said in wrong_data(tmp_path):
        with pytest.raises((ValueError, OSError)) as error:
            load(train, test)
        text = str(error.value)
        assert re.search(said, text), text
        assert "\n" not in text
    train, test = str(tmp_path / "splits" / "train"), str(tmp_path / "splits" / "test")
    for rows in (0, 40):
        with pytest.raises(ValueError, match="must leave something of the 40 training rows"):
            load(train, test, validation_rows=rows)


def refused(capsys, *arguments):
    """The one line with which the recipe ends."""
    with pytest.raises(SystemExit) as error:
        classify(*arguments)
    text = str(error.value.code)
    if text == "2":  # the parser's own
        text = capsys.readouterr().err.strip().splitlines()[-1]
    assert "\n" not in text
    return text


WRONG = {
    "--image_size 0": "--image_size is 0",
    "--shown 1.5": "--shown is 1.5; it must be above 0, at most 1",
    "--min_crop_area 0": "--min_crop_area is 0",
    "--momentum 1": "--momentum is 1",
    "--crop_padding -1": "--crop_padding is -1",
    "--dataset_name a/b": "--dataset_name and --train_data exclude each other",
    "--config_name resnot": "--config_name resnot: no such folder",
    "--config_overrides depth=3": "resnet has no 'depth'; did you mean 'depths'?",
    "--model_name_or_path nowhere": "--model_name_or_path nowhere: no such folder",
    "--teacher nowhere": "--teacher nowhere",
    "--croppadding 3": "did you mean --crop_padding",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_options(wrong, tmp_path, capsys):
    """Red if an option that cannot work ends in a traceback, or trains."""
    given = toy_folders(tmp_path)
    text = refused(
        capsys, PLAIN, *given, *SHORT.split(), "--output_dir", tmp_path / "out", *wrong.split()
    )
    assert WRONG[wrong] in text


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_corrupt_image_in_a_run(held, split, tmp_path, capsys):
    """Red if it ends in a traceback, wherever the image is met: before training, in it, or in the
    score."""
    given = toy_folders(tmp_path)
    broken = tmp_path / split / "red" / "03.png"
    broken.write_bytes(broken.read_bytes()[:70])
    memory = ["--image_memory", 2 if held else 0]
    small = ["--config_overrides", '{"embedding_size":8,"hidden_sizes":[8,8],"depths":[1,1]}']
    text = refused(
        capsys, PLAIN, *given, *SHORT.split(), *small, *memory, "--output_dir", tmp_path / "out"
    )
    assert f"{broken}: cannot be read as an image" in text


def test_a_checkpoint_takes_the_place_of_the_files_config():
    """Red if a fine-tuning of a run's checkpoint needs another file of options."""
    recipe, _ = parse([str(PLAIN), "--model_name_or_path", "out/dense", "--output_dir", "out"])
    assert (recipe.config_name, recipe.config_overrides) == (None, None)
    recipe, arguments = parse([str(PLAIN), "--output_dir", "out"])
    assert recipe.config_name == "cifar_resnet"
    optimizer, options = recipe.optimizer(arguments)["optimizer_cls_and_kwargs"]
    assert optimizer is torch.optim.SGD
    assert options == {"lr": 0.1, "momentum": 0.9}


def test_what_leaves_for_validation():
    """Red if the first rows leave (of sorted data a whole class), a row is lost or in both, or another
    call gives others."""
    names = [str(i) for i in range(100)]
    rows = LabelledRows([{}] * 100, names, names)
    splits = with_validation({"train": rows, "test": rows}, 20)
    held, rest = list(splits["validation"].labels), list(splits["train"].labels)
    assert (len(held), len(rest)) == (20, 80)
    assert sorted(held + rest) == sorted(names)
    assert max(map(int, held)) > 80
    assert held == list(with_validation({"train": rows, "test": rows}, 20)["validation"].labels)
