"""Flow as a picture: direction as colour, length as saturation, beside the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# The colour wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (2011): how
# many steps lead from each corner of the RGB cube to the next.
CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
STEPS = (15, 6, 4, 11, 13, 6)
GAP, HEADING = 4, 14  # pixels between the pictures, and above them
NARROWEST = 160  # pixels that a picture is enlarged to


def wheel() -> np.ndarray:
    """The colours of directions, from rightwards over downwards: float64 ``[55, 3]``, 0 to 255."""
    parts = []
    for i, count in enumerate(STEPS):
        begin, end = (np.array(CORNERS[j % len(CORNERS)]) for j in (i, i + 1))
        parts.append(begin + np.arange(count)[:, None] / count * (end - begin))
    return np.concatenate(parts)


def coloured(flow: np.ndarray, longest: float) -> np.ndarray:
    """A flow's picture: white is no motion, full colour a motion of `longest` pixels, darker a longer
    one, black unknown.

    Args:
        flow: ``[height, width, 2]``, x and y in pixels, NaN where unknown.
        longest: pixels.

    Returns:
        uint8 ``[height, width, 3]``.
    """
    colours = wheel()
    known = ~np.isnan(flow).any(-1)
    x, y = np.moveaxis(np.where(known[..., None], flow, 0), -1, 0)
    length = np.hypot(x, y)[..., None] / longest
    place = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(colours) - 1)
    lower = np.floor(place).astype(int)
    part = (place - lower)[..., None]
    pure = (1 - part) * colours[lower] + part * colours[(lower + 1) % len(colours)]
    shown = np.where(length <= 1, 255 - length * (255 - pure), 0.75 * pure)
    return np.rint(shown * known[..., None]).astype(np.uint8)


def draw_flows(
    path: str | Path,
    rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    headings: Sequence[str] = ("first frame", "true flow", "predicted"),
) -> None:
    """Write a PNG with a row for each pair: its first frame, its true flow, the predicted one.

    Both flows of a row have one scale: full colour is the truth's 99th percentile.

    Args:
        path: of the PNG file.
        rows: frame uint8 ``[height, width, 3]``, truth and prediction ``[height, width, 2]``.
        headings: above the columns.
    """
    pictures = []
    for frame, truth, predicted in rows:
        lengths = np.linalg.norm(truth, axis=-1)
        longest = max(float(np.nanpercentile(lengths, 99)), 1e-6)
        flows = (coloured(truth, longest), coloured(predicted, longest))
        pictures.append([_enlarged(each) for each in (frame, *flows)])
    widths = [max(row[i].width for row in pictures) + GAP for i in range(len(headings))]
    heights = [row[0].height + GAP for row in pictures]
    sheet = Image.new("RGB", (sum(widths), HEADING + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    left = 0
    for column, heading in enumerate(headings):
        pen.text((left, 1), heading, fill="black")
        top = HEADING
        for row, height in zip(pictures, heights, strict=True):
            sheet.paste(row[column], (left, top))
            top += height
        left += widths[column]
    sheet.save(path, "png")


def _enlarged(pixels: np.ndarray) -> Image.Image:
    times = max(1, -(-NARROWEST // pixels.shape[1]))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
