"""How much of what merged adapters add to N:M weights pruning takes away again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_nm.model.sharding import local
from hf_nm.replaced import Replaced
from hf_nm.sparsity.mask import nm_mask

if TYPE_CHECKING:
    from hf_nm.model.weights import SparseWeight


class Merged:
    """What merging adapters adds to N:M weights, and how much of it pruning takes away again.

    Attributes:
        weights: how many weights were changed.
        added: squared size of what was added, summed over entries.
        pruned: the same, of the entries that the projection to come sets to zero.
        flips: mask entries that it changes.
    """

    def __init__(self) -> None:
        self.weights = self.flips = 0
        self.added = self.pruned = 0.0

    def watch(self, model: nn.Module, weights: list[SparseWeight]) -> list[Replaced]:
        """Measure around each ``merge`` of an adapter's layer (as PEFT calls them) around an N:M weight;
        one that is watched already is left to whoever does."""
        held: dict[int, list[SparseWeight]] = {}
        for w in weights:
            held.setdefault(id(w.layer), []).append(w)
        found = []
        for module in model.modules():
            base = module
            while isinstance(inner := base._modules.get("base_layer"), nn.Module):
                base = inner
            if base is module or "merge" in module.__dict__ or not hasattr(module, "merge"):
                continue
            if id(base) in held:
                found.append(Replaced(module, "merge", self._around(held[id(base)])))
        return found

    def _around(
        self, weights: list[SparseWeight]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(merge: Callable[..., Any]) -> Callable[..., Any]:
            def measured(*args: Any, **kwargs: Any) -> Any:
                before = [local(w.weight).detach().clone() for w in weights]
                result = merge(*args, **kwargs)
                for w, old in zip(weights, before, strict=True):
                    self._add(w, old)
                return result

            return measured

        return wrap

    @torch.no_grad()
    def _add(self, w: SparseWeight, before: Tensor) -> None:
        dense, state = local(w.weight), w.state
        added = (dense - before).float().square()
        if state.parts is None or not added.any():
            return
        mask = state.parts.mask
        if state.updates_mask:
            score = state.method.score
            scores = dense if score is None else score(dense, state.parts.extras)
            mask = nm_mask(scores, state.step_pattern.n, state.step_pattern.m, state.dim)
        self.weights += 1
        self.added += added.sum().item()
        self.pruned += added.masked_fill(mask, 0).sum().item()
        self.flips += int((mask != state.parts.mask).sum())

    def __str__(self) -> str:
        share = self.pruned / self.added if self.added else 0.0
        return (
            f"merging adapters into {self.weights} N:M weights: pruning takes away {share:.1%} of what "
            f"they add (by squared size) and changes {self.flips:,} mask entries. Score the merged "
            "model beside the one with adapters; where it lost too much, train it on, or keep the "
            "adapters apart"
        )
