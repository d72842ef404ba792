"""Fixed masks: the first magnitude mask is kept and only kept weights are trained, as ASP does after
pruning. Masks that are frozen for good are trained like this too."""

from __future__ import annotations

from torch import Tensor

from hf_nm.methods.method import Method
from hf_nm.sparsity.mask import zero_pruned_


def zero_pruned_gradient(
    gradient: Tensor, aside: Tensor | None, mask: Tensor, decay: float | Tensor
) -> None:
    """Pruned entries get no gradient and stay zero.

    Args:
        gradient: gradient of the loss at the sparse weight; changed in place.
        aside: not needed; nothing is kept.
        mask: ``E``, bool, the gradient's shape.
        decay: not needed.
    """
    zero_pruned_(gradient, mask)


FIXED = Method("fixed", zero_pruned_gradient, moves_masks=False, uses_decay=False, by_entry=True)
