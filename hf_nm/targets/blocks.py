"""Where a model's repeated transformer blocks are."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from hf_nm.targets.kinds import input_dims, is_convolution

# What a block's class, or that of a part of it, is called; XLM keeps its feed-forward networks in a
# list of their own.
_ATTENTION = re.compile(r"attention|attn|_att\b|multihead|ffn", re.IGNORECASE)
# A part of a block's name.
_HEAD = re.compile(r"(^|\.)(\w*_)?(heads?|classifier|pooler)(\.|$)")


def transformer_blocks(model: nn.Module) -> list[str]:
    """Names of the repeated blocks, outermost first.

    A block holds linear layers or their like, and is

    1. a ``GradientCheckpointingLayer``: transformers 5 derives most layers from it; or
    2. an element of an ``nn.ModuleList``, or of an ``nn.Sequential`` of equals, that holds attention
       (by the name of a part or its class): older and remote code, plain torch, towers and detection
       decoders that are not of the first kind. Prediction heads, also where there is one for each
       layer, hold no attention;
    3. where a model has neither, any element of an ``nn.ModuleList``; where none of those holds linear
       layers, any that holds convolutions.

    Nothing inside a head or a pooler is a block, unless the model's only ones are there.
    """
    marked = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if _is_checkpointing_layer(module) and _holds_linear(module)
    ]
    around = {outer for name in marked for outer in _outer_names(name)}
    attending = [
        name
        for name, element in _elements(model, sequences_too=True)
        if name not in around and _holds_linear(element) and _attends(element)
    ]
    if marked or attending:
        return _outermost([*marked, *attending])
    linear = [
        name
        for name, element in _elements(model)
        if not isinstance(element, nn.Linear) and _holds_linear(element)
    ]
    return _outermost(
        linear or [name for name, element in _elements(model) if any(_matrices(element))]
    )


def _elements(model: nn.Module, *, sequences_too: bool = False) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules(remove_duplicate=False):
        equals = (
            sequences_too
            and isinstance(module, nn.Sequential)
            and len({type(child) for child in module}) == 1
        )
        if isinstance(module, nn.ModuleList) or equals:
            for child_name, child in module._modules.items():  # also one that is there twice
                if child is not None:
                    yield (f"{name}.{child_name}" if name else child_name), child


def _is_checkpointing_layer(module: nn.Module) -> bool:
    return any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__)


def _attends(element: nn.Module) -> bool:
    return any(
        _ATTENTION.search(name.rpartition(".")[2]) or _ATTENTION.search(type(module).__name__)
        for name, module in element.named_modules()
    )


def _matrices(element: nn.Module) -> Iterator[nn.Module]:
    return (module for module in element.modules() if input_dims(module))


def _holds_linear(element: nn.Module) -> bool:
    """Whether the element holds linear layers or their like, and not only convolutions."""
    return any(not is_convolution(module) for module in _matrices(element))


def _outer_names(name: str) -> Iterator[str]:
    """The names of the modules around one: of ``a.b.c``, ``a`` and ``a.b``."""
    for end, sign in enumerate(name):
        if sign == ".":
            yield name[:end]


def _outermost(names: list[str]) -> list[str]:
    """Those that lie in no other, each once; none in a head if there are others."""
    known = set(names)
    outermost = [name for name in dict.fromkeys(names) if known.isdisjoint(_outer_names(name))]
    return [name for name in outermost if not _HEAD.search(name)] or outermost
