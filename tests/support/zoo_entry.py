"""What an entry of the zoo is: a model from a config, a batch, a loss, and what becomes of its
weights. The entries are in ``zoo_*.py``, one file for each kind of model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 64
LABELS = 3
WIDTH = 32
ROWS = 2

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Args:
        model: a class of transformers, by name (importing all of them would slow every test run).
        sizes: arguments of its config, the parts' configs as dicts.
        batch: makes the inputs, with labels where the model has a loss.
        dense: globs of parameter names that stay dense: heads, embeddings, routers. ``new|old``
            where older versions of transformers have another name.
        sparse: globs of parameter names that become N:M, as above.
        dims: glob of names to input dimension, for N:M weights that have it not where
            their kind has it: last, or second in a convolution.
        config: the config's class by name, where ``model.config_class`` is not the one.
        since: a version of transformers that has this model in working order, where 5.0 has not.
    """

    model: str
    sizes: dict[str, Any]
    batch: Callable[[], Batch]
    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    dims: Mapping[str, int] = field(default_factory=dict)
    config: str | None = None
    since: str = "5.0"

    def build(self) -> PreTrainedModel:
        """The model in eval mode: real weights, the same at every call, no dropout.

        The test is skipped where the installed transformers is older than the model.
        """
        if Version(transformers.__version__) < Version(self.since):
            pytest.skip(f"{self.model} needs transformers >= {self.since}")
        model_class = getattr(transformers, self.model)
        config_class = (
            getattr(transformers, self.config) if self.config else model_class.config_class
        )
        # A copy: some configs of transformers 5.0 take parts' dicts to pieces.
        config = config_class(**copy.deepcopy(self.sizes))
        _forbid_dropout(config)
        torch.manual_seed(0)
        return model_class(config).eval()


def tensors(output: Any) -> Iterator[Tensor]:
    """Every floating tensor of a model's output, in order; caches are left out."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for inner in output.values():
            yield from tensors(inner)
    elif isinstance(output, list | tuple):
        for inner in output:
            yield from tensors(inner)


def loss_of(output: Any) -> Tensor:
    """The model's own loss, or the distance of all its outputs from fixed random numbers.

    (The sum of squares of what a layer norm puts out is a constant: it has no gradient.)
    """
    loss = getattr(output, "loss", None)
    if loss is not None:
        return loss.mean()
    generator = torch.Generator().manual_seed(0)
    distances = [
        (tensor - torch.randn(tensor.shape, generator=generator)).square().mean()
        for tensor in tensors(output)
        if tensor.requires_grad
    ]
    return torch.stack(distances).sum()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids above the special ones, ``[2, 6]`` unless told."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, VOCABULARY, shape or (ROWS, 6), generator=generator)


def numbers(*shape: int) -> Tensor:
    """Random normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ids() -> Batch:
    """Text for a model without a loss."""
    return {"input_ids": tokens()}


def text() -> Batch:
    """Text, and a label for every token (also for a decoder: the next ones)."""
    return {"input_ids": tokens(), "labels": tokens()}


def texts() -> Batch:
    """Text, and a label for each."""
    return {"input_ids": tokens(), "labels": torch.tensor([0, 1])}


def translation() -> Batch:
    """Text to text."""
    return {"input_ids": tokens(), "labels": tokens(ROWS, 5, seed=1)}


def images(size: int = 16) -> Callable[[], Batch]:
    """Square images, and a label for each."""
    return lambda: {"pixel_values": numbers(ROWS, 3, size, size), "labels": torch.tensor([0, 1])}


def pictures(size: int = 16) -> Callable[[], Batch]:
    """Square images for a model without a loss."""
    return lambda: {"pixel_values": numbers(ROWS, 3, size, size)}


def _forbid_dropout(config: PreTrainedConfig) -> None:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _forbid_dropout(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)
