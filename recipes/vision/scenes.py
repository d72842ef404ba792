"""The embedded scenes for detection: shapes on a noisy background, with the boxes of their pixels.

What is where, how it is turned, how large and of what colour is drawn anew for each image. Classes are
the shapes of :mod:`shapes`; a box is exactly what the shape's pixels span. Shapes never overlap, and
some scenes are empty.
"""

import numpy as np
import shapes

SIDE = 64  # pixels
LABELS = list(shapes.SHAPES)
ROWS = {"train": 3000, "validation": 200, "test": 300}
MOST = 3  # shapes in a scene
EMPTY = 0.05  # of the scenes
SIZES = 8, 16  # pixels from the middle to the rim
APART = 90.0  # grey levels between a shape's colour and the background's, at least
NOISE = 8.0  # grey levels
TRIES = 20


def drawn(split: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scene of a split with that number, always the same one.

    Returns:
        uint8 ``[64, 64, 3]``; boxes ``[shapes, 4]`` as left, top, width, height in pixels; class
        numbers ``[shapes]``.
    """
    random = np.random.default_rng((2, list(ROWS).index(split), number))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    ground = random.uniform(0, 255, size=3)
    image = np.broadcast_to(ground, (SIDE, SIDE, 3)).copy()
    taken = np.zeros((SIDE, SIDE), dtype=bool)
    boxes: list[list[int]] = []
    classes: list[int] = []
    wanted = 0 if random.uniform() < EMPTY else int(random.integers(1, MOST + 1))
    for _ in range(TRIES):
        if len(boxes) == wanted:
            break
        kind = int(random.integers(len(LABELS)))
        size = random.uniform(*SIZES)
        middle_y, middle_x = random.uniform(size, SIDE - size, size=2)
        angle = random.uniform(0, 2 * np.pi)
        across = (x - middle_x) * np.cos(angle) + (y - middle_y) * np.sin(angle)
        along = (y - middle_y) * np.cos(angle) - (x - middle_x) * np.sin(angle)
        inside = shapes.inside(LABELS[kind], across, along, size)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        top, bottom = rows[0], rows[-1] + 1
        left, right = columns[0], columns[-1] + 1
        if taken[top:bottom, left:right].any():
            continue
        taken[top:bottom, left:right] = True
        image[inside] = _colour(random, ground)
        boxes.append([left, top, right - left, bottom - top])
        classes.append(kind)
    noisy = image + random.normal(0, NOISE, size=image.shape)
    pixels = np.rint(noisy).clip(0, 255).astype(np.uint8)
    return pixels, np.array(boxes, dtype=float).reshape(-1, 4), np.array(classes, dtype=int)


def _colour(random: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A colour far enough from the background's: ``[3]``."""
    while True:
        colour = random.uniform(0, 255, size=3)
        if np.linalg.norm(colour - ground) >= APART:
            return colour
