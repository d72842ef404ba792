"""What a method of training N:M weights is: a name, and small functions that act around a step.

Around each optimizer step the parameter goes from the sparse weight to the dense one and back. A method
says what is kept **aside** of it in between, how the gradient is changed before the step, by which
scores the mask is chosen after it, and what the sparse weight is. Write another one as a file beside
``sr_ste.py`` and pass ``Method("its-name", ...)`` to :func:`hf_nm.sparsify`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from hf_nm.sparsity.pattern import NMPattern

# Named tensors that a method keeps for a weight.
Extras = Mapping[str, Tensor]
# (gradient, aside or None, mask, decay): changes the gradient in place. `decay` is in gradient units and
# already carries the loss scale that the gradient still carries.
AdjustGradient = Callable[[Tensor, Tensor | None, Tensor, float | Tensor], None]
# (dense weight, extras): numbers of the weight's shape; the largest magnitudes of each group are kept.
Score = Callable[[Tensor, Extras], Tensor]
# (dense weight, mask, extras): the sparse weight; what the mask prunes becomes zero in any case.
Project = Callable[[Tensor, Tensor, Extras], Tensor]

# In place of a decay: the one of auto_decay.py.
AUTO = "auto"

METHOD_NAME = re.compile(r"[A-Za-z0-9_\-.]{1,64}")


class Aside(Enum):
    """What is kept beside the sparse weight ``S = E*W`` between two steps.

    Attributes:
        PRUNED: ``R = (1-E)*W``, where S and R are disjoint, so that ``W = S + R`` exactly.
        DENSE: the whole ``W``, where S is more than ``E*W``.
        NOTHING: the dense weight is the sparse one.
    """

    PRUNED = "pruned"
    DENSE = "dense"
    NOTHING = "nothing"


def leave_gradient(
    gradient: Tensor, aside: Tensor | None, mask: Tensor, decay: float | Tensor
) -> None:
    """Leave the gradient at the sparse weight as it is, for the dense one."""


@dataclass(frozen=True)
class Method:
    """How N:M weights are trained. The defaults: straight-through, masks by magnitude.

    All tensors have the weight's shape, or that of this process's part of it where it is sharded.

    Args:
        name: as written in logs and in a checkpoint's manifest.
        adjust_gradient: called once per N:M weight and optimizer step, before the step, with
            ``(gradient, aside, mask, decay)``; changes the gradient in place. ``aside`` is None where
            nothing is kept.
        moves_masks: whether masks follow the dense weight. If not, the first mask is kept.
        aside: what is kept beside the sparse weight; by default the pruned part where masks move,
            else nothing.
        uses_decay: whether ``adjust_gradient`` does anything with ``decay``; a warm-up is refused where
            it does not.
        score: ``(dense weight, extras)`` to what masks are chosen by, in place of the weight itself: the
            largest magnitudes of each group are kept.
        project: ``(dense weight, mask, extras)`` to the sparse weight, in place of ``E*W``. Needs
            ``aside=Aside.DENSE``, since the dense weight cannot be had back from S and R.
        extras: ``(dense weight, its mask by magnitude)`` to named tensors of the weight's shape, or of
            none, that are made whenever a weight is read as a dense one, and kept with it from then on:
            saved, sharded and resumed, and given to ``score`` and ``project``, which may change them
            in place. Where a weight was sharded before, a number is computed from this process's part.
        pattern_at: ``(step, pattern)`` to the pattern of masks that are computed at that optimizer step,
            for patterns that tighten: with the same m, and the weight's own in the end, since a
            checkpoint claims that one. Step 0 is before training.

    Raises:
        ValueError: the name is not one, or the options do not fit together.
    """

    name: str
    adjust_gradient: AdjustGradient = leave_gradient
    moves_masks: bool = True
    aside: Aside | None = None
    uses_decay: bool = True
    score: Score | None = None
    project: Project | None = None
    extras: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    pattern_at: Callable[[int, NMPattern], NMPattern] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not METHOD_NAME.fullmatch(self.name):
            raise ValueError(
                "a method's name is written to checkpoints: 1 to 64 letters, digits, '_', '-' or "
                f"'.', but got {self.name!r}"
            )
        if self.project is not None and self.keeps is not Aside.DENSE:
            raise ValueError(
                f"method {self.name!r} has its own project, so the dense weight cannot be put together "
                "from the sparse weight and a pruned part; pass aside=Aside.DENSE"
            )
        if self.pattern_at is not None and not self.moves_masks:
            raise ValueError(
                f"method {self.name!r} has a pattern_at, but its masks do not move; leave out "
                "moves_masks=False"
            )

    @property
    def keeps(self) -> Aside:
        """What is kept beside the sparse weight."""
        if self.aside is not None:
            return self.aside
        return Aside.PRUNED if self.moves_masks else Aside.NOTHING

    @property
    def is_plain(self) -> bool:
        """Whether the sparse weight is ``E*W`` with the mask of the largest ``abs(W)``, and no more than
        ``R`` is kept: then mask, split and count are one pass over memory."""
        return self.score is None and self.project is None and self.keeps is not Aside.DENSE


def check_decay(decay: float | str) -> float | str:
    """``decay`` as a float, or ``"auto"``; raises ``ValueError`` unless it is that or a finite number
    >= 0."""
    if decay == AUTO:
        return AUTO
    if isinstance(decay, bool) or not isinstance(decay, int | float):
        raise ValueError(
            f"decay must be a number >= 0, but got {decay!r}; the default is 2e-4, and "
            f"{AUTO!r} follows the gradient's scale"
        )
    if not 0 <= decay <= sys.float_info.max:
        raise ValueError(f"decay must be finite and >= 0, but got {decay}; the default is 2e-4")
    return float(decay)
