"""What the translation recipe's input costs: preparing a corpus, and making batches of it.

    python recipes/benchmark/input_pipeline.py --pairs 4500000
    python recipes/benchmark/input_pipeline.py --files train.en train.de --vocab_size 8000

Without files a corpus is made up: words drawn by Zipf's law from two million types a side, lengths as
in news.
Everything lies in a temporary folder that is removed at the end, so nothing comes from a cache.

Printed for each step of the preparation: seconds, and the most memory meanwhile, in MiB: `resident`
counts pages of mapped files too, which the system takes back where it needs them; `own` does not. Then
for batches: what an epoch's plan takes, the share of padding among all positions (source and target),
and how many tokens (source and target, no padding) a second the loader gives out.
"""

import argparse
import gc
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

TYPES = 2_000_000
SYLLABLES = [c + v for c in "bdfghklmnprstvwz" for v in "aeiou"]


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder, "cache"))
        sys.path.insert(0, str(Path(__file__).parents[1] / "translation"))
        files = options.files
        if not files:
            files = [f"{folder}/train.en", f"{folder}/train.de"]
            with measured("making the corpus up"):
                write_corpus(files, options.pairs)
        rows, pad = prepare(files, options)
        measure_batches(rows, pad, options)


def prepare(files: list[str], options: argparse.Namespace) -> tuple[Any, int]:
    """Prepare the corpus as train.py does; the rows that are kept, and the padding token."""
    from data import load_pairs  # type: ignore[import-not-found]
    from preparing import (  # type: ignore[import-not-found]
        cleaned,
        joint_vocabulary,
        token_numbers,
    )

    with measured("reading the pairs"):
        pairs = load_pairs({"train": files})["train"]
    with measured(f"a vocabulary of {options.vocab_size:,}"):
        tokenizer: Any = joint_vocabulary(pairs, options.vocab_size)
    with measured("tokenizing"):
        tokens = token_numbers(pairs, tokenizer, ("en", "de"), "train")
    with measured("all of it again, from the cache"):
        pairs = load_pairs({"train": files})["train"]
        joint_vocabulary(pairs, options.vocab_size)
        tokens = token_numbers(pairs, tokenizer, ("en", "de"), "train")
    with measured("cleaning"):
        rows, counts = cleaned(tokens, max_length=250, max_ratio=1.5, drop_duplicates=True)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    print(
        f"{len(rows):,} pairs kept; left out: {left_out}; {rows.lengths.sum():,} tokens", flush=True
    )
    return rows, tokenizer.pad_token_id


def measure_batches(rows: Any, pad: int, options: argparse.Namespace) -> None:
    """Plan an epoch, and read from the loader for some seconds."""
    from batching import (  # type: ignore[import-not-found]
        Collator,
        TokenBatchSampler,
        TokenDataLoader,
    )

    lengths = rows.lengths
    for window in options.sort_window:
        with measured(f"planning, {window:,} sorted together"):
            sampler = TokenBatchSampler(
                lengths, options.max_tokens, batches_per_update=8, window=window
            )
            batches = sampler.global_batches(1)
        sizes = [(len(batch), lengths[batch]) for batch in batches]
        positions = sum(count * int(both.max(axis=0).sum()) for count, both in sizes)
        per_update = lengths.sum() / (len(batches) / 8)
        print(
            f"  {len(batches):,} micro-batches, {per_update:,.0f} tokens in 8 of them, padding "
            f"{1 - lengths.sum() / positions:.2%}",
            flush=True,
        )
    for workers in options.workers:
        loader = TokenDataLoader(
            rows, batch_sampler=sampler, collate_fn=Collator(pad), num_workers=workers
        )
        tokens, started = 0, math.nan
        for batch in loader:
            if math.isnan(started):  # the first one starts the workers
                started = time.perf_counter()
                continue
            tokens += int(batch["attention_mask"].sum() + (batch["labels"] != -100).sum())
            if time.perf_counter() - started > options.seconds:
                break
        rate = tokens / (time.perf_counter() - started)
        print(f"{workers} workers: {rate:,.0f} tokens a second", flush=True)


def write_corpus(files: list[str], pairs: int) -> None:
    """Two text files, one sentence a line, 24 words on average."""
    random = np.random.default_rng(0)
    types = min(TYPES, 20 * pairs)
    vocabularies = [np.array([_word(2 * rank + side) for rank in range(types)]) for side in (0, 1)]
    cumulated = np.cumsum((np.arange(types) + 2.7) ** -1.15)
    cumulated /= cumulated[-1]
    with (
        open(files[0], "w", encoding="utf-8") as source,
        open(files[1], "w", encoding="utf-8") as target,
    ):
        for start in range(0, pairs, 20_000):
            count = min(20_000, pairs - start)
            lengths = np.clip(random.lognormal(3.0, 0.6, count), 1, 200).astype(int)
            others = np.maximum(1, (lengths * random.normal(1.0, 0.15, count)).round().astype(int))
            for file, words, sizes in zip(
                (source, target), vocabularies, (lengths, others), strict=True
            ):
                drawn = words[np.searchsorted(cumulated, random.random(int(sizes.sum())))]
                for sentence in np.split(drawn, np.cumsum(sizes)[:-1]):
                    file.write(" ".join(sentence) + "\n")


def _word(number: int) -> str:
    """A word of its own for each number, longer for larger ones."""
    word = ""
    number += 1
    while number:
        number, syllable = divmod(number, len(SYLLABLES))
        word += SYLLABLES[syllable]
    return word


@contextmanager
def measured(name: str) -> Iterator[None]:
    """Print what the block took."""
    gc.collect()
    peaks = {"VmRSS": 0, "RssAnon": 0}
    done = threading.Event()

    def watch() -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                key, _, value = line.partition(":")
                if key in peaks:
                    peaks[key] = max(peaks[key], int(value.split()[0]) // 1024)
            if done.wait(0.1):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(
        f"{name}: {seconds:,.1f} s, {peaks['VmRSS']:,} MiB resident, {peaks['RssAnon']:,} MiB own",
        flush=True,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", nargs="+", help="source and target, or one table of both")
    parser.add_argument(
        "--pairs", type=int, default=100_000, help="made up, where there are no files"
    )
    parser.add_argument("--vocab_size", type=int, default=37_000)
    parser.add_argument("--max_tokens", type=int, default=3125, help="of a micro-batch, on a side")
    parser.add_argument("--sort_window", type=int, nargs="+", default=[8192, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the loader is read")
    parser.add_argument("--folder", help="where the temporary folder is made")
    return parser.parse_args()


if __name__ == "__main__":
    main()
