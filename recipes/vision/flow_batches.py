"""What a flow model's training step is given: crops and mirror images of pairs, as 3x3 patches."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flow_data import Pairs
from torch.utils.data import Dataset
from transformers.utils.logging import tqdm

# The flow of a pixel where it is not known. The Trainer counts the labels that are not -100, so the
# loss is divided by the known ones of the whole update.
UNKNOWN = -100.0
BESIDE_UNKNOWN = np.nextafter(np.float32(UNKNOWN), np.float32(0))
KEPT = 2**31  # bytes; more pairs are opened in each epoch anew


class Crops(Dataset):
    """Pairs of a split in the model's size: `frames` uint8 ``[2, height, width, 3]`` and `labels`, the
    flow, float32 ``[height, width, 2]`` in pixels, :data:`UNKNOWN` where it is not known.

    Args:
        pairs: which.
        size: height and width.
        seed: of the run, for a random crop, flipped both ways by chance; None for the middle as it is.
            Everything is drawn from seed, epoch and the pair's number alone: the same in every
            process, with any number of workers, and after a resume.
    """

    def __init__(self, pairs: Pairs, size: tuple[int, int], seed: int | None = None) -> None:
        self.pairs, self.size, self.seed = pairs, size, seed
        self.epoch = 0
        self.held: list[Any] = []

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        pair = self.held[number] if self.held else self.pairs.open(number, self.size)
        free = [whole - side for whole, side in zip(pair[2].shape[:2], self.size, strict=True)]
        top, left = (room // 2 for room in free)
        across = down = False
        if self.seed is not None:
            random = np.random.default_rng((self.seed, self.epoch, number))
            top, left = (int(random.integers(room + 1)) for room in free)
            across, down = (bool(random.integers(2)) for _ in range(2))
        height, width = self.size
        cut = (each[top : top + height, left : left + width] for each in pair)
        first, second, flow = flipped(*cut, across=across, down=down)
        flow = np.where(flow == UNKNOWN, BESIDE_UNKNOWN, flow)
        labels = np.nan_to_num(flow, nan=UNKNOWN).astype(np.float32)
        return {"frames": np.stack([first, second]), "labels": labels}

    def hold(self, what: str, quiet: bool = False) -> None:
        """Open all pairs now, and keep them where two GiB hold them: what is wrong with one shows here.

        Args:
            what: is said beside the progress bar.
            quiet: no bar.

        Raises:
            ImageError: a pair cannot be used.
        """
        held: list[Any] = []
        taken = 0
        for i in tqdm(range(len(self)), desc=what, unit="pair", disable=quiet, leave=False):
            pair = self.pairs.open(i, self.size)
            taken += sum(each.nbytes for each in pair)
            if taken <= KEPT:
                held.append(pair)
        self.held = held if taken <= KEPT else []

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops and mirror images from now on."""
        self.epoch = epoch


def flipped(
    first: np.ndarray, second: np.ndarray, flow: np.ndarray, *, across: bool, down: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirror a pair, and its flow with it.

    Args:
        first, second: frames ``[height, width, 3]``.
        flow: ``[height, width, 2]``, x and y in pixels.
        across: left and right change places, and x its sign.
        down: top and bottom change places, and y its sign.
    """
    if across:
        first, second, flow = (each[:, ::-1] for each in (first, second, flow))
        flow = flow * np.array([-1, 1], flow.dtype)
    if down:
        first, second, flow = (each[::-1] for each in (first, second, flow))
        flow = flow * np.array([1, -1], flow.dtype)
    return first, second, flow


def patches(frames: torch.Tensor) -> torch.Tensor:
    """What the model sees of frames: each pixel's 3x3 neighbourhood, zeros beyond the rim.

    Args:
        frames: uint8 ``[batch, 2, height, width, 3]``.

    Returns:
        float32 ``[batch, 2, 27, height, width]``, from -1 to 1; row, column, colour of the
        neighbourhood in this order, as DeepMind's checkpoint has them.
    """
    batch, count, height, width, _ = frames.shape
    levels = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    around = F.pad(levels, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    ordered = around.permute(0, 4, 5, 1, 2, 3)
    return ordered.reshape(batch, count, 27, height, width)


def stack(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Make a batch: `inputs` ``[batch, 2, 27, height, width]`` and `labels`, the flow, stacked."""
    frames = torch.from_numpy(np.stack([row["frames"] for row in rows]))
    labels = torch.from_numpy(np.stack([row["labels"] for row in rows]))
    return {"inputs": patches(frames), "labels": labels}
