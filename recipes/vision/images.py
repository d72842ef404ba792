"""How an image becomes pixels: opened whatever its mode, scaled as the checkpoint's processor does it,
and normalised as the processor does it."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

CHANNELS = 3
SIXTEEN_BITS = 2**16 - 1
DEEP = {"I", "I;16", "I;16B", "I;16L"}  # Pillow's modes of grey with more than 8 bits


class ImageError(ValueError):
    """An image cannot be read."""


@contextmanager
def one_line_image_errors() -> Iterator[None]:
    """Around what opens images while it trains: one that cannot be read ends the program with a message
    alone, other errors keep their traceback."""
    try:
        yield
    except ImageError as error:
        # from a data loader's worker it comes below a traceback
        said = str(error).strip().splitlines()[-1].removeprefix(f"{__name__}.ImageError: ")
        raise SystemExit(f"{Path(sys.argv[0]).name}: error: {said}") from error


def open_image(source: dict[str, Any], name: str) -> Image.Image:
    """An image in RGB, 8 bits a channel, turned as its EXIF says.

    What transformers' pipelines make of a file, too: transparency is dropped, grey is repeated in the
    three channels, of an animation the first frame is taken. Grey of 16 bits keeps its upper 8, where
    a pipeline would show white. Images of up to 3 pixels a side are enlarged four times.

    Args:
        source: `bytes` of the file, or else its `path`: a row of `datasets.Image(decode=False)`.
        name: what to call it in a message.

    Raises:
        ImageError: it cannot be read, or its values have no known range: one line.
    """
    try:
        content = source.get("bytes")
        if content is None:
            content = Path(source["path"]).read_bytes()
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # whatever a file's bytes make Pillow raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "cannot identify" in said:  # it goes on with an object's address
            said = "no format that Pillow knows"
        raise ImageError(
            f"{name}: cannot be read as an image ({said}); mend it, or take it out."
        ) from error
    if image.mode in DEEP:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > SIXTEEN_BITS:
            raise ImageError(
                f"{name}: grey values from {values.min()} to {values.max()}, which are not 16 bits; "
                "convert it to 8 or 16 bits."
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError(
            f"{name}: its pixels are floats, and what is white is not known; convert it to 8 bits."
        )
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette may be transparent
    image = image.convert("RGB")
    if min(image.size) <= CHANNELS:
        # a side that processors of transformers 5.0 would take for the channels
        image = image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST)
    return image


class Scaled:
    """A processor's two halves: scaling and cropping in bytes, which can be kept in memory and
    augmented, and the normalisation, which a batch gets at once.

    Args:
        processor: an image processor of transformers, with either backend.

    Attributes:
        size: height and width of what it gives.
        keeps_size: whether an image of this size comes out as it is.

    Raises:
        ValueError: its pixels are not a linear function of the image's, or it gives images of different
            sizes.
    """

    def __init__(self, processor: Any) -> None:
        self.processor, self.keeps_size = processor, False
        self.scale, self.shift = self._normalisation()
        self.size: tuple[int, int] = self(Image.new("RGB", (96, 64))).shape[:2]
        other = self(Image.new("RGB", (64, 160))).shape[:2]
        if other != self.size:
            raise ValueError(
                f"{type(processor).__name__} gives images of different sizes ({self.size} and {other}), "
                "which no batch can hold; give it a crop_size, or a size of height and width, in "
                "preprocessor_config.json."
            )
        noise = np.random.default_rng(0).integers(0, 256, (*self.size, 3), dtype=np.uint8)
        self.keeps_size = np.array_equal(self(Image.fromarray(noise)), noise)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The image scaled and cropped: uint8 ``[height, width, 3]``."""
        if self.keeps_size and (image.height, image.width) == self.size:
            return np.array(image)  # several times as fast
        # Backwards from what the model would see: what a processor normalises with has many switches.
        found = self._processed(image).transpose(1, 2, 0)
        levels = (found - self.shift.numpy()) / self.scale.numpy()
        return np.rint(levels).clip(0, 255).astype(np.uint8)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the model sees.

        Args:
            pixels: uint8 ``[batch, height, width, 3]``.

        Returns:
            float32 ``[batch, 3, height, width]``, laid out as the input was: channels last.
        """
        return (pixels.float() * self.scale + self.shift).permute(0, 3, 1, 2)

    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift per channel, as the processor applies them: ``[3]`` each."""
        black, grey, white = (self._of_grey(level) for level in (0, 100, 255))
        scale = (white - black) / 255
        if not torch.allclose(grey, black + 100 * scale, atol=1e-4):
            raise ValueError(
                f"{type(self.processor).__name__}: what it gives is no linear function of the pixels, "
                "so training could not show the model the same; give another processor's "
                "preprocessor_config.json."
            )
        return scale, black

    def _of_grey(self, level: int) -> torch.Tensor:
        # in the middle, because a processor may pad
        image = Image.new("RGB", (512, 512), (level, level, level))
        found = self._processed(image)
        middle = found[:, found.shape[1] // 2, found.shape[2] // 2]
        return torch.as_tensor(np.array(middle, dtype=np.float32))

    def _processed(self, image: Image.Image) -> np.ndarray:
        """What the model would see: ``[3, height, width]``."""
        return np.asarray(self.processor(images=image, return_tensors="np")["pixel_values"][0])
