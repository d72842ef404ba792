"""What a packed file is: a safetensors file with packed weights in it, and a checksum of every byte.

Each N:M weight is one uint8 tensor under its own name (:mod:`hf_nm.packing`), every other tensor is as
it was. So whoever reads the file without knowing the form is stopped by a shape that does not fit. The
header's metadata keeps what it had and gains two entries::

    "nm_packed": JSON {"version": 1, "packed": [names], "sha256": {name: of the tensor's bytes, ...}}
    "nm_packed_sha256": of the header's bytes, with this checksum's own 64 digits as zeros
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_nm.formats.folder import Count
from hf_nm.formats.packed_weight import (
    DTYPES,
    MAGIC,
    Layout,
    PackedError,
    check_mask,
    first_size,
    loses_bits,
    pack_run,
    unpack_run,
)
from hf_nm.formats.safetensors_file import TensorFile, header_bytes
from hf_nm.sparsity.bits import unpack_bits
from hf_nm.sparsity.check import PieceCheck
from hf_nm.sparsity.pattern import NMPattern

VERSION = 1
KEY = "nm_packed"
HEADER_KEY = "nm_packed_sha256"
_LENGTH = 8
_ZEROS = "0" * 64
_DIGITS = frozenset("0123456789abcdef")


class PackedFile:
    """A packed file open for reading; its header is checked, its tensors not yet (:meth:`check`).

    Args:
        path: the file.

    Attributes:
        file: the safetensors file underneath.
        layouts: name to layout, for the packed weights.
        checksum: the header's checksum, 64 digits.

    Raises:
        FileNotFoundError: there is no such file.
        PackedError: it is damaged or not a packed file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = TensorFile(path)
        except ValueError as error:
            raise PackedError(str(error)) from error
        try:
            data = self._check_header()
            self._sums: dict[str, str] = data["sha256"]
            self._values: dict[str, int] = {}
            self.layouts: dict[str, Layout] = {}
            for name in data["packed"]:
                self._read_layout(name)
        except BaseException:
            self.close()
            raise

    def _check_header(self) -> dict[str, Any]:
        """The metadata, if all of the header is what was written."""
        metadata = self.file.metadata
        if KEY not in metadata:
            raise PackedError(f"{self.path} is not a packed file: its header has no {KEY!r}")
        self.checksum = metadata.get(HEADER_KEY, "")
        if self.checksum != _header_checksum(self.file.header, self.checksum):
            raise PackedError(f"{self.path} is damaged: its header does not match its checksum")
        try:
            data = json.loads(metadata[KEY])
        except (ValueError, RecursionError) as error:
            raise PackedError(f"{self.path}: {KEY} is not valid JSON: {error}") from error
        version = data.get("version") if isinstance(data, dict) else None
        if type(version) is not int or version != VERSION:
            raise PackedError(
                f"{self.path} has version {str(version)[:40]} of the packed form, but this hf_nm reads "
                f"version {VERSION}; install the hf_nm that wrote it"
            )
        names = self.file.entries.keys()
        packed, sums = data.get("packed"), data.get("sha256")
        if (
            set(data) != {"version", "packed", "sha256"}
            or not isinstance(packed, list)
            or not all(isinstance(name, str) and name in names for name in packed)
            or len(packed) != len(set(packed))
            or not isinstance(sums, dict)
            or sums.keys() != names
        ):
            raise PackedError(f"{self.path}: {KEY} does not list the tensors of the file")
        return data

    def _read_layout(self, name: str) -> None:
        entry = self.file.entries[name]
        if entry.dtype != "U8" or entry.shape != (entry.size,):
            raise PackedError(f"{self.path}: {name} is listed as packed, but is not a row of bytes")
        first = bytes(self.file.read(entry.start, first_size(entry.size)))
        try:
            self.layouts[name], self._values[name] = Layout.read(first, entry.size)
        except PackedError as error:
            raise PackedError(f"{self.path}: {name} is damaged: {error}") from error

    def check(self, count: Count) -> None:
        """Read every byte, and compare it with what was written.

        Raises:
            PackedError: a tensor does not match its checksum, or a mask does not keep n of each group.
        """
        for name, expected in self._sums.items():
            digest = hashlib.sha256()
            for piece in self.file.pieces(name):
                digest.update(piece)
                count.add(len(piece), "checking")
            if digest.hexdigest() != expected:
                raise PackedError(f"{self.path} is damaged: {name} does not match its checksum")
        for name, layout in self.layouts.items():
            start = self._mask_start(name)
            for first, length in layout.runs():
                mask = _tensor(self._mask(start, first, length), torch.uint8)
                try:
                    check_mask(unpack_bits(mask, torch.Size([length])), layout)
                except PackedError as error:
                    raise PackedError(f"{self.path}: {name} is damaged: {error}") from error

    def runs(self, name: str) -> Iterator[Tensor]:
        """A packed weight's entries in the order of its memory, piece by piece: flat, its bits as
        signed integers."""
        layout, entry = self.layouts[name], self.file.entries[name]
        values, mask = entry.start + self._values[name], self._mask_start(name)
        for first, length in layout.runs():
            size = layout.kept(length) * layout.itemsize
            kept = _tensor(self.file.read(values, size), layout.integer)
            bits = _tensor(self._mask(mask, first, length), torch.uint8)
            yield unpack_run(kept, bits, length, layout)
            values += size

    def parts(self, name: str) -> tuple[Tensor, Tensor]:
        """A packed weight's kept entries, flat, as signed integers, and its mask, without padding."""
        layout, start = self.layouts[name], self.file.entries[name].start
        size = layout.kept(layout.numel) * layout.itemsize
        kept = _tensor(self.file.read(start + self._values[name], size), layout.integer)
        return kept, _tensor(self._mask(self._mask_start(name), 0, layout.numel), torch.uint8)

    def _mask_start(self, name: str) -> int:
        entry, layout = self.file.entries[name], self.layouts[name]
        return entry.start + self._values[name] + layout.values_size

    def _mask(self, start: int, first: int, length: int) -> bytearray:
        return self.file.read(start + first // 8, -(-length // 8))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def plain_runs(file: TensorFile, name: str, layout: Layout) -> Iterator[Tensor]:
    """:meth:`PackedFile.runs` of a weight that is stored as it is."""
    start = file.entries[name].start
    for first, length in layout.runs():
        size = length * layout.itemsize
        yield _tensor(file.read(start + first * layout.itemsize, size), layout.integer)


def layout_of(file: TensorFile, name: str, pattern: NMPattern, dim: int) -> Layout | None:
    """How a weight would be packed; None if that would lose bits or not save any bytes.

    Args:
        file: where the weight is stored as it is.
        name: its name.
        pattern: its pattern.
        dim: its input dimension, negative.

    Raises:
        BrokenPatternError: a group holds more than n other than zero.
        ValueError: the weight is not made of whole groups.
    """
    entry = file.entries[name]
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise ValueError(f"{name}: an N:M weight has a floating-point dtype, not {entry.dtype}")
    check = PieceCheck(name, entry.shape, dtype, pattern, dim)
    layout = Layout(entry.dtype, entry.shape, pattern, dim)
    loses = False
    for bits in plain_runs(file, name, layout):
        check.add(bits)
        loses = loses or loses_bits(bits, layout)
    check.result()
    return None if loses or layout.size >= entry.size else layout


def write_packed(source: TensorFile, path: Path, layouts: dict[str, Layout], count: Count) -> str:
    """Write a packed file.

    Args:
        source: the plain file, which :func:`layout_of` has judged.
        path: where to write.
        layouts: the weights to pack.
        count: of the source's bytes.

    Returns:
        The checksum of its header.
    """
    for entry in source.entries.values():
        looks_packed = entry.dtype == "U8" and source.read(entry.start, min(8, entry.size)) == MAGIC
        if KEY in source.metadata or looks_packed:
            raise ValueError(f"{source.path} is packed already; unpack it with hf_nm.unpack")
    order = sorted(source.entries, key=lambda name: source.entries[name].start)
    tensors = []
    for name in order:
        entry, layout = source.entries[name], layouts.get(name)
        row = (entry.dtype, entry.shape, entry.size)
        tensors.append((name, *(row if layout is None else ("U8", (layout.size,), layout.size))))

    def header(sums: dict[str, str], checksum: str) -> bytes:
        ours = {"version": VERSION, "packed": list(layouts), "sha256": sums}
        metadata = {KEY: json.dumps(ours), HEADER_KEY: checksum}
        return header_bytes(tensors, source.metadata | metadata)

    sums = dict.fromkeys(order, _ZEROS)
    with path.open("wb") as file:
        file.write(header(sums, _ZEROS))
        for name in order:
            digest = hashlib.sha256()
            for written, taken in _packed_pieces(source, name, layouts.get(name)):
                file.write(written)
                digest.update(written)
                count.add(taken, "packing")
            sums[name] = digest.hexdigest()
        checksum = hashlib.sha256(header(sums, _ZEROS)[_LENGTH:]).hexdigest()
        file.seek(0)
        file.write(header(sums, checksum))
    return checksum


def write_plain(source: PackedFile, path: Path, count: Count) -> None:
    """Write the plain file that a packed one was made from.

    Args:
        source: the packed file, checked.
        path: where to write.
        count: of the packed file's bytes.
    """
    tensors = []
    for name, entry in source.file.entries.items():
        layout = source.layouts.get(name)
        row = (entry.dtype, entry.shape, entry.size)
        if layout is not None:
            row = (layout.dtype, layout.shape, layout.numel * layout.itemsize)
        tensors.append((name, *row))
    metadata = {
        key: value for key, value in source.file.metadata.items() if key not in (KEY, HEADER_KEY)
    }
    with path.open("wb") as file:
        file.write(header_bytes(tensors, metadata))
        for name, entry in source.file.entries.items():
            if name not in source.layouts:
                for piece in source.file.pieces(name):
                    file.write(piece)
                    count.add(len(piece), "unpacking")
                continue
            for run in source.runs(name):
                file.write(_bytes(run))
            count.add(entry.size, "unpacking")


def _packed_pieces(
    source: TensorFile, name: str, layout: Layout | None
) -> Iterator[tuple[bytes | bytearray, int]]:
    """What to write for a tensor, and how many of its own bytes went into that."""
    if layout is None:
        for piece in source.pieces(name):
            yield piece, len(piece)
        return
    yield layout.description(), 0
    masks = bytearray()  # behind the values, so that a weight is read once: 1/16 of it, in bf16
    for run in plain_runs(source, name, layout):
        values, mask = pack_run(run, layout)
        masks += _bytes(mask)
        yield _bytes(values), len(run) * layout.itemsize
    yield bytes(layout.values_size - layout.kept(layout.numel) * layout.itemsize), 0
    yield masks, 0
    yield bytes(layout.mask_size - len(masks)), 0


def _header_checksum(header: bytes, checksum: str) -> str | None:
    """The checksum that the header should have; None if what it has cannot be one."""
    if len(checksum) != len(_ZEROS) or not set(checksum) <= _DIGITS:
        return None
    if header.count(checksum.encode()) != 1:
        return None
    return hashlib.sha256(header.replace(checksum.encode(), _ZEROS.encode())).hexdigest()


def _tensor(data: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(data, dtype=dtype)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
