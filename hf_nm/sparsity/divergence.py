"""SAD, Sparse Architecture Divergence: how far masks moved (Zhou et al. 2021).

Units: mask **entries**. Swapping one kept weight for another changes two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_nm.sparsity.bits import pack_bits, unpack_bits

if TYPE_CHECKING:
    from collections.abc import Iterable


def sad(mask_before: Tensor, mask_after: Tensor) -> int:
    """``sum(abs(E_after - E_before))``: the entries in which two masks differ.

    Args:
        mask_before: bool, any shape.
        mask_after: bool, the same shape.

    Returns:
        Count of differing entries; a swap counts two.

    Raises:
        TypeError: a mask is not a bool tensor.
        ValueError: the shapes differ.
    """
    for mask in (mask_before, mask_after):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"sad compares bool masks, but got {got}; pass layer.mask or nm_mask()")
    if mask_before.shape != mask_after.shape:
        raise ValueError(
            f"sad compares masks of one weight, but their shapes are {tuple(mask_before.shape)} "
            f"and {tuple(mask_after.shape)}"
        )
    return int(torch.count_nonzero(mask_before.to(mask_after.device) != mask_after))


class MaskHistory:
    """What SAD needs to know of one weight's masks: two references and the flips in between.

    Attributes:
        start: masks at the start, bit-packed uint8.
        mark: masks at the last mark (a log), bit-packed uint8.
        flips: entries that changed, summed step by step since the start; int64 scalar tensor.
        flips_at_mark: ``flips`` at the last mark; int64 scalar tensor.
    """

    TENSORS = ("start", "mark", "flips", "flips_at_mark")

    def __init__(self, mask: Tensor) -> None:
        self.start = pack_bits(mask)
        self.mark = self.start.clone()
        self.flips = torch.zeros((), dtype=torch.int64, device=mask.device)
        self.flips_at_mark = self.flips.clone()

    def add(self, flips: Tensor) -> None:
        """Count the entries that one step changed."""
        if self.flips.device == flips.device:
            self.flips += flips
        else:
            self.flips = self.flips.to(flips.device) + flips

    def set_mark(self, mask: Tensor) -> None:
        """Measure ``mark`` and ``flips_at_mark`` from now on."""
        self.mark = pack_bits(mask)
        self.flips_at_mark = self.flips.clone()

    def sad(self, mask: Tensor, since: str) -> int:
        """SAD between the masks at ``since`` (``"start"`` or ``"mark"``) and ``mask``, in entries."""
        reference = self.start if since == "start" else self.mark
        return sad(unpack_bits(reference.to(mask.device), mask.shape), mask)

    def flipped(self, since: str) -> int:
        """Entries that changed, summed step by step since ``"start"`` or ``"mark"``."""
        return int(self.flips) - (0 if since == "start" else int(self.flips_at_mark))

    def state_dict(self) -> dict[str, Any]:
        """Tensors only; they are not copied."""
        return {name: getattr(self, name) for name in self.TENSORS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take copies of what :meth:`state_dict` gave."""
        for name in ("start", "mark", "flips_at_mark"):
            setattr(self, name, state[name].clone())
        self.flips.copy_(
            state["flips"]
        )  # it may be an entry of a tensor that counts for many weights


def count_together(histories: Iterable[MaskHistory], device: torch.device) -> Tensor:
    """One tensor for the flips of many weights: int64 ``[weights]`` on the device. What is added to an
    entry counts for that weight from then on."""
    histories = list(histories)
    counters = torch.stack([history.flips.to(device) for history in histories])
    for history, counter in zip(histories, counters.unbind(), strict=True):
        history.flips = counter
    return counters


def rate(flips: int, entries: Iterable[int], steps: int) -> float:
    """Flips per N:M weight and step: a fraction in [0, 1]; 0 before the first step."""
    total = sum(entries) * steps
    return flips / total if total else 0.0
