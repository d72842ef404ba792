"""What happens around an optimizer step: each method is one small function on the gradients.

The optimizer then steps on the dense weight. Write another method as a function of the same form and
pass ``Method("its-name", function)`` to :func:`hf_nm.sparsify`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hf_nm.sparsity.mask import zero_pruned_

# (gradient, pruned part or None, mask, decay): changes the gradient in place. `decay` is in gradient
# units and already carries the loss scale that the gradient still carries.
AdjustGradient = Callable[[Tensor, Tensor | None, Tensor, float | Tensor], None]

METHOD_NAME = re.compile(r"[A-Za-z0-9_\-.]{1,64}")


def add_decay(gradient: Tensor, pruned: Tensor | None, mask: Tensor, decay: float | Tensor) -> None:
    """SR-STE: ``g(S) + decay * (1-E)*W`` (the SR-STE update of Zhou et al. 2021).

    Args:
        gradient: gradient of the loss at the sparse weight, dense; changed in place.
        pruned: ``R = (1-E)*W``, the gradient's shape; None means zero.
        mask: ``E``; not needed, ``R`` is already zero where kept.
        decay: strength, in gradient units.
    """
    if pruned is None:
        return
    if isinstance(decay, Tensor):
        gradient.add_(pruned * decay)
    elif decay:
        gradient.add_(pruned, alpha=decay)


def leave_gradient(
    gradient: Tensor, pruned: Tensor | None, mask: Tensor, decay: float | Tensor
) -> None:
    """STE: the gradient at the sparse weight goes to the dense one as it is (Zhou et al. 2021)."""


def zero_pruned_gradient(
    gradient: Tensor, pruned: Tensor | None, mask: Tensor, decay: float | Tensor
) -> None:
    """Fixed mask: pruned entries get no gradient and stay zero."""
    zero_pruned_(gradient, mask)


@dataclass(frozen=True)
class Method:
    """How N:M weights are trained.

    Args:
        name: as written in logs and in a checkpoint's manifest.
        adjust_gradient: called once per N:M weight and optimizer step, before the step.
        moves_masks: whether masks follow the dense weight. If not, the first mask is kept and there
            is no pruned part.
    """

    name: str
    adjust_gradient: AdjustGradient
    moves_masks: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not METHOD_NAME.fullmatch(self.name):
            raise ValueError(
                "a method's name is written to checkpoints: 1 to 64 letters, digits, '_', '-' or "
                f"'.', but got {self.name!r}"
            )

    @classmethod
    def parse(cls, method: str | Method) -> Method:
        """The method of that name, or a :class:`Method` as it is.

        Raises:
            ValueError: no method has that name.
        """
        if isinstance(method, cls):
            return method
        for known in (SR_STE, STE, FIXED):
            if known.name == method:
                return known
        raise ValueError(
            f"method must be one of 'sr-ste', 'ste', 'fixed' or a Method, but got {method!r}; "
            "use method='sr-ste' for the paper's"
        )


def check_decay(decay: float) -> float:
    """``decay`` as a float; raises ``ValueError`` unless it is a finite number >= 0."""
    if isinstance(decay, bool) or not isinstance(decay, int | float):
        raise ValueError(f"decay must be a number >= 0, but got {decay!r}; the default is 2e-4")
    if not 0 <= decay <= sys.float_info.max:
        raise ValueError(f"decay must be finite and >= 0, but got {decay}; the default is 2e-4")
    return float(decay)


SR_STE = Method("sr-ste", add_decay)
STE = Method("ste", leave_gradient)
FIXED = Method("fixed", zero_pruned_gradient, moves_masks=False)
