"""SR-STE: the straight-through gradient plus a decay of the pruned weights (Zhou et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from hf_nm.methods.method import Method


def add_decay(gradient: Tensor, aside: Tensor | None, mask: Tensor, decay: float | Tensor) -> None:
    """``g(S) + decay * (1-E)*W`` (the SR-STE update of Zhou et al. 2021).

    Of a 16-bit gradient torch rounds ``decay`` to 16 bits on a CPU, on a GPU only where it is a tensor:
    results of the two differ by at most ``eps * (abs(g) + 2.5 * abs(decay * R))``, ``eps`` the dtype's.

    Args:
        gradient: gradient of the loss at the sparse weight, dense; changed in place.
        aside: ``R = (1-E)*W``, the gradient's shape; None means zero.
        mask: ``E``; not needed, ``R`` is already zero where kept.
        decay: strength, in gradient units.
    """
    if aside is None:
        return
    if isinstance(decay, Tensor):
        gradient.add_(aside * decay)
    elif decay:
        gradient.add_(aside, alpha=decay)


SR_STE = Method("sr-ste", add_decay, by_entry=True)
