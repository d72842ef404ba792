"""How text becomes the token numbers that training reads: once, on disk, in bounded memory.

What is made here lies under the data sets' cache (`HF_DATASETS_CACHE`, or `HF_HOME`), in files whose
names are made from all that they depend on: a run with the same data and options reads them, a run with
others makes its own. A file has its name only when it is whole.

    pairs-KEY.arrow        source and target of local files
    tokenizer-KEY/         the joint vocabulary
    tokens-KEY.arrow       token numbers, their counts, and a fingerprint of each pair

A data set that lies in memory (the embedded one) is prepared there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import tokenizers
from batching import TokenRows
from datasets import Dataset, Features, List, Value
from filelock import FileLock
from tokenizer import train_bpe
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

VERSION = 1  # counted up when the same data and options come out as something else
CHUNK = 10_000  # pairs that are in memory at a time
TEXT = pyarrow.schema({"source": pyarrow.large_string(), "target": pyarrow.large_string()})
NUMBERS = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "source_tokens": Value("int32"),
        "target_tokens": Value("int32"),
        "pair": Value("int64"),
    }
)
EMPTY = 0  # the fingerprint of a pair with an empty side


def stored_pairs(
    files: list[str], columns: tuple[str, str], pairs: Iterable[tuple[str, str]], name: str
) -> Dataset:
    """The sentence pairs of local files as a data set on disk.

    Args:
        files: that they come from.
        columns: names of source and target in them.
        pairs: as they are read; not touched where they are stored already.
        name: of the split, for the progress bar.
    """
    if not all(map(os.path.isfile, files)):
        next(iter(pairs))  # says it better
    path = _cached(f"pairs-{_key(_identity(files), columns)}.arrow")
    with FileLock(f"{path}.lock"):
        if not path.exists():
            beside = path.with_suffix(".new")
            try:
                _write(beside, tqdm(pairs, f"reading {name}", unit=" pairs", disable=_silent()))
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
    return Dataset.from_file(str(path))


def _write(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """An Arrow file of text, `CHUNK` pairs at a time."""
    waiting = iter(pairs)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, TEXT) as writer:
        while rows := list(islice(waiting, CHUNK)):
            sides = [pyarrow.array(side, TEXT[0].type) for side in zip(*rows, strict=True)]
            writer.write_batch(pyarrow.record_batch(sides, TEXT))


def joint_vocabulary(pairs: Dataset, vocab_size: int) -> PreTrainedTokenizerBase:
    """One BPE vocabulary of both languages, learnt from all training pairs."""

    def sentences() -> Iterator[list[str]]:
        with tqdm(total=2 * len(pairs), unit=" sentences", disable=_silent()) as bar:
            for column in ("source", "target"):
                bar.set_description(f"counting words of the {column}")
                for rows in pairs.select_columns(column).with_format("arrow").iter(CHUNK):
                    yield rows[column].to_pylist()
                    bar.update(len(rows))

    files = [str(file["filename"]) for file in pairs.cache_files]
    if not files:
        return train_bpe(sentences(), vocab_size)
    path = _cached(f"tokenizer-{_key(_identity(files), vocab_size, tokenizers.__version__)}")
    with FileLock(f"{path}.lock"):
        if not path.is_dir():
            beside = path.with_suffix(".new")
            shutil.rmtree(beside, ignore_errors=True)
            train_bpe(sentences(), vocab_size, progress=not _silent()).save_pretrained(beside)
            os.replace(beside, path)
    return AutoTokenizer.from_pretrained(path)


def token_numbers(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    columns: tuple[str, str],
    name: str,
) -> Dataset:
    """Token numbers of sentence pairs, none left out.

    Args:
        pairs: with the columns `source` and `target`.
        tokenizer: for both.
        columns: what these are called in the files: a data set of the Hub is read in both directions.
        name: of the split, for the progress bar.

    Returns:
        Columns `input_ids` and `labels` (end-of-sentence last), `source_tokens` and `target_tokens`
        (how many these are), and `pair`, a 64-bit fingerprint of the text, `EMPTY` where a side is.
    """

    def numbers(rows: dict[str, list[str]]) -> dict[str, list]:
        source, target = (
            tokenizer(rows[side], return_attention_mask=False)["input_ids"]
            for side in ("source", "target")
        )
        return {
            "input_ids": source,
            "labels": target,
            "source_tokens": [*map(len, source)],
            "target_tokens": [*map(len, target)],
            "pair": [*map(fingerprint, rows["source"], rows["target"])],
        }

    files = [str(file["filename"]) for file in pairs.cache_files]
    options: dict[str, Any] = {
        "batched": True,
        "remove_columns": ["source", "target"],
        "features": NUMBERS,
        "desc": f"tokenizing {name}",
    }
    if not files:
        return pairs.map(numbers, **options)
    backend: Any = tokenizer.backend_tokenizer
    path = _cached(f"tokens-{_key(_identity(files), columns, backend.to_str())}.arrow")
    with FileLock(f"{path}.lock"):
        return pairs.map(numbers, cache_file_name=str(path), load_from_cache_file=True, **options)


def fingerprint(source: str, target: str) -> int:
    """A number that tells sentence pairs apart, `EMPTY` where a side has no text.

    64 bits: that any two of 5 million different pairs share one has a chance of less than 1 in a
    million.
    """
    if not source.strip() or not target.strip():
        return EMPTY
    digest = hashlib.blake2b(f"{source}\n{target}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def cleaned(tokens: Dataset, **rules: Any) -> tuple[TokenRows, dict[str, int]]:
    """The rows of prepared pairs that `clean` keeps by these rules, and what was left out."""
    columns = tokens.with_format("numpy")
    sides = [columns[name][:] for name in ("source_tokens", "target_tokens")]
    lengths = np.stack(sides, axis=1, dtype=np.int32, casting="same_kind")
    kept, left_out = clean(columns["pair"][:], lengths, **rules)
    return TokenRows(tokens, kept, lengths[kept]), left_out


def clean(
    pairs: np.ndarray,
    lengths: np.ndarray,
    *,
    max_length: int,
    max_ratio: float | None = None,
    drop_duplicates: bool = False,
) -> tuple[np.ndarray, dict[str, int]]:
    """Which pairs are trained on; it looks at counts of tokens only, the same in every language.

    Args:
        pairs: [pairs], their fingerprints.
        lengths: [pairs, 2], tokens of source and target, end-of-sentence included.
        max_length: tokens of a side at most.
        max_ratio: tokens of the longer side over those of the shorter at most, end-of-sentence not
            counted; None for any.
        drop_duplicates: whether of equal pairs (source and target) the first alone is kept.

    Returns:
        Numbers of the pairs that are kept, ascending, and how many were left out for each reason. A pair
        with several counts for the first of them: empty, duplicate, too long, ratio.
    """
    kept = np.ones(len(pairs), dtype=bool)
    counts = {}

    def leave_out(reason: str, wrong: np.ndarray) -> None:
        counts[reason] = int((kept & wrong).sum())
        np.logical_and(kept, ~wrong, out=kept)

    leave_out("empty", pairs == EMPTY)
    repeated = np.ones(len(pairs), dtype=bool)
    repeated[np.unique(pairs, return_index=True)[1]] = False
    leave_out("duplicate", repeated & drop_duplicates)
    leave_out("too_long", lengths.max(axis=1, initial=0) > max_length)
    words = np.maximum(lengths - 1, 1)
    ratio = words.max(axis=1, initial=1) / words.min(axis=1, initial=1 << 30)
    leave_out("ratio", ratio > (np.inf if max_ratio is None else max_ratio))
    return np.flatnonzero(kept), counts


# -- the cache ----------------------------------------------------------------------------------------


def _cached(name: str) -> Path:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_nm-translation"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _identity(files: list[str]) -> list[tuple[str, int, int]]:
    """Where files lie, their bytes, and when they were written."""
    found = [(os.path.realpath(file), os.stat(file)) for file in files]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found]


def _key(*parts: Any) -> str:
    text = json.dumps([VERSION, *parts], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _silent() -> bool:
    return datasets.are_progress_bars_disabled()
