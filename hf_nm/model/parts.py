"""What belongs to one N:M weight: what stays the same of it, and what waits beside its parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_nm.methods.auto_decay import DECAY
from hf_nm.methods.held import Compact, Whole
from hf_nm.methods.method import AUTO, Aside, Method, check_decay
from hf_nm.model.sharding import Placement
from hf_nm.sparsity.mask import count_kept, zero_pruned_
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
        held: the mask and what the method keeps aside, in one of two forms.
        extras: named tensors of the mask's shape or of none: :meth:`Spec.extras`.
        placement: how the weight is cut that they belong to; None where it is whole.
        agreed: where the weight is sharded, whether all processes have settled on the masks of their
            parts.
    """

    held: Whole | Compact
    extras: dict[str, Tensor] = field(default_factory=dict)
    placement: Placement | None = None
    agreed: bool = False

    @property
    def mask(self) -> Tensor:
        """``E``, bool: the very tensor where it is held whole, else a new one."""
        return self.held.mask

    @property
    def aside(self) -> Tensor | None:
        """What the method keeps beside the sparse weight: the very tensor where it is held whole."""
        return self.held.aside

    @property
    def pattern(self) -> NMPattern:
        """What the mask follows: the spec's, or the looser one of an earlier step."""
        return self.held.pattern

    def hold_mask_of(self, part: Tensor) -> bool:
        """Whether the mask is one of these values: not one of memory that ``to_empty()`` left as it was,
        either. Waits for the device."""
        return self.held.obeyed_by(part) and self.is_exact()

    def is_exact(self) -> bool:
        """Whether the mask keeps exactly n of every group. Waits for the device."""
        kept = count_kept(self.mask, self.pattern, self.held.dim)
        return bool((kept == self.pattern.n).all())

    def merge(self, part: Tensor, keeps: Aside) -> Tensor:
        """Let ``part`` hold ``W`` in place of ``S``, as :func:`hf_nm.sparsity.mask.merge_` does; what is
        aside is what the method ``keeps``."""
        if keeps is not Aside.DENSE or self.held.aside is None:
            return self.held.merge(part)
        stray = self.held.look(part)
        if part.device.type != "cpu" or not stray:
            part.copy_(self.held.aside)
        return stray

    def in_form(self, keeps: Aside, *, compact: bool) -> Parts:
        """The same held compact, or whole; what is aside is what the method ``keeps``."""
        return replace(self, held=self.held.compact(keeps) if compact else self.held.whole())

    def tensors(self) -> list[Tensor]:
        """Mask, what is aside, and extras, in an order that all processes share."""
        return [*self.held.tensors(), *(tensor for _, tensor in sorted(self.extras.items()))]

    def cast(self, dtype: torch.dtype) -> Parts:
        """The same for a weight of another dtype."""
        return replace(
            self, held=self.held.moved(lambda t: t.to(dtype) if t.is_floating_point() else t)
        )

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Parts:
        """The same on another device, or in another dtype, each tensor by ``fn``; numbers keep it."""
        held = self.held.moved(fn)
        device = held.tensors()[0].device
        extras = {
            name: fn(tensor) if tensor.ndim else tensor.to(device)
            for name, tensor in self.extras.items()
        }
        return replace(self, held=held, extras=extras)

    def following(self, part: Tensor, keeps: Aside) -> Parts:
        """The same on the device of a weight, what has the weight's dtype in its present one; with what
        the method keeps aside, where nothing was while the mask was frozen. Itself if it is so."""
        dtypes = {t.dtype for t in self.held.tensors() if t.is_floating_point()}
        held = self.held.moved(lambda t: t.to(part) if t.is_floating_point() else t.to(part.device))
        if not dtypes and keeps is not Aside.NOTHING:
            held = held.with_room(keeps, part)
            if keeps is Aside.DENSE:
                held.write_dense(part)
        extras = {
            name: tensor.to(part if tensor.dtype in dtypes and tensor.ndim else part.device)
            for name, tensor in self.extras.items()
        }
        found = replace(self, held=held, extras=extras)
        same = zip(found.tensors(), self.tensors(), strict=False)
        is_so = len(found.tensors()) == len(self.tensors()) and all(a is b for a, b in same)
        return self if is_so else found

    def split(self, part: Tensor, keeps: Aside) -> None:
        """Let ``part``, which holds ``W``, hold its kept entries, by the mask as it is and by nothing
        of a method's own."""
        if keeps is Aside.DENSE and self.held.aside is not None:
            self.held.write_dense(part)
            zero_pruned_(part, self.mask)
        else:
            self.held.split(part, update_mask=False)

    def mapped(self, fn: Callable[[Tensor], Tensor], placement: Placement | None) -> Parts:
        """The same of another placement, held whole, each tensor by ``fn``; not agreed on."""
        whole = self.held.whole()
        aside = None if whole.aside is None else fn(whole.aside)
        extras = {name: fn(tensor) for name, tensor in sorted(self.extras.items())}
        return Parts(replace(whole, mask=fn(whole.mask), aside=aside), extras, placement)


def follows(part: Tensor, pattern: NMPattern, dim: int) -> bool:
    """Whether no group of a weight's local part holds more than the pattern allows."""
    return bool((count_kept(part, pattern, dim) <= pattern.n).all())
