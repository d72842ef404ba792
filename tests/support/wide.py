"""Methods of one's own in the wider form, and a slow twin of them: loops over dense weights, nothing of
hf_nm but the words that :class:`hf_nm.Method` takes."""

from __future__ import annotations

from typing import Any

import torch
from reference import _StraightThrough, reference_mask
from torch import Tensor, nn
from torch.func import functional_call

import hf_nm
from hf_nm.methods.method import Aside


def soft(dense: Tensor, mask: Tensor) -> Tensor:
    """``sign(W) * max(abs(W) - t, 0)``, t the largest pruned magnitude of the group of 4 (S-STE, Hu et
    al. 2024, arXiv 2409.09099)."""
    size = dense.abs().unflatten(-1, (-1, 4))
    pruned = size.masked_fill(mask.unflatten(-1, (-1, 4)), 0)
    shrunk = (size - pruned.amax(-1, keepdim=True)).clamp(min=0).flatten(-2)
    return dense.sign() * shrunk


def scale(dense: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The factor that brings ``soft(W)`` nearest to ``W``: least squares."""
    shrunk = soft(dense, mask)
    return {"beta": (dense * shrunk).sum() / (shrunk * shrunk).sum()}


def saliency(dense: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A number for each weight, from its place in the row."""
    row = torch.arange(1, dense.shape[-1] + 1, dtype=dense.dtype) % 5 + 1
    return {"saliency": row.expand(dense.shape)}


def tighter(step: int, pattern: hf_nm.NMPattern) -> hf_nm.NMPattern:
    """3:4, from step 3 on 2:4, from step 5 on 1:4."""
    return hf_nm.NMPattern(3 if step < 3 else 2 if step < 5 else 1, 4)


METHODS = {
    "s-ste": hf_nm.Method(
        "s-ste",
        aside=Aside.DENSE,
        uses_decay=False,
        extras=scale,
        project=lambda dense, mask, extras: extras["beta"] * soft(dense, mask),
    ),
    "dense-aside": hf_nm.Method("dense-aside", aside=Aside.DENSE, uses_decay=False),
    "scored": hf_nm.Method(
        "scored",
        uses_decay=False,
        extras=saliency,
        score=lambda dense, extras: dense * extras["saliency"],
    ),
    "tightening": hf_nm.Method("tightening", uses_decay=False, pattern_at=tighter),
    "regrow": hf_nm.Method("regrow", aside=Aside.NOTHING, uses_decay=False),
}

# All at once, for groups along any dimension: what processes have to agree on and to share.
EVERYTHING = hf_nm.Method(
    "everything",
    aside=Aside.DENSE,
    extras=lambda dense, mask: saliency(dense, mask) | {"beta": 1 + dense.abs().mean()},
    score=lambda dense, extras: dense * extras["saliency"],
    project=lambda dense, mask, extras: extras["beta"] * dense,
)


def pattern_of(name: str) -> tuple[int, int]:
    """What each is made sparse to: n and m."""
    return (1, 4) if name == "tightening" else (2, 4)


class WideTwin:
    """A dense model trained as one of :data:`METHODS` says; masks are computed after each step.

    Args:
        name: the method.
        model: holds the dense weights.
        weights: names of the parameters that are N:M.
    """

    def __init__(self, name: str, model: nn.Module, weights: list[str]) -> None:
        self.name, self.model, self.step_number = name, model, 0
        parameters = dict(model.named_parameters())
        self.weights = {weight: parameters[weight] for weight in weights}
        self.extras: dict[str, dict[str, Tensor]] = {}
        for weight, dense in self.weights.items():
            first = reference_mask(dense, 2, 4)
            make = {"s-ste": scale, "scored": saliency}.get(name)
            self.extras[weight] = make(dense.detach(), first) if make else {}
        self.masks: dict[str, Tensor] = {}
        self.compute_masks()

    def compute_masks(self) -> None:
        n, m = pattern_of(self.name)
        if self.name == "tightening":
            n = 3 if self.step_number < 3 else 2 if self.step_number < 5 else 1
        for weight, dense in self.weights.items():
            factor = self.extras[weight].get("saliency", torch.ones(()))
            self.masks[weight] = reference_mask(dense.detach() * factor, n, m)
            if self.name == "regrow":
                with torch.no_grad():
                    dense.mul_(self.masks[weight])

    def sparse(self, weight: str) -> Tensor:
        """The sparse weight, with the identity as its gradient."""
        dense, mask = self.weights[weight], self.masks[weight]
        if self.name != "s-ste":
            return _StraightThrough.apply(dense, mask)
        value = self.extras[weight]["beta"] * soft(dense.detach(), mask)
        return value + dense - dense.detach()

    def __call__(self, *args: Any) -> Any:
        sparse = {weight: self.sparse(weight) for weight in self.weights}
        return functional_call(self.model, sparse, args)

    def count_step(self) -> None:
        """The optimizer has stepped: masks of the new dense weights."""
        self.step_number += 1
        self.compute_masks()
