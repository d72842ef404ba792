"""What belongs to one N:M weight: what stays the same of it, and what waits beside its parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_nm.methods.auto_decay import DECAY
from hf_nm.methods.method import AUTO, Aside, Method, check_decay
from hf_nm.model.sharding import Placement
from hf_nm.sparsity.mask import breaks_mask, split_, zero_pruned_
from hf_nm.sparsity.pattern import NMPattern


@dataclass(frozen=True)
class Spec:
    """What stays the same of one N:M weight.

    Args:
        name: the parameter's name in the model, for messages.
        pattern: the N:M pattern.
        dim: the input dimension of the weight, negative.
        method: how it is trained.
        decay: strength of the SR-STE term, in gradient units, or ``"auto"``.
    """

    name: str
    pattern: NMPattern
    dim: int
    method: Method
    decay: float | str

    def __post_init__(self) -> None:
        check_decay(self.decay)

    @property
    def is_automatic(self) -> bool:
        """Whether the decay follows the gradient's scale; not where the method has none."""
        return self.decay == AUTO and self.method.uses_decay

    @property
    def fixed_decay(self) -> float:
        """The decay where it is a number, in gradient units; 0 where it is automatic."""
        return 0.0 if isinstance(self.decay, str) else self.decay

    def extras(self, dense: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The named tensors that are kept for a weight: the method's own, and the automatic decay.

        Args:
            dense: this process's part of the dense weight; not changed.
            mask: its mask by magnitude; not changed.
        """
        make = self.method.extras
        made = {} if make is None else make(dense.clone(), mask.clone())
        extras = {name: tensor.detach().clone() for name, tensor in made.items()}
        if self.is_automatic:
            extras[DECAY] = torch.zeros((), device=dense.device)  # none yet
        return extras

    def pattern_at(self, step: int) -> NMPattern:
        """The pattern of an optimizer step (0 before training).

        Raises:
            ValueError: the method's pattern is of groups of another size.
        """
        pattern_at = self.method.pattern_at
        if pattern_at is None:
            return self.pattern
        pattern = pattern_at(step, self.pattern)
        if not isinstance(pattern, NMPattern) or pattern.m != self.pattern.m:
            raise ValueError(
                f"pattern_at of method {self.method.name!r} must give an NMPattern with the m of "
                f"{self.name}'s {self.pattern}, but gave {pattern!r} for step {step}; return "
                f"NMPattern(n, {self.pattern.m})"
            )
        return pattern


@dataclass(frozen=True, eq=False)
class Parts:
    """What waits beside one parameter; tensors of the parameter's shape, or of this process's part.

    Args:
        mask: ``E``, bool.
        pattern: what the mask follows: the spec's, or the looser one of an earlier step.
        aside: what the method keeps beside the sparse weight (the pruned part ``R``, or ``W``), in the
            weight's dtype; None where it keeps nothing.
        extras: named tensors of the mask's shape or of none: :meth:`Spec.extras`.
        placement: how the weight is cut that they belong to; None where it is whole.
        agreed: where the weight is sharded, whether all processes have settled on the masks of their
            parts.
    """

    mask: Tensor
    pattern: NMPattern
    aside: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    placement: Placement | None = None
    agreed: bool = False

    def tensors(self) -> list[Tensor]:
        """Mask, what is aside, and extras, in an order that all processes share."""
        aside = [] if self.aside is None else [self.aside]
        return [self.mask, *aside, *(tensor for _, tensor in sorted(self.extras.items()))]

    def cast(self, dtype: torch.dtype) -> Parts:
        """The same for a weight of another dtype."""
        return self if self.aside is None else replace(self, aside=self.aside.to(dtype))

    def following(self, part: Tensor, keeps: Aside) -> Parts:
        """The same on the device of a weight, what has the weight's dtype in its present one; with what
        the method keeps aside, where nothing was while the mask was frozen."""
        aside, extras = self.aside, {}
        for name, tensor in self.extras.items():
            cast = aside is not None and tensor.dtype == aside.dtype
            extras[name] = tensor.to(part if cast else part.device)
        if aside is None and keeps is not Aside.NOTHING:
            aside = part.clone() if keeps is Aside.DENSE else torch.zeros_like(part)
        aside = None if aside is None else aside.to(part)
        return replace(self, mask=self.mask.to(part.device), aside=aside, extras=extras)

    def split(self, part: Tensor, keeps: Aside, dim: int) -> None:
        """Let ``part``, which holds ``W``, hold its kept entries, by the mask as it is and by nothing
        of a method's own."""
        if keeps is Aside.DENSE and self.aside is not None:
            self.aside.copy_(part)
            zero_pruned_(part, self.mask)
        else:
            split_(part, self.aside, self.mask, self.pattern, dim, update_mask=False)

    def mapped(self, fn: Callable[[Tensor], Tensor], placement: Placement | None) -> Parts:
        """The same of another placement, each tensor by ``fn``; not agreed on."""
        aside = None if self.aside is None else fn(self.aside)
        extras = {name: fn(tensor) for name, tensor in sorted(self.extras.items())}
        return Parts(fn(self.mask), self.pattern, aside, extras, placement)


def obeys(part: Tensor, mask: Tensor) -> bool:
    """Whether the local part of a weight is zero where a mask says so."""
    return mask.shape == part.shape and not breaks_mask(part, mask)
