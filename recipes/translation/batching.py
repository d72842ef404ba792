"""Which sentences share a batch: batches by token count, the same ones for any number of processes.

Words used here: a *micro-batch* is what one process runs through the model at once; an *update* is
one optimizer step, made of `batches_per_update` micro-batches, which is processes x accumulation steps.
Micro-batch number `i` of an epoch goes to process `i % world_size`, so 2 processes x accumulation
`k` see the same updates as 1 process x accumulation `2k`.

Why not accelerate's sharding of a batch sampler: where the number of batches is no multiple of the
number of processes it repeats the first batches (`even_batches=True`) or gives processes unequal
numbers of them, and `set_epoch` does not reach a sampler inside two of its wrappers, as on resume.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from heapq import heapify, heappush, heapreplace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def pack(order: Sequence[int], sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut `order` into batches whose padded size fits.

    Args:
        order: sentence numbers, neighbours of like size.
        sizes: tokens of each sentence, of the longer of its two sides where it has two.
        max_tokens: limit on sentences x largest size. Padding counts, and each side is within the
            limit: 25,000 means at most 25,000 source positions and at most 25,000 target positions.

    Returns:
        Batches in the given order; each holds at least one sentence.
    """
    numbers = np.asarray(order, dtype=np.int64)
    edges = _edges(np.asarray(sizes)[numbers], max_tokens)
    return [numbers[a:b].tolist() for a, b in pairwise(edges)]


