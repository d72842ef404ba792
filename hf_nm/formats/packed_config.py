"""What the config.json of a packed folder says: that it is one, and which files belong to it."""

from __future__ import annotations

from typing import Any

from hf_nm.formats.folder import (
    is_packed_name,
)
from hf_nm.formats.packed_weight import PackedError

QUANTIZATION = "quantization_config"

METHOD = "nm_packed"

VERSION = 1

_FIELDS = {"quant_method", "version", "dtype", "files"}

EXPLICIT = "transformers_weights"

SENTENCE = (
    "these weights are packed by hf_nm, and transformers alone cannot read them: run `import hf_nm` "
    "before loading, or turn them into plain ones with hf_nm.unpack(folder, destination)"
)


def is_packed_config(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a packed folder."""
    found = config.get(QUANTIZATION)
    return isinstance(found, dict) and found.get("quant_method") == METHOD


def packed_files(data: Any) -> dict[str, str]:
    """The files that a packed folder's config names, each with its header's checksum.

    Args:
        data: ``quantization_config``.

    Raises:
        PackedError: it is not valid.
    """
    if not isinstance(data, dict) or data.get("quant_method") != METHOD:
        raise PackedError(f"{QUANTIZATION} is not that of a packed folder")
    if type(data.get("version")) is not int or data["version"] != VERSION:
        raise PackedError(
            f"{QUANTIZATION} has version {str(data.get('version'))[:40]} of the packed form, but this "
            f"hf_nm reads version {VERSION}; install the hf_nm that wrote it"
        )
    files, dtype = data.get("files"), data.get("dtype")
    if (
        set(data) != _FIELDS
        or not (dtype is None or isinstance(dtype, str))
        or not isinstance(files, dict)
        or not files
        or not all(is_packed_name(file) and isinstance(files[file], str) for file in files)
    ):
        raise PackedError(f"{QUANTIZATION} of version {VERSION} needs exactly {sorted(_FIELDS)}")
    return files
