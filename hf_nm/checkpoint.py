"""Checking a sparse checkpoint from its weights alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hf_nm.manifest import KEY, Manifest, match_names
from hf_nm.pattern import NMPattern
from hf_nm.report import LayerRow, Report, SkippedRow
from hf_nm.sharding import gathered
from hf_nm.surgery import check_pattern
from hf_nm.weights import sparse_weights
from hf_nm.wrapping import unwrap

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def verify(model_or_path: nn.Module | str | Path) -> Report:
    """Check that every weight claimed to be N:M is, from the weights alone.

    Args:
        model_or_path: a model (sparsified, finalized or loaded), or a folder written by
            ``save_pretrained``: ``config.json`` with ``nm_sparsity`` beside safetensors files, which
            are read one tensor at a time (at once, by transformers, where it saved them under other
            names than the parameters').

    Returns:
        A report: ``.layers`` with ``(name, pattern, shape, kept)``, kept being the non-zero entries
        found, and ``.skipped`` with the weights that nothing claims.

    Raises:
        BrokenPatternError: (a ``ValueError``) a group keeps more than n; the first one is named.
        ValueError: nothing claims to be N:M, a claimed weight is missing, or the manifest or a file is
            not valid.
        FileNotFoundError: there is no such folder, or no weights in it.
    """
    if isinstance(model_or_path, nn.Module):
        claims, tensors = _of_model(model_or_path)
    else:
        claims, tensors = _of_folder(Path(model_or_path))
    layers: dict[str, LayerRow] = {}
    skipped = []
    for name, tensor in tensors:
        shape = tuple(tensor.shape)
        if name in claims:
            pattern, dim = claims[name]
            kept = check_pattern(name, tensor, pattern, dim)
            layers[name] = LayerRow(name, pattern, shape, kept)
        elif len(shape) >= 2:
            skipped.append(SkippedRow(name, shape, "not claimed to be N:M"))
    missing = [name for name in claims if name not in layers]
    if missing:
        raise ValueError(
            f"{len(missing)} weights claimed to be N:M are not there (first: {missing[0]}); the "
            "checkpoint is incomplete, or was saved from another model than its config"
        )
    return Report([layers[name] for name in claims], skipped)


Claims = dict[str, tuple[NMPattern, int]]


def _of_model(model: nn.Module) -> tuple[Claims, Iterator[tuple[str, Tensor]]]:
    model = unwrap(model)
    parameters = dict(model.named_parameters())
    sparse = sparse_weights(model)
    if sparse:
        claims = {w.name: (w.pattern, w.state.dim) for w in sparse}
    else:
        manifest = getattr(getattr(model, "config", None), KEY, None)
        claims = _claims(manifest, parameters, "the model has no N:M layer and its config")
    return claims, ((name, gathered(weight)) for name, weight in parameters.items())


def _of_folder(folder: Path) -> tuple[Claims, Iterator[tuple[str, Tensor]]]:
    if not folder.exists():
        raise FileNotFoundError(
            f"verify found no folder {folder}; pass a model, or the folder that save_pretrained wrote"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json, so nothing says which weights are N:M; pass the folder "
            "that save_pretrained wrote"
        )
    if (folder / _INDEX).is_file():
        weight_map = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in weight_map.values()
        ):
            raise ValueError(f"{folder / _INDEX} is not an index of files in its own folder")
        files = [folder / file for file in sorted(set(weight_map.values()))]
    else:
        files = [folder / _SINGLE]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; save with safetensors (the default)")
    names: list[str] = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names.extend(opened.keys())
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
    data = _read_json(config)
    claims = _claims(data.get(KEY), names, str(config))
    if not claims.keys() <= set(names) and (loaded := _load(folder, data)) is not None:
        claims = _claims(data[KEY], loaded, str(config))
        return claims, iter(loaded.items())
    return claims, _read_tensors(files)


def _load(folder: Path, config: dict[str, Any]) -> dict[str, Tensor] | None:
    """The parameters that transformers reads from a folder, by their names in the model.

    Some models are saved under older names than their parameters have (ViT, from transformers 5
    on), and only transformers knows which. None if it does not know the model.
    """
    import transformers

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (
        isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    ):
        return None
    try:
        loaded: Any = model_class.from_pretrained(
            folder, dtype="auto", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a config can be wrong in more ways than transformers has names for
        raise ValueError(f"transformers cannot load {folder} as a {name}: {error}") from error
    model, read = loaded
    missing = set(read["missing_keys"])
    return {
        parameter_name: parameter.detach()
        for parameter_name, parameter in model.named_parameters()
        if parameter_name not in missing
    }


def _claims(manifest: Any, names: Any, source: str) -> Claims:
    if manifest is None:
        raise ValueError(
            f"{source} has no {KEY!r}, so nothing claims to be N:M; save a model made by "
            "hf_nm.sparsify"
        )
    claimed = Manifest.from_dict(manifest)
    found = match_names(claimed.modules, names)
    # A claimed name that is not there stays, and is reported as missing.
    return {
        found.get(name, name): (pattern, claimed.dims.get(name, -1))
        for name, pattern in claimed.modules.items()
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return data


def _read_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)
