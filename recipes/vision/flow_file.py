"""Optical flow in files: .flo, read and written."""

from pathlib import Path

import numpy as np

MAGIC = 202021.25  # the first four bytes, as a little-endian float32; they read "PIEH"
HEADER = 12  # bytes: magic, width, height
LARGEST = 1e9  # pixels; a larger component says that the flow there is unknown
LONGEST = 100_000  # pixels a side; beyond, the header is damaged


class FlowError(ValueError):
    """A flow file cannot be read."""


def read_flow(path: str | Path) -> np.ndarray:
    """The flow of a .flo file: float32 ``[height, width, 2]``, x (rightwards) and y (downwards) in
    pixels, NaN in both where the file marks it as unknown.

    Raises:
        FlowError: it is no .flo file, or damaged: one line.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FlowError(
            f"{path}: cannot be read ({error.strerror}); mend it, or take it out."
        ) from (error)
    if len(content) < HEADER or np.frombuffer(content, "<f4", 1)[0] != MAGIC:
        raise FlowError(
            f"{path}: does not begin as a .flo file (the float32 {MAGIC}, width, height); it may be "
            "damaged or of another format: mend it, or take it out."
        )
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, offset=4))
    if not (0 < width < LONGEST and 0 < height < LONGEST):
        raise FlowError(f"{path}: says that it is {width} x {height}; mend it, or take it out.")
    expected = HEADER + 8 * width * height
    if len(content) != expected:
        raise FlowError(
            f"{path}: {len(content):,} bytes, but a flow of {width} x {height} has {expected:,}; it may "
            "have been cut short: mend it, or take it out."
        )
    flow = np.frombuffer(content, "<f4", offset=HEADER).reshape(height, width, 2).astype(np.float32)
    known = (abs(flow) <= LARGEST).all(-1, keepdims=True)  # NaN is not
    return np.where(known, flow, np.float32(np.nan))


def write_flow(path: str | Path, flow: np.ndarray) -> None:
    """Write a flow ``[height, width, 2]`` as a .flo file, unknown (NaN) as 1e10."""
    height, width, _ = flow.shape
    sizes = np.array([width, height], "<i4").tobytes()
    values = np.nan_to_num(flow.astype("<f4"), nan=1e10).tobytes()
    Path(path).write_bytes(np.float32(MAGIC).astype("<f4").tobytes() + sizes + values)
