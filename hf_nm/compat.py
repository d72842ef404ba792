"""What hf_nm uses of torch, accelerate and transformers beyond their documented API, in one place.

Each entry says in which versions it was seen and what happens where it is missing. ``PRIVATE`` lists the
underscore names, ``OVERRIDDEN`` the private methods of others that hf_nm's classes define; a test
holds the source against both. transformers is imported inside functions only.

Seen means: read in the source of, and run by the tests with, torch 2.13, accelerate 1.10 to 1.15 and
transformers 5.0 to 5.24, unless said otherwise.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import nn

# Underscore names of others that stand in this file and nowhere else.
PRIVATE = {
    "_orig_mod": "torch.compile's wrapper: the module inside (torch 2.0 to 2.13)",
    "_hf_hook": "accelerate: how a module's weights are moved (0.12 to 1.15)",
    "_model_mapping": "transformers' AutoModel classes: config class to model class (4.0 to 5.24)",
}
# nn.Module's own underscore names: part of how torch lets a subclass take part in moving, saving and
# loading, and stable since torch 1.0. They are used where a module is looked into or a layer defined.
OF_NN_MODULE = {
    "_modules": "the children, one that is registered twice included (named_children drops it)",
    "_apply": "moving and casting",
    "_save_to_state_dict": "saving",
    "_load_from_state_dict": "loading",
}
# Private methods of others that classes of hf_nm override.
OVERRIDDEN = {
    "NMLayer": ("_apply", "_save_to_state_dict", "_load_from_state_dict"),
}
# Private methods of transformers' Trainer that hf_nm puts a function around, in each Trainer with an
# installed NMCallback: how it loads weights when it resumes, ``(folder, model=None)``, and those of the
# best model, ``()``. transformers 5.0 to 5.24.
LOADING = ("_load_from_checkpoint", "_load_best_model")
# Modules of transformers that are not documented as places to import from.
MODULES = {
    "transformers.modeling_utils": "where PreTrainedModel is defined, to know that it has been",
    "transformers.conversion_mapping": "how tensors of a file become parameters (5.0 to 5.24)",
    "transformers.core_model_loading": "the same",
    "transformers.loss.loss_utils": "a model's loss by its name (4.46 to 5.24)",
    "transformers.models.auto.modeling_auto": "model types to class names (4.0 to 5.24)",
    "transformers.quantizers": "register_quantizer, as its examples import it (4.50 to 5.24)",
    "transformers.utils.quantization_config": "the same",
}

# The module of transformers after whose import `open_packed` can be called.
DEFINES_MODELS = "transformers.modeling_utils"


def compiled_inner(module: nn.Module) -> nn.Module | None:
    """The module inside ``torch.compile``'s wrapper; None where there is none (``_orig_mod``)."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings this module's weights from the CPU or the disk for each forward pass
    (``_hf_hook``; without it nothing is offloaded)."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(part, "offload", False) for part in getattr(hook, "hooks", [hook]))


def process_store() -> Any:
    """The store at which the processes of the default group met; None where there is none (MPI), or one
    that keeps nothing (the backend ``fake``).

    torch has no public name for it.
    """
    get = getattr(dist.distributed_c10d, "_get_default_store", None)
    return None if get is None or dist.get_backend() == "fake" else get()


def inner_trainer(trainer: Any) -> Any:
    """transformers' Trainer inside setfit's, which trains the body of its model with one
    (``st_trainer``, setfit 1.0 to 1.2); any other trainer itself."""
    return (
        trainer if hasattr(trainer, "callback_handler") else getattr(trainer, "st_trainer", trainer)
    )


def class_for(config: Any, auto_classes: tuple[str, ...]) -> Any:
    """The first model class that transformers' auto classes have for a config; None if there is none.

    Args:
        config: a transformers config.
        auto_classes: their names, in the order to ask.
    """
    import transformers

    for auto in auto_classes:
        mapping = getattr(getattr(transformers, auto, None), "_model_mapping", None)
        if mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, list | tuple) else found
    return None


def class_names(table: str) -> dict[str, str | tuple[str, ...]]:
    """Model type to the names of its classes for one task.

    Args:
        table: such as ``"MODEL_FOR_CAUSAL_LM"``; empty where this transformers has no such table.
    """
    from transformers.models.auto import modeling_auto

    return getattr(modeling_auto, f"{table}_MAPPING_NAMES", {})


