"""Inference with torch's 2:4 kernels on a GPU."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_nm.model.surgery import finalize
from hf_nm.model.weights import sparse_weights
from hf_nm.sparsity.mask import count_kept
from hf_nm.sparsity.pattern import NMPattern

ModelT = TypeVar("ModelT", bound=nn.Module)

# Rows and columns must be multiples of these (cuSPARSELt, which torch uses from sm_90 on, and CUTLASS).
_CUSPARSELT = (16, 16)
_CUTLASS = (32, 64)


def to_semi_structured(model: ModelT) -> ModelT:
    """Give a sparse model torch's semi-structured weights, in place: for inference on CUDA.

    Every linear layer of the model whose weight has at most two non-zeros in four is taken, whether
    hf_nm knows its pattern (2:4, 1:4, 1:2, ...) or not; it cannot be trained or saved any more: keep
    the checkpoint. Whether it is faster depends on the shapes and the batch: measure (``hf-nm bench``).

    Args:
        model: on a CUDA device, in fp16 or bf16.

    Returns:
        ``model``, the same object. Layers of an N:M pattern that could not be taken are named in a
        warning, with the reason.

    Raises:
        ValueError: the model is not on a CUDA device, or no layer could be taken.
    """
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cuda"}:
        raise ValueError(
            f"to_semi_structured needs a model on a CUDA device, but this one is on {sorted(devices)}; "
            "move it first: model.to('cuda', torch.bfloat16)"
        )
    claimed = {w.name for w in sparse_weights(model)}
    if claimed:
        finalize(model)
    shared = _shared(model)
    taken, left = [], {}
    for name, module in model.named_modules():
        for local, weight in list(module.named_parameters(recurse=False)):
            full_name = f"{name}.{local}" if name else local
            reason = _reason(module, local, weight, shared)
            if reason is None:
                compressed = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
                setattr(module, local, nn.Parameter(compressed, requires_grad=False))
                taken.append(full_name)
            elif full_name in claimed:
                left[full_name] = reason
    if not taken:
        first = next(iter(left.items()), None)
        raise ValueError(
            "to_semi_structured could take no layer of the model"
            + (f" (first: {first[0]}: {first[1]})" if first else "; sparsify and train it first")
        )
    if left:
        rows = "\n  ".join(f"{name}: {reason}" for name, reason in left.items())
        warnings.warn(
            f"{len(taken)} layers run on semi-structured kernels, {len(left)} N:M weights stay dense:"
            f"\n  {rows}",
            stacklevel=2,
        )
    return model


def why_no_kernel(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pattern: NMPattern
) -> str | None:
    """Why torch's 2:4 kernels do not take a weight, or None. (On AMD's GPUs they are hipSPARSELt's,
    which torch has under the same names.)

    Args:
        shape: ``(out, in)``.
        dtype: of the weight.
        device: where it is.
        pattern: which it keeps.
    """
    if device.type != "cuda":
        return f"no 2:4 kernel on {device.type}"
    if 4 % pattern.m or pattern.n * (4 // pattern.m) > 2:
        return f"{pattern} is not within 2:4"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"dtype {dtype}; the kernels take fp16 and bf16"
    rows, columns = _CUSPARSELT if torch.backends.cusparselt.is_available() else _CUTLASS
    if shape[0] % rows or shape[1] % columns:
        return f"shape {list(shape)} is not a multiple of {rows} x {columns}"
    return None


def _shared(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _reason(module: nn.Module, local: str, weight: Tensor, shared: set[int]) -> str | None:
    """Why a weight cannot use the kernels, or None."""
    if not isinstance(module, nn.Linear) or local != "weight":
        return f"a {local} of {type(module).__name__}: the kernels serve linear layers only"
    if id(weight) in shared:
        return "shared with another module"
    why = why_no_kernel(tuple(weight.shape), weight.dtype, weight.device, NMPattern(2, 4))
    if why is not None:
        return why
    if bool((count_kept(weight, NMPattern(2, 4)) > 2).any()):
        return "more than two non-zeros in a group of four"
    return None
