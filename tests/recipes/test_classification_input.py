"""The classification recipe's data: every way of giving it, and one clear line for what is wrong."""

import dataclasses
import gzip
import json
import re
import shlex

import pytest
import torch
from classification import run
from conftest import ROOT
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from recipe_loading import CLASSIFICATION, importing
from transformers import AutoModel, AutoTokenizer

with importing("classification"):
    from batching import EpochGroupedSampler
    from data import SPLITS, TASKS, load_data
    from options import RecipeArguments, parse
    from reviews import embedded_reviews
    from tokenizer import SPECIAL, train_wordpiece

TSV = "sentence\tlabel\na good film\tpos\na bad film\tneg\nnot bad\tpos\nnot good\tneg\n"


def files(folder, **texts):
    """Writes each text as `split.ending`; the options of `load`."""
    found = {"train": None, "validation": None, "test": None}
    for split, (ending, text) in texts.items():
        path = folder / f"{split}{ending}"
        if ending.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        found[split] = str(path)
    return found


def load(folder, name="mine", texts=("sentence",), **options):
    given = files(folder, **{k: options.pop(k) for k in tuple(options) if k in SPLITS})
    options.setdefault("validation_rows", 1)
    return load_data(name, given, texts=texts, **options)


def test_three_kinds_of_files_give_the_same_rows(tmp_path):
    """Red if a kind is read differently, or a label's number depends on the order of rows."""
    rows = [line.split("\t") for line in TSV.splitlines()[1:]]
    csv = "label,sentence\n" + "".join(f'{label},"{text}"\n' for text, label in rows)
    jsonl = "".join(json.dumps({"sentence": t, "label": y}) + "\n" for t, y in reversed(rows))
    kinds = {".tsv": TSV, ".csv.gz": csv, ".jsonl": jsonl}
    for ending, text in kinds.items():
        data = load(tmp_path, train=(ending, text), test=(".tsv", TSV), validation=(".tsv", TSV))
        assert data.labels == ["neg", "pos"]
        assert data.task.metrics == ("accuracy",)
        found = sorted(zip(*(data.splits["train"][c] for c in ("first", "label")), strict=True))
        assert found == [("a bad film", 0), ("a good film", 1), ("not bad", 1), ("not good", 0)]
        assert data.texts == ["first"]


def test_pairs_and_numbers(tmp_path):
    """Red if the second sentence is dropped, or a regression's labels become classes."""
    text = "a\tb\ty\nx\tz\t1.5\nu\tv\t-2\nu\tv\t0\n"
    data = load(
        *[tmp_path, "mine", ("a", "b")],
        train=(".tsv", text),
        test=(".tsv", text),
        label="y",
        regression=True,
    )
    assert data.labels is None
    assert data.task.metrics == ("pearsonr", "spearmanr")
    assert data.splits["test"].to_list()[:2] == [
        {"first": "x", "second": "z", "label": 1.5},
        {"first": "u", "second": "v", "label": -2.0},
    ]
    assert (len(data.splits["train"]), len(data.splits["validation"])) == (2, 1)


def test_labels_are_ordered_as_numbers_and_as_the_checkpoint_has_them(tmp_path):
    """Red if 10 sorts before 9, or a fine-tuned model's classes are renumbered."""
    text = "sentence\tlabel\n" + "".join(f"s{i}\t{i % 11}\n" for i in range(44))
    data = load(tmp_path, train=(".tsv", text), test=(".tsv", text))
    assert data.labels == [str(i) for i in range(11)]
    text = TSV.replace("pos", "Pos")
    data = load(tmp_path, train=(".tsv", text), test=(".tsv", text), known_labels=("pos", "Neg"))
    assert data.labels == ["Pos", "neg"]
    assert data.splits["test"]["label"] == [0, 1, 0, 1]
    assert load(
        tmp_path, train=(".tsv", TSV), test=(".tsv", TSV), known_labels=("LABEL_0", "LABEL_1")
    ).labels == ["neg", "pos"]


def test_f1_is_of_the_positive_class(tmp_path):
    """Red if F1 is of whichever class sorts last, or comes second in a checkpoint."""
    text = TSV.replace("pos", "equivalent").replace("neg", "not_equivalent")
    for known in ((), ("equivalent", "not_equivalent"), ("not_equivalent", "equivalent")):
        given = {"train": (".tsv", text), "test": (".tsv", text), "known_labels": known}
        data = load(tmp_path, "mrpc", **given)
        scored = [data.scored[number] for number in data.splits["test"]["label"]]
        assert scored == [1, 0, 1, 0]
    given = {"train": (".tsv", TSV), "test": (".tsv", TSV), "metrics": ("f1",), "positive": "neg"}
    data = load(tmp_path, **given)
    assert [data.scored[number] for number in data.splits["test"]["label"]] == [0, 1, 0, 1]


