"""How transformers loads a packed folder: as one of its quantization methods, whose weights it gets back
in floating point, in plain layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_nm.conversion import named_class
from hf_nm.folder import PACKED_INDEX, PACKED_SINGLE, Count, is_packed_name
from hf_nm.manifest import KEY, read_claims
from hf_nm.packed import EXPLICIT
from hf_nm.packing import PackedError, is_packed, unpack_tensor
from hf_nm.stored import METHOD, Stored, check_claims, check_files, packed_files


def load_packed(folder: str | Path, **kwargs: Any) -> Any:
    """Load a packed checkpoint: a plain model with exact zeros, as ``from_pretrained`` of its own class.

    ``AutoModel...from_pretrained`` of the packed folder does the same for other heads. Everything is
    compared with its checksum before the model is filled.

    Args:
        folder: written by :func:`hf_nm.pack`, or a model's name on the Hub.
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
    own = {
        key: kwargs[key]
        for key in (
            "revision",
            "token",
            "cache_dir",
            "local_files_only",
            "subfolder",
            "force_download",
        )
        if key in kwargs
    }
    config = transformers.AutoConfig.from_pretrained(folder, **own)
    found = getattr(config, "quantization_config", None)
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        raise ValueError(
            f"{folder} is not packed: its config.json has no 'quantization_config' of {METHOD!r}; load "
            "it with AutoModel...from_pretrained"
        )
    kind = named_class(vars(config))
    if kind is None:
        raise ValueError(
            f"transformers has no model class {(config.architectures or [None])[0]!r}, which the "
            f"config of {folder} names; load it with the class that saved it: after `import hf_nm`, "
            "TheClass.from_pretrained(folder)"
        )
    return kind.from_pretrained(folder, **kwargs)


def register() -> None:
    """Make the packed form known to transformers; more than once does no harm."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(PackedConfig)
        register_quantizer(METHOD)(PackedLoader)


class PackedConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed folder.

    Args:
        written: its fields.

    Raises:
        PackedError: they are not valid.
    """

    def __init__(self, **written: Any) -> None:
        self.files = packed_files(written)
        self.quant_method = METHOD  # type: ignore[assignment]
        self.version = written["version"]
        self.dtype = written["dtype"]

    @property
    def dequantize(self) -> bool:
        """True: transformers forgets afterwards that the model was quantized."""
        return True


class PackedLoader(HfQuantizer):
    """Gives transformers the packed files, checks them, and unpacks each weight as it is read."""

    quantization_config: Any

    def update_attn_implementation(self, config: Any) -> Any:
        """Called with the config before files are looked for: say which ones."""
        if getattr(config, "distributed_config", None) is not None:
            raise ValueError(
                "a packed folder cannot be loaded in parts (tensor or pipeline parallel); unpack it "
                "first with hf_nm.unpack(folder, destination)"
            )
        files = self.quantization_config.files
        single = files.keys() == {PACKED_SINGLE}
        setattr(config, EXPLICIT, PACKED_SINGLE if single else PACKED_INDEX)
        dtype = getattr(torch, str(self.quantization_config.dtype), None)
        if getattr(config, "dtype", None) is None and isinstance(dtype, torch.dtype):
            config.dtype = dtype  # of the unpacked weights, for dtype="auto"
        return config

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Every byte is checked before any of it is used."""
        files = [Path(file) for file in kwargs.get("checkpoint_files") or []]
        packed = [file for file in files if is_packed_name(file.name)]  # some models have more
        with Stored(packed, packed=True) as stored:
            check_files(stored, self.quantization_config.files)
            data = getattr(model.config, KEY, None)
            if data is not None:  # a part of a model may be loaded with a config of its own
                check_claims(stored, read_claims(data, stored.tensors, "the config"))
            stored.check(Count(None, 0))
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Packed bytes are not cast; what is unpacked from them is."""
        for operation in getattr(converter, "operations", ()):
            if isinstance(operation, Unpack):
                operation.dtype = dtype
        return super().get_new_dtype(converter, param, dtype)

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        """Unpack in front of whatever the model does with its tensors, and where it does nothing."""
        updated = [
            entry.copy(
                list(entry._original_source_patterns),
                list(entry._original_target_patterns),
                operations=[Unpack(), *entry.operations],
            )
            if isinstance(entry, WeightConverter)
            else entry
            for entry in weight_conversions
        ]
        # The end of a name, replaced by nothing: any name, unchanged.
        return [*updated, WeightConverter("$", "", [Unpack()])]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """What is saved from now on is an ordinary model."""
        kept = []
        for entry in model._weight_conversions or []:
            if isinstance(entry, WeightConverter):
                entry.operations = [op for op in entry.operations if not isinstance(op, Unpack)]
                if not entry.operations:
                    continue
            kept.append(entry)
        model._weight_conversions = kept
        model.__dict__.pop("is_quantized", None)
        for module in model.modules():
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, EXPLICIT):
                delattr(config, EXPLICIT)
        return model

    def is_serializable(self, safe_serialization: Any = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class Unpack(ConversionOps):
    """Weights from their packed bytes; other tensors pass as they are.

    Attributes:
        dtype: what they are cast to; None leaves them.
    """

    dtype: torch.dtype | None = None

    @torch.no_grad()
    def convert(
        self,
        input_dict: Mapping[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        found = {}
        for pattern, tensors in input_dict.items():
            listed = tensors if isinstance(tensors, list) else [tensors]
            found[pattern] = [self._unpack(tensor) for tensor in listed]
        if source_patterns == ["$"]:
            return {kwargs["full_layer_name"]: found["$"]}
        return found

    def _unpack(self, tensor: Tensor) -> Tensor:
        if not is_packed(tensor):
            return tensor
        return unpack_tensor(tensor).to(dtype=self.dtype)

    @property
    def reverse_op(self) -> ConversionOps:
        raise PackedError("a packed form is written by hf_nm.pack")
