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
    assert list(read_pairs(files)) == [("one\u2028still one", "eins"), ("two", "zwei")]


def test_read_tables(tmp_path):
    """Red if quotes are eaten, columns are taken by position, or nested JSON is not found."""
    (tmp_path / "x.tsv").write_text('id\tde\ten\n7\t"eins\tone "1"\n', "utf-8")
    assert list(read_pairs([str(tmp_path / "x.tsv")])) == [('one "1"', '"eins')]
    rows = [{"en": "a", "de": "b"}, {"translation": {"en": "c", "de": "d"}}]
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    assert list(read_pairs([str(tmp_path / "x.jsonl.gz")])) == [("a", "b"), ("c", "d")]
    assert list(read_pairs([str(tmp_path / "x.jsonl.gz")], "de", "en")) == [("b", "a"), ("d", "c")]


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
    paths = [str(tmp_path / name) for name in files]
    with pytest.raises(ValueError, match=message):
        list(read_pairs(paths))
    with pytest.raises(ValueError, match=message):
        load_pairs({"train": paths})


def test_empty_sides(tmp_path):
    """Red if an empty test pair, which would change the score, is left out silently, or told by a wrong
    number."""
    (tmp_path / "x.en").write_text("a\n\nc\n")
    (tmp_path / "x.de").write_text("a\nb\n \n")
    (tmp_path / "good").write_text("a\n")
    files = [str(tmp_path / "x.en"), str(tmp_path / "x.de")]
    good = [str(tmp_path / "good")] * 2
    given = ["--train_files", *files, "--validation_files", *good]
    recipe, _ = parse([*given, "--test_files", *good])
    assert load_data(recipe)["train"]["target"][:] == ["a", "b", " "]  # cleaned later
    recipe, _ = parse([*given, "--test_files", *files])
    with pytest.raises(
        ValueError, match=r"x.de: sentence pair 2 of the test split has an empty side"
    ):
        load_data(recipe)


WMT14 = str(TRANSLATION / "configs" / "wmt14_base.yaml")


def hub_data() -> DatasetDict:
    pairs = [{"translation": {"de": "eins", "en": "one"}}]
    pairs += [{"translation": {"de": "zwei", "en": "two"}}]
    return DatasetDict({name: Dataset.from_list(pairs) for name in ("train", "validation", "test")})


def test_hub_data(monkeypatch, tmp_path):
    """Red if the Hub's pairs are turned round: this recipe translates into German."""
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *name: asked.append(name) or hub_data())
    recipe, _ = parse([WMT14, "--output_dir", str(tmp_path)])
    splits = load_data(recipe)
    assert asked == [("wmt14", "de-en")]
    assert splits["test"].to_list() == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
    ]
    monkeypatch.undo()
    with pytest.raises(ConnectionError, match=r"wmt14.*without a network give --train_files"):
        load_data(recipe)


def test_other_languages_and_directions(monkeypatch, tmp_path):
    """Red if another pair or direction needs more than its names in the options, or a language that
    is not there fails later than at its name."""
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *name: asked.append(name) or hub_data())
    turned = [
        WMT14,
        "--source_column",
        "de",
        "--target_column",
        "en",
        "--output_dir",
        str(tmp_path),
    ]
    recipe, _ = parse([*turned, "--dataset", "opus_books", "--dataset_config", "de-en"])
    splits = load_data(recipe)
    assert asked == [("opus_books", "de-en")]
    assert splits["train"].to_list()[0] == {"source": "eins", "target": "one"}
    recipe, _ = parse([WMT14, "--target_column", "fr"])
    with pytest.raises(ValueError, match=r"no translation.fr among .*'translation.de'"):
        load_data(recipe)
    recipe, _ = parse(["--source_column", "de", "--target_column", "en"])
    english = load_data(parse([])[0])["train"][0]
    german = load_data(recipe)["train"][0]
    assert (german["source"], german["target"]) == (english["target"], english["source"])
    recipe, _ = parse(["--target_column", "fr"])
    with pytest.raises(ValueError, match="the embedded corpus has the languages en and de"):
        load_data(recipe)


def test_a_data_set_without_a_test_set(monkeypatch):
    """Red if it fails after training."""
    halved = hub_data()
    del halved["test"]
    monkeypatch.setattr("datasets.load_dataset", lambda *name: halved)
    with pytest.raises(ValueError, match="has the splits train, validation, but no test"):
        load_data(parse([WMT14])[0])


@pytest.mark.parametrize("size", ["base", "big"])
def test_wmt14_is_the_fields_setup(size):
    """Red if a value differs from Vaswani et al.'s, or from what the field scores."""
    recipe, arguments = parse([str(TRANSLATION / "configs" / f"wmt14_{size}.yaml")])
    recipe.check(arguments)
    model = (recipe.d_model, recipe.ffn_dim, recipe.layers, recipe.heads, recipe.dropout)
    assert model == {"base": (512, 2048, 6, 8, 0.1), "big": (1024, 4096, 6, 16, 0.3)}[size]
    steps = {"base": 100_000, "big": 300_000}[size]
    assert (arguments.max_steps, arguments.warmup_steps) == (steps, 4000)
    assert arguments.lr_scheduler_type == "inverse_sqrt"
    assert arguments.learning_rate == pytest.approx((recipe.d_model * 4000) ** -0.5, rel=1e-3)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert arguments.label_smoothing_factor == 0.1
    assert recipe.max_tokens * arguments.gradient_accumulation_steps == 25_000
    assert 32_000 <= recipe.vocab_size <= 37_000
    assert (recipe.num_beams, recipe.length_penalty, recipe.average_checkpoints) == (4, 0.6, 5)
    assert (recipe.dataset, recipe.dataset_config, recipe.test_subset) == (
        "wmt14",
        "de-en",
        "wmt14",
    )
    assert (recipe.source_column, recipe.target_column) == ("en", "de")


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 8), (2, 4), (8, 1)])
def test_an_update_is_the_same_on_every_number_of_processes(monkeypatch, processes, accumulation):
    """Red if the accumulation does not make up for the processes."""
    recipe, arguments = parse([WMT14])
    monkeypatch.setenv("WORLD_SIZE", str(processes))  # now: the arguments would wait for the others
    recipe._share_updates(arguments)
    assert arguments.gradient_accumulation_steps == accumulation


def test_updates_that_cannot_be_shared(monkeypatch):
    """Red if three processes would train on other updates without a word."""
    recipe, arguments = parse([WMT14])
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ValueError, match="are 8, which 3 processes cannot share alike; give --max_tok"
    ):
        recipe._share_updates(arguments)
    monkeypatch.delenv("WORLD_SIZE")
    recipe, arguments = parse([WMT14, "--gradient_accumulation_steps", "8"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="contradicts --update_tokens 25000, which makes it 4"):
        recipe._share_updates(arguments)


@pytest.mark.parametrize("config", ["embedded", "local", "wmt14_base", "wmt14_big"])
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