def predicts_next_token(model: nn.Module) -> bool:
    """Whether the logits at position t predict label t + 1, as in causal language models."""
    from transformers.loss import loss_utils

    # Classes named ...LMHeadModel have no loss_type, multimodal ones another name for the same loss.
    name = getattr(model, "loss_type", None) or ""
    found = getattr(loss_utils, "LOSS_MAPPING", {}).get(name)
    if found is not None and found is getattr(loss_utils, "ForCausalLMLoss", None):
        return True
    return type(model).__name__ in class_names("MODEL_FOR_CAUSAL_LM").values()


def declares_scaled_loss(trainer: Any) -> bool:
    """Whether a Trainer says that its loss needs dividing by the accumulation steps
    (``loss_is_scaled_for_ga``; before 5.23 there is none, and the loss function alone decides)."""
    return bool(getattr(trainer, "loss_is_scaled_for_ga", False))


def conversions(
    model: Any, names: Iterator[str]
) -> Iterator[tuple[str, list[str], Callable[[Callable[[str], Any]], dict[str, Any]] | None]]:
    """Which tensors of a file transformers makes each parameter of; nothing is read.

    Args:
        model: on the meta device.
        names: of the tensors in the file.

    Yields:
        The parameter, the tensors' names in transformers' order, and what makes it of them: a function
        from a reader of names to parameters by name; None where the last of them is the parameter.

    Raises:
        ImportError, AttributeError, TypeError: this transformers converts otherwise (5.0 to 5.24 do
            not): load the whole model instead.
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
    for key in sorted(names, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state:
            groups.setdefault(name, []).append((key, pattern))
    for name, members in groups.items():
        first = members[0][1]
        entry = None if first is None else by_pattern[first]
        convert = None
        if entry is not None:
            convert = functools.partial(_convert, model, name, members, entry)
        yield name, [key for key, _ in members], convert


def _convert(
    model: Any,
    name: str,
    members: list[tuple[str, str | None]],
    entry: Any,
    read: Callable[[str], Any],
) -> dict[str, Any]:
    own = copy.deepcopy(entry)
    for key, pattern in members:
        own.add_tensor(name, key, pattern, functools.partial(read, key))
    made = own.convert(name, model=model, config=model.config)
    if isinstance(made, tuple):  # transformers 5.0 to 5.3 give back what went wrong beside it
        made = made[0]
    return {full: value[0] if isinstance(value, list) else value for full, value in made.items()}


class _PackedFolderError(Exception):
    """A packed folder was found where transformers reads a config's ``quantization_config``."""


def open_packed(method: str, load: Callable[..., Any]) -> None:
    """Let ``from_pretrained`` of every transformers model open folders of one quantization method.

    transformers' register of quantization methods is told of it; where a folder turns out to be one,
    loading starts anew as ``load(model_class, *args, **kwargs)``, which needs documented API only.
    ``PreTrainedModel.from_pretrained`` is wrapped for that. More than once does no harm.

    Args:
        method: ``quant_method`` in the folder's ``config.json``.
        load: given the class and what ``from_pretrained`` was given.

    Raises:
        ImportError, AttributeError: this transformers has no such register.
    """
    from transformers import PreTrainedModel
    from transformers.quantizers import (  # type: ignore[attr-defined]
        HfQuantizer,
        register_quantization_config,
        register_quantizer,
    )
    from transformers.utils.quantization_config import QuantizationConfigMixin

    original = PreTrainedModel.__dict__["from_pretrained"].__func__
    if getattr(original, "opens_packed", False):
        return

    class PackedConfig(QuantizationConfigMixin):
        """``quantization_config`` of a packed folder, as transformers keeps it."""

        def __init__(self, **written: Any) -> None:
            self.quant_method = method  # type: ignore[assignment]

    class PackedLoader(HfQuantizer):
        """Asked for by transformers as soon as it has read the config of a packed folder."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise _PackedFolderError

        def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return False

    register_quantization_config(method)(PackedConfig)
    register_quantizer(method)(PackedLoader)

    @functools.wraps(original)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, *args, **kwargs)
        except _PackedFolderError:
            pass
        return load(cls, *args, **kwargs)

    from_pretrained.opens_packed = True  # type: ignore[attr-defined]
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
