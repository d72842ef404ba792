"""How transformers turns the tensors of a file into a model's parameters, one parameter at a time.

Some models are saved under other names than their parameters have (ViT), or with each expert of a
mixture apart (Mixtral), and only transformers knows which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_nm import compat
from hf_nm.formats.stored import StoredTensor


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
    for name, keys, make in compat.conversions(model, iter(tensors)):
        sources = [tensors[key] for key in keys]
        yield Conversion(name, sources, make is None, _reader(name, sources[-1], make, tensors))


def _reader(
    name: str, last: StoredTensor, make: Any, tensors: dict[str, StoredTensor]
) -> Callable[[], dict[str, Tensor]]:
    def convert() -> dict[str, Tensor]:
        if make is None:
            return {name: last.read()}
        return make(lambda key: tensors[key].read())

    return convert
