"""Measuring SAD while an optimizer trains: its N:M weights, their references and step counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_nm.methods.auto_decay import DECAY
from hf_nm.model.sharding import sum_over_shards
from hf_nm.model.weights import SparseWeight, sparse_weights
from hf_nm.sparsity.divergence import MaskHistory, rate


class MaskMeter:
    """SAD and flips of the N:M weights that one optimizer holds, since the start or since a mark.

    Where weights are sharded the numbers are summed over the shards: every rank must ask.

    Attributes:
        optimizer: the torch optimizer.
        model: the model, without wrappers.
        step: effective optimizer steps so far.
        step_at_mark: ``step`` at the last :meth:`mark`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        self.model = model
        self.step = 0
        self.step_at_mark = 0
        self._history: dict[str, MaskHistory] = {}

    def weights(self) -> list[SparseWeight]:
        """The N:M weights in the optimizer's ``param_groups`` now."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [w for w in sparse_weights(self.model) if id(w.weight) in held]

    def sad(self, since: str = "start") -> int:
        """SAD between the masks at ``since`` and now, over the optimizer's N:M weights.

        Args:
            since: ``"start"`` (when attached) or ``"mark"`` (the last :meth:`mark`).

        Returns:
            Count of mask entries that differ; a swap counts two.
        """
        return sum(self.sad_per_layer(since).values())

    def sad_per_layer(self, since: str = "start") -> dict[str, int]:
        """:meth:`sad` of each weight by its name."""
        _check_since(since)
        masked = [(w, w.state.mask) for w in self.weights()]
        return _summed({w: self.history(w).sad(m, since) for w, m in masked if m is not None})

    def flips_per_layer(self, since: str = "start") -> dict[str, int]:
        """Mask entries that changed, summed step by step since ``since``, by weight."""
        _check_since(since)
        return _summed({w: self.history(w).flipped(since) for w in self.weights()})

    def flip_rate(self, since: str = "start") -> float:
        """Flips summed step by step / (N:M weights x steps) since ``since``: a fraction in [0, 1]."""
        steps = self.step - (0 if since == "start" else self.step_at_mark)
        flips = sum(self.flips_per_layer(since).values())
        return rate(flips, (w.weight.numel() for w in self.weights()), steps)

    def decays(self) -> dict[str, float]:
        """The automatic decay at the last step, in gradient units and before any warm-up, of each weight
        that has one and whose masks are not frozen."""
        kept = {
            w.name: w.state.parts.extras[DECAY]
            for w in self.weights()
            if w.state.spec.is_automatic and not w.state.mask_frozen and w.state.parts is not None
        }
        return {name: decay.item() for name, decay in kept.items()}

    def mark(self) -> None:
        """Measure ``since="mark"`` from the present masks on (the Trainers do it at each log)."""
        self.step_at_mark = self.step
        for w in self.weights():
            if w.state.mask is not None:
                self.history(w).set_mark(w.state.mask)

    def history(self, w: SparseWeight) -> MaskHistory:
        """The references and flips of one weight; they start at the first call."""
        if w.name not in self._history and w.state.mask is not None:
            self._history[w.name] = MaskHistory(w.state.mask)
        return self._history[w.name]

    def add(self, flips: dict[str, Tensor]) -> None:
        """Count the mask entries that one step changed, by weight."""
        for name, changed in flips.items():
            self._history[name].add(changed)

    def start_anew(self, weights: list[SparseWeight]) -> None:
        """SAD starts at the masks that these weights have now, if it has not moved yet."""
        for w in weights:
            if w.name in self._history and not self._history[w.name].flipped("start"):
                del self._history[w.name]


def _summed(counts: dict[SparseWeight, int]) -> dict[str, int]:
    totals = sum_over_shards(list(counts.values()), [w.weight for w in counts])
    return dict(zip((w.name for w in counts), totals, strict=True))


def _check_since(since: str) -> None:
    if since not in ("start", "mark"):
        raise ValueError(f"since must be 'start' or 'mark', but got {since!r}")
