"""How transformers turns the tensors of a file into a model's parameters, one parameter at a time.

Some models are saved under other names than their parameters have (ViT), or with each expert of a
mixture apart (Mixtral), and only transformers knows which.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_nm.stored import StoredTensor


@dataclass(frozen=True)
class Conversion:
    """What becomes one parameter, or a few.

    Args:
        name: of the parameter.
        sources: the stored tensors, in transformers' order.
        is_rename: whether the one source is the parameter.
        convert: reads the sources; parameter name to tensor.
    """

    name: str
    sources: list[StoredTensor]
    is_rename: bool
    convert: Callable[[], dict[str, Tensor]]


def named_class(config: dict[str, Any]) -> Any:
    """The class of transformers that a config names; None if it names none."""
    import transformers

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else None


def shapes(kind: Any, folder: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A model without memory, and the shapes of its parameters.

    Args:
        kind: its class.
        folder: with its ``config.json``.
    """
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = kind(config)
    return model, {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def conversions(model: Any, tensors: dict[str, StoredTensor]) -> Iterator[Conversion]:
    """What each parameter is made of; nothing is read yet.

    Args:
        model: on the meta device.
        tensors: what the files hold, by name.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state = model.state_dict()
    prefix = model.base_model_prefix
    groups: dict[str, list[tuple[str, str | None]]] = {}
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state:
            groups.setdefault(name, []).append((key, pattern))
    for name, members in groups.items():
        first = members[0][1]
        entry = None if first is None else by_pattern[first]
        sources = [tensors[key] for key, _ in members]
        yield Conversion(
            name, sources, entry is None, _converter(model, name, members, entry, tensors)
        )


def _converter(
    model: Any,
    name: str,
    members: list[tuple[str, str | None]],
    entry: Any,
    tensors: dict[str, StoredTensor],
) -> Callable[[], dict[str, Tensor]]:
    def convert() -> dict[str, Tensor]:
        if entry is None:
            return {name: tensors[members[-1][0]].read()}
        own = copy.deepcopy(entry)
        for key, pattern in members:
            own.add_tensor(name, key, pattern, tensors[key].read)
        made = own.convert(name, model=model, config=model.config)
        return {
            full: value[0] if isinstance(value, list) else value for full, value in made.items()
        }

    return convert
