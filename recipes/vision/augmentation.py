"""How training images are varied: crops with padding, crops of any size, mirror images.

Everything is drawn from the seed, the epoch and the image's number alone: the same in every process,
with any number of data loader workers, and after a resume.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

ASPECT = 4 / 3  # of a crop, at most; Szegedy et al. (2015)
TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image.

    Args:
        seed: of the run.
        padding: black pixels around the image, of which a crop in its own size is taken; 0 for none.
        flip: whether every second image, by chance, is mirrored.
        min_area: the smallest share of the image that a crop shows, scaled to the model's size; 1 for
            the whole image.
    """

    seed: int
    padding: int = 0
    flip: bool = False
    min_area: float = 1.0

    def random(self, epoch: int, number: int) -> np.random.Generator:
        """The random numbers of an image in an epoch."""
        return np.random.default_rng((self.seed, epoch, number))

    def cut(
        self, image: Image.Image, size: tuple[int, int], random: np.random.Generator
    ) -> np.ndarray:
        """A random part of the image: uint8 ``[height, width, 3]`` of that size.

        Its share of the area is uniform between `min_area` and 1, its aspect log-uniform within 4:3, as
        in torchvision's RandomResizedCrop; the middle where ten tries do not fit.
        """
        width, height = image.size
        box = _middle(width, height)
        for _ in range(TRIES):
            area = width * height * random.uniform(self.min_area, 1)
            aspect = math.exp(random.uniform(-math.log(ASPECT), math.log(ASPECT)))
            wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < high <= height:
                left = int(random.integers(width - wide + 1))
                top = int(random.integers(height - high + 1))
                box = left, top, left + wide, top + high
                break
        scaled = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
        return np.asarray(scaled)

    def shift_and_flip(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The image moved by up to `padding` pixels each way, and mirrored: ``[height, width, 3]``."""
        if self.padding:
            height, width, _ = pixels.shape
            pad = self.padding
            top, left = random.integers(0, 2 * pad + 1, size=2)
            padded = np.zeros((height + 2 * pad, width + 2 * pad, 3), dtype=pixels.dtype)
            padded[pad : pad + height, pad : pad + width] = pixels
            pixels = padded[top : top + height, left : left + width]
        if self.flip and random.integers(2):
            pixels = pixels[:, ::-1]
        return pixels


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest box of an allowed aspect."""
    wide, high = min(width, round(height * ASPECT)), min(height, round(width * ASPECT))
    left, top = (width - max(1, wide)) // 2, (height - max(1, high)) // 2
    return left, top, left + max(1, wide), top + max(1, high)
