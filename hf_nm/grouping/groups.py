"""Which of an optimizer's N:M weights are treated together."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn

from hf_nm.grouping.fused import ADJUSTS, Fused
from hf_nm.grouping.gathered import Gathered
from hf_nm.grouping.group import Group, Histories, Separate
from hf_nm.methods.held import Whole
from hf_nm.methods.method import Aside
from hf_nm.model.sharding import is_sharded
from hf_nm.model.weights import SparseWeight
from hf_nm.sparsity.kernels import table
from hf_nm.sparsity.kernels.table import Kind
from hf_nm.sparsity.mask import entries_at_a_time, stride_along


class Groups:
    """The N:M weights that one optimizer holds, in groups; made once and kept while nothing changes.

    Args:
        weights: those of the optimizer.
        histories: count their flips.

    Attributes:
        weights: as given.
        automatic: those whose decay follows the gradient.
        any_sharded: whether a weight is sharded, so that processes have to agree at each step.
    """

    def __init__(self, weights: list[SparseWeight], histories: Histories) -> None:
        self.weights = weights
        self._states = [w.state for w in weights]
        parameters = [w.weight for w in weights]
        self.automatic = [w for w in weights if w.state.spec.is_automatic]
        self._watches = [s.watch for s in self._states]
        self.any_sharded = any(map(is_sharded, parameters))
        self._whole = [p for p in parameters if not is_sharded(p)]
        self._pointers, self._dtypes = self._look()
        self._parts = [s.parts for s in self._states]
        self._tightens = any(s.spec.method.pattern_at is not None for s in self._states)

        together: dict[object, list[SparseWeight]] = {}
        for w in weights:
            together.setdefault(_key(w), []).append(w)
        separate = together.pop(None, [])
        self.groups: list[Group] = []
        for key, members in together.items():
            kind = key[0] if isinstance(key, tuple) else None
            if isinstance(kind, Kind):
                self.groups.append(Fused(members, kind, histories))
            elif len(members) > 1:
                self.groups.append(Gathered(members, histories))
            else:
                separate += members
        if separate:
            self.groups.append(Separate(separate, histories))

    def fit(self, weights: list[SparseWeight]) -> bool:
        """Whether these are the weights, and nothing about them changed that a step does not: moved,
        cast, loaded or opened."""
        states = self._states
        return (
            weights is self.weights
            and all(map(operator.is_, [s.parts for s in states], self._parts))
            and self._look() == (self._pointers, self._dtypes)
            and {s.is_dense for s in states} <= {False}
            and {s.restored for s in states} <= {None}
        )

    def stepped(self) -> None:
        """Tell what watches the weights that their optimizer steps."""
        for watch in self._watches:
            watch.stepped()

    def _look(self) -> tuple[list[int], list[torch.dtype]]:
        return [p.data_ptr() for p in self._whole], [p.dtype for p in self._whole]

    def hold(
        self, step: int, *, held: bool, frozen: bool | None = None, compact: bool | None = None
    ) -> None:
        """Tell all weights which step it is, whether their masks stay until the next, whether for good,
        and in which form they keep what they remember (None: as before)."""
        states = self._states
        if (
            not self._tightens
            and {s.mask_held for s in states} <= {held}
            and (frozen is None or {s.mask_frozen for s in states} <= {frozen})
            and (compact is None or {s.is_compact for s in states} <= {compact})
        ):
            return
        for state in self._states:
            state.at_step(step)
            state.hold(held=held, frozen=state.mask_frozen if frozen is None else frozen)
            state.hold_compact(state.is_compact if compact is None else compact)

    def written(self) -> list[str]:
        """Names of weights that held a value at a pruned place in a step since this was last asked.
        Waits for the device."""
        names: list[str] = []
        for group in self.groups:
            if isinstance(group, Fused):
                names += group.strayed()
            else:
                names += [name for name, stray in group.strays.items() if stray]
                group.strays.clear()
        return names


def _key(w: SparseWeight) -> object:
    """What the weights share that are treated together; None for one that is treated alone."""
    weight, state, method = w.weight, w.state, w.state.method
    parts, pattern = state.parts, state.pattern
    is_built_in = method.is_plain and any(method.adjust_gradient is known for known in ADJUSTS)
    if parts is None or not is_built_in or state.spec.method.pattern_at is not None:
        return None
    if not isinstance(parts.held, Whole):
        return None  # bits
    if (parts.aside is None) != (method.keeps is Aside.NOTHING):
        return None
    tensors = [weight, parts.mask] if parts.aside is None else [weight, parts.mask, parts.aside]
    if type(weight) not in (Tensor, nn.Parameter) or not weight.numel():
        return None
    if not all(t.is_contiguous() and t.device == weight.device for t in tensors):
        return None
    if weight.dtype not in table.DTYPES or tensors[-1].dtype not in (torch.bool, weight.dtype):
        return None
    decay, automatic = state.spec.fixed_decay, state.spec.is_automatic
    if pattern.m <= table.LARGEST_GROUP and table.usable(weight.device):
        stride = stride_along(weight, state.dim)
        kind = Kind(pattern, weight.dtype, stride, weight.device, parts.aside is not None)
        return kind, state.spec.method, state.mask_frozen, automatic, bool(decay)
    if automatic:
        return None  # a decay of its own at each step
    if weight.device.type == "cpu" and 2 * weight.numel() <= entries_at_a_time():
        form = weight.shape, weight.dtype, pattern, state.dim
        return form, state.spec.method, state.mask_frozen, decay
    return None
