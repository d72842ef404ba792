"""The translation recipe's files and options, good and bad."""

import gzip
import json
import re

import pytest
import yaml
from datasets import Dataset, DatasetDict
from recipe_loading import TRANSLATION, importing

with importing("translation"):
    from data import load_data, load_pairs, read_pairs
    from options import parse


def test_read_text_pairs(tmp_path):
    r"""Red if lines are cut at U+2028 or \r, or the two sides are swapped."""
    english, german = "one\u2028still one\r\ntwo\n", "\ufeffeins\nzwei"
    (tmp_path / "x.en").write_bytes(english.encode())
    with gzip.open(tmp_path / "x.de.gz", "wt", encoding="utf-8") as file:
        file.write(german)
    files = [str(tmp_path / "x.en"), str(tmp_path / "x.de.gz")]
    assert read_pairs(files) == (["one\u2028still one", "two"], ["eins", "zwei"])


def test_read_tables(tmp_path):
    """Red if quotes are eaten, columns are taken by position, or nested JSON is not found."""
    (tmp_path / "x.tsv").write_text('id\tde\ten\n7\t"eins\tone "1"\n', "utf-8")
    assert read_pairs([str(tmp_path / "x.tsv")]) == (['one "1"'], ['"eins'])
    rows = [{"en": "a", "de": "b"}, {"translation": {"en": "c", "de": "d"}}]
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    assert read_pairs([str(tmp_path / "x.jsonl.gz")]) == (["a", "c"], ["b", "d"])
    assert read_pairs([str(tmp_path / "x.jsonl.gz")], "de", "en") == (["b", "d"], ["a", "c"])


BAD_FILES = [
    ({"x.en": b"a\nb\nc\n", "x.de": b"a\nb\n"}, r"x.en has 3 lines and .*x.de has 2: from line 3"),
    ({"x.en": b"", "x.de": b"a\n"}, r"x.en: the file is empty"),
    ({"x.tsv": b"en\tfr\na\tb\n"}, r"x.tsv, line 1: no column 'de' among .* \(see --source_column"),
    ({"x.csv": b"en,de\na\n"}, r"x.csv, line 2: 1 cell, but line 1 names 2 columns"),
    ({"x.jsonl": b'{"en": "a"}\n'}, r"x.jsonl, line 1: no column 'de' among \['en'\]"),
    (
        {"x.jsonl": b'{"en": "a", "de": 3}\n'},
        r"x.jsonl, line 1: 'de' holds 3, not text; .*--target",
    ),
    ({"x.txt": b"a\n"}, r"expected two text files .* or one that ends in .tsv, .* got 1: .*x.txt"),
    ({"a": b"a\n", "b": b"a\n", "c": b"a\n"}, r"expected two text files .* got 3"),
]


@pytest.mark.parametrize(("files", "message"), BAD_FILES)
def test_bad_files(tmp_path, files, message):
    """Red if bad input is read as something else, or the error names no file."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pairs([str(tmp_path / name) for name in files])


def test_empty_sides(tmp_path):
    """Red if an empty training pair is lost silently, or an empty test pair changes the score."""
    (tmp_path / "x.en").write_text("a\n\nc\n")
    (tmp_path / "x.de").write_text("a\nb\n \n")
    files = [str(tmp_path / "x.en"), str(tmp_path / "x.de")]
    splits, left_out = load_pairs({"train": files})
    assert splits["train"].to_list() == [{"source": "a", "target": "a"}]
    assert left_out == {"train": 2}
    with pytest.raises(ValueError, match="sentence pair 2 of the test split has an empty side"):
        load_pairs({"test": files})


def test_hub_data(monkeypatch, tmp_path):
    """Red if the Hub's pairs are turned round: this recipe translates into German."""
    pairs = [
        {"translation": {"de": "eins", "en": "one"}},
        {"translation": {"de": "zwei", "en": "two"}},
    ]
    hub = DatasetDict(
        {split: Dataset.from_list(pairs) for split in ("train", "validation", "test")}
    )
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *name: asked.append(name) or hub)
    recipe, _ = parse(
        [str(TRANSLATION / "configs" / "wmt14_base.yaml"), "--output_dir", str(tmp_path)]
    )
    splits, _ = load_data(recipe)
    assert asked == [("wmt14", "de-en")]
    assert splits["test"].to_list() == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
    ]
    monkeypatch.undo()
    with pytest.raises(ConnectionError, match=r"wmt14.*without a network give --train_files"):
        load_data(recipe)


@pytest.mark.parametrize("config", ["embedded", "local", "wmt14_base"])
def test_shipped_configs(config, tmp_path):
    """Red if a shipped file has a key the recipe does not know."""
    path = TRANSLATION / "configs" / f"{config}.yaml"
    recipe, arguments = parse([str(path), "--output_dir", str(tmp_path)])
    values = yaml.safe_load(path.read_text())
    assert recipe.d_model == values["d_model"]
    assert arguments.learning_rate == float(values["learning_rate"])
    assert (arguments.adam_beta2, arguments.adam_epsilon) == (0.98, 1e-9)
    assert arguments.report_to in ([], ["none"])


def test_command_line_overrides_yaml(tmp_path):
    """Red if the file wins over the command line, or numbers such as 7e-4 stay text."""
    (tmp_path / "x.yaml").write_text("max_steps: 7\nlearning_rate: 7e-4\ntrain_files: [a, b]\n")
    recipe, arguments = parse(
        [str(tmp_path / "x.yaml"), "--max_steps", "100", "--method=dense", "--output_dir", "o"]
    )
    assert (arguments.max_steps, arguments.learning_rate) == (100, 7e-4)
    assert (recipe.method, recipe.train_files, recipe.vocab_size) == ("dense", ["a", "b"], 8000)


@pytest.mark.parametrize(
    ("options", "decay", "said"),
    [
        ([], 0.02, "SR-STE 2:4, decay 0.02"),
        (["--decay", "auto"], "auto", "SR-STE 2:4, decay auto"),
        (["--decay=2e-4"], 2e-4, "SR-STE 2:4, decay 0.0002"),
    ],
)
def test_decay_is_a_number_or_auto(tmp_path, options, decay, said):
    """Red if a number stays text, or an arm is not named by its decay."""
    (tmp_path / "x.yaml").write_text("decay: 2.0e-2\n")
    recipe, _ = parse([str(tmp_path / "x.yaml"), "--output_dir", "o", *options])
    assert (recipe.decay, str(recipe)) == (decay, said)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("max_step: 7\n", [], "unknown key 'max_step'; did you mean 'max_steps'"),
        ("max_steps: many\n", [], "argument --max_steps.*invalid int value: 'many'"),
        ("method: topk\n", [], "invalid choice: 'topk'"),
        ("", ["--max_step", "7"], "unknown option --max_step 7; did you mean --max_steps"),
        ("decay: automatic\n", [], "--decay: 'automatic' is neither a number nor 'auto'"),
        ("- a\n", [], "must hold keys and values"),
        ("run_name: \xfcbung\n", [], "x.yaml: not YAML"),
    ],
)
def test_wrong_options(tmp_path, capsys, text, options, message):
    """Red if a misspelt option is ignored, which trains something else than asked for."""
    (tmp_path / "x.yaml").write_text(text, "latin-1")
    with pytest.raises(SystemExit):
        parse([str(tmp_path / "x.yaml"), *options])
    assert_match(message, capsys.readouterr().err)


def assert_match(pattern: str, text: str) -> None:
    assert re.search(pattern, text, re.DOTALL), text