def test_rows_for_validation_leave_training(tmp_path):
    """Red if validation rows are trained on, or drawn anew with each seed."""
    text = "sentence\tlabel\n" + "".join(f"s{i}\t{i % 2}\n" for i in range(40))
    first, second = (
        load(
            tmp_path,
            train=(".tsv", text),
            test=(".tsv", TSV.replace("pos", "1").replace("neg", "0")),
            validation_rows=10,
        ).splits
        for _ in range(2)
    )
    parts = [set(first[split]["first"]) for split in ("train", "validation")]
    assert (len(parts[0]), len(parts[1]), len(parts[0] & parts[1])) == (30, 10, 0)
    assert first["validation"]["first"] == second["validation"]["first"]


@pytest.mark.parametrize("name", TASKS)
def test_every_named_task(name, monkeypatch):
    """Red if a task's columns, split or metrics are not the data set's (a stand-in for the Hub)."""
    task = TASKS[name]
    names = ["no", task.positive]
    asked = []

    def hub(path, config, revision=None):
        asked.append((path, config, revision))
        kind = Value("float32") if task.regression else ClassLabel(names=names)
        features = {**dict.fromkeys(task.texts, Value("string")), task.label: kind}

        def split(rows):
            columns = {text: [f"{text} {i}" for i in range(rows)] for text in task.texts}
            labels = [i % 2 for i in range(rows)]
            return Dataset.from_dict({**columns, task.label: labels}, features=Features(features))

        return DatasetDict({"train": split(12), task.test: split(4)})

    monkeypatch.setattr("datasets.load_dataset", hub)
    data = load_data(name, dict.fromkeys(SPLITS), validation_rows=3)
    assert asked == [(*task.hub, task.revision)]
    assert data.labels == (None if name == "stsb" else names)
    assert [len(data.splits[split]) for split in SPLITS] == [9, 3, 4]
    assert len(data.texts) == len(task.texts)
    expected = {
        "cola": ("matthews_correlation",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearsonr", "spearmanr"),
    }
    assert data.task.metrics == expected.get(name, ("accuracy",))


BAD = {
    "no test file": ({"train": (".tsv", TSV)}, {}, r"no --test_file"),
    "missing column": (
        {"train": (".tsv", TSV.replace("sentence", "text"))},
        {},
        r"train.tsv, line 1: .*'sentence'.*--text_columns",
    ),
    "no label column": (
        {"train": (".tsv", TSV)},
        {"label": "class"},
        r"train.tsv, line 1: .*'class'.*--label_column",
    ),
    "unknown label": (
        {"train": (".tsv", TSV), "test": (".tsv", TSV.replace("bad\tpos", "bad\tmeh"))},
        {},
        r"test.tsv, line 4: the label 'meh' is not among those of .*neg, pos",
    ),
    "empty file": ({"train": (".tsv", "")}, {}, r"train.tsv: the file is empty"),
    "no rows": ({"train": (".tsv", "sentence\tlabel\n")}, {}, r"train.tsv.*row"),
    "binary file": ({"train": (".tsv", b"PK\x03\x04\0\0")}, {}, r"train.tsv: this looks like zip"),
    "one class": (
        {"train": (".tsv", TSV.replace("pos", "neg"))},
        {},
        r"train.tsv: every row has the label 'neg'.*--regression",
    ),
    "texts as labels": (
        {"train": (".tsv", TSV)},
        {"texts": ("label",), "label": "sentence"},
        r"train.tsv: 4 different labels in 4 rows",
    ),
    "not a number": (
        {"train": (".tsv", TSV)},
        {"regression": True},
        r"train.tsv, line 2: the label 'pos' is not a finite number",
    ),
    "infinite": (
        {"train": (".tsv", TSV.replace("pos", "1").replace("neg", "inf"))},
        {"regression": True},
        r"train.tsv, line 3: the label 'inf'",
    ),
    "accuracy of numbers": (
        {"train": (".tsv", TSV)},
        {"regression": True, "metrics": ("accuracy",)},
        r"--metrics accuracy is for classes; this task has numbers",
    ),
    "f1 of another class": (
        {"train": (".tsv", TSV)},
        {"metrics": ("f1",), "positive": "good"},
        r"f1 is of one class against another \(good\), but the labels are neg, pos",
    ),
    "numbers in a task of classes": (
        {"train": (".tsv", TSV)},
        {"name": "mrpc", "regression": True},
        r"mrpc has classes",
    ),
    "three texts": ({"train": (".tsv", TSV)}, {"texts": ("a", "b", "c")}, r"one or two columns"),
    "too many validation rows": (
        {"train": (".tsv", TSV)},
        {"validation_rows": 4},
        r"--validation_rows is 4.*4 training rows",
    ),
    "unknown task": ({}, {"name": "sts-b"}, r"no task 'sts-b'; known: sst2.*--train_file"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_data(case, tmp_path):
    """Red if wrong data is trained on, or the message does not say where and what to do."""
    given, options, message = BAD[case]
    if given and case != "no test file":
        given = {"test": (".tsv", TSV), **given}
    with pytest.raises((ValueError, OSError)) as error:
        load(tmp_path, **given, **options)
    text = str(error.value)
    assert re.search(message, text), text
    assert "\n" not in text


def test_without_a_network(tmp_path):
    """Red if a task from the Hub ends with anything but what to do."""
    with pytest.raises(ConnectionError, match="--train_file and --test_file"):
        load_data("sst2", dict.fromkeys(SPLITS))


# What a mistake is found out after may be a whole BERT: 0.4 GB, were it as wide as it is by default.
SMALL = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"either --model_name_or_path .* or --config_name"),
        (["--config_name", "bert", "--max_length", "900"], r"--max_length is 900.*512 positions"),
        (["--config_name", "roberta", "--max_length", "512"], r"is 512.*511 positions"),
        (["--model_name_or_path", "@T", "--max_length", "65"], r"is 65.*64 positions"),
        (
            ["--config_name", "bert", "--config_overrides", "hidden_size=large"],
            r"hidden_size=large: ",
        ),
        (["--config_name", "bert", "--config_overrides", "{a:1}"], r"--config_overrides \{a:1\}"),
        (
            ["--config_name", "bert", "--config_overrides", f"{SMALL},vocab_size=9"],
            r"embeddings of 9 tokens",
        ),
        (
            ["--config_name", "bert", "--tokenizer_name", "no/where"],
            r"--tokenizer_name no/where: no",
        ),
        (["--config_name", "bert", "--n", "4", "--m", "2"], r"n < m|1 <= n"),
        (["--config_name", "bert", "--decay", "-1"], r"decay must be finite and >= 0"),
        (["--config_name", "bert", "--mask_interval", "0"], r"mask_interval must be an integer"),
        (["--config_name", "bert", "--hidden_weight", "1"], r"--hidden_weight does nothing"),
        (
            ["--config_name", "bert", "--method", "ste", "--decay_warmup_steps", "5"],
            r"--decay_warmup_steps is for sr-ste",
        ),
        (["--config_name", "bert", "--dense_run", "nowhere"], r"nowhere.*no results here"),
        (["--config_name", "bert", "--dense_run", "@T"], r"scored as embedded|local"),
        (["--config_name", "bert", "--metrics", "pearsonr"], r"--metrics pearsonr is for a regr"),
        (
            ["--config_name", "bert", "--metrics", "f1"],
            r"negative, positive; give --positive_label",
        ),
        (["--config_name", "bert", "--regression", "True"], r"other data than the embedded"),
        (
            ["--config_name", "bert", "--resume_from_checkpoint", "no/where"],
            r"checkpoint in no/where",
        ),
        (["--config_name", "bert", "--config_overrides", "hiden_size=3"], r"mean 'hidden_size'"),
        (["--config_name", "bert", "--config_overrides", "width"], r"must be name=value"),
        (["--config_name", "bert", "--method", "dense", "--teacher", "x"], r"sparse methods"),
        (["--config_name", "bert", "--resume_from_checkpoint", "True"], r"nothing to resume"),
        (
            ["--model_name_or_path", "nowhere/here"],
            r"--model_name_or_path nowhere/here: no such folder",
        ),
        (
            ["--config_name", "bert", "--teacher", "nowhere/here"],
            r"--teacher nowhere/here: no such",
        ),
        (["--config_name", "bert", "--bf16", "perhaps"], r"perhaps"),
        (["--config_name", "bert", "--teacher", "@T"], r"other tokens \(300\) than the model's"),
        (
            [
                "--model_name_or_path",
                "@T",
                "--max_length",
                "9",
                "--teacher",
                "@T",
                "--temperature",
                "0",
            ],
            r"temperature must be above 0",
        ),
        (
            ["--model_name_or_path", "@T", "--task", "mine", "@files"],
            r"2 labels \(neg.*3 \(a, b, c\)",
        ),
        (["--model_name_or_path", "@T", "--task", "mine", "@two"], r"2 labels \(neg.*2 \(a, b\)"),
    ],
)
def test_wrong_options_end_with_one_line(options, message, tmp_path, capsys, tiny_classifier):
    """Red if a mistake in the options ends in a traceback, or is not named."""
    classes = "ab" if "@two" in options else "abc"
    text = "text\tlabel\n" + "".join(f"s{i}\t{classes[i % len(classes)]}\n" for i in range(30))
    given = files(tmp_path, train=(".tsv", text), test=(".tsv", text))
    local = ["--train_file", given["train"], "--test_file", given["test"], "--validation_rows", "3"]
    plain = CLASSIFICATION / "configs" / "finetune.yaml"
    arguments = ["--config_overrides", SMALL] if "--config_name" in options else []
    for option in options:
        arguments += (
            local if option in ("@files", "@two") else [option.replace("@T", str(tiny_classifier))]
        )
    with pytest.raises(SystemExit) as error:
        run(plain, *arguments, "--output_dir", tmp_path / "out")
    assert error.value.code not in (0, None)
    said = str(error.value.code) if isinstance(error.value.code, str) else capsys.readouterr().err
    assert re.search(message, said, flags=re.DOTALL), said


