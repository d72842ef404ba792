"""The packed form of a checkpoint folder: into it and back.

A packed folder has everything of the plain one but its weights, which are in
``model.nm_packed.safetensors`` (or its shards, with an index) as :mod:`hf_nm.packedfile` lays out. Two
keys of its ``config.json`` say so::

    "quantization_config": {"quant_method": "nm_packed", "version": 1, "dtype": "bfloat16",
                            "files": {file: its header's checksum, ...}}
    "transformers_weights": a sentence, which transformers without hf_nm stops at and prints
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from hf_nm.checkpoint.verify import verify
from hf_nm.formats.folder import (
    CONFIG,
    INDEX,
    PACKED_INDEX,
    PACKED_SINGLE,
    SINGLE,
    Count,
    Progress,
    copy_rest,
    is_diffusers,
    new_folder,
    packed_name,
    plain_name,
    read_config,
    read_json,
    weight_files,
    write_json,
)
from hf_nm.formats.manifest import KEY, Claims, Manifest
from hf_nm.formats.packed_config import (
    EXPLICIT,
    METHOD,
    QUANTIZATION,
    SENTENCE,
    VERSION,
    is_packed_config,
)
from hf_nm.formats.packed_file import layout_of, write_packed, write_plain
from hf_nm.formats.packed_weight import DTYPES, Layout
from hf_nm.formats.safetensors_file import TensorFile
from hf_nm.formats.stored import check_claims, open_folder
from hf_nm.sparsity.check import BrokenPatternError


def pack(
    folder: str | Path,
    destination: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a sparse checkpoint in its packed form: kept values and one bit per weight.

    A 2:4 weight in bf16 takes 9/16 of its bytes, in fp32 17/32. Nothing is lost, bit for bit; the
    other tensors, the tokenizer and so on are there as they were. A weight that packing would not make
    smaller, or that holds minus zeros where it is pruned, stays as it is. Memory: a few MiB, and one
    bit per entry of the largest weight.

    Args:
        folder: written by ``save_pretrained``, with ``nm_sparsity`` in its config.
        destination: the packed folder; it appears when it is whole.
        overwrite: whether to replace the model's folder that is there.
        progress: called with bytes done, bytes in all and what is being done, now and then.

    Returns:
        ``destination``.

    Raises:
        BrokenPatternError: (a ``ValueError``) a weight breaks the pattern that the config claims.
        ValueError: nothing claims to be N:M, the folder is packed already, or a file is not valid.
        FileNotFoundError: there is no such folder, or no weights in it.
        FileExistsError: the destination is there and not empty.
    """
    source, destination = Path(folder), Path(destination)
    config = read_config(source, "pack")
    _check_plain(source, config)
    files = weight_files(source)
    with new_folder(destination, source, overwrite=overwrite) as written:
        with open_folder(source, config) as stored:
            manifest = Manifest.required(config.get(KEY), source / CONFIG)
            claims = manifest.claims(stored.tensors)
            count = Count(progress, 2 * stored.size)
            elsewhere = {
                name: claim for name, claim in claims.items() if name not in stored.tensors
            }
            dtypes = [DTYPES[t.dtype] for t in stored.tensors.values() if t.dtype in DTYPES]
        if elsewhere:
            verify(source)  # only transformers knows which of the file's tensors these weights are
        checksums = {}
        for path in files:
            with TensorFile(path) as file:
                layouts = _layouts(file, claims, elsewhere, count)
                name = packed_name(path.name)
                checksums[name] = write_packed(file, written / name, layouts, count)
        copy_rest(source, written, {CONFIG, INDEX, *(path.name for path in files)})
        if files != [source / SINGLE]:
            index = read_json(source / INDEX)
            index["weight_map"] = {
                name: packed_name(file) for name, file in index["weight_map"].items()
            }
            write_json(written / PACKED_INDEX, index)
        config[QUANTIZATION] = {
            "quant_method": METHOD,
            "version": VERSION,
            "dtype": str(dtypes[0]).removeprefix("torch.") if dtypes else None,
            "files": checksums,
        }
        config[EXPLICIT] = SENTENCE
        write_json(written / CONFIG, config)
    return destination


