"""Which rows make a batch: rows of like length, the same batches in every process and after a resume."""

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class EpochGroupedSampler(LengthGroupedSampler):
    """transformers' `LengthGroupedSampler`, drawn anew in each epoch from the seed and the epoch alone.

    Its own draws come from each process's global random numbers, which dropout uses too: from the
    second epoch on, processes would share out different orders, with rows seen twice and rows missed.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:  # it comes before whichever Trainer there is
    _Base = object


class SameBatches(_Base):
    """Mixin for a Trainer whose `train_sampling_strategy` is `group_by_length`: one process with an
    accumulation of 2 and two processes train on the same updates.

    Put it before the Trainer class, `class Trainer(SameBatches, NMTrainer)`.
    """

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        update = sampler.batch_size * self.args.world_size
        return EpochGroupedSampler(update, sampler.lengths, seed)
