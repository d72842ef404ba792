"""Whether a weight keeps its pattern: whole, or read a piece at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_nm.sparsity.mask import check_maskable, count_kept
from hf_nm.sparsity.pattern import NMPattern


class BrokenPatternError(ValueError):
    """A weight that should be N:M holds values where its mask says zero."""


def broken_weight(which: str, cause: str, *, remedy: str = "") -> BrokenPatternError:
    """The error for values where a mask says zero.

    Args:
        which: the weight, or the weights, for the message.
        cause: when or how it came to that.
        remedy: what to do; by default to write inside ``dense_weights``.
    """
    remedy = remedy or "make such writes inside `with hf_nm.dense_weights(model):`"
    return BrokenPatternError(f"{which} held values where its mask says zero: {cause}; {remedy}")


def check_shape(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, pattern: NMPattern, dim: int
) -> None:
    """Raise ``ValueError`` unless a weight of this shape and dtype is made of whole groups.

    Args:
        name: for the message.
        shape: its shape.
        dtype: its dtype.
        pattern: what it should follow.
        dim: its input dimension.
    """
    try:
        check_maskable(torch.empty(shape, dtype=dtype, device="meta"), pattern, dim)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{name}: {error}") from error


def check_pattern(name: str, weight: Tensor, pattern: NMPattern, dim: int) -> int:
    """Raise :class:`BrokenPatternError` if a group of ``weight`` holds more than n non-zeros, and
    ``ValueError`` if it is not made of such groups.

    Args:
        name: for the message.
        weight: any shape, groups along ``dim``.
        pattern: what it should follow.
        dim: its input dimension.

    Returns:
        How many entries are not zero (0 on the meta device).
    """
    check_shape(name, tuple(weight.shape), weight.dtype, pattern, dim)
    if weight.device.type == "meta":
        return 0
    counts = count_kept(weight, pattern, dim)
    worst = int(counts.max()) if counts.numel() else 0
    if worst > pattern.n:
        where = torch.nonzero(counts > pattern.n)[0].tolist()
        total = int((counts > pattern.n).sum())
        raise _broken(name, pattern, where, int(counts[tuple(where)]), total, counts.numel())
    return int(counts.sum())


class PieceCheck:
    """:func:`check_pattern` for a weight that is read in pieces, in the order of its memory.

    Args:
        name: for the message.
        shape: the weight's shape.
        dtype: its dtype.
        pattern: what it should follow.
        dim: its input dimension.

    Raises:
        ValueError: the weight is not made of whole groups.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, pattern: NMPattern, dim: int
    ) -> None:
        check_shape(name, shape, dtype, pattern, dim)
        self.name, self.pattern = name, pattern
        self._dim = dim % len(shape)
        self._shape = shape
        self._inner = math.prod(shape[self._dim + 1 :])
        self._seen = self._kept = self._total = 0
        self._first: tuple[int, int] | None = None  # place in check_pattern's order, entries held

    def add(self, bits: Tensor) -> None:
        """Take the next piece.

        Args:
            bits: flat, whole runs of ``m`` times the sizes behind the input dimension; the weight's
                bits as signed integers of its width.
        """
        nonzero = bits.bitwise_and(torch.iinfo(bits.dtype).max).ne_(0)  # minus zero is zero
        counts = nonzero.view(-1, self.pattern.m, self._inner).sum(1, dtype=torch.int32)
        self._kept += int(counts.sum())
        if int(counts.max()) > self.pattern.n:
            broken = torch.nonzero(counts > self.pattern.n)
            self._total += len(broken)
            groups = self._shape[self._dim] // self.pattern.m
            units = broken[:, 0] + self._seen
            outer, group = units // groups, units % groups
            places = (outer * self._inner + broken[:, 1]) * groups + group
            place, index = (int(value) for value in places.min(0))
            held = int(counts[tuple(broken[index])])
            self._first = min(self._first or (place, held), (place, held))
        self._seen += counts.shape[0]

    def result(self) -> int:
        """How many entries are not zero.

        Raises:
            BrokenPatternError: a group holds more than n; the first one is named.
        """
        if self._first is None:
            return self._kept
        place, held = self._first
        where: list[int] = []
        sizes = [size for dim, size in enumerate(self._shape) if dim != self._dim]
        for size in reversed([*sizes, self._shape[self._dim] // self.pattern.m]):
            place, index = divmod(place, size)
            where.insert(0, index)
        groups = math.prod(self._shape) // self.pattern.m
        raise _broken(self.name, self.pattern, where, held, self._total, groups)


def _broken(
    name: str, pattern: NMPattern, where: list[int], held: int, total: int, groups: int
) -> BrokenPatternError:
    return BrokenPatternError(
        f"{name} is not {pattern}: group {where[-1]} of row {where[:-1]} holds "
        f"{held} non-zero entries where {pattern.n} of {pattern.m} are "
        f"allowed ({total:,} of {groups:,} groups break the pattern); it was changed "
        "after its last projection. Train with hf_nm attached, and make other writes (merging "
        "adapters, averaging) inside `with hf_nm.dense_weights(model):`; entering and leaving that "
        "context projects a sparse model's present values"
    )
