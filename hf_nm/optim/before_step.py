"""What must hold of an optimizer's N:M weights before it steps."""

from __future__ import annotations

from torch import nn

from hf_nm.model.sharding import is_sharded
from hf_nm.model.weights import SparseWeight, sparse_weights
from hf_nm.optim.ranks import align_ranks, settle_shards
from hf_nm.optim.schedule import Schedule
from hf_nm.processes import several_processes
from hf_nm.sparsity.check import BrokenPatternError, broken_weight


class Readiness:
    """Checks the N:M weights of one attached optimizer, and lets processes agree on them.

    Args:
        model: the model, without wrappers.
        schedule: what the optimizer was attached with.
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.model = model
        self.schedule = schedule
        self._known: set[str] = set()  # weights that were checked, on which ranks agree

    def at_attach(self, weights: list[SparseWeight]) -> list[SparseWeight]:
        """Check when the optimizer is attached.

        Returns:
            Those of the weights whose masks may have changed: they were sharded.
        """
        for w in weights:
            _check_whole(w)
        renewed = settle_shards(weights)
        if several_processes():
            # DDP gives all ranks the first one's sparse weights, to which masks of other ranks need
            # not belong: that is settled at the first step, where every rank takes part.
            return renewed
        self._check_new(weights)
        return renewed

    def before_step(self, weights: list[SparseWeight]) -> list[SparseWeight]:
        """Check before a step.

        Returns:
            Those of the weights whose masks may have changed: they were sharded, or taken from another
            rank.
        """
        for w in weights:
            _check_whole(w)
        renewed = settle_shards(weights) + self._check_new(weights)
        for w in weights:
            w.state.follow(w.weight)  # another parameter than before, if it was sharded since
        return renewed

    def _check_new(self, weights: list[SparseWeight]) -> list[SparseWeight]:
        """Weights seen for the first time: ranks agree on them, and they obey their masks. The latter
        also where a checkpoint was loaded."""
        renewed: list[SparseWeight] = []
        new = [w for w in weights if w.name not in self._known]
        if new and several_processes():
            # All of the model's, not only this optimizer's: an optimizer forgotten for the others
            # is found by masks that belong to their weights.
            everything = [w for w in sparse_weights(self.model) if w.state.mask is not None]
            if align_ranks(everything, [w.name for w in weights], self.schedule):
                renewed = [w for w in new if not is_sharded(w.weight)]
        for w in weights:
            if w.name in self._known and w.state.restored is None:
                continue
            if w.state.restored is not None and not w.state.belongs_to(w.weight):
                raise BrokenPatternError(
                    f"{w.name} is not the weight that the optimizer's checkpoint was saved with: the "
                    "model's checkpoint was not loaded, is of another step, or was changed since; load "
                    "both of the same step"
                )
            if not w.state.obeyed_by(w.weight):
                raise broken_weight(
                    w.name,
                    "it was trained or written without hf_nm",
                    remedy="enter and leave `with hf_nm.dense_weights(model):` to take the present "
                    "values as dense weights",
                )
            w.state.confirm()
            self._known.add(w.name)
        return renewed


def _check_whole(w: SparseWeight) -> None:
    """Raise unless the parameter holds its sparse weight, on a real device."""
    if w.weight.device.type == "meta":
        raise ValueError(
            f"{w.name} is on the meta device; load its values before attach or step "
            "(model.to_empty(...), then model.load_state_dict(...))"
        )
    w.state.match_placement(w.weight)
    if w.state.is_dense:
        raise RuntimeError(
            f"{w.name} holds its dense weight: optimizer.step() was called inside `with "
            "hf_nm.dense_weights(model):`; the gradient belongs to the sparse weight, so step "
            "outside it"
        )
