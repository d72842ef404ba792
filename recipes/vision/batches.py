"""What a training step is given: images, kept in memory where they fit, augmented and stacked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from augmentation import Augmentation
from images import Scaled
from labelled import LabelledRows
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.utils.logging import tqdm

GIB = 2**30


class Pixels(Dataset):
    """Images of a split, scaled for the model: `pixel_values` uint8 ``[height, width, 3]``, `labels`.

    Args:
        rows: the images.
        labels: their class numbers ``[rows]``.
        scaled: a processor's scaling.
        augmentation: what varies them in training; None for evaluation.
    """

    def __init__(
        self,
        rows: LabelledRows,
        labels: Sequence[int] | np.ndarray,
        scaled: Scaled,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.rows, self.labels, self.scaled, self.augmentation = rows, labels, scaled, augmentation
        self.epoch = 0
        self.held: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        vary = self.augmentation
        random = vary.random(self.epoch, number) if vary else None
        if vary and random and vary.min_area < 1:
            pixels = vary.cut(self.rows.open(number), self.scaled.size, random)
        elif self.held is not None:
            pixels = self.held[number]
        else:
            pixels = self.scaled(self.rows.open(number))
        if vary and random:
            pixels = vary.shift_and_flip(pixels, random)
        return {"pixel_values": pixels, "labels": int(self.labels[number])}

    @property
    def gibibytes(self) -> float:
        """What the images take in memory, scaled."""
        return len(self) * self.scaled.size[0] * self.scaled.size[1] * 3 / GIB

    def hold(self, what: str, quiet: bool = False) -> None:
        """Open and scale all images now, and keep them; nothing to do where crops of any size are cut.

        Args:
            what: is said beside the progress bar.
            quiet: no bar.

        Raises:
            ValueError: an image cannot be read.
        """
        if self.augmentation and self.augmentation.min_area < 1:
            return
        held = np.empty((len(self), *self.scaled.size, 3), dtype=np.uint8)
        for i in tqdm(range(len(self)), desc=what, unit="image", disable=quiet, leave=False):
            held[i] = self.scaled(self.rows.open(i))
        self.held = held

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops and mirror images from now on."""
        self.epoch = epoch


class NextEpoch(TrainerCallback):
    """Tells the training images which epoch it is, also in the middle of one after a resume.

    (accelerate tells a data set of its own only where a single process reads it.)
    """

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.pixels.set_epoch(int(state.epoch or 0))


class Stack:
    """Makes a batch: normalised `pixel_values` ``[batch, 3, height, width]``, `labels` ``[batch]``."""

    def __init__(self, scaled: Scaled) -> None:
        self.scaled = scaled

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.stack([row["pixel_values"] for row in rows]))
        return {
            "pixel_values": self.scaled.normalise(pixels),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