def commands() -> list[list[str]]:
    """Every training command of the recipe's README, as the shell would split it."""
    text = (CLASSIFICATION / "README.md").read_text("utf-8")
    variables = dict(re.findall(r'^(\w+)="(.*)"$', text, flags=re.MULTILINE))
    found = re.findall(r"`?(accelerate launch [^`\n]*)", text)
    for name, value in variables.items():
        found = [command.replace(f"${name}", value) for command in found]
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[-3:]))
def test_commands_of_the_readme_parse(command):
    """Red if an option in the table is misspelt, renamed, or takes no such value."""
    at = command.index("recipes/classification/train.py") + 1
    options = [str(ROOT / part) if part.endswith(".yaml") else part for part in command[at:]]
    _, arguments = parse(options)
    assert arguments.max_steps > 0


def test_every_option_has_its_command():
    """Red if an option is added without a line in the table."""
    used = {part for command in commands() for part in command if part.startswith("--")}
    assert {f"--{field.name}" for field in dataclasses.fields(RecipeArguments)} <= used


def test_a_teacher_without_a_trained_head(tmp_path, tiny_classifier):
    """Red if the student learns from a head of random weights."""
    body = AutoModel.from_pretrained(tiny_classifier)
    body.save_pretrained(tmp_path / "body")
    AutoTokenizer.from_pretrained(tiny_classifier).save_pretrained(tmp_path / "body")
    given = ["--model_name_or_path", tiny_classifier, "--teacher", tmp_path / "body"]
    with pytest.raises(SystemExit, match=r"--teacher .*body: lacks 2 weights .*classifier"):
        run(CLASSIFICATION / "configs" / "finetune.yaml", *given, "--max_length", "9")


def test_batches_are_drawn_anew_in_each_epoch():
    """Red if every epoch has the same order, or two processes different ones."""
    one, two = (EpochGroupedSampler(4, [*range(1, 41)], seed=3) for _ in range(2))
    torch.rand(5)  # what dropout draws in one process
    assert list(one) == list(two)
    first = list(EpochGroupedSampler(4, [*range(1, 41)], seed=3))
    one.set_epoch(1)
    assert sorted(second := list(one)) == sorted(first)
    assert second != first


def test_a_vocabulary_is_learned_the_same_again():
    """Red if the same seed gives other numbers to the words, or text can hold a special token's part."""
    texts = [text for text, _ in embedded_reviews()["train"][:1000]]
    one, two = (train_wordpiece(iter(texts), 300) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    assert len(one) == 300
    assert set(one.all_special_tokens) == set(SPECIAL.values())
    assert one.decode(one(texts[0])["input_ids"], skip_special_tokens=True) == texts[0].lower()
    assert one.convert_ids_to_tokens(one("##a")["input_ids"])[1:-1] == ["[UNK]"] * 2 + ["a"]
