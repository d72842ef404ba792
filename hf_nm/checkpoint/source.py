"""Where a checkpoint is that a caller names: a folder here, or a download from the Hub.

:func:`weights_folder` downloads what is read here, :func:`whole_folder` everything that belongs to the
model; :func:`existing` and :func:`asking_the_hub` are for who lets transformers download.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_nm.formats.folder import (
    CONFIG,
    DIFFUSERS_INDEX,
    DIFFUSERS_SINGLE,
    INDEX,
    PACKED_INDEX,
    PACKED_SINGLE,
    SINGLE,
    is_diffusers,
    read_json,
    weight_map,
)
from hf_nm.formats.packed_config import QUANTIZATION, is_packed_config, packed_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)

# What says where and how to download, in transformers' ``from_pretrained`` and here.
DOWNLOAD = (
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "subfolder",
    "force_download",
)

# The same weights in forms that are not read here.
_NOT_DOWNLOADED = [
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.onnx_data",
    "onnx/*",
    "*.gguf",
    "*.pkl",
]


def existing(source: str | Path) -> str | Path:
    """``source``, unless it is written as a path and there is nothing.

    Raises:
        FileNotFoundError: it is not there.
    """
    written_as_path = isinstance(source, Path) or source.startswith(("/", ".", "~"))
    if written_as_path and not Path(source).exists():
        raise FileNotFoundError(
            f"{source} does not exist; give a checkpoint's folder, its config.json, or a model's id on "
            "the Hub"
        )
    return source


@contextmanager
def asking_the_hub(source: str | Path) -> Iterator[None]:
    """Add to an error from inside that the Hub was asked because no folder here has this name."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(hf_nm found no folder {str(source)!r} here, so it asked the Hub)")
        raise


def whole_folder(source: str | Path, **download: Any) -> Path:
    """A checkpoint's folder on this machine: ``source`` if it is one, else downloaded from the Hub with
    all that is not the same weights in another form.

    Args:
        source: a folder, or a model's id on the Hub.
        **download: as for ``huggingface_hub.snapshot_download``.

    Raises:
        FileNotFoundError: it is written as a path, and there is nothing.
        huggingface_hub.errors.HfHubHTTPError: as huggingface_hub raises.
    """
    if Path(existing(source)).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    with asking_the_hub(source):
        return Path(snapshot_download(str(source), ignore_patterns=_NOT_DOWNLOADED, **download))


def weights_folder(source: str | Path, **download: Any) -> Path:
    """Where a checkpoint's config and safetensors files are: here, or else downloaded from the Hub.

    Args:
        source: a folder or file, or a model's id on the Hub: ``owner/name`` or ``name``, a text. What is
            here comes first; a path where nothing is comes back as it is.
        **download: any of :data:`DOWNLOAD`, such as ``revision`` (branch, tag or commit; the main branch
            if None) and ``token`` (for a private model; the one that is logged in if None).

    Returns:
        What is here, with ``subfolder`` where that is given, or the folder of the files in
        huggingface_hub's cache.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: as huggingface_hub raises, ``LocalEntryNotFoundError``
            when offline and not in the cache.
        ValueError: the config or the index is not valid.
    """
    if not isinstance(source, str) or Path(source).exists() or not _is_hub_id(source):
        return Path(source) / (download.get("subfolder") or "")
    return _fetch(source, **download)


def _is_hub_id(text: str) -> bool:
    """Whether a text can be a model's name on the Hub."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def _fetch(repo_id: str, **download: Any) -> Path:
    """The folder of a model's config and safetensors files, and nothing else of it, in the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with asking_the_hub(repo_id):
        config = Path(hf_hub_download(repo_id, CONFIG, **download))
    folder = root = config.parent
    for _ in Path(download.get("subfolder") or "").parts:
        root = root.parent
    # Whatever is pushed meanwhile: one commit's files belong together.
    download["revision"] = root.name

    def get(file: str) -> None:
        hf_hub_download(repo_id, file, **download)

    data = read_json(config)
    if is_packed_config(data):
        files = packed_files(data[QUANTIZATION])
        if files.keys() != {PACKED_SINGLE}:
            get(PACKED_INDEX)
    else:
        single, index = (
            (DIFFUSERS_SINGLE, DIFFUSERS_INDEX) if is_diffusers(data) else (SINGLE, INDEX)
        )
        try:
            get(single)
            return folder
        except EntryNotFoundError as missing:
            try:
                get(index)
            except EntryNotFoundError:
                if isinstance(missing, LocalEntryNotFoundError):
                    raise missing from None
                raise FileNotFoundError(
                    f"{repo_id} has neither {single} nor {index}; save with safetensors (the default)"
                ) from missing
        files = dict.fromkeys(weight_map(folder / index).values(), "")
    for file in sorted(files):
        get(file)
    return folder
