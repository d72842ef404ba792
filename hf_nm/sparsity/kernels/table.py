"""Many weights of one kind as a table of pointers, and the launches that treat them together."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from hf_nm.sparsity.mask import split_
from hf_nm.sparsity.pattern import NMPattern

DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
LARGEST_GROUP = 256  # a program holds whole groups

_ENTRIES = 2048  # of a program's tile: 16 a thread
_ROWS = 6


class Adjust(Enum):
    """What happens to the gradient before the step; the value is the kernels' name of it.

    Attributes:
        LEAVE: nothing.
        DECAY: ``strength * R`` is added.
        ZERO: pruned entries become zero.
    """

    LEAVE = 0
    DECAY = 1
    ZERO = 2


@dataclass(frozen=True)
class Kind:
    """What the weights of one table share: for each kind a kernel is compiled.

    Args:
        pattern: the N:M pattern.
        dtype: of weights and pruned parts.
        stride: how far apart in memory the entries of a group lie.
        device: where all of them are.
        keeps: whether a pruned part is kept.
    """

    pattern: NMPattern
    dtype: torch.dtype
    stride: int
    device: torch.device
    keeps: bool


def bytes_a_weight(kind: Kind, adjust: Adjust, *, update_mask: bool) -> float:
    """How many bytes the two kernels move at most for each weight that steps; the table of pointers, a
    hundred bytes for every 2,048 weights, is left out.

    Args:
        kind: of the weights.
        adjust: what happens to the gradients.
        update_mask: whether masks are computed again.
    """
    size, pruned = kind.dtype.itemsize, kind.pattern.sparsity
    read = 2 * (size + 1)  # weight and mask, before the step and after it
    # R is read and the dense weight written, then the sparse weight and R; or only zeros are written,
    # where a pruned entry is not zero after the step.
    moved = read + (4 if kind.keeps else pruned) * size
    if adjust is not Adjust.LEAVE:
        moved += 2 * size
    return moved + update_mask  # a mask is written where it changes


def usable(device: torch.device) -> bool:
    """Whether weights on this device go through the kernels.

    They do on a GPU where triton is installed and its first kernels gave what the torch functions give.
    On a CPU only in triton's interpreter (``TRITON_INTERPRET=1``), which is for tests.
    ``HF_NM_KERNELS=0`` switches them off.
    """
    if os.environ.get("HF_NM_KERNELS") == "0":
        return False
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != ("cpu" if interpreted else "cuda"):
        return False
    return importlib.util.find_spec("triton") is not None and _works(device)


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a small weight goes through both kernels as it does through the torch functions: triton
    needs a C compiler and a GPU that it knows. Waits for the device, once."""
    try:
        dense = torch.arange(-40.0, 40.0, device=device).view(10, 8)
        pattern, weight, aside, mask = NMPattern(2, 4), dense.clone(), dense.clone(), dense > 0
        expected = dense.clone(), dense.clone(), mask.clone()
        split_(*expected, pattern, update_mask=True)
        table = Table(Kind(pattern, dense.dtype, 1, device, keeps=True), [dense.numel()])
        table.after_step([weight], [mask], [aside], table.flips, update_mask=True)
        found = weight, aside, mask
        same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        table.before_step([weight], [None], [mask], [aside], Adjust.LEAVE, [0.0], None)
        if same and torch.equal(weight, dense):
            return True
        problem = "they gave other values than the torch functions"
    except Exception as error:  # whatever a compiler or a driver raises
        problem = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    warnings.warn(
        f"hf_nm's fused kernels do not run on {device} ({problem}): the slower torch functions are "
        "used. Triton needs a C compiler (apt install gcc); HF_NM_KERNELS=0 leaves the kernels alone",
        stacklevel=2,
    )
    return False


