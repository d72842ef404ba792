"""The embedded pairs of frames: moving textures, drawn here, whose flow is exact.

The background and, by chance, a patch before it have smooth random textures of their own, and each
moves by a translation, rotation and zoom of its own. The second frame shows the textures at whole
pixels; the first one shows, at each pixel, the texture of what is seen there at the place where the
flow leads, between pixels by bilinear sampling. So the second frame, sampled where the flow leads, is
the first frame to the rounding of 8 bits, except where a patch hides what moves behind it, at a
patch's rim and where the flow leads out of the frame: there the flow is exact, but nothing in the
frames shows it.
"""

from dataclasses import dataclass

import numpy as np

SIZE = (16, 20)  # height and width, pixels
ROWS = {"train": 1200, "validation": 64, "test": 200}
CONTRAST = 50.0  # grey levels, the standard deviation of a texture
FARTHEST = 1.5  # pixels, of a translation
TURN, ZOOM = 0.05, 0.05  # radians; as a share of the size
PATCHES = 1


@dataclass(frozen=True)
class Motion:
    """Where a point of the first frame is in the second: turned and zoomed around a middle, then moved.

    Args:
        middle: x and y, pixels.
        turn: radians.
        zoom: factor.
        shift: x and y, pixels.
    """

    middle: np.ndarray
    turn: float
    zoom: float
    shift: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """Its linear part: ``[2, 2]``."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return self.zoom * np.array([[cos, -sin], [sin, cos]])

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points of the first frame in the second: ``[..., 2]``, x and y in pixels."""
        return (points - self.middle) @ self.matrix.T + self.middle + self.shift

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points of the second frame in the first."""
        return (points - self.middle - self.shift) @ np.linalg.inv(self.matrix).T + self.middle


def draw(
    split: str, number: int, size: tuple[int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair of a split, always the same one.

    Args:
        split: train, validation or test.
        number: of the pair.
        size: height and width.

    Returns:
        Two frames, uint8 ``[height, width, 3]``, and the flow from the first to the second, float32
        ``[height, width, 2]``: x (rightwards) and y (downwards), in pixels.
    """
    first, second, flow, _ = layers(split, number, size)
    return (*(np.rint(each).clip(0, 255).astype(np.uint8) for each in (first, second)), flow)


def layers(
    split: str, number: int, size: tuple[int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pair before it is rounded to 8 bits, with what is seen at each pixel of both frames.

    Returns:
        Two frames, float64 ``[height, width, 3]``; the flow; which layer is seen, the background 0,
        int ``[2, height, width]``.
    """
    random = np.random.default_rng((2, list(ROWS).index(split), number))
    height, width = size
    points = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(float)
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    seen = np.zeros((2, height, width), dtype=int)
    motions = [_motion(random, middle)]
    for layer in range(1, 1 + int(random.integers(PATCHES + 1))):
        place = random.uniform(0.2, 0.8, size=2) * (width, height)
        motions.append(_motion(random, place))
        radii = random.uniform(0.15, 0.35, size=2) * min(size)
        angle, round_ = random.uniform(0, np.pi), bool(random.integers(2))
        seen[0][_inside(points - place, radii, angle, round_)] = layer
        seen[1][_inside(motions[layer].back(points) - place, radii, angle, round_)] = layer
    first, second = np.empty((2, height, width, 3))
    flow = np.empty((height, width, 2))
    for layer, motion in enumerate(motions):
        texture = _texture(random, size)
        there = motion(points[seen[0] == layer])
        first[seen[0] == layer] = sample(texture, there)
        flow[seen[0] == layer] = there - points[seen[0] == layer]
        second[seen[1] == layer] = texture[:height, :width][seen[1] == layer]
    return first, second, flow.astype(np.float32), seen


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """An image between its pixels, bilinear; beyond its rim it begins anew at the other side.

    Args:
        image: ``[height, width, channels]``.
        points: ``[..., 2]``, x and y in pixels.

    Returns:
        ``[..., channels]``.
    """
    height, width = image.shape[:2]
    whole = np.floor(points).astype(int)
    part = (points - whole)[..., None]
    x, y = whole[..., 0], whole[..., 1]
    right, down = part[..., 0, :], part[..., 1, :]
    upper = (1 - right) * image[y % height, x % width] + right * image[y % height, (x + 1) % width]
    y = y + 1
    lower = (1 - right) * image[y % height, x % width] + right * image[y % height, (x + 1) % width]
    return (1 - down) * upper + down * lower


def _motion(random: np.random.Generator, middle: np.ndarray) -> Motion:
    """A translation of any direction, and a small rotation and zoom around that middle."""
    direction = random.uniform(0, 2 * np.pi)
    far = FARTHEST * np.sqrt(random.uniform())  # uniform over the disc
    shift = far * np.array([np.cos(direction), np.sin(direction)])
    return Motion(middle, random.uniform(-TURN, TURN), 1 + random.uniform(-ZOOM, ZOOM), shift)


def _texture(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise without its fine detail, in three channels that go together in part:
    ``[height + 16, width + 16, 3]``, without a seam when repeated."""
    height, width = size[0] + 16, size[1] + 16  # what moves into the frame is not what moves out
    fine = random.uniform(1.0, 1.6)  # pixels, the deviation of the blur
    across, down = np.fft.fftfreq(width)[None, :, None], np.fft.fftfreq(height)[:, None, None]
    blur = np.exp(-2 * (np.pi * fine) ** 2 * (across**2 + down**2))
    noise = 0.3 * random.normal(size=(height, width, 3)) + random.normal(size=(height, width, 1))
    smooth = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * blur, axes=(0, 1)).real
    smooth -= smooth.mean((0, 1))
    return random.uniform(110, 145, size=3) + CONTRAST * smooth / smooth.std((0, 1))


def _inside(offsets: np.ndarray, radii: np.ndarray, angle: float, round_: bool) -> np.ndarray:
    """Which points lie in an ellipse, or a rectangle, around the origin."""
    across = offsets[..., 0] * np.cos(angle) + offsets[..., 1] * np.sin(angle)
    along = offsets[..., 1] * np.cos(angle) - offsets[..., 0] * np.sin(angle)
    inside = np.stack([across / radii[0], along / radii[1]])
    return (np.hypot(*inside) if round_ else abs(inside).max(0)) < 1
