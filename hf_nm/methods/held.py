"""How the mask of a weight and what its method keeps aside are held: whole, or in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_nm.methods.method import Aside, Method, leave_gradient
from hf_nm.sparsity.bits import pack_bits, unpack_bits
from hf_nm.sparsity.compact import (
    breaks_compact,
    count_pruned,
    merge_compact_,
    pack_pruned,
    pruned_runs,
    split_compact_,
    unpack_pruned,
)
from hf_nm.sparsity.mask import breaks_mask, merge_, split_
from hf_nm.sparsity.pattern import NMPattern


@dataclass(frozen=True, eq=False)
class Whole:
    """Mask and what is aside, as two tensors of the weight's shape.

    Args:
        mask: ``E``, bool.
        aside: what the method keeps beside the sparse weight (the pruned part ``R``, or ``W``), in the
            weight's dtype; None where it keeps nothing.
        pattern: what the mask follows.
        dim: the input dimension.
    """

    mask: Tensor
    aside: Tensor | None
    pattern: NMPattern
    dim: int

    def tensors(self) -> list[Tensor]:
        """What is held, in an order that all processes share."""
        return [self.mask] if self.aside is None else [self.mask, self.aside]

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Whole:
        """The same on another device or in another dtype; a mask stays one, whatever ``fn`` casts."""
        aside = None if self.aside is None else fn(self.aside)
        return replace(self, mask=fn(self.mask).to(torch.bool), aside=aside)

    def compact(self, keeps: Aside) -> Compact:
        """The same in fewer bytes; ``keeps`` says what is aside."""
        bits, aside = pack_bits(self.mask), self.aside
        values = None
        if aside is not None and keeps is Aside.PRUNED:
            values, aside = pack_pruned(aside, bits, self.pattern, self.dim), None
        return Compact(bits, values, aside, self.mask.shape, self.pattern, self.dim)

    def whole(self) -> Whole:
        """Itself."""
        return self

    def write_mask(self, mask: Tensor) -> None:
        """Put another mask of this pattern in the place of the present one."""
        self.mask.copy_(mask)

    def with_pattern(self, pattern: NMPattern) -> Whole:
        """The same for masks of another pattern that are still to be computed."""
        return replace(self, pattern=pattern)

    def with_room(self, keeps: Aside, part: Tensor) -> Whole:
        """The same with a place for what a method keeps of ``part``, zero where there was none."""
        if keeps is Aside.NOTHING or self.aside is not None:
            return self
        return replace(self, aside=torch.zeros_like(part))

    def without_aside(self) -> Whole:
        """The same with nothing aside."""
        return replace(self, aside=None)

    def zero_aside(self) -> None:
        """Set what is aside to zero."""
        if self.aside is not None:
            self.aside.zero_()

    def write_dense(self, part: Tensor) -> None:
        """Keep ``W`` aside, where the method keeps that."""
        assert self.aside is not None
        self.aside.copy_(part)

    def obeyed_by(self, part: Tensor) -> bool:
        """Whether the local part of a weight is zero where the mask says so. Waits for the device."""
        return self.mask.shape == part.shape and not breaks_mask(part, self.mask)

    def look(self, part: Tensor) -> Tensor:
        """Whether ``part`` is not zero where the mask says so: bool scalar tensor."""
        return merge_(part, None, self.mask)

    def merge(self, part: Tensor) -> Tensor:
        """Let ``part`` hold ``S + R`` in place of ``S``: see :func:`hf_nm.sparsity.mask.merge_`."""
        return merge_(part, self.aside, self.mask)

    def split(self, part: Tensor, *, update_mask: bool) -> Tensor:
        """Let ``part`` hold ``S`` in place of ``W``: see :func:`hf_nm.sparsity.mask.split_`."""
        return split_(part, self.aside, self.mask, self.pattern, self.dim, update_mask=update_mask)

    def adjust(self, gradient: Tensor, part: Tensor, method: Method, decay: float | Tensor) -> None:
        """Change a gradient as the method does; ``part`` holds the dense weight."""
        method.adjust_gradient(gradient, self.aside, self.mask, decay)


@dataclass(frozen=True, eq=False)
class Compact:
    """The same in fewer bytes (:mod:`hf_nm.sparsity.compact`): 2.125 a weight at 2:4 in fp32, not 5.

    Args:
        bits: the mask.
        values: the pruned values of ``R``; None where that is not what is kept.
        dense: ``W``, where the method keeps that; else None.
        shape: of this process's part of the weight.
        pattern: what the mask follows.
        dim: the input dimension.
    """

    bits: Tensor
    values: Tensor | None
    dense: Tensor | None
    shape: torch.Size
    pattern: NMPattern
    dim: int

    @property
    def mask(self) -> Tensor:
        """``E``, a new bool tensor."""
        return unpack_bits(self.bits, self.shape)

    @property
    def aside(self) -> Tensor | None:
        """What is kept aside, of the weight's shape: a new tensor where it is ``R``."""
        if self.values is None:
            return self.dense
        return unpack_pruned(self.values, self.bits, self.shape, self.pattern, self.dim)

    def tensors(self) -> list[Tensor]:
        """What is held, in an order that all processes share."""
        return [t for t in (self.bits, self.values, self.dense) if t is not None]

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Compact:
        """The same on another device or in another dtype; bits stay bits, whatever ``fn`` casts."""
        bits = fn(self.bits)
        if bits.dtype != torch.uint8:
            bits = self.bits.to(bits.device)
        values = None if self.values is None else fn(self.values)
        dense = None if self.dense is None else fn(self.dense)
        return replace(self, bits=bits, values=values, dense=dense)

    def compact(self, keeps: Aside) -> Compact:
        """Itself."""
        return self

    def whole(self) -> Whole:
        """The same as tensors of the weight's shape."""
        return Whole(self.mask, self.aside, self.pattern, self.dim)

    def write_mask(self, mask: Tensor) -> None:
        """Put another mask of this pattern in the place of the present one."""
        self.bits.copy_(pack_bits(mask))

    def with_pattern(self, pattern: NMPattern) -> Compact:
        """The same for masks of another pattern that are still to be computed: other values fit."""
        values = self.values
        if values is not None:
            values = values.new_zeros(count_pruned(self.shape.numel(), pattern))
        return replace(self, pattern=pattern, values=values)

    def with_room(self, keeps: Aside, part: Tensor) -> Compact:
        """The same with a place for what a method keeps of ``part``, zero where there was none."""
        if keeps is Aside.DENSE and self.dense is None:
            return replace(self, dense=torch.zeros_like(part))
        if keeps is Aside.PRUNED and self.values is None:
            room = count_pruned(self.shape.numel(), self.pattern)
            return replace(self, values=part.new_zeros(room))
        return self

    def without_aside(self) -> Compact:
        """The same with nothing aside."""
        return replace(self, values=None, dense=None)

    def zero_aside(self) -> None:
        """Set what is aside to zero."""
        for aside in self.tensors()[1:]:
            aside.zero_()

    def write_dense(self, part: Tensor) -> None:
        """Keep ``W`` aside, where the method keeps that."""
        assert self.dense is not None
        self.dense.copy_(part)

    def obeyed_by(self, part: Tensor) -> bool:
        """Whether the local part of a weight is zero where the mask says so. Waits for the device."""
        return self.shape == part.shape and not breaks_compact(
            part, self.bits, self.pattern, self.dim
        )

    def look(self, part: Tensor) -> Tensor:
        """Whether ``part`` is not zero where the mask says so: bool scalar tensor."""
        return merge_compact_(part, None, self.bits, self.pattern, self.dim)

    def merge(self, part: Tensor) -> Tensor:
        """Let ``part`` hold ``S + R`` in place of ``S``: see :func:`hf_nm.sparsity.mask.merge_`."""
        return merge_compact_(part, self.values, self.bits, self.pattern, self.dim)

    def split(self, part: Tensor, *, update_mask: bool) -> Tensor:
        """Let ``part`` hold ``S`` in place of ``W``: see :func:`hf_nm.sparsity.mask.split_`."""
        return split_compact_(
            part, self.values, self.bits, self.pattern, self.dim, update_mask=update_mask
        )

    def adjust(self, gradient: Tensor, part: Tensor, method: Method, decay: float | Tensor) -> None:
        """Change a gradient as the method does; ``part`` holds the dense weight.

        Where the method goes entry by entry it gets one run after the other, else what is aside is laid
        out whole for the while.
        """
        if method.adjust_gradient is leave_gradient:
            return
        in_runs = gradient.is_contiguous() and part.is_contiguous() and self.dense is None
        if not method.by_entry or not in_runs:
            method.adjust_gradient(gradient, self.aside, self.mask, decay)
            return
        flat = gradient.view(-1)
        for run, mask, pruned in pruned_runs(part, self.bits, self.pattern, self.dim):
            aside = None if self.values is None else pruned
            method.adjust_gradient(flat[run], aside, mask, decay)
