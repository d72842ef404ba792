"""Which parameters of a module can be N:M, and what a dot product with each of them sums over.

This is where another kind of weight is added: a line in :data:`BARE_MATRICES` for a class that holds
matrices of its own, a case in :func:`input_dims` for a family of classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

# transformers' classes that hold matrices without a linear layer around them. Each parameter with its
# input dimension, as the class's forward contracts it.
BARE_MATRICES: dict[str, dict[str, int]] = {
    "JetMoeParallelExperts": {"weight": -1},  # [experts, out, in]
    # As JetMoe's; newer transformers fuse these experts in classes of the usual form.
    "GraniteMoeParallelExperts": {"weight": -1},
    "GraniteMoeSharedParallelExperts": {"weight": -1},
    "GraniteMoeHybridParallelExperts": {"weight": -1},
    "AriaGroupedExpertsGemm": {"weight": -2},  # [experts, in, out]
    "InklingSharedExperts": {"gate_proj": -1, "up_proj": -1, "down_proj": -1},  # [experts, out, in]
    "ZambaMambaMixer": {"x_proj_weight": -1, "dt_proj_weight": -1},  # [heads, out, in]
    "RecurrentGemmaRglru": {  # [heads, in, out]
        "input_gate_weight": -2,
        "recurrent_gate_weight": -2,
    },
    # [hidden, heads, head size]; `o` goes back from the heads, which lie flat as [heads x head size].
    "XLNetRelativeAttention": {"q": -3, "k": -3, "v": -3, "r": -3, "o": -1},
    "FunnelRelMultiheadAttention": {"r_kernel": -3},
}

# Classes whose forward changes zeros to something else before it uses the weight: it subtracts the mean.
ZEROS_DO_NOT_LAST = {"WeightStandardizedConv2d"}

_RECURRENT = re.compile(r"weight_(ih|hh|hr)_l\d+(_reverse)?")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def input_dims(module: nn.Module) -> dict[str, int]:
    """The parameters of ``module`` that can be N:M, each with its input dimension (negative).

    - ``nn.Linear`` and its subclasses, and modules built like it: ``weight [out, in]``.
    - ``nn.MultiheadAttention``: ``in_proj_weight [3*embed, embed]``, or its three parts.
    - transformers' ``Conv1D``: ``weight [in, out]``.
    - fused experts of a mixture: ``[experts, out, in]``, or ``[experts, in, out]`` where the class is
      transposed.
    - convolutions: ``weight [out, in, *kernel]``, groups along input channels (the paper's NHWC
      layout; of a convolution with groups, along those of each group), and transposed ones without
      groups, ``[in, out, *kernel]``.
    - recurrent layers: ``weight_ih_l0 [gates, in]``, ``weight_hh_l0 [gates, hidden]``, ...
    """
    parameters = _own_parameters(module)
    if isinstance(module, nn.Linear):
        dims = {"weight": -1}
    elif isinstance(module, nn.MultiheadAttention):
        dims = dict.fromkeys(
            ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), -1
        )
    elif any(base.__name__ in ZEROS_DO_NOT_LAST for base in type(module).__mro__):
        dims = {}
    elif isinstance(module, _CONVOLUTIONS):
        dims = {"weight": 1 - module.weight.ndim} if "weight" in parameters else {}
    elif isinstance(module, _TRANSPOSED):
        whole = module.groups == 1 and "weight" in parameters
        dims = {"weight": -module.weight.ndim} if whole else {}
    elif isinstance(module, nn.RNNBase):
        dims = {name: -1 for name in parameters if _RECURRENT.fullmatch(name)}
    elif _is(module, "Conv1D") and hasattr(module, "nf"):
        dims = {"weight": -2}
    elif (known := _known_class(module)) is not None:
        config = getattr(module, "config", None)
        # Funnel's other kind of attention sums over the same matrix's head size.
        factorized = getattr(config, "attention_type", None) == "factorized"
        dims = {} if factorized else BARE_MATRICES[known]
    elif _built_like_linear(module):
        dims = {"weight": -1}
    else:
        dims = _fused_experts(module)
    return {name: dim for name, dim in dims.items() if name in parameters}


def is_convolution(module: nn.Module) -> bool:
    """Whether the module is a convolution of any kind."""
    return isinstance(module, _CONVOLUTIONS + _TRANSPOSED)


def acts_linearly(module: nn.Module) -> bool:
    """Whether the module's matrices are a linear layer's, by that name or another.

    All are but convolutions over images and video; of these, one over patches side by side (1x1, or
    its stride is its kernel's size) is a linear layer of each patch. Convolutions over time are the
    feed-forward networks of speech models.
    """
    if not is_convolution(module) or isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        return True
    kernel: Any = module.kernel_size
    return kernel == module.stride or set(kernel) == {1}


def is_router(name: str, modules: Mapping[str, nn.Module], block: str) -> bool:
    """Whether the module chooses or weighs the experts of a mixture, by a matrix ``[experts, hidden]``.

    It, or a module around it within the block, is called a router; or it is called a gate and lies
    beside the experts.

    Args:
        name: the module's name.
        modules: every module of the model by name.
        block: the name of the block that it is in, with a dot at its end.
    """
    parts = name.split(".")
    inside = range(block.count(".") + 1, len(parts) + 1)
    kinds = [type(modules[".".join(parts[:length])]).__name__ for length in inside]
    if any("router" in called.lower() for called in [*parts[block.count(".") :], *kinds]):
        return True
    module, outer = modules[name], ".".join(parts[:-1])
    if "gate" not in parts[-1].lower() or not isinstance(module, nn.Linear):
        return False
    experts = getattr(modules[outer], "experts", None)
    return isinstance(experts, nn.Module) and module.out_features <= _count_experts(experts)


def _count_experts(experts: nn.Module) -> int:
    if isinstance(experts, nn.ModuleList | nn.ModuleDict):
        return len(experts)
    return max((p.shape[0] for p in experts.parameters() if p.ndim == 3), default=0)


def _is(module: nn.Module, class_name: str) -> bool:
    return any(base.__name__ == class_name for base in type(module).__mro__)


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _known_class(module: nn.Module) -> str | None:
    names = [
        base.__name__
        for base in type(module).__mro__
        if base.__module__.partition(".")[0] == "transformers"
    ]
    return next((name for name in names if name in BARE_MATRICES), None)


def _built_like_linear(module: nn.Module) -> bool:
    """``weight [out_features, in_features]`` in a class of its own, as I-BERT's ``QuantLinear``."""
    weight = _own_parameters(module).get("weight")
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return weight is not None and tuple(weight.shape) == sizes


def _fused_experts(module: nn.Module) -> dict[str, int]:
    """The stacked matrices of experts; transformers marks their classes with ``is_transposed``."""
    stacked = {
        name: parameter
        for name, parameter in _own_parameters(module).items()
        if parameter.ndim == 3
    }
    transposed = getattr(module, "is_transposed", None)
    if transposed is None and stacked.keys() >= {"gate_up_proj", "down_proj"}:
        transposed = _transposed_by_shape(stacked["gate_up_proj"], stacked["down_proj"])
    if not isinstance(transposed, bool):
        return {}
    return dict.fromkeys(stacked, -2 if transposed else -1)


def _transposed_by_shape(gate_up: nn.Parameter, down: nn.Parameter) -> bool | None:
    """Gate and up projections lie side by side, so only one of the two layouts fits; None if
    neither does."""
    _, first, last = gate_up.shape
    _, down_first, down_last = down.shape
    if (first, last) == (2 * down_last, down_first):
        return False
    if (first, last) == (down_last, 2 * down_first):
        return True
    return None
