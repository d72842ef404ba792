"""Images with boxes, not opened yet: what is read from any form of data, checked and clipped."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from images import ImageError, open_image
from PIL import Image

ORIENTATION = 0x0112  # of EXIF; from 5 on width and height change places
SIDEWAYS = 5


@dataclass(frozen=True)
class AnnotatedRows:
    """Images of a split, not opened yet, with their boxes.

    Args:
        images: of each the `bytes` of its file, or its `path`.
        at: which of `images` a row has, ``[rows]``.
        names: of each row what to call it in a message.
        sizes: width and height, ``[rows]`` pairs in pixels.
        boxes: of each row ``[boxes, 4]``: left, top, width, height in pixels, inside the image.
        labels: of each row its boxes' classes.
        crowds: of each row ``[boxes]``, whether a box is around a crowd, which COCO's score ignores.
        classes: the names in the data's own order; None where it has none.
        clipped: boxes that reached out of their image.
        dropped: boxes of which nothing was inside.
    """

    images: Sequence[dict[str, Any]]
    at: np.ndarray
    names: list[str]
    sizes: list[tuple[int, int]]
    boxes: list[np.ndarray]
    labels: list[list[str]]
    crowds: list[np.ndarray]
    classes: list[str] | None = None
    clipped: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        """An image in RGB.

        Raises:
            ImageError: it cannot be read, or is not as large as its annotations say.
        """
        image = open_image(self.images[int(self.at[number])], self.names[number])
        if image.size != self.sizes[number]:
            raise ImageError(
                f"{self.names[number]}: is {image.width} x {image.height} pixels, but its annotations "
                f"are of {self.sizes[number][0]} x {self.sizes[number][1]}; correct the size, or give "
                "the image that was annotated."
            )
        return image

    def part(self, numbers: Sequence[int] | np.ndarray) -> "AnnotatedRows":
        """Some of these rows."""
        chosen = [int(i) for i in numbers]
        return replace(
            self,
            at=self.at[chosen],
            names=[self.names[i] for i in chosen],
            sizes=[self.sizes[i] for i in chosen],
            boxes=[self.boxes[i] for i in chosen],
            labels=[self.labels[i] for i in chosen],
            crowds=[self.crowds[i] for i in chosen],
        )


@dataclass
class Boxes:
    """Collects a split's boxes row by row, each checked and clipped."""

    boxes: list[np.ndarray] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    crowds: list[np.ndarray] = field(default_factory=list)
    clipped: int = 0
    dropped: int = 0

    def add(
        self,
        where: str,
        size: tuple[int, int],
        given: Iterable[tuple[Any, str, bool]],
    ) -> None:
        """The boxes of one image: each left, top, width and height, its class, whether it is a crowd.

        Raises:
            ValueError: one is no four finite numbers, or has no width or height.
        """
        kept, names, crowds = [], [], []
        for box, label, crowd in given:
            numbers = [value for value in box if _is_number(value)] if _is_list(box) else []
            if len(numbers) != 4 or len(box) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
                raise ValueError(
                    f"{where}: the box {box} must be left, top, width and height in pixels, the last "
                    "two above 0; correct it, or take it out."
                )
            left, top, width, height = map(float, numbers)
            right, bottom = min(left + width, size[0]), min(top + height, size[1])
            inside = max(left, 0.0), max(top, 0.0), right, bottom
            if inside[2] <= inside[0] or inside[3] <= inside[1]:
                self.dropped += 1
                continue
            # a rounding of less than a hundredth of a pixel is nobody's mistake
            self.clipped += (
                max(inside[0] - left, inside[1] - top, left + width - right, top + height - bottom)
                > 0.01
            )
            kept.append([inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]])
            names.append(label)
            crowds.append(crowd)
        self.boxes.append(np.array(kept, dtype=np.float64).reshape(-1, 4))
        self.labels.append(names)
        self.crowds.append(np.array(crowds, dtype=bool))

    def rows(
        self,
        images: Sequence[dict[str, Any]],
        names: list[str],
        sizes: list[tuple[int, int]],
        classes: list[str] | None,
    ) -> AnnotatedRows:
        """The split, of images in the order in which their boxes were added."""
        return AnnotatedRows(
            images,
            np.arange(len(names)),
            names,
            sizes,
            self.boxes,
            self.labels,
            self.crowds,
            classes,
            self.clipped,
            self.dropped,
        )


def size_of(source: dict[str, Any], name: str, width: Any, height: Any) -> tuple[int, int]:
    """Width and height: those given, or else what the file's head says."""
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    try:
        content = source.get("bytes")
        with Image.open(source["path"] if content is None else io.BytesIO(content)) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= SIDEWAYS
            return (image.height, image.width) if turned else image.size
    except Exception:  # open_image says what is wrong
        return open_image(source, name).size


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
