"""The embedded images: textured shapes, drawn here, that no pixel, colour or texture tells apart.

A class is a shape and the texture on it: rings, crosses, squares and triangles, striped or chequered.
Where the shape lies, how it is turned, how large, its two colours and the period of its texture are
drawn anew for each image, and so is a background with one of the textures, in two colours that
differ less; noise covers all of it. So neither a pixel nor the mean colour says anything, and the
texture of half the classes is on the background of any.
"""

import numpy as np

SIDE = 64  # pixels
SHAPES = ("ring", "cross", "square", "triangle")
TEXTURES = ("striped", "chequered")
LABELS = [f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES]
ROWS = {"train": 3200, "validation": 500, "test": 1000}
NOISE = 12.0  # grey levels


def drawn(split: str, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images of a split and their classes, always the same ones.

    Args:
        split: train, validation or test.
        rows: how many; those of :data:`ROWS` if not given.

    Returns:
        uint8 ``[rows, 64, 64, 3]`` and class numbers ``[rows]``, all classes equally often.
    """
    count = ROWS[split] if rows is None else rows
    first = list(ROWS).index(split) * 1_000_000
    classes = np.arange(count) % len(LABELS)
    np.random.default_rng(first).shuffle(classes)
    images = [draw(int(kind), first + i) for i, kind in enumerate(classes)]
    return np.stack(images), classes


def draw(kind: int, number: int) -> np.ndarray:
    """The image of a class with that number: uint8 ``[64, 64, 3]``."""
    random = np.random.default_rng((1, number))
    shape, texture = divmod(kind, len(TEXTURES))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    size = random.uniform(16, 26)  # from the middle to the rim
    middle_y, middle_x = random.uniform(size, SIDE - size, size=2)
    angle = random.uniform(0, 2 * np.pi)
    across = (x - middle_x) * np.cos(angle) + (y - middle_y) * np.sin(angle)
    along = (y - middle_y) * np.cos(angle) - (x - middle_x) * np.sin(angle)
    within = inside(SHAPES[shape], across, along, size)
    colours = _colours(random)
    own = _texture(TEXTURES[texture], across, along, random)
    around = random.uniform(0, 2 * np.pi)
    behind = _texture(
        TEXTURES[random.integers(len(TEXTURES))],
        x * np.cos(around) + y * np.sin(around),
        y * np.cos(around) - x * np.sin(around),
        random,
    )
    image = np.where(within, np.where(own, 0, 1), np.where(behind, 2, 3))
    noisy = colours[image] + random.normal(0, NOISE, size=(SIDE, SIDE, 3))
    return np.rint(noisy).clip(0, 255).astype(np.uint8)


def inside(shape: str, across: np.ndarray, along: np.ndarray, size: float) -> np.ndarray:
    """Which pixels belong to the shape; `across` and `along` are measured from its middle."""
    distance = np.hypot(across, along)
    if shape == "ring":
        return (distance < size) & (distance > 0.5 * size)
    if shape == "cross":
        arms = np.minimum(abs(across), abs(along)) < 0.25 * size
        return arms & (np.maximum(abs(across), abs(along)) < size)
    if shape == "square":
        return np.maximum(abs(across), abs(along)) < 0.75 * size
    sides = [
        across * np.cos(turn) + along * np.sin(turn) for turn in (0, 2 * np.pi / 3, 4 * np.pi / 3)
    ]
    return np.max(sides, axis=0) < 0.55 * size


def _colours(random: np.random.Generator) -> np.ndarray:
    """Two of the shape, 150 grey levels apart, and two of the background, up to 60: ``[4, 3]``."""
    found = []
    for lowest, highest in ((150, 150), (0, 60)):
        middle = random.uniform(75, 180, size=3)
        direction = random.normal(size=3)
        apart = random.uniform(lowest, highest) * direction / np.linalg.norm(direction)
        found += [middle - apart / 2, middle + apart / 2]
    return np.stack(found)


def _texture(
    texture: str, across: np.ndarray, along: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Which pixels have the first of its two colours."""
    period = random.uniform(7, 11)
    phase = random.uniform(0, period, size=2)
    stripes = (across + phase[0]) // (period / 2) % 2 > 0
    if texture == "striped":
        return stripes
    return stripes ^ ((along + phase[1]) // (period / 2) % 2 > 0)
