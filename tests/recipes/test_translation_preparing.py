"""The translation recipe's corpus: prepared once, cleaned by counts of tokens."""

import os

import numpy as np
import pytest
from launching import run_python
from recipe_loading import RECIPES, importing

with importing("translation"):
    import preparing
    from batching import Collator, TokenBatchSampler, TokenDataLoader, TokenRows
    from data import load_pairs
    from preparing import EMPTY, clean, cleaned, fingerprint, joint_vocabulary, token_numbers

COLUMNS = ("en", "de")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two text files, and a cache of this test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    english = ["a b c", "d e", "", "a b c", "a b c", "x " * 30, "a", "q r s t u v"]
    german = ["A B C", "D E", "F", "A B C", "A B D", "X", "A", "Q R"]
    paths = [tmp_path / "x.en", tmp_path / "x.de"]
    for path, lines in zip(paths, (english, german), strict=True):
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return [str(path) for path in paths]


def test_clean_literal():
    """Red if a rule is off by one, or a pair counts twice."""
    a, b, c = 7, -8, 9
    pairs = np.array([a, b, EMPTY, a, a, c, 11, 12, EMPTY, 13])
    # tokens of both sides, end-of-sentence included
    lengths = np.array(
        [[4, 4], [3, 5], [1, 3], [4, 4], [4, 4], [9, 9], [10, 9], [4, 6], [1, 1], [7, 4]]
    )
    kept, counts = clean(pairs, lengths, max_length=9, max_ratio=5 / 3, drop_duplicates=True)
    # b: 4 words to 2 is too much; 12: 5 to 3 is just right; 13: 6 to 3
    assert kept.tolist() == [0, 5, 7]
    assert counts == {"empty": 2, "duplicate": 2, "too_long": 1, "ratio": 2}
    kept, counts = clean(pairs, lengths, max_length=10)
    assert kept.tolist() == [0, 1, 3, 4, 5, 6, 7, 9]
    assert counts == {"empty": 2, "duplicate": 0, "too_long": 0, "ratio": 0}
    kept, counts = clean(np.zeros(0, np.int64), np.zeros((0, 2)), max_length=9, max_ratio=2)
    assert (kept.tolist(), set(counts.values())) == ([], {0})


def test_fingerprints():
    """Red if turned pairs, or a text that moves over the border between the sides, look alike."""
    texts = [("a", "b"), ("b", "a"), ("a b", "c"), ("a", "b c"), ("A", "b"), ("a", "b ")]
    assert len({fingerprint(*pair) for pair in texts}) == len(texts)
    assert EMPTY not in {fingerprint(*pair) for pair in texts}
    assert {fingerprint("", "a"), fingerprint("a", " \t"), fingerprint("\u3000", "a")} == {EMPTY}


def test_cleaning_counts_of_files(files):
    """Red if a pair is left out for another reason than its own, or another pair stays."""
    pairs = load_pairs({"train": files})["train"]
    tokenizer = joint_vocabulary(pairs, 300)
    tokens = token_numbers(pairs, tokenizer, COLUMNS, "train")
    rows, left_out = cleaned(tokens, max_length=20, max_ratio=2.0, drop_duplicates=True)
    assert left_out == {"empty": 1, "duplicate": 1, "too_long": 1, "ratio": 1}
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]
    assert texts == ["a b c", "d e", "a b c", "a"]
    assert [len(row["labels"]) for row in rows] == rows.lengths[:, 1].tolist()


def test_prepared_once(files, monkeypatch):
    """Red if a second run prepares anything again, or one with other data or options does not."""
    made = []
    train_bpe, tokenizing = preparing.train_bpe, preparing.fingerprint
    monkeypatch.setattr(
        preparing, "train_bpe", lambda *a, **b: made.append("bpe") or train_bpe(*a, **b)
    )
    monkeypatch.setattr(preparing, "fingerprint", lambda *a: made.append("row") or tokenizing(*a))

    def prepare(vocab_size: int = 300, paths: list[str] | None = None) -> list[dict]:
        made.clear()
        pairs = load_pairs({"train": paths or files})["train"]
        tokenizer = joint_vocabulary(pairs, vocab_size)
        return token_numbers(pairs, tokenizer, COLUMNS, "train").to_list()

    first = prepare()
    assert made == ["bpe", *["row"] * 8]
    assert prepare() == first
    assert made == []
    assert prepare(vocab_size=262) != first
    assert made == ["bpe", *["row"] * 8]
    assert prepare(paths=files[::-1])[0]["input_ids"] == first[0]["labels"]
    assert "row" in made
    with open(files[0], "a", encoding="utf-8") as english, open(files[1], "a") as german:
        english.write("new\n")
        german.write("neu\n")
    assert len(prepare()) == 9
    assert made == ["bpe", *["row"] * 9]


def test_a_file_that_cannot_be_read_leaves_nothing(files, tmp_path):
    """Red if a run that ended in an error leaves half a corpus under its name."""
    with open(files[0], "a", encoding="utf-8") as english:
        english.write("one more\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"x.en has 9 lines and .*x.de has 8"):
            load_pairs({"train": files})
    left = [name for _, _, names in os.walk(tmp_path / "cache") for name in names]
    assert all(name.endswith(".lock") for name in left)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_pair_once_an_epoch_on_every_process(files, workers):
    """Red if a process gets the wrong rows of the file, or over all of them one is lost or repeated."""
    pairs = load_pairs({"train": files})["train"]
    tokens = token_numbers(pairs, joint_vocabulary(pairs, 300), COLUMNS, "train")
    numbers = np.array([7, 0, 4, 1, 6])  # not all, and in another order
    lengths = np.array(
        [[len(tokens[int(n)][side]) for side in ("input_ids", "labels")] for n in numbers]
    )
    rows = TokenRows(tokens, numbers, lengths)
    assert [row["labels"].tolist() for row in rows] == [tokens[int(n)]["labels"] for n in numbers]
    for processes in (1, 2, 4):
        seen = []
        for rank in range(processes):
            sampler = TokenBatchSampler(
                lengths, 30, batches_per_update=4, rank=rank, world_size=processes
            )
            loader = TokenDataLoader(
                rows, batch_sampler=sampler, collate_fn=Collator(0), num_workers=workers
            )
            for batch in loader:
                for source, target in zip(batch["input_ids"], batch["labels"], strict=True):
                    seen.append((source[source > 0].tolist(), target[target >= 0].tolist()))
        wanted = [(row["input_ids"].tolist(), row["labels"].tolist()) for row in rows]
        assert sorted(seen) == sorted(wanted)


def test_a_batch_with_few_batches_is_halved_evenly():
    """Red if halving the fullest batches again and again leaves one empty."""
    sampler = TokenBatchSampler(np.full((9, 2), 5), 1000, batches_per_update=8)
    sizes = sorted(len(batch) for batch in sampler.global_batches(0))
    assert sizes == [1] * 7 + [2]


def test_the_benchmark_of_the_input():
    """Red if it does not run as its README says, or measures rows that the recipe does not read."""
    small = "--pairs 120 --vocab_size 300 --max_tokens 1000 --sort_window 64 --seconds 0.1"
    said = run_python(RECIPES / "benchmark" / "input_pipeline.py", *small.split()).stdout
    for name in ("reading the pairs", "a vocabulary of 300", "tokenizing", "cleaning", "planning"):
        assert f"\n{name}" in said
    assert "MiB own" in said
    assert "tokens a second" in said
