"""How a safetensors file is read and written a piece at a time, as bytes.

The format: 8 bytes with the header's length (little-endian), a JSON header with each tensor's dtype,
shape and place, the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

METADATA = "__metadata__"
PIECE = 1 << 22  # bytes read at a time
_LENGTH = 8  # bytes of the header's length, and what headers are padded to


class TensorEntry(NamedTuple):
    """One tensor of a file.

    Args:
        dtype: safetensors' name for it, such as ``"BF16"``.
        shape: its shape.
        start: where its bytes begin in the file.
        size: how many bytes it has.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """A safetensors file open for reading.

    Args:
        path: the file.

    Attributes:
        entries: tensor name to its entry, in the header's order.
        metadata: what the header says besides, text to text.
        header: the header's bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; save with safetensors (the default)")
        try:  # the format's own reader judges sizes, offsets and dtypes
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        self._file = path.open("rb", buffering=0)
        try:
            length = int.from_bytes(self._file.read(_LENGTH), "little")
            self.header = bytes(self.read(_LENGTH, length))
            parsed = json.loads(self.header, object_pairs_hook=_without_doubles)
            self.metadata: dict[str, str] = parsed.pop(METADATA, None) or {}
            self.entries = {
                name: TensorEntry(
                    entry["dtype"],
                    tuple(entry["shape"]),
                    _LENGTH + length + entry["data_offsets"][0],
                    entry["data_offsets"][1] - entry["data_offsets"][0],
                )
                for name, entry in parsed.items()
            }
        except (ValueError, RecursionError) as error:
            self.close()
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error

    def read(self, start: int, size: int) -> bytearray:
        """``size`` bytes from ``start`` of the file on."""
        self._file.seek(start)
        got = bytearray(size)
        view, filled = memoryview(got), 0
        while filled < size:
            count = self._file.readinto(view[filled:])
            if not count:
                raise ValueError(
                    f"{self.path} is not a whole safetensors file: it ends at byte "
                    f"{start + filled:,} of {start + size:,}"
                )
            filled += count
        return got

    def pieces(self, name: str) -> Iterator[bytearray]:
        """A tensor's bytes, a few MiB at a time."""
        entry = self.entries[name]
        for offset in range(0, entry.size, PIECE):
            yield self.read(entry.start + offset, min(PIECE, entry.size - offset))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def header_bytes(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]
) -> bytes:
    """A header, its length before it, as safetensors itself writes it.

    Args:
        tensors: name, dtype, shape and bytes of each tensor, in the order of their bytes.
        metadata: text to text; left out where empty.
    """
    written: dict[str, Any] = {METADATA: metadata} if metadata else {}
    offset = 0
    for name, dtype, shape, size in tensors:
        written[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(written, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk, before its folder gets its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return found
