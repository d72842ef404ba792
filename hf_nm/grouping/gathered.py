"""Small weights on a CPU, treated many at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_nm.compat import copy_all
from hf_nm.grouping.group import Histories, Separate, Strength
from hf_nm.methods.method import leave_gradient
from hf_nm.methods.sr_ste import add_decay
from hf_nm.model.state import hold_dense
from hf_nm.model.weights import SparseWeight
from hf_nm.sparsity.divergence import count_together
from hf_nm.sparsity.mask import entries_at_a_time, merge_, split_


class _Buffer:
    """Room for one tensor of each weight of a run.

    Attributes:
        all: ``[weights, *shape]``.
        each: its entries, by weight.
    """

    def __init__(self, size: int, shape: torch.Size, dtype: torch.dtype) -> None:
        self.all = torch.empty(size, *shape, dtype=dtype)
        self.each = list(self.all.unbind())

    def take(self, tensors: list[Tensor]) -> Tensor:
        """Copies of these."""
        return torch.stack(tensors, out=self.all[: len(tensors)])

    def give(self, tensors: list[Tensor]) -> None:
        """Copy what is in here back into these."""
        copy_all(self.each[: len(tensors)], tensors)


class Gathered:
    """Small weights of one shape on a CPU, copied together into runs of a cache's size: calling torch's
    functions for each takes longer than their work.

    Args:
        weights: of one shape, dtype, pattern, dimension and method.
        histories: count their flips.
    """

    def __init__(self, weights: list[SparseWeight], histories: Histories) -> None:
        self.weights = weights
        self._states = [w.state for w in weights]
        self._parameters: list[Tensor] = [w.weight for w in weights]
        # Groups are made anew when a state's parts are others, so these stay the very tensors.
        parts = [s.parts for s in self._states if s.parts is not None]
        self._masks = [p.mask for p in parts]
        self._asides = [p.aside for p in parts if p.aside is not None]
        self._counters = count_together(map(histories, weights), torch.device("cpu"))
        self._pattern, self._dim = self._states[0].pattern, self._states[0].dim
        shape, dtype = weights[0].weight.shape, weights[0].weight.dtype
        size = min(len(weights), entries_at_a_time() // shape.numel())
        self._runs = [slice(i, i + size) for i in range(0, len(weights), size)]
        self._dense, self._gradient = (_Buffer(size, shape, dtype) for _ in range(2))
        self._mask, self._before = (_Buffer(size, shape, torch.bool) for _ in range(2))
        keeps = self._states[0].aside is not None
        self._pruned = _Buffer(size, shape, dtype) if keeps else None
        self._open: list[slice] = []
        self._apart = Separate([], histories)  # of this step: those that could not be gathered

    @property
    def strays(self) -> dict[str, Tensor]:
        """None: on a CPU a step says so itself."""
        return {}

    def open(self, strength: Strength | None, *, every: bool) -> None:
        """Run by run. One with a weight that has no gradient, or a gradient of another kind or strength,
        or a value at a pruned place, is treated weight by weight."""
        self._apart.weights = []
        for run in self._runs:
            if self._open_run(run, strength, every):
                self._open.append(run)
            else:
                weights = self.weights[run]
                self._apart.weights += weights
                Separate(weights, self._apart.histories).open(strength, every=every)

    def _open_run(self, run: slice, strength: Strength | None, every: bool) -> bool:
        """Whether the weights of a run were opened together; else nothing happened to them."""
        parameters, states = self._parameters[run], self._states[run]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not every and len(gradients) < len(parameters):
            return False
        decay: float | Tensor = 0.0
        if strength is not None and gradients:
            decay = strength.of(self.weights[run.start])
            if len(gradients) < len(parameters) or (
                strength.ascending and any(strength.of(w) != decay for w in self.weights[run])
            ):
                return False
            kinds = {(type(g), g.dtype, g.layout) for g in gradients}
            if kinds != {(Tensor, parameters[0].dtype, torch.strided)}:
                return False

        dense, mask = self._dense.take(parameters), self._mask.take(self._masks[run])
        pruned = None if self._pruned is None else self._pruned.take(self._asides[run])
        if merge_(dense, pruned, mask):
            return False  # treated one by one, it is said which
        adjust = states[0].method.adjust_gradient
        leaves = adjust is leave_gradient or (adjust is add_decay and pruned is None)
        if strength is not None and gradients and not leaves:
            adjust(self._gradient.take(gradients), pruned, mask, decay)
            self._gradient.give(gradients)
        self._dense.give(parameters)
        hold_dense(states, True)
        return True

    def close(self, *, count: bool) -> None:
        """Run by run."""
        for run in self._open:
            parameters, states = self._parameters[run], self._states[run]
            masks, update = self._masks[run], states[0].updates_mask
            dense, before = self._dense.take(parameters), self._before.take(masks)
            mask = self._mask.all[: len(masks)].copy_(before)
            pruned = None if self._pruned is None else self._pruned.all[: len(masks)]
            flips = split_(dense, pruned, mask, self._pattern, self._dim, update_mask=update)
            if update and flips:
                self._mask.give(masks)
                if count:
                    self._counters[run] += mask.ne(before).flatten(1).sum(1)
            if self._pruned is not None:
                self._pruned.give(self._asides[run])
            self._dense.give(parameters)
            hold_dense(states, False)
        self._open = []
        self._apart.close(count=count)
