"""How one N:M weight is packed: its kept values and one bit per weight. Pure functions of tensors.

A packed weight is a run of bytes (in a file, a uint8 tensor under the weight's own name)::

    8 bytes    b"nm_pack1"
    8 bytes    length of the description, little-endian, a multiple of 8
    ...        description: JSON {"dtype": "BF16", "shape": [64, 32], "n": 2, "m": 4, "dim": -1},
               padded with spaces
    ...        values: the kept entries as they are, in the order of the weight's memory; of every
               group exactly n, so ``numel / m * n`` of them; padded with zero bytes to a multiple of 8
    ...        mask: one bit per entry in the order of the weight's memory, 1 where kept, lowest bit of
               a byte first; ``numel / 8`` bytes, padded with zero bits to a multiple of 8 bytes

Entries that are not kept are zero, all bits. A group with fewer than n other than zero keeps zeros too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_nm.sparsity.bits import byte_positions, pack_bits, unpack_bits
from hf_nm.sparsity.check import check_shape
from hf_nm.sparsity.mask import nm_mask
from hf_nm.sparsity.pattern import NMPattern

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MAGIC = b"nm_pack1"
START = 16  # bytes before the description
_ALIGNED = 8
_LONGEST_DESCRIPTION = 1024
_FIELDS = {"dtype", "shape", "n", "m", "dim"}
_MOST_DIMS = 8
_PIECE = 1 << 21  # entries handled at a time


class PackedError(ValueError):
    """A packed file is damaged, was not written whole, or does not belong to its config."""


@dataclass(frozen=True)
class Layout:
    """Where the entries of an N:M weight lie, packed and not.

    Args:
        dtype: safetensors' name of the weight's dtype.
        shape: its shape.
        pattern: its pattern.
        dim: its input dimension, negative.

    Raises:
        ValueError: the weight is not made of whole groups, or its dtype cannot be N:M.
    """

    dtype: str
    shape: tuple[int, ...]
    pattern: NMPattern
    dim: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(
                f"an N:M weight has one of the dtypes {', '.join(DTYPES)}, but this one {self.dtype}"
            )
        check_shape("a packed weight", self.shape, DTYPES[self.dtype], self.pattern, self.dim)
        if not self.numel:
            raise ValueError(f"a packed weight of shape {list(self.shape)} has no entry")

    @property
    def numel(self) -> int:
        """Entries of the weight, kept or not."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes per entry."""
        return DTYPES[self.dtype].itemsize

    @property
    def integer(self) -> torch.dtype:
        """The signed integers that the weight's bits are read as."""
        return _INTEGER_OF_SIZE[self.itemsize]

    @property
    def inner(self) -> int:
        """How many entries lie between neighbours along the input dimension."""
        return math.prod(self.shape[len(self.shape) + self.dim + 1 :])

    @property
    def unit(self) -> int:
        """Entries of the shortest run of memory that is made of whole groups."""
        return self.pattern.m * self.inner

    def kept(self, entries: int) -> int:
        """How many of a run of whole groups are kept."""
        return entries // self.pattern.m * self.pattern.n

    def runs(self) -> Iterator[tuple[int, int]]:
        """First entry and length of runs of whole groups, a few MiB each, their masks whole bytes."""
        several = self.unit * (_ALIGNED // math.gcd(self.unit, _ALIGNED))
        length = max(several, _PIECE // several * several)
        for start in range(0, self.numel, length):
            yield start, min(length, self.numel - start)

    def description(self) -> bytes:
        """The first bytes of the packed weight, up to its values."""
        written = {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "n": self.pattern.n,
            "m": self.pattern.m,
            "dim": self.dim,
        }
        text = json.dumps(written).encode()
        text += b" " * (-len(text) % _ALIGNED)
        return MAGIC + len(text).to_bytes(8, "little") + text

    @property
    def values_size(self) -> int:
        """Bytes of the values, padded."""
        return _padded(self.kept(self.numel) * self.itemsize)

    @property
    def mask_size(self) -> int:
        """Bytes of the mask, padded."""
        return _padded(-(-self.numel // 8))

    @property
    def size(self) -> int:
        """Bytes of the packed weight."""
        return len(self.description()) + self.values_size + self.mask_size

    @classmethod
    def read(cls, first: bytes, size: int) -> tuple[Layout, int]:
        """The layout of a packed weight, and where its values start.

        Args:
            first: its first bytes, :func:`first_size` of them or more.
            size: how many bytes it has.

        Raises:
            PackedError: they do not describe a packed weight of this size.
        """
        length = int.from_bytes(first[8:START], "little")
        if first[:8] != MAGIC or length > _LONGEST_DESCRIPTION or START + length > size:
            raise PackedError("it does not begin as a packed weight does")
        try:
            data = json.loads(first[START : START + length])
            layout = cls._of(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise PackedError(f"its description is not valid: {error}") from error
        values = START + length
        if values + layout.values_size + layout.mask_size != size:
            raise PackedError(
                f"it has {size:,} bytes, but {layout.pattern} of {list(layout.shape)} {layout.dtype} "
                f"needs {values + layout.values_size + layout.mask_size:,}"
            )
        return layout, values

    @classmethod
    def _of(cls, data: Any) -> Layout:
        if not isinstance(data, dict) or set(data) != _FIELDS:
            raise ValueError(f"it must have the fields {sorted(_FIELDS)}")
        shape, dim = data["shape"], data["dim"]
        if not isinstance(shape, list) or not 0 < len(shape) <= _MOST_DIMS:
            raise ValueError("shape must be a list of sizes")
        if not all(type(size) is int and 0 < size < 1 << 48 for size in shape):
            raise ValueError("shape must be a list of sizes")
        if math.prod(shape) >= 1 << 48:
            raise ValueError("shape has too many entries")
        if type(dim) is not int or not -len(shape) <= dim <= -1:
            raise ValueError("dim must be a dimension of shape, counted from the last (-1)")
        if not isinstance(data["dtype"], str):
            raise ValueError("dtype must be text")
        return cls(data["dtype"], tuple(shape), NMPattern(data["n"], data["m"]), dim)


def first_size(size: int) -> int:
    """How many bytes of a packed weight of ``size`` bytes hold its description."""
    return min(size, START + _LONGEST_DESCRIPTION)


def loses_bits(bits: Tensor, layout: Layout) -> bool:
    """Whether packing a run would drop bits: a group has more than n entries that are not all zero
    bits. (In a weight that keeps its pattern, these are minus zeros.)

    Args:
        bits: flat run of whole groups, the weight's bits as signed integers.
        layout: of the weight.
    """
    groups = bits.ne(0).view(-1, layout.pattern.m, layout.inner)
    return int(groups.sum(1, dtype=torch.int32).max()) > layout.pattern.n


def pack_run(bits: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Pack a run of whole groups.

    Args:
        bits: flat, the weight's bits as signed integers; at most n of a group are not zero.
        layout: of the weight.

    Returns:
        The kept ones of ``bits``, and the mask: uint8 ``[ceil(numel / 8)]``.
    """
    # Read as bytes of a float, True is the smallest number above zero: what is not zero is kept, then
    # the first zeros.
    nonzero = bits.ne(0).view(-1, layout.pattern.m, layout.inner).view(torch.float8_e5m2)
    kept = nm_mask(nonzero, layout.pattern.n, layout.pattern.m, dim=1).view(-1)
    return bits[kept], pack_bits(kept)


def unpack_run(values: Tensor, mask: Tensor, numel: int, layout: Layout) -> Tensor:
    """Undo :func:`pack_run`.

    Args:
        values: the kept entries, as signed integers.
        mask: uint8 ``[ceil(numel / 8)]``.
        numel: how many entries the run has.
        layout: of the weight.

    Returns:
        The weight's bits, flat.

    Raises:
        PackedError: the mask does not keep n of each group.
    """
    kept = unpack_bits(mask, torch.Size([numel]))
    check_mask(kept, layout)
    if layout.inner == 1:
        return put_kept(values, mask, numel, layout.pattern)
    bits = torch.zeros(numel, dtype=layout.integer, device=values.device)
    return bits.masked_scatter_(kept, values)


def put_kept(values: Tensor, mask: Tensor, numel: int, pattern: NMPattern) -> Tensor:
    """Undo :func:`pack_run` where groups are consecutive entries, without a look at the mask.

    Args:
        values: the kept entries, as signed integers, in order.
        mask: uint8 ``[ceil(numel / 8)]``, which keeps n of each group.
        numel: how many entries there are.
        pattern: of the weight.

    Returns:
        The weight's bits, flat.
    """
    bits = torch.zeros(numel, dtype=values.dtype, device=values.device)
    if 8 % pattern.m or numel % 8:
        return bits.masked_scatter_(unpack_bits(mask, torch.Size([numel])), values)
    # A byte at a time: the other way goes through the entries one by one, five times slower on a CPU.
    positions = byte_positions(pattern.n, pattern.m, values.device)
    where = torch.nn.functional.embedding(mask.to(torch.int32), positions)
    bits.view(-1, 8).scatter_(1, where, values.view(-1, where.shape[1]))
    return bits


def check_mask(kept: Tensor, layout: Layout) -> None:
    """Raise :class:`PackedError` unless a run's mask (flat bool) keeps n of each group."""
    counts = kept.view(-1, layout.pattern.m, layout.inner).sum(1, dtype=torch.int32)
    if bool(counts.ne(layout.pattern.n).any()):
        raise PackedError(f"its mask does not keep {layout.pattern.n} of every {layout.pattern.m}")


def unpack_tensor(packed: Tensor) -> Tensor:
    """A weight from its packed form, on the same device.

    Args:
        packed: uint8, one dimension: a packed weight.

    Raises:
        PackedError: it is not a packed weight, or not a whole one.
    """
    size = packed.numel()
    layout, start = Layout.read(bytes(packed[: first_size(size)].cpu().tolist()), size)
    values = packed[start : start + layout.values_size]
    if values.storage_offset() % _ALIGNED or values.data_ptr() % _ALIGNED:
        values = values.clone()
    values = values.view(layout.integer)
    mask = packed[start + layout.values_size :]
    bits = torch.empty(layout.numel, dtype=layout.integer, device=packed.device)
    done = 0
    for first, length in layout.runs():
        count = layout.kept(length)
        bytes_of_mask = mask[first // 8 : -(-(first + length) // 8)]
        run = unpack_run(values[done : done + count], bytes_of_mask, length, layout)
        bits[first : first + length] = run
        done += count
    return bits.view(DTYPES[layout.dtype]).view(layout.shape)


def is_packed(tensor: Tensor) -> bool:
    """Whether a tensor begins as a packed weight does."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or tensor.numel() < START:
        return False
    return bytes(tensor[: len(MAGIC)].cpu().tolist()) == MAGIC


def _padded(size: int) -> int:
    return size + -size % _ALIGNED
