"""Checking weights by a pattern that the caller names: of files that nothing is written down of."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hf_nm.formats.folder import Count, Progress
from hf_nm.formats.packed_weight import Layout
from hf_nm.formats.stored import Stored, StoredTensor
from hf_nm.model.report import LayerRow, Report, SkippedRow
from hf_nm.sparsity.check import BrokenPatternError, PieceCheck, check_pattern
from hf_nm.sparsity.mask import MASKABLE_DTYPES
from hf_nm.sparsity.pattern import NMPattern

_DIM = -1  # a file does not say what a weight's input dimension is: a linear layer's is the last


class Candidate(NamedTuple):
    """One tensor.

    Args:
        name: its name.
        shape: its shape.
        dtype: its dtype.
        check: how many of its entries are not zero; raises BrokenPatternError.
        size: bytes, for the progress.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    check: Callable[[NMPattern], int]
    size: int = 0


def check_by_pattern(
    candidates: Iterable[Candidate],
    pattern: NMPattern,
    targets: str | Iterable[str] | None,
    source: str,
    count: Count,
) -> Report:
    """What :func:`hf_nm.verify` does with ``pattern=``.

    Args:
        candidates: every tensor.
        pattern: what is asked for.
        targets: globs over their names; None for whichever keeps the pattern.
        source: where they are, for messages.
        count: of bytes.

    Raises:
        BrokenPatternError: a named weight breaks the pattern, or without ``targets`` all do.
        ValueError: a glob names no matrix, or a named one is not made of groups of floats.
    """
    found = [candidate for candidate in candidates if len(candidate.shape) >= 2]
    globs = [targets] if isinstance(targets, str) else None if targets is None else list(targets)
    if globs is not None:
        _check_globs(globs, [candidate.name for candidate in found], source)
    layers: list[LayerRow] = []
    skipped: list[SkippedRow] = []
    for c in found:
        row: LayerRow | SkippedRow
        if globs is None:
            row = _looked_at(c, pattern)
        elif any(fnmatchcase(c.name, glob) for glob in globs):
            row = LayerRow(c.name, pattern, c.shape, c.check(pattern))
        else:
            row = SkippedRow(c.name, c.shape, "not in targets")
        if isinstance(row, LayerRow):
            layers.append(row)
        else:
            skipped.append(row)
        count.add(c.size, "verifying")
    if not layers:
        raise BrokenPatternError(
            f"none of the {len(found)} weights in {source} is {pattern} along its last dimension"
            + (f" (first: {skipped[0].name}: {skipped[0].reason})" if skipped else "")
        )
    return Report(layers, skipped)


def _looked_at(candidate: Candidate, pattern: NMPattern) -> LayerRow | SkippedRow:
    """A row for a tensor of which nobody said that it should be N:M."""
    name, shape, dtype, check, _ = candidate
    if dtype not in MASKABLE_DTYPES:
        return SkippedRow(name, shape, f"dtype {dtype} cannot be N:M")
    if not math.prod(shape):
        return SkippedRow(name, shape, "it has no entry")
    if not pattern.divides(shape[_DIM]):
        reason = f"its last dimension {shape[_DIM]} is not a multiple of m={pattern.m}"
        return SkippedRow(name, shape, reason)
    try:
        kept = check(pattern)
    except BrokenPatternError:
        return SkippedRow(name, shape, f"not {pattern}")
    if not kept:  # as adapters and biases start: that says nothing of a pattern
        return SkippedRow(name, shape, "all zero")
    return LayerRow(name, pattern, shape, kept)


def _check_globs(globs: list[str], names: list[str], source: str) -> None:
    for glob in globs or [""]:
        if not any(fnmatchcase(name, glob) for name in names):
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"{glob!r} in targets= names no matrix of {source}; globs match whole names, such as "
                f"{', '.join(near) if near else '(there is none)'}"
            )


def of_stored(stored: Stored) -> Iterator[Candidate]:
    """The tensors of files; a packed weight is unpacked whole where it is packed by another pattern."""
    for name, tensor in stored.tensors.items():
        yield Candidate(
            name,
            tensor.shape,
            tensor.torch_dtype,
            partial(_check_stored, tensor),
            tensor.size,
        )


def of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Candidate]:
    """The parameters of a model."""
    for name, tensor in tensors:
        yield Candidate(
            name,
            tuple(tensor.shape),
            tensor.dtype,
            partial(_check_tensor, name, tensor),
        )


def verify_stored(
    stored: Stored,
    pattern: NMPattern,
    targets: str | Iterable[str] | None,
    source: str,
    progress: Progress | None,
) -> Report:
    """:func:`check_by_pattern` of files, packed ones after their checksums."""
    count = Count(progress, stored.size * (2 if stored.packed else 1))
    if stored.packed:
        stored.check(count)
    return check_by_pattern(of_stored(stored), pattern, targets, source, count)


def _check_tensor(name: str, tensor: Tensor, pattern: NMPattern) -> int:
    return check_pattern(name, tensor, pattern, _DIM)


def _check_stored(tensor: StoredTensor, pattern: NMPattern) -> int:
    layout: Layout | None = tensor.layout
    if layout is not None and (layout.pattern, layout.dim) != (pattern, _DIM):
        return check_pattern(tensor.name, tensor.read(), pattern, _DIM)
    check = PieceCheck(tensor.name, tensor.shape, tensor.torch_dtype, pattern, _DIM)
    if math.prod(tensor.shape):
        for bits in tensor.runs(pattern, _DIM):
            check.add(bits)
    return check.result()
