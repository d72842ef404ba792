"""Which sentences share a batch: batches by token count, the same ones for any number of processes.

Words used here: a *micro-batch* is what one process runs through the model at once; an *update* is
one optimizer step, made of `batches_per_update` micro-batches, which is processes x accumulation steps.
Micro-batch number `i` of an epoch goes to process `i % world_size`, so 2 processes x accumulation
`k` see the same updates as 1 process x accumulation `2k`.

Why not accelerate's sharding of a batch sampler: where the number of batches is no multiple of the
number of processes it repeats the first batches (`even_batches=True`) or gives processes unequal
numbers of them, and `set_epoch` does not reach a sampler inside two of its wrappers, as on resume.
"""

from collections.abc import Iterator, Sequence
from heapq import heapify, heapreplace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


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
    batches: list[list[int]] = []
    batch: list[int] = []
    largest = 0
    for number in order:
        grown = max(largest, sizes[number])
        if batch and grown * (len(batch) + 1) > max_tokens:
            batches.append(batch)
            batch, grown = [], sizes[number]
        batch.append(number)
        largest = grown
    if batch:
        batches.append(batch)
    return batches


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
        window: int = 8192,
        seed: int = 0,
    ):
        if batches_per_update % world_size:
            raise ValueError(
                "batches_per_update must be a multiple of the number of processes, got "
                f"{batches_per_update} and {world_size}; pass processes x accumulation steps."
            )
        self.lengths = np.asarray(lengths).reshape(-1, 2)
        self.sizes = self.lengths.max(axis=1).tolist()
        check_fit(self.sizes, max_tokens)
        self.max_tokens = max_tokens
        self.batches_per_update = batches_per_update
        self.rank = rank
        self.world_size = world_size
        self.window = window
        self.seed = seed
        self.epoch = 0
        first = len(self._packed(epoch=0, attempt=0))
        self.total = -(-first // batches_per_update) * batches_per_update
        if len(self.sizes) < self.total:
            raise ValueError(
                f"{len(self.sizes)} training sentences cannot fill {self.total} micro-batches, the "
                f"multiple of {batches_per_update} (processes x gradient_accumulation_steps) that "
                "an epoch needs; lower gradient_accumulation_steps or give more data."
            )

    def _packed(self, epoch: int, attempt: int) -> list[list[int]]:
        """Shuffle, sort within windows, pack."""
        order = np.random.default_rng([self.seed, epoch, attempt]).permutation(len(self.sizes))
        batches = []
        for start in range(0, len(order), self.window):
            window = order[start : start + self.window]
            source, target = self.lengths[window].T
            by_length = np.lexsort((source, target, np.maximum(source, target)))
            batches += pack(window[by_length].tolist(), self.sizes, self.max_tokens)
        return batches

    def global_batches(self, epoch: int) -> list[list[int]]:
        """All micro-batches of an epoch, over all processes, in the order of training."""
        # Window borders fall elsewhere every epoch, so the count differs a little; one that fits is
        # drawn.
        for attempt in range(10):
            batches = self._packed(epoch, attempt)
            if len(batches) <= self.total:
                break
        else:
            batches = self._packed(epoch=0, attempt=0)
        fullest = [(-len(batch), number) for number, batch in enumerate(batches)]
        heapify(fullest)
        while len(batches) < self.total:
            _, number = fullest[0]
            half = len(batches[number]) // 2
            batches.append(batches[number][half:])
            batches[number] = batches[number][:half]
            heapreplace(fullest, (-len(batches[number]), number))
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(batches))
        return [batches[number] for number in shuffled]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.global_batches(self.epoch)[self.rank :: self.world_size])

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


def check_fit(sizes: Sequence[int], max_tokens: int) -> None:
    """A batch of one sentence must be within the limit too."""
    longest = int(max(sizes, default=0))
    if not 0 < longest <= max_tokens:
        raise ValueError(
            f"the longest sentence has {longest} tokens and max_tokens is {max_tokens}; raise "
            "max_tokens or lower max_length, beyond which pairs are left out and counted."
            if longest
            else "no sentence pair is left; raise max_length, beyond which pairs are left out."
        )


class TokenDataLoader(DataLoader):
    """A DataLoader whose epoch the Trainer can set; it looks for `set_epoch`."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


class Collator:
    """Pads a list of examples into tensors.

    Each example has `input_ids` and `labels` (lists of token numbers ending in end-of-sentence).
    The result has `input_ids`, `attention_mask` [batch, source], `decoder_input_ids` and `labels`
    [batch, target]; labels are padded with -100, which no loss counts; the decoder reads the labels
    shifted right by one, after the padding token, as Marian does.
    """

    def __init__(self, pad_token_id: int):
        self.pad = pad_token_id

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        sources = [example["input_ids"] for example in examples]
        targets = [example["labels"] for example in examples]
        input_ids = _padded(sources, self.pad)
        # Not input_ids != pad: text may in principle contain the padding token.
        mask = _padded([[1] * len(source) for source in sources], 0)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "decoder_input_ids": _padded(
                [[self.pad, *target[:-1]] for target in targets], self.pad
            ),
            "labels": _padded(targets, -100),
        }


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """[rows, longest] int64, padded on the right with `value`."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