def unpack(
    folder: str | Path,
    destination: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a packed checkpoint in its plain form again: the same tensors, byte for byte.

    Everything is compared with its checksum first. Memory: a few MiB.

    Args:
        folder: written by :func:`hf_nm.pack`.
        destination: the plain folder; it appears when it is whole.
        overwrite: whether to replace the model's folder that is there.
        progress: called with bytes done, bytes in all and what is being done, now and then.

    Returns:
        ``destination``.

    Raises:
        PackedError: (a ``ValueError``) a file is damaged, or does not belong to the config.
        ValueError: the folder is not packed, or its config is not valid.
        FileNotFoundError: there is no such folder, or a file is missing.
        FileExistsError: the destination is there and not empty.
    """
    source, destination = Path(folder), Path(destination)
    config = read_config(source, "unpack")
    if not is_packed_config(config):
        raise ValueError(
            f"{source} is not packed: its config.json has no {QUANTIZATION!r} of {METHOD!r}; it can be "
            "loaded as it is"
        )
    with (
        new_folder(destination, source, overwrite=overwrite) as written,
        open_folder(source, config) as stored,
    ):
        manifest = Manifest.required(config.get(KEY), source / CONFIG)
        check_claims(stored, manifest.claims(stored.tensors))
        count = Count(progress, 2 * stored.size)
        stored.check(count)
        for file in stored.packed_files:
            write_plain(file, written / plain_name(file.path.name), count)
        copy_rest(source, written, {CONFIG, PACKED_INDEX, *stored.checksums})
        if stored.checksums.keys() != {PACKED_SINGLE}:
            index = read_json(source / PACKED_INDEX)
            index["weight_map"] = {
                name: plain_name(file) for name, file in index["weight_map"].items()
            }
            write_json(written / INDEX, index)
        plain = {key: value for key, value in config.items() if key not in (QUANTIZATION, EXPLICIT)}
        write_json(written / CONFIG, plain)
    return destination


def _check_plain(source: Path, config: dict[str, Any]) -> None:
    """Refuse a folder that is packed already, or whose weights are not where they usually are."""
    if is_diffusers(config):
        raise ValueError(
            f"{source} is a diffusers model, which loads no packed weights; keep it plain "
            "(hf_nm.verify reads it)"
        )
    if is_packed_config(config):
        raise ValueError(f"{source} is packed already; unpack it with hf_nm.unpack")
    if config.get(QUANTIZATION) is not None:
        raise ValueError(
            f"{source} is quantized (its config.json has {QUANTIZATION!r}), and a packed folder holds "
            "N:M weights in floating point; pack the checkpoint before it is quantized"
        )
    if config.get(EXPLICIT) is not None:
        raise ValueError(
            f"{source} keeps its weights in {config[EXPLICIT]!r} ({EXPLICIT!r} in its config.json); "
            "load it and save it with save_pretrained first"
        )


def _layouts(
    file: TensorFile, claims: Claims, elsewhere: Claims, count: Count
) -> dict[str, Layout]:
    """How the weights of a file are packed. Some claimed ones may be under other names, in parts or
    transposed (``elsewhere``): what keeps one of their patterns, along whichever dimension, is packed by
    it, since nothing is lost by that."""
    others = {pattern for pattern, _ in elsewhere.values()}
    layouts = {}
    for name, entry in file.entries.items():
        layout = None
        if name in claims:
            layout = layout_of(file, name, *claims[name])
        elif len(entry.shape) >= 2 and entry.dtype in DTYPES:
            dims = range(-1, -1 - len(entry.shape), -1)
            for pattern, dim in product(sorted(others), dims):
                try:
                    layout = layout_of(file, name, pattern, dim)
                except (BrokenPatternError, ValueError):
                    continue
                if layout is not None:
                    break
        if layout is not None:
            layouts[name] = layout
        count.add(entry.size, "reading")
    return layouts
