"""What was done with every weight of a model, as a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from hf_nm.formats.manifest import KEY
from hf_nm.formats.recorded import recorded_claims
from hf_nm.model.weights import sparse_weights, unwrap
from hf_nm.sparsity.pattern import NMPattern


class LayerRow(NamedTuple):
    """One N:M weight.

    Args:
        name: the parameter's name.
        pattern: its N:M pattern.
        shape: its shape.
        kept: how many weights are kept (by :func:`report`, from the mask) or not zero (by
            :func:`hf_nm.verify`, from the weights alone).
    """

    name: str
    pattern: NMPattern
    shape: tuple[int, ...]
    kept: int


class SkippedRow(NamedTuple):
    """One weight of two dimensions or more that stays dense.

    Args:
        name: the parameter's name.
        shape: its shape.
        reason: why.
    """

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Report:
    """Rows for the N:M weights and for those left dense; ``str()`` is a table."""

    layers: list[LayerRow]
    skipped: list[SkippedRow]

    @property
    def weights(self) -> int:
        """Entries of the N:M weights, kept or not."""
        return sum(_size(row.shape) for row in self.layers)

    @property
    def kept(self) -> int:
        """Entries kept in the N:M weights."""
        return sum(row.kept for row in self.layers)

    def __str__(self) -> str:
        rows = [("weight", "shape", "pattern", "kept")]
        for layer in self.layers:
            share = layer.kept / max(1, _size(layer.shape))
            rows.append((layer.name, _times(layer.shape), str(layer.pattern), f"{share:.1%}"))
        rows += [(row.name, _times(row.shape), "dense", row.reason) for row in self.skipped]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]
            )
            for row in rows
        ]
        counts = Counter(str(row.pattern) for row in self.layers)
        patterns = ", ".join(f"{count} x {pattern}" for pattern, count in counts.items())
        lines.append(
            f"{len(self.layers)} N:M weights ({patterns or 'none'}): {self.kept:,} of "
            f"{self.weights:,} entries kept; {len(self.skipped)} weights left dense"
        )
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """What is N:M in ``model`` and why the rest is not; works on the meta device.

    Args:
        model: sparsified or not, wrapped in DDP or compiled or not.

    Returns:
        ``.layers`` with ``(name, pattern, shape, kept)`` per N:M weight, ``.skipped`` with
        ``(name, shape, reason)`` per other parameter of two dimensions or more.
    """
    model = unwrap(model)
    layers = []
    done = set()
    for w in sparse_weights(model):
        shape = tuple(w.weight.shape)
        kept = _size(shape) * w.pattern.n // w.pattern.m  # as every mask does
        layers.append(LayerRow(w.name, w.pattern, shape, kept))
        done.add(id(w.weight))
    plain = {
        name: f"a plain layer, {pattern} in config.{KEY}"
        for name, (pattern, _) in recorded_claims(model).items()
    }
    reasons = plain | getattr(model, "_nm_skipped", {})
    skipped = [
        SkippedRow(name, tuple(weight.shape), reasons.get(name, "not sparsified"))
        for name, weight in model.named_parameters()
        if weight.ndim >= 2 and id(weight) not in done
    ]
    return Report(layers, skipped)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape)
