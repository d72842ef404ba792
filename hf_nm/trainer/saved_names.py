"""Loading checkpoints whose tensors have other names than the model's parameters, as they were saved.

transformers saves some models under other names than their parameters have (ViT, DETR), or each expert
of a mixture apart (Mixtral, Qwen-MoE, OLMoE, DeepSeek-V3), and ``from_pretrained`` converts them back.
Its Trainer (5.0 to 5.24) does not when it resumes or loads the best model: it gives the file's names to
``load_state_dict(strict=False)``, so that whatever is named otherwise keeps the values it had.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, Trainer

from hf_nm import compat
from hf_nm.checkpoint.conversion import conversions
from hf_nm.formats.folder import INDEX, SINGLE, weight_files
from hf_nm.formats.stored import Stored
from hf_nm.model.weights import sparse_weights
from hf_nm.replaced import Replaced


def load_with_conversion(trainer: Trainer) -> None:
    """Let a Trainer convert a checkpoint's names where it resumes and where it loads the best model.

    Checkpoints whose names are the model's, PEFT's adapters, and what FSDP2 saved are left to the
    Trainer.
    """

    def resuming(load: Callable[..., Any]) -> Callable[..., Any]:
        def load_from_checkpoint(folder: str, *args: Any, **kwargs: Any) -> Any:
            if not _load(trainer, folder):
                return load(folder, *args, **kwargs)
            return None

        return load_from_checkpoint

    def best(load: Callable[..., Any]) -> Callable[..., Any]:
        def load_best_model() -> Any:
            folder = trainer.state.best_model_checkpoint
            if folder is None or not _load(trainer, folder):
                return load()
            return None

        return load_best_model

    for name, wrap in zip(compat.LOADING, (resuming, best), strict=True):
        Replaced(trainer, name, wrap)


def _load(trainer: Trainer, folder: str) -> bool:
    """Load a folder's weights into the trainer's model, if they have to be converted for it."""
    model = trainer.model
    path = Path(folder)
    elsewhere = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if elsewhere or not isinstance(model, PreTrainedModel):
        return False
    if not any((path / name).is_file() for name in (SINGLE, INDEX)):
        return False
    with Stored(weight_files(path), packed=False) as stored:
        state = _converted(model, path, stored)
        missing = _missing(model, path, stored.tensors if state is None else state)
    if state is None:
        return False
    if missing:
        warnings.warn(
            f"{folder} lacks {len(missing)} of the model's weights (first: {missing[0]}): they keep the "
            "values they have",
            stacklevel=2,
        )
    model.load_state_dict(state, strict=False)
    return True


def _converted(model: Any, folder: Path, stored: Stored) -> dict[str, Tensor] | None:
    """The model's state dict from a folder; None where its names are the model's."""
    try:
        found = list(conversions(model, stored.tensors))
    except (ImportError, AttributeError, TypeError):  # this transformers converts otherwise
        if stored.tensors.keys() <= model.state_dict().keys():
            return None
        return type(model).from_pretrained(folder, dtype="auto", local_files_only=True).state_dict()
    if all(made.is_rename and made.sources[-1].name == made.name for made in found):
        return None
    state: dict[str, Tensor] = {}
    for made in found:
        state |= made.convert()
    return state


def _missing(model: PreTrainedModel, folder: Path, names: Iterable[str]) -> list[str]:
    """The parameters that are not among the names; raises ``ValueError`` if one is N:M: with fixed masks
    nothing else would find that it keeps the values it had."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    there = {id(parameters[name]) for name in names if name in parameters}  # tied: two names
    missing = [name for name, parameter in parameters.items() if id(parameter) not in there]
    lost = {w.name for w in sparse_weights(model)} & set(missing)
    if lost:
        raise ValueError(
            f"{folder} lacks {len(lost)} of the model's N:M weights (first: {min(lost)}), which would "
            "keep the values they have now; resume with the model that saved it"
        )
    return missing
