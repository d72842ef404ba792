"""What a training step of a detector is given: images with their boxes, mirrored, padded, stacked.

A processor scales the whole image, so a box relative to its image stays as it is; it is relative to the
image without the padding of its batch, as a single image is without any.
"""

import inspect
from typing import Any

import numpy as np
import torch
from augmentation import Augmentation
from boxed_rows import AnnotatedRows
from detection_model import WholeImages
from torch import nn
from torch.utils.data import Dataset
from transformers.utils.logging import tqdm

GIB = 2**30


class BoxedPixels(Dataset):
    """Images of a split, scaled for the model, with their boxes.

    A row has `pixel_values` uint8 ``[height, width, 3]``, `boxes` float32 ``[boxes, 4]``: middle x,
    middle y, width, height relative to the image, and `class_labels` int64 ``[boxes]``. Boxes around
    crowds are left out.

    Args:
        rows: the images.
        labels: names of the classes by their number.
        scaled: a processor's scaling.
        augmentation: its seed draws mirror images in training; None for evaluation.
        upside_down: whether images are also mirrored vertically, by chance.
    """

    def __init__(
        self,
        rows: AnnotatedRows,
        labels: list[str],
        scaled: WholeImages,
        augmentation: Augmentation | None = None,
        upside_down: bool = False,
    ) -> None:
        self.rows, self.scaled = rows, scaled
        self.augmentation, self.upside_down = augmentation, upside_down
        self.epoch = 0
        self.held: list[np.ndarray] | None = None
        number = {label: i for i, label in enumerate(labels)}
        self.boxes, self.classes = [], []
        for size, boxes, named, crowds in zip(
            rows.sizes, rows.boxes, rows.labels, rows.crowds, strict=True
        ):
            self.boxes.append(relative(boxes[~crowds], size))
            classes = [number[name] for name in named]
            self.classes.append(np.array(classes, dtype=np.int64)[~crowds])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        pixels = self._scaled(number) if self.held is None else self.held[number]
        boxes = self.boxes[number]
        if vary := self.augmentation:
            random = vary.random(self.epoch, number)
            if vary.flip and random.integers(2):
                pixels, boxes = pixels[:, ::-1], mirrored(boxes, 0)
            if self.upside_down and random.integers(2):
                pixels, boxes = pixels[::-1], mirrored(boxes, 1)
        return {"pixel_values": pixels, "boxes": boxes, "class_labels": self.classes[number]}

    @property
    def gibibytes(self) -> float:
        """What the images take in memory, scaled, about."""
        return len(self) * self.scaled.size[0] * self.scaled.size[1] * 3 / GIB

    def hold(self, what: str, quiet: bool = False) -> None:
        """Open and scale all images now, and keep them.

        Args:
            what: is said beside the progress bar.
            quiet: no bar.

        Raises:
            ValueError: an image cannot be read.
        """
        numbers = tqdm(range(len(self)), desc=what, unit="image", disable=quiet, leave=False)
        self.held = [self._scaled(i) for i in numbers]

    def set_epoch(self, epoch: int) -> None:
        """Draw other mirror images from now on."""
        self.epoch = epoch

    def _scaled(self, number: int) -> np.ndarray:
        return self.scaled(self.rows.open(number))


def relative(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes as models have them.

    Args:
        boxes: ``[boxes, 4]``, left, top, width, height in pixels.
        size: width and height of their image in pixels.

    Returns:
        float32 ``[boxes, 4]``: middle x, middle y, width, height, relative to the image.
    """
    middles = boxes[:, :2] + boxes[:, 2:] / 2
    return (np.concatenate([middles, boxes[:, 2:]], 1) / [*size, *size]).astype(np.float32)


def mirrored(boxes: np.ndarray, axis: int) -> np.ndarray:
    """Relative boxes ``[boxes, 4]`` of the mirrored image: left and right (axis 0) or top and bottom
    (axis 1) have changed places."""
    turned = boxes.copy()
    turned[:, axis] = 1 - turned[:, axis]
    return turned


class StackBoxed:
    """Makes a batch: normalised `pixel_values` ``[batch, 3, height, width]`` of the largest height and
    width, smaller images at the top left with zeros beside them; `pixel_mask`
    ``[batch, height, width]``, 1 where an image is, for a model that takes one; `labels`, for each image
    `class_labels` and `boxes`.

    Args:
        scaled: a processor's scaling.
        model: that is given the batch.
    """

    def __init__(self, scaled: WholeImages, model: nn.Module) -> None:
        self.scaled = scaled
        self.masked = "pixel_mask" in inspect.signature(model.forward).parameters

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        height, width = np.max([row["pixel_values"].shape[:2] for row in rows], axis=0)
        pixels = torch.zeros((len(rows), 3, height, width))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        mask = torch.zeros((len(rows), height, width), dtype=torch.long)
        for i, row in enumerate(rows):
            image = torch.from_numpy(np.ascontiguousarray(row["pixel_values"]))
            high, wide = image.shape[:2]
            pixels[i, :, :high, :wide] = self.scaled.normalise(image[None])[0]
            mask[i, :high, :wide] = 1
        labels = [
            {key: torch.from_numpy(row[key]) for key in ("class_labels", "boxes")} for row in rows
        ]
        batch = {"pixel_values": pixels, "labels": labels}
        return {**batch, "pixel_mask": mask} if self.masked else batch