def _edges(sizes: np.ndarray, max_tokens: int) -> list[int]:
    """Where batches begin, and the end of the last; a step for each batch, not for each sentence."""
    edges = [0]
    while (start := edges[-1]) < len(sizes):
        block = sizes[start : start + max(1, max_tokens // int(sizes[start]))]
        padded = np.maximum.accumulate(block) * np.arange(1, len(block) + 1)
        edges.append(start + max(1, int(np.searchsorted(padded, max_tokens, side="right"))))
    return edges


class TokenBatchSampler(Sampler[list[int]]):
    """Micro-batches of this process, by token count, reshuffled every epoch.

    Every epoch holds every sentence exactly once. All epochs have the same number of updates and
    all updates the same number of micro-batches: the Trainer plans its steps on that, and no
    process waits for another that has run out. Where packing gives too few batches, the fullest are
    halved.

    Args:
        lengths: [sentences, 2], tokens of source and target, end-of-sentence included.
        max_tokens: limit on a micro-batch, see `pack`.
        batches_per_update: micro-batches of one optimizer step over all processes.
        rank, world_size: which share this process takes.
        window: sentences that are sorted by length together; larger means less padding, smaller
            more shuffle.
        seed: the order depends on this, the epoch and nothing else.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        max_tokens: int,
        *,
        batches_per_update: int = 1,
        rank: int = 0,
        world_size: int = 1,
        window: int = 1_000_000,
        seed: int = 0,
    ):
        if batches_per_update % world_size:
            raise ValueError(
                "batches_per_update must be a multiple of the number of processes, got "
                f"{batches_per_update} and {world_size}; pass processes x accumulation steps."
            )
        self.lengths = np.asarray(lengths).reshape(-1, 2)
        self.sizes = self.lengths.max(axis=1, initial=0)
        check_fit(self.sizes, max_tokens)
        self.max_tokens = max_tokens
        self.batches_per_update = batches_per_update
        self.rank = rank
        self.world_size = world_size
        self.window = window
        self.seed = seed
        self.epoch = 0
        first = len(self._packed(epoch=0, attempt=0)[1]) - 1
        self.total = -(-first // batches_per_update) * batches_per_update
        if len(self.sizes) < self.total:
            raise ValueError(
                f"{len(self.sizes)} training sentences cannot fill {self.total} micro-batches, the "
                f"multiple of {batches_per_update} (processes x gradient_accumulation_steps) that "
                "an epoch needs; lower gradient_accumulation_steps or give more data."
            )

    def _packed(self, epoch: int, attempt: int) -> tuple[np.ndarray, list[int]]:
        """Shuffle, sort within windows, pack: all sentences in order, and where batches begin."""
        order = np.random.default_rng([self.seed, epoch, attempt]).permutation(len(self.sizes))
        edges = [0]
        for start in range(0, len(order), self.window):
            window = order[start : start + self.window]
            source, target = self.lengths[window].T
            window = window[np.lexsort((source, target, self.sizes[window]))]
            order[start : start + self.window] = window
            edges += [start + edge for edge in _edges(self.sizes[window], self.max_tokens)[1:]]
        return order, edges

    def _planned(self, epoch: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """The sentences of an epoch, where each batch begins in them, and the order of the batches."""
        # Window borders fall elsewhere every epoch, so the count differs a little; one that fits is
        # drawn.
        for attempt in range(10):
            order, edges = self._packed(epoch, attempt)
            if len(edges) - 1 <= self.total:
                break
        else:
            order, edges = self._packed(epoch=0, attempt=0)
        sentences = [edge - start for start, edge in pairwise(edges)]
        fullest = [(-count, number) for number, count in enumerate(sentences)]
        begins = edges[:-1]
        heapify(fullest)
        while len(begins) < self.total:
            count, number = -fullest[0][0], fullest[0][1]
            begins.append(begins[number] + count // 2)
            heapreplace(fullest, (-(count // 2), number))
            heappush(fullest, (count // 2 - count, len(begins) - 1))
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(begins))
        return order, begins, shuffled

    def _batches(self, epoch: int, rank: int, world_size: int) -> Iterator[list[int]]:
        order, begins, shuffled = self._planned(epoch)
        ends = dict(zip(sorted(begins), [*sorted(begins)[1:], len(order)], strict=True))
        for number in shuffled[rank::world_size]:
            start = begins[number]
            yield order[start : ends[start]].tolist()

    def global_batches(self, epoch: int) -> list[list[int]]:
        """All micro-batches of an epoch, over all processes, in the order of training."""
        return list(self._batches(epoch, 0, 1))

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches(self.epoch, self.rank, self.world_size)

    def __len__(self) -> int:
        return self.total // self.world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class EvalBatchSampler(Sampler[list[int]]):
    """Micro-batches of this process, longest first; one process may have one more than another."""

    def __init__(self, lengths: np.ndarray, max_tokens: int, rank: int = 0, world_size: int = 1):
        sizes = np.asarray(lengths).reshape(-1, 2).max(axis=1)
        check_fit(sizes, max_tokens)
        order = np.argsort(-sizes, kind="stable")
        self.batches = pack(order.tolist(), sizes.tolist(), max_tokens)[rank::world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def check_fit(sizes: np.ndarray, max_tokens: int) -> None:
    """A batch of one sentence must be within the limit too."""
    longest = int(np.max(sizes, initial=0))
    if not 0 < longest <= max_tokens:
        raise ValueError(
            f"the longest sentence has {longest} tokens and max_tokens is {max_tokens}; raise "
            "max_tokens or lower max_length, beyond which pairs are left out and counted."
            if longest
            else "no sentence pair is left; raise max_length, beyond which pairs are left out."
        )


class TokenDataLoader(DataLoader):
    """A DataLoader whose epoch the Trainer can set; it looks for `set_epoch`.

    It is not `accelerator.prepare`d: the sampler has dealt out the shares.
    """

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


class TokenRows(Dataset[dict[str, np.ndarray]]):
    """Some rows of prepared pairs, read straight from their file's pages.

    A row is `{"input_ids": [source], "labels": [target]}`, int32. (Rows of `datasets` come through lists
    of Python's numbers, at a fifth of the speed or less: recipes/benchmark/input_pipeline.py.)

    Args:
        tokens: the prepared pairs, see preparing.py.
        kept: [rows], their numbers in it.
        lengths: [rows, 2], tokens of source and target, end-of-sentence included.
    """

    def __init__(self, tokens: Any, kept: np.ndarray, lengths: np.ndarray):
        self.tokens = tokens
        self.kept = kept
        self.lengths = lengths

    @cached_property
    def _chunks(self) -> tuple[np.ndarray, dict[str, list[tuple[np.ndarray, np.ndarray]]]]:
        """First rows of the file's pieces; for each column the offsets and values of each."""
        columns = {name: self.tokens.data.column(name).chunks for name in ("input_ids", "labels")}
        sizes = [len(chunk) for chunk in columns["labels"]]
        views = {
            name: [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
            for name, chunks in columns.items()
        }
        return np.cumsum([0, *sizes[:-1]]), views

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, np.ndarray]]:
        """Rows of one batch; what a DataLoader asks for."""
        begins, views = self._chunks
        rows = self.kept[numbers]
        pieces = np.searchsorted(begins, rows, side="right") - 1
        places = zip(pieces.tolist(), (rows - begins[pieces]).tolist(), strict=True)
        found = []
        for piece, row in places:
            cut = {}
            for name, chunks in views.items():
                offsets, values = chunks[piece]
                cut[name] = values[offsets[row] : offsets[row + 1]]
            found.append(cut)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the views: a worker process maps the file itself."""
        return {name: value for name, value in vars(self).items() if name != "_chunks"}


class Collator:
    """Pads a list of examples into tensors.

    Each example has `input_ids` and `labels` (token numbers ending in end-of-sentence). The result
    has `input_ids`, `attention_mask` [batch, source], `decoder_input_ids` and `labels` [batch,
    target]; labels are padded with -100, which no loss counts; the decoder reads the labels shifted
    right by one, after the padding token, as Marian does.
    """

    def __init__(self, pad_token_id: int):
        self.pad = pad_token_id

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        sources = [example["input_ids"] for example in examples]
        targets = [example["labels"] for example in examples]
        # Not input_ids != pad: text may in principle contain the padding token.
        lengths = np.array([[len(source)] for source in sources])
        labels = _padded(targets, -100)
        read = np.full_like(labels, self.pad)
        read[:, 1:] = np.where(labels[:, 1:] == -100, self.pad, labels[:, :-1])
        batch = {
            "input_ids": _padded(sources, self.pad),
            "attention_mask": (np.arange(lengths.max()) < lengths).astype(np.int64),
            "decoder_input_ids": read,
            "labels": labels,
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def _padded(rows: list[Any], value: int) -> np.ndarray:
    """[rows, longest] int64, padded on the right with `value`."""
    padded = np.full((len(rows), max(len(row) for row in rows)), value, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded
