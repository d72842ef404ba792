"""``decay="auto"``: a decay that follows the scale of each weight's gradient, so that nobody tunes it.

SR-STE adds ``decay * R`` to the gradient ``g``. How strong that is depends on what ``g`` is of: a loss
ten times as large, summed over a batch or averaged, asks for another decay. Here it is::

    decay = PULL * rms(g) / rms(S)

so that ``decay * R`` is to the gradient as ``PULL * R`` is to the kept weights, whatever the loss is
multiplied by. An optimizer moves a weight by about ``step`` where the gradient is ``rms(g)``; a pruned
weight then loses ``PULL * step / rms(S)`` of itself in each step, ``PULL`` times the share by which a
kept weight moves. Under Adam ``step`` is about the learning rate.

``rms(g)`` is that of the gradient which the optimizer sees, at the sparse weight and without the decay;
``rms(S)`` that of the kept entries. The square of their ratio is averaged over steps, as Adam does with
the gradient's. All of it is on the device, and nothing waits for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# How strong: at 1 the pruned part is to the kept one as its decay is to the gradient. Chosen on another
# seed than those of recipes/benchmark/results, among 0.1, 0.3, 1 and 3, which differ little.
PULL = 1.0
# How much of the squared decay stays from one step to the next.
MEMORY = 0.98
# The name under which a weight's decay is kept, saved and resumed, beside a method's own tensors.
DECAY = "automatic_decay"


def follow(decay: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Bring automatic decays up to a step.

    Args:
        decay: those of the step before, in gradient units; 0 before the first.
        gradient: mean square of each weight's gradient, without loss scale or decay.
        weight: mean square of the kept entries of each sparse weight, in the same order.

    Returns:
        Decays in gradient units, of the same shape. One whose gradient is not finite, or whose weight is
        zero, stays as it was.
    """
    now = PULL**2 * gradient / weight
    mean = torch.where(decay == 0, now, MEMORY * decay.square() + (1 - MEMORY) * now)
    return torch.where(torch.isfinite(mean), mean.sqrt(), decay)


def mean_square(tensor: Tensor, entries: float) -> Tensor:
    """Sum of squares over ``entries``, as a float32 scalar tensor on the tensor's device."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return torch.linalg.vector_norm(tensor, dtype=wide).float().square() / entries
