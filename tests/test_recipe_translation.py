"""The translation recipe: data, batches, loss, options, and runs in one and two processes."""

import gzip
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
import yaml
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import hf_nm
from hf_nm.results import compare, plot_sad, sad_summary

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "translation"
sys.path.insert(0, str(RECIPE))

import train  # noqa: E402
from batching import Collator, EvalBatchSampler, TokenBatchSampler, pack  # noqa: E402
from corpus import embedded_corpus, forms, split_of  # noqa: E402
from lexicon import (  # noqa: E402
    ADJECTIVES,
    DATIVE,
    DITRANSITIVE,
    PERSONS,
    THINGS,
    TRANSITIVE,
    number_words,
)
from objective import label_smoothed_loss  # noqa: E402
from options import parse  # noqa: E402
from text_pairs import load_pairs, read_pairs  # noqa: E402
from vocabulary import train_bpe  # noqa: E402

# ---- The embedded corpus


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus()


def test_corpus_same_everywhere(corpus):
    """Red if a set's order, the hash seed or the clock gets into the sentences."""
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from corpus import embedded_corpus;"
        "print(hashlib.sha256(repr(embedded_corpus()).encode()).hexdigest())"
    )
    sums = {
        subprocess.run(
            [sys.executable, "-I", "-c", code, str(RECIPE)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(sums) == 1
    assert embedded_corpus.__wrapped__(seed=1).splits != corpus.splits


def test_corpus_literal():
    """Red if an ending, an article or the word order changes: hand-checked German."""
    pairs = dict(itertools.chain(*embedded_corpus().splits.values()))
    checked = {
        # der-words, separable verb after a modal, verb last
        "The cheap cow must return the egg before the horses buy my old letters again.": (
            "Die billige Kuh muss das Ei zurückbringen, bevor die Pferde wieder meine alten Briefe "
            "kaufen."
        ),
        "A round girl brings the quiet student the small clocks now.": (
            "Ein rundes Mädchen bringt jetzt dem stillen Studenten die kleinen Uhren."
        ),
        "Often my sister breaks eighty cheap bridges.": (
            "Oft zerbricht meine Schwester achtzig billige Brücken."
        ),
    }
    assert {english: pairs.get(english) for english in checked} == checked
    assert number_words(21) == ("twenty-one", "einundzwanzig")
    assert number_words(17) == ("seventeen", "siebzehn")
    assert number_words(30) == ("thirty", "dreißig")


def _combinations(english: str) -> set[tuple[str, str]]:
    """(adjective, noun) and (verb, object noun) of a sentence, read from its words alone.

    A slow twin of the grammar's own book-keeping: any noun after a verb and before the next verb or
    conjunction could be its object, so this finds at least every real combination.
    """
    nouns = {form: n.english for n in PERSONS + THINGS for form in (n.english, n.english_plural)}
    adjectives = {adjective for adjective, _ in ADJECTIVES}
    verbs = {form: v.english[0] for v in TRANSITIVE + DATIVE + DITRANSITIVE for form in v.english}
    found, adjective, verb = set(), None, None
    for word in forms(english):
        word = word.lower()
        if word in verbs:
            verb = verbs[word]
        if word in nouns:
            found |= {(former, nouns[word]) for former in (verb, adjective) if former}
        adjective = word if word in adjectives else None
    return found


def test_splits_are_disjoint_and_unseen(corpus):
    """Red if a held-out combination reaches training, or a test sentence has none."""
    assert {split: len(pairs) for split, pairs in corpus.splits.items()} == {
        "train": 12000,
        "validation": 400,
        "test": 400,
    }
    sentences = [english for pairs in corpus.splits.values() for english, _ in pairs]
    assert len(set(sentences)) == len(sentences)
    seen = set()
    for english, _ in corpus.splits["train"]:
        adjective_noun = {pair for pair in _combinations(english) if pair[0] in dict(ADJECTIVES)}
        assert {split_of(pair) for pair in adjective_noun} <= {"train"}
        seen |= _combinations(english)
    for split in ("validation", "test"):
        for english, _ in corpus.splits[split]:
            held_out = [pair for pair in _combinations(english) if split_of(pair) == split]
            assert held_out, english
        adjective_noun = {
            pair
            for english, _ in corpus.splits[split]
            for pair in _combinations(english)
            if pair[0] in dict(ADJECTIVES) and split_of(pair) == split
        }
        assert len(adjective_noun) > 30
        assert not adjective_noun & seen


def test_single_words_are_seen(corpus):
    """Red if a test sentence has a word form, on either side, that training has not."""
    known = [
        {form for pair in corpus.splits["train"] for form in forms(pair[side])} for side in (0, 1)
    ]
    for split in ("validation", "test"):
        for pair in corpus.splits[split]:
            for side in (0, 1):
                assert set(forms(pair[side])) <= known[side]


def test_dictionary_baseline(corpus):
    """Red if the corpus becomes so easy that replacing words one by one is enough."""
    test = corpus.splits["test"]
    guesses = [corpus.word_by_word(english) for english, _ in test]
    assert corpus.word_by_word("The dog sees a house.") == "Die Hund sieht ein Haus."
    bleu = sacrebleu.corpus_bleu(guesses, [[german for _, german in test]]).score
    assert 5 < bleu < 40


# ---- Batches


@pytest.fixture(scope="module")
def lengths():
    return np.random.default_rng(0).integers(2, 40, size=(1500, 2))


def test_pack_literal():
    """Red if padding is not counted, or a full batch is closed one sentence late."""
    assert pack([0, 1, 2, 3, 4], [3, 4, 4, 5, 2], max_tokens=12) == [[0, 1, 2], [3, 4]]
    assert pack([0, 1], [7, 7], max_tokens=7) == [[0], [1]]
    assert pack([], [], max_tokens=7) == []


def test_token_limit_and_nothing_lost(lengths):
    """Red if a sentence is dropped, repeated, or a side grows over the limit."""
    sampler = TokenBatchSampler(lengths, 300, batches_per_update=4, window=256)
    for epoch in range(3):
        batches = sampler.global_batches(epoch)
        assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
        assert len(batches) == sampler.total == len(sampler)
        assert len(batches) % 4 == 0
        for batch in batches:
            assert (lengths[batch].max(axis=0) * len(batch) <= 300).all()


def test_epochs_differ_and_repeat(lengths):
    """Red if the shuffle ignores the epoch, the seed, or draws from global random state."""
    sampler = TokenBatchSampler(lengths, 300, window=256, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    np.random.seed(1)
    torch.manual_seed(1)
    assert first != second
    assert sorted(map(sorted, first)) != sorted(
        map(sorted, second)
    )  # other batches, not just order
    again = TokenBatchSampler(lengths, 300, window=256, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(TokenBatchSampler(lengths, 300, window=256, seed=4)) != first


def test_two_processes_share_one_order(lengths):
    """Red if 2 processes x accumulation 2 do not see the updates of 1 process x accumulation 4."""
    options = {"batches_per_update": 4, "window": 256}
    alone = TokenBatchSampler(lengths, 300, **options)
    shares = [TokenBatchSampler(lengths, 300, rank=r, world_size=2, **options) for r in (0, 1)]
    for epoch in (0, 1):
        for sampler in (alone, *shares):
            sampler.set_epoch(epoch)
        dealt = [list(share) for share in shares]
        assert len(dealt[0]) == len(dealt[1]) == len(shares[0])
        merged = [batch for pair in zip(*dealt, strict=True) for batch in pair]
        assert merged == list(alone)


def test_evaluation_batches(lengths):
    """Red if evaluation leaves out or repeats a sentence over the processes."""
    shares = [list(EvalBatchSampler(lengths, 300, rank, 3)) for rank in range(3)]
    dealt = itertools.chain(*itertools.chain(*shares))
    assert sorted(dealt) == list(range(len(lengths)))


def test_batching_errors():
    """Red if a wrong setting hangs or loses data instead of saying so."""
    with pytest.raises(ValueError, match="longest sentence has 9 tokens and max_tokens is 8"):
        TokenBatchSampler(np.array([[3, 9]]), 8)
    with pytest.raises(ValueError, match="2 training sentences cannot fill 4 micro-batches"):
        TokenBatchSampler(np.array([[3, 3], [3, 3]]), 100, batches_per_update=4)
    with pytest.raises(ValueError, match="multiple of the number of processes, got 3 and 2"):
        TokenBatchSampler(np.ones((9, 2)), 100, batches_per_update=3, world_size=2)
    with pytest.raises(ValueError, match="no sentence pair is left"):
        TokenBatchSampler(np.zeros((0, 2)), 100)


def test_collator_literal():
    """Red if labels are padded with a counted token, or the decoder sees its own answer."""
    batch = Collator(pad_token_id=0)(
        [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [5, 1], "labels": [8, 9, 1]}]
    )
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 1], [5, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[0, 7, 0], [0, 8, 9]],
        "labels": [[7, 1, -100], [8, 9, 1]],
    }


# ---- Loss


def test_label_smoothed_loss():
    """Red if padding is counted, smoothing leaves out a class, or the divisor is the batch's own."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator, dtype=torch.float32)
    labels = torch.randint(11, (3, 5), generator=generator)
    labels[1, 3:] = -100
    loss = label_smoothed_loss({"logits": logits}, labels, num_items_in_batch=40, smoothing=0.1)
    kept = labels.view(-1) != -100
    rows, answers = logits.view(-1, 11)[kept].double(), labels.view(-1)[kept]
    target = torch.full_like(rows, 0.1 / 11).scatter_add(
        1, answers[:, None], torch.full((len(answers), 1), 0.9, dtype=torch.float64)
    )
    expected = -(target * rows.log_softmax(1)).sum() / 40
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    mean = torch.nn.functional.cross_entropy(
        logits.view(-1, 11), labels.view(-1), label_smoothing=0.1
    )
    alone = label_smoothed_loss({"logits": logits}, labels, smoothing=0.1)
    torch.testing.assert_close(alone, mean, rtol=1e-6, atol=0)


# ---- Vocabulary


def test_tokenizer_round_trip(tmp_path):
    """Red if a byte is unknown, a space is lost, or "</s>" in a text ends it."""
    corpus = embedded_corpus().splits["train"][:500]
    tokenizer = train_bpe([text for pair in corpus for text in pair], 600)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        "Die Kühe, die wir sahen.",
        "  two  spaces ",
        "日本 ½ \t 🙂 \u2028 x",
        "a </s> b <pad> c",
        "",
        " ",
    ]
    for text in texts:
        ids = loaded(text)["input_ids"]
        assert ids[-1] == loaded.eos_token_id == 1
        assert ids.count(1) == 1
        assert loaded.pad_token_id not in ids
        assert loaded.decode(ids, skip_special_tokens=True) == text
        assert ids == tokenizer(text)["input_ids"]
    assert len(loaded) == 600
    # the joint vocabulary has whole frequent words of both languages
    assert {"Ġthe", "Ġhat", "Ġdie"} <= set(loaded.get_vocab())


# ---- Files


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
    ({"x.en": b"a\n\xff\xfeb\n", "x.de": b"a\nb\n"}, r"x.en, line 2: byte 0 \(0xff\) is not UTF-8"),
    ({"x.en": b"a\nb\0c\n", "x.de": b"a\nb\n"}, r"x.en, line 2: a NUL byte"),
    ({"x.en.gz": b"plain", "x.de": b"a\n"}, r"x.en.gz: not a whole gzip file"),
    (
        {"x.en.gz": gzip.compress(b"a\n" * 999)[:-9], "x.de": b"a\n"},
        r"x.en.gz: not a whole gzip file",
    ),
    ({"x.tsv": b"en\tfr\na\tb\n"}, r"x.tsv, line 1: no column 'de' among \['en', 'fr'\]"),
    ({"x.tsv": b"en\tde\na\tb\na\n"}, r"x.tsv, line 3: 1 columns, but line 1 names 2"),
    ({"x.tsv": b"en\tde\n"}, r"x.tsv: the file holds no sentence pair"),
    ({"x.jsonl": b'{"en": "a", "de": "b"}\n[1\n'}, r"x.jsonl, line 2: not a JSON object"),
    ({"x.jsonl": b'{"en": "a"}\n'}, r"x.jsonl, line 1: no text under the key 'de'"),
    ({"x.jsonl": b'["a", "b"]\n'}, r"x.jsonl, line 1: no text under the key 'en'"),
    ({"x.jsonl": b'{"en": "a", "de": 3}\n'}, r"x.jsonl, line 1: no text under the key 'de'"),
    ({"x.txt": b"a\n"}, r"x.txt: one file alone must be .tsv or .jsonl"),
    ({"a": b"a\n", "b": b"a\n", "c": b"a\n"}, r"expected two text files .* got 3"),
]


@pytest.mark.parametrize(("files", "message"), BAD_FILES)
def test_bad_files(tmp_path, files, message):
    """Red if bad input is read as something else, or the error names no file."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pairs([str(tmp_path / name) for name in files])


def test_missing_file(tmp_path):
    """Red if a wrong path gives anything but its name."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.en: no such file"):
        read_pairs([str(tmp_path / "nowhere.en"), str(tmp_path / "nowhere.de")])


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
    recipe, _ = parse([str(RECIPE / "configs" / "wmt14_base.yaml"), "--output_dir", str(tmp_path)])
    splits, _ = train.load_corpus(recipe)
    assert asked == [("wmt14", "de-en")]
    assert splits["test"].to_list() == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
    ]
    monkeypatch.undo()
    with pytest.raises(ConnectionError, match=r"wmt14.*without a network give --train_files"):
        train.load_corpus(recipe)


# ---- Options


@pytest.mark.parametrize("config", ["embedded", "local", "wmt14_base"])
def test_shipped_configs(config, tmp_path):
    """Red if a shipped file has a key the recipe does not know."""
    path = RECIPE / "configs" / f"{config}.yaml"
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
    ("text", "options", "message"),
    [
        ("max_step: 7\n", [], "unknown key 'max_step'; did you mean 'max_steps'"),
        ("max_steps: many\n", [], "argument --max_steps.*invalid int value: 'many'"),
        ("method: topk\n", [], "invalid choice: 'topk'"),
        ("", ["--max_step", "7"], "unknown option --max_step 7; did you mean --max_steps"),
        ("- a\n", [], "must hold keys and values"),
    ],
)
def test_wrong_options(tmp_path, capsys, text, options, message):
    """Red if a misspelt option is ignored, which trains something else than asked for."""
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse([str(tmp_path / "x.yaml"), *options])
    assert_match(message, capsys.readouterr().err)


def assert_match(pattern: str, text: str) -> None:
    assert re.search(pattern, text, re.DOTALL), text


# ---- Results


HISTORY = [
    {"step": 10, "loss": 4.0, "nm/sad": 6, "nm/flip_rate": 0.01, "nm/sad_init": 6},
    {"step": 30, "loss": 3.0, "nm/sad": 2, "nm/flip_rate": 0.04, "nm/sad_init": 5},
    {"step": 30, "eval_loss": 3.5},
]


def test_sad_summary_literal():
    """Red if intervals of unequal length weigh alike, or SAD from the start is summed."""
    assert sad_summary(HISTORY) == {
        "total": 8,
        "from_start": 5,
        "mean_flip_rate": pytest.approx((0.01 * 10 + 0.04 * 20) / 30),
        "intervals": 2,
        "steps": 30,
    }
    assert sad_summary([{"step": 10, "loss": 4.0}]) is None


def test_plot(tmp_path):
    """Red if drawing needs a display or a SAD column."""
    plot_sad(HISTORY, tmp_path / "sad.png", "sr-ste 2:4")
    plot_sad([{"step": 1, "loss": 2.0}], tmp_path / "dense.png")
    assert (tmp_path / "sad.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_compare_literal(tmp_path):
    """Red if a difference has the wrong sign or scores of other signatures are mixed in."""

    def write(name, method, bleu, seconds, sad=None, signature="s:1"):
        score = {"metric": "BLEU", "test": bleu, "signature": signature}
        run = {"method": method, "pattern": "2:4" if sad else None, "steps": 30, "score": score}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(
            json.dumps({**run, "time": {"train_s": seconds}, "sad": sad})
        )
        return tmp_path / name

    dense = write("a", "dense", 30.0, 100.0)
    sparse = write("b", "sr-ste", 29.25, 110.0, sad_summary(HISTORY))
    table = compare([dense, sparse], tmp_path / "table.md").splitlines()
    assert table[2] == "| a | dense | - | 30 | 30.00 | +0.00 | - | - | - | 1.00 |"
    assert table[3] == "| b | sr-ste | 2:4 | 30 | 29.25 | -0.75 | 3.000e-02 | 8 | 5 | 1.10 |"
    assert (tmp_path / "table.md").read_text().splitlines() == table
    other = write("c", "ste", 28.0, 100.0, signature="s:2")
    with pytest.raises(ValueError, match="signatures differ"):
        compare([dense, other])
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        compare([tmp_path / "d"])


# ---- Whole runs


@pytest.fixture(scope="module")
def toy_files(tmp_path_factory):
    """48 training, 6 validation, 5 test pairs as text files."""
    folder = tmp_path_factory.mktemp("toy")
    options = []
    for split, count in {"train": 48, "validation": 6, "test": 5}.items():
        pairs = embedded_corpus().splits[split][:count]
        for side, language in enumerate(("en", "de")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(text, "utf-8")
        options += [f"--{split}_files", f"{folder}/{split}.en", f"{folder}/{split}.de"]
    return options


TINY = "--d_model 16 --ffn_dim 32 --layers 1 --heads 2 --vocab_size 400 --dropout 0 --num_beams 2"
TINY += " --max_tokens 256 --max_steps 6 --logging_steps 1 --eval_steps 3 --warmup_steps 3"
TINY += " --decay 0.01 --save_strategy steps --save_steps 5"
EMBEDDED = RECIPE / "configs" / "embedded.yaml"


def run_here(*arguments) -> None:
    """The script in this process, on one thread, as OMP_NUM_THREADS=1 would have it."""
    threads, argv = torch.get_num_threads(), sys.argv
    torch.set_num_threads(1)
    sys.argv = [str(RECIPE / "train.py"), *map(str, arguments)]
    try:
        train.main()
    finally:
        torch.set_num_threads(threads)
        sys.argv = argv


@pytest.fixture(scope="module")
def two_runs(toy_files, tmp_path_factory):
    """The same sparse run in one process with accumulation 2, and launched in two processes."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    options = [EMBEDDED, *toy_files, *TINY.split()]
    run_here(*options, "--output_dir", one, "--gradient_accumulation_steps", "2")
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", RECIPE / "configs" / "accelerate_cpu2.yaml", RECIPE / "train.py"]
    found = subprocess.run(
        [*map(str, command), *map(str, options), "--output_dir", str(two)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    assert "Warning" not in found.stderr, found.stderr[-4000:]
    return one, two


def _history(folder: Path) -> list[dict]:
    state = json.loads((folder / "trainer_state.json").read_text())
    dropped = ("runtime", "per_second", "flos")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in dropped)}
        for row in state["log_history"]
    ]


def test_two_processes_equal_one(two_runs):
    """Red if the loss or gradient is scaled by the processes, or the batches are dealt out wrongly.

    Bit for bit: the sum of two micro-batches' gradients is the same number in both.
    """
    one, two = two_runs
    assert json.loads((two / "results.json").read_text())["hardware"]["processes"] == 2
    history = _history(one)
    assert len([row for row in history if "loss" in row]) == 6
    assert history == _history(two)
    # an untrained model guesses among all tokens; twice that would be a sum over micro-batches
    assert history[0]["loss"] == pytest.approx(math.log(400), abs=0.5)
    weights = load_file(one / "model.safetensors")
    others = load_file(two / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
    results = [json.loads((folder / "results.json").read_text()) for folder in two_runs]
    assert results[0]["score"] == results[1]["score"]
    assert results[0]["samples"] == results[1]["samples"]


def test_saved_checkpoint_and_results(two_runs):
    """Red if the folder is not an ordinary, sparse, complete checkpoint."""
    one, _ = two_runs
    results = json.loads((one / "results.json").read_text())
    assert results["reloaded_logits_equal"] is True
    assert results["score"]["signature"].startswith("nrefs:1|case:mixed")
    assert (results["steps"], results["sad"]["intervals"]) == (6, 6)
    model = AutoModelForSeq2SeqLM.from_pretrained(one)
    rows = {row["name"]: row for row in results["sparsity"]}
    # 1 encoder layer: 4 + 2 matrices; 1 decoder layer: 8 + 2
    assert len(rows) == 16
    for name, row in rows.items():
        weight = model.get_parameter(name)
        assert (row["shape"], row["pattern"]) == (list(weight.shape), "2:4")
        assert row["kept"] == weight.numel() // 2
        assert ((weight.view(-1, 4) != 0).sum(1) <= 2).all()
    assert hf_nm.verify(one)
    assert {"sad.png", "results.md", "nm_sad.jsonl", "tokenizer.json"} <= set(os.listdir(one))
    assert results["score"]["signature"].replace("|", "\\|") in (one / "results.md").read_text()


def test_resume_skips_what_was_seen(toy_files, two_runs, tmp_path):
    """Red if a resumed run trains on other batches than the uninterrupted one, here in epoch 2."""
    one, _ = two_runs
    run_here(
        *[EMBEDDED, *toy_files, *TINY.split(), "--output_dir", tmp_path],
        *["--gradient_accumulation_steps", "2"],
        *["--resume_from_checkpoint", one / "checkpoint-5"],
    )
    last = [[row for row in _history(f) if "loss" in row] for f in (tmp_path, one)]
    assert last[0][-1]["step"] == 6
    assert last[0][-1]["epoch"] > 1
    assert last[0] == last[1]
    weights = load_file(tmp_path / "model.safetensors")
    others = load_file(one / "model.safetensors")
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


def test_wmt14_config_starts_offline(toy_files, tmp_path):
    """Red if the big configuration needs the network, or its sizes do not build."""
    config = RECIPE / "configs" / "wmt14_base.yaml"
    run_here(
        *[config, *toy_files, "--output_dir", tmp_path, "--max_steps", "2", "--logging_steps", "1"],
        # two layers instead of twelve, and micro-batches for 48 sentences: the rest as shipped
        *["--layers", "1", "--max_tokens", "64", "--num_beams", "1", "--save_strategy", "no"],
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["steps"], results["method"]) == (2, "sr-ste")
    assert [2048, 512] in [row["shape"] for row in results["sparsity"]]