class Table:
    """Weights of one kind, and which program of a launch treats what of them.

    Built once. Pointers are written to the device again only where memory moved, without waiting for it;
    a weight that a launch leaves alone is None there.

    Args:
        kind: what they share.
        sizes: how many entries each weight has.

    Attributes:
        flips: mask entries that changed, by weight: int64, for launches to add to.
        strays: 1 for each weight of which a pruned entry held a value since this was last set to zero:
            int32.
        launches: of kernels so far.
    """

    def __init__(self, kind: Kind, sizes: Sequence[int]) -> None:
        self.kind = kind
        count, m = len(sizes), kind.pattern.m
        self._width = 1 << (m - 1).bit_length()
        self._groups = max(1, _ENTRIES // self._width)
        groups = torch.tensor([size // m for size in sizes], dtype=torch.int64)
        programs = (groups + self._groups - 1) // self._groups
        self._programs = int(programs.sum())
        self._owners = self.sent(torch.arange(count, dtype=torch.int32).repeat_interleave(programs))
        self._host = torch.zeros(_ROWS, count, dtype=torch.int64)
        self._host[4] = groups
        self._host[5] = programs.cumsum(0) - programs
        self._pointers: list[list[int] | None] = [None] * 4
        self._device = self._host
        self._aligned = 1  # entries, see around_step._at
        self._strengths: list[float] = []
        self._strengths_sent = torch.zeros(0)
        self.flips = torch.zeros(count, dtype=torch.int64, device=kind.device)
        self.strays = torch.zeros(count, dtype=torch.int32, device=kind.device)
        self.launches = 0

    def before_step(
        self,
        weights: Sequence[Tensor | None],
        gradients: Sequence[Tensor | None],
        masks: Sequence[Tensor],
        asides: Sequence[Tensor] | None,
        adjust: Adjust,
        strengths: list[float] | Tensor,
        scale: Tensor | None,
    ) -> None:
        """Merge weights (:func:`~hf_nm.sparsity.mask.merge_`) and change gradients, in one launch.

        All tensors are contiguous, of the kind's dtype and device.

        Args:
            weights: ``S``; hold ``W`` afterwards. None is left alone.
            gradients: changed in place; None is left alone.
            masks: ``E``.
            asides: ``R``; None where the kind keeps none.
            adjust: what happens to the gradients.
            strengths: of the decay, in gradient units, one a weight: numbers, or a float32 tensor on
                the device, with a scale.
            scale: what they are multiplied by, a tensor of one number on the device; None for 1.
        """
        self._point([weights, gradients, masks, asides])
        if isinstance(strengths, Tensor):
            sent = strengths
        else:
            exact = self.kind.dtype == torch.float64 and scale is None
            sent = self._strengths_sent
            if strengths != self._strengths or exact != (sent.dtype == torch.float64):
                self._strengths = list(strengths)
                dtype = torch.float64 if exact else torch.float32
                sent = self._strengths_sent = self.sent(torch.tensor(strengths, dtype=dtype))
        factor = sent if scale is None else scale
        chosen = {"GRADIENT": adjust.value, "SCALED": scale is not None}
        self._launch("before_step", [sent, factor, self.strays], **chosen)

    def after_step(
        self,
        weights: Sequence[Tensor | None],
        masks: Sequence[Tensor],
        asides: Sequence[Tensor] | None,
        flips: Tensor,
        *,
        update_mask: bool,
    ) -> None:
        """Split weights (:func:`~hf_nm.sparsity.mask.split_`), in one launch.

        Args:
            weights: ``W``; hold ``S`` afterwards. None is left alone.
            masks: ``E``; read, or with ``update_mask`` written.
            asides: receive ``R``; None where the kind keeps none.
            flips: int64, one a weight: how many mask entries changed is added.
            update_mask: whether masks are computed again.
        """
        self._point([weights, None, masks, asides])
        stride = self.kind.stride
        axis = 1 if stride == 1 else 0
        chosen = {"N": self.kind.pattern.n, "SELECT": update_mask, "AXIS": axis}
        self._launch("after_step", [flips], stride, **chosen)

    def _point(self, tensors: list[Sequence[Tensor | None] | None]) -> None:
        """Have the device's table point to these: weights, gradients, masks, pruned parts. A row of None
        stays as it is."""
        changed = False
        for row, of_row in enumerate(tensors):
            if of_row is None:
                continue
            pointers = [0 if tensor is None else tensor.data_ptr() for tensor in of_row]
            if pointers != self._pointers[row]:
                self._pointers[row] = pointers
                self._host[row] = torch.tensor(pointers, dtype=torch.int64)
                changed = True
        if changed:
            self._device = self.sent(self._host)
            m = self.kind.pattern.m
            self._aligned = 1 if (self._host[:4] % 16).any() else m & -m

    def sent(self, values: Tensor) -> Tensor:
        """A copy of a small tensor on the device, which nobody waits for."""
        device = self.kind.device
        if device.type == "cpu":
            return values.clone()
        return values.pin_memory().to(device, non_blocking=True)

    def _launch(self, name: str, tensors: list[Tensor], *numbers: int, **chosen: int) -> None:
        if not self._programs:
            return
        from hf_nm.sparsity.kernels import around_step  # imports triton

        kind = self.kind
        with torch.cuda.device(kind.device) if kind.device.type == "cuda" else nullcontext():
            getattr(around_step, name)[(self._programs,)](
                self._device,
                self._owners,
                *tensors,
                len(self.flips),
                *numbers,
                M=kind.pattern.m,
                WIDTH=self._width,
                GROUPS=self._groups,
                KEEPS=kind.keeps,
                ALIGNED=self._aligned,
                **around_step.types_of(name, kind.dtype),
                **chosen,
                enable_fp_fusion=False,  # a product and a sum round twice, unless fma is called
            )
        self.launches += 1
