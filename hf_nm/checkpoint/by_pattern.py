"""Checking weights by a pattern that the caller names: of files that nothing is written down of."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_nm.formats.folder import Count, Progress
from hf_nm.formats.manifest import match_names
from hf_nm.formats.packed_weight import Layout
from hf_nm.formats.stored import Stored, StoredTensor
from hf_nm.model.report import LayerRow, Report, SkippedRow
from hf_nm.sparsity.check import BrokenPatternError, PieceCheck, check_pattern
from hf_nm.sparsity.mask import MASKABLE_DTYPES
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.kinds import input_dims

# A file does not say what a weight's input dimension is. A linear layer's is the last.
_LAST = -1


class Candidate(NamedTuple):
    """One tensor.

    Args:
        name: its name.
        shape: its shape.
        dtype: its dtype.
        dim: its input dimension, negative; None where nothing tells it, which is then taken to be the
            last.
        check: how many of its entries are not zero; raises BrokenPatternError.
        size: bytes, for the progress.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    dim: int | None
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
            f"none of the {len(found)} weights in {source} is {pattern} along its input dimension"
            + (f" (first: {skipped[0].name}: {skipped[0].reason})" if skipped else "")
        )
    return Report(layers, skipped)


def _looked_at(candidate: Candidate, pattern: NMPattern) -> LayerRow | SkippedRow:
    """A row for a tensor of which nobody said that it should be N:M."""
    name, shape, dtype, known, check, _ = candidate
    dim = _LAST if known is None else known
    which = "its last dimension" if dim == _LAST else f"its input dimension {dim}"
    if dtype not in MASKABLE_DTYPES:
        return SkippedRow(name, shape, f"dtype {dtype} cannot be N:M")
    if not math.prod(shape):
        return SkippedRow(name, shape, "it has no entry")
    if not pattern.divides(shape[dim]):
        return SkippedRow(
            name, shape, f"{which} of {shape[dim]} is not a multiple of m={pattern.m}"
        )
    try:
        kept = check(pattern)
    except BrokenPatternError:
        looked = " along its last dimension, and nothing tells which its input dimension is"
        return SkippedRow(name, shape, f"not {pattern}{looked if known is None else ''}")
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


def dims_of(model: nn.Module) -> dict[str, int]:
    """The input dimension of every parameter of a model that can be N:M, negative, by name."""
    return {
        f"{prefix}.{local}" if prefix else local: dim
        for prefix, module in model.named_modules()
        for local, dim in input_dims(module).items()
    }


def of_stored(stored: Stored, dims: Mapping[str, int]) -> Iterator[Candidate]:
    """The tensors of files; a packed weight is unpacked whole where it is packed by another pattern.

    Args:
        stored: the files.
        dims: input dimensions by the parameters' names, as far as they are known.
    """
    matched = match_names(dims, stored.tensors)
    known = {there: dims[name] for name, there in matched.items()}
    # What a class that is known takes no products with (embeddings) has no input dimension.
    other = _LAST if dims else None
    for name, tensor in stored.tensors.items():
        dim = known.get(name, other) if tensor.layout is None else tensor.layout.dim
        check = partial(_check_stored, tensor, _LAST if dim is None else dim)
        yield Candidate(name, tensor.shape, tensor.torch_dtype, dim, check, tensor.size)


def of_tensors(
    tensors: Iterable[tuple[str, Tensor]], dims: Mapping[str, int]
) -> Iterator[Candidate]:
    """The parameters of a model, and their input dimensions where they have one."""
    for name, tensor in tensors:
        dim = dims.get(name, _LAST)
        check = partial(_check_tensor, name, tensor, dim)
        yield Candidate(name, tuple(tensor.shape), tensor.dtype, dim, check)


def verify_stored(
    stored: Stored,
    pattern: NMPattern,
    targets: str | Iterable[str] | None,
    source: str,
    dims: Mapping[str, int],
    progress: Progress | None,
) -> Report:
    """:func:`check_by_pattern` of files, packed ones after their checksums."""
    count = Count(progress, stored.size * (2 if stored.packed else 1))
    if stored.packed:
        stored.check(count)
    return check_by_pattern(of_stored(stored, dims), pattern, targets, source, count)


def _check_tensor(name: str, tensor: Tensor, dim: int, pattern: NMPattern) -> int:
    return check_pattern(name, tensor, pattern, dim)


def _check_stored(tensor: StoredTensor, dim: int, pattern: NMPattern) -> int:
    layout: Layout | None = tensor.layout
    if layout is not None and (layout.pattern, layout.dim) != (pattern, dim):
        return check_pattern(tensor.name, tensor.read(), pattern, dim)
    check = PieceCheck(tensor.name, tensor.shape, tensor.torch_dtype, pattern, dim)
    if math.prod(tensor.shape):
        for bits in tensor.runs(pattern, dim):
            check.add(bits)
    return check.result()
