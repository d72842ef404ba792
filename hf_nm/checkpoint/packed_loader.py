"""Opening a packed folder as transformers opens a plain one: the state dict is unpacked here, and handed
to ``from_pretrained``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_nm import compat
from hf_nm.checkpoint.model_class import named_class
from hf_nm.checkpoint.source import DOWNLOAD, weights_folder
from hf_nm.formats.folder import Count, read_config
from hf_nm.formats.manifest import KEY, Manifest
from hf_nm.formats.packed_config import EXPLICIT, METHOD, QUANTIZATION, is_packed_config
from hf_nm.formats.stored import StoredTensor, check_claims, open_folder

_GENERATION = "generation_config.json"


def load_packed(folder: str | Path, *, compressed: bool = False, **kwargs: Any) -> Any:
    """Load a packed checkpoint: a plain model with exact zeros, as ``from_pretrained`` of its own class.

    ``AutoModel...from_pretrained`` of the packed folder does the same for other heads. Everything is
    compared with its checksum before the model is filled.

    Args:
        folder: written by :func:`hf_nm.pack`, or a model's name on the Hub.
        compressed: leave N:M weights packed in memory, for inference, as :func:`hf_nm.compress` does;
            the dense model never exists.
        kwargs: for ``from_pretrained``: ``dtype``, ``device_map``, ``revision``, ``token``, ...

    Returns:
        The model, of the class that ``architectures`` in its config names; ``hf_nm.restore`` makes it
        trainable.

    Raises:
        PackedError: (a ``ValueError``) a file is damaged, or does not belong to the config.
        ValueError: the folder is not packed, or transformers does not know the model's class.
        OSError: as ``from_pretrained`` raises: there is no such folder or model, a file is missing.
    """
    import transformers

    register()
    own = {key: kwargs[key] for key in DOWNLOAD if key in kwargs}
    config = transformers.AutoConfig.from_pretrained(folder, **own)
    if not is_packed_config(vars(config)):
        raise ValueError(
            f"{folder} is not packed: its config.json has no {QUANTIZATION!r} of {METHOD!r}; load "
            "it with AutoModel...from_pretrained"
        )
    kind = named_class(vars(config))
    if kind is None:
        raise ValueError(
            f"transformers has no model class {(config.architectures or [None])[0]!r}, which the "
            f"config of {folder} names; load it with the class that saved it: after `import hf_nm`, "
            "TheClass.from_pretrained(folder)"
        )
    return load_as(kind, folder, compressed=compressed, **kwargs)


def register() -> None:
    """Let transformers' ``from_pretrained`` open packed folders; more than once does no harm."""
    compat.open_packed(METHOD, load_as)


def load_as(
    kind: Any, folder: str | Path, *args: Any, compressed: bool = False, **kwargs: Any
) -> Any:
    """What ``kind.from_pretrained`` of the plain folder returns, from the packed one.

    Args:
        kind: a model class of transformers.
        folder: the packed folder, or a model's name on the Hub.
        *args: for the model's class.
        compressed: leave N:M weights packed in memory.
        **kwargs: for ``from_pretrained``.
    """
    if kwargs.get("distributed_config") is not None or kwargs.get("tp_plan") is not None:
        raise ValueError(
            "a packed folder cannot be loaded in parts (tensor or pipeline parallel); unpack it "
            "first with hf_nm.unpack(folder, destination)"
        )
    download = {key: kwargs.pop(key) for key in DOWNLOAD if key in kwargs}
    # Of the weights; a config's loader would take it for the config's own.
    cast = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    config = kwargs.pop("config", None)
    if hasattr(config, "to_dict"):
        config = copy.deepcopy(config)
    else:
        config, kwargs = kind.config_class.from_pretrained(
            folder if config is None else config,
            return_unused_kwargs=True,
            **download,
            **kwargs,
        )
    path = weights_folder(str(folder), **download)
    written = read_config(path, "load")
    for key in (QUANTIZATION, EXPLICIT):
        if hasattr(config, key):
            delattr(config, key)
    dtype = getattr(torch, str((written.get(QUANTIZATION) or {}).get("dtype")), None)
    if getattr(config, "dtype", None) is None and isinstance(dtype, torch.dtype):
        config.dtype = dtype  # of the unpacked weights, for dtype="auto"
    with open_folder(path, written) as stored:
        data = getattr(config, KEY, None)
        if data is not None:  # a part of a model may be loaded with a config of its own
            check_claims(stored, Manifest.from_dict(data).claims(stored.tensors))
        stored.check(Count(None, 0))  # every byte, before any of it is used
        read = _read_compressed if compressed else StoredTensor.read
        state = {name: read(tensor) for name, tensor in stored.tensors.items()}
    loaded = kind.from_pretrained(None, *args, config=config, state_dict=state, **cast, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
    if compressed:
        from hf_nm.inference.compress import compress_rest

        compress_rest(model)
    # from_pretrained was given no folder, so it could not take these from it.
    model.name_or_path = model.config.name_or_path = str(folder)
    if (
        "generation_config" not in kwargs
        and (path / _GENERATION).is_file()
        and hasattr(model, "can_generate")
        and model.can_generate()
    ):
        model.generation_config = type(model.generation_config).from_pretrained(path)
    return loaded


def _read_compressed(tensor: StoredTensor) -> Tensor:
    """A tensor of a packed file as it stays in memory."""
    from hf_nm.inference.packed_tensor import PackedWeight, is_packable, pack_weight

    layout, parts = tensor.layout, tensor.read_packed()
    if layout is None or parts is None or not is_packable(layout.shape, layout.dim):
        return tensor.read()
    kept, mask = parts
    *experts, out, inputs = layout.shape
    if layout.dim != -1 or (experts and out * inputs % 8):  # in another order than in memory
        return pack_weight(tensor.read(), layout.pattern, layout.dim, tensor.name)
    n, m = layout.pattern.n, layout.pattern.m
    kept = kept.view(*experts, out, inputs // m * n)
    return PackedWeight(kept, mask.view(*experts, -1), n, m, -1)
