"""Checking a sparse checkpoint from its weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_nm.checkpoint.by_pattern import check_by_pattern, dims_of, of_tensors, verify_stored
from hf_nm.checkpoint.conversion import Conversion, conversions, shapes
from hf_nm.checkpoint.model_class import named_class
from hf_nm.checkpoint.source import weights_folder
from hf_nm.formats.folder import CONFIG, Count, Progress, read_config, read_json
from hf_nm.formats.manifest import KEY, Claims, Manifest
from hf_nm.formats.packed_weight import PackedError
from hf_nm.formats.recorded import recorded_claims
from hf_nm.formats.stored import Stored, StoredTensor, check_claims, open_file, open_folder
from hf_nm.model.report import LayerRow, Report, SkippedRow
from hf_nm.model.sharding import gathered
from hf_nm.model.weights import sparse_weights, unwrap
from hf_nm.sparsity.check import PieceCheck, check_pattern
from hf_nm.sparsity.pattern import NMPattern


def verify(
    model_or_path: nn.Module | str | Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    pattern: str | NMPattern | None = None,
    targets: str | Iterable[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check that every weight claimed to be N:M is, from the weights alone.

    Files are read a few MiB at a time, whatever their size; of a model that transformers saves in
    another form than it computes with (each expert of a mixture apart), one parameter at a time. Packed
    files are also compared with their checksums.

    Args:
        model_or_path: a model (sparsified, finalized or loaded), a folder written by
            ``save_pretrained`` or :func:`hf_nm.pack`, one ``.safetensors`` file, or a model's name on
            the Hub, of which config and safetensors files are downloaded.
        manifest: what to check, in the form of ``config.nm_sparsity``, instead of that of
            the ``config.json`` in the folder or beside the file.
        pattern: such as ``"2:4"``: ask the weights themselves, of a file that no manifest belongs to
            (or whatever that claims). Of every tensor with two dimensions or more, along its input
            dimension: the last, unless the model or the class that ``config.json`` names tells another
            (GPT-2's ``Conv1D``, convolutions). Which keep the pattern are layers, the others are skipped
            with the reason. A tensor that is all zero proves nothing, and is skipped.
        targets: with ``pattern``: globs over the tensors' names (``"*.mlp.*"``); all that they name
            must keep it.
        revision: of a model on the Hub: branch, tag or commit.
        token: for a private model on the Hub.
        progress: called with bytes done, bytes in all and what is being done, now and then.

    Returns:
        A report: ``.layers`` with ``(name, pattern, shape, kept)``, kept being the non-zero entries
        found, and ``.skipped`` with the weights that nothing claims.

    Raises:
        BrokenPatternError: (a ``ValueError``) a group keeps more than n; the first one is named. With
            ``pattern`` alone: no weight keeps it.
        PackedError: (a ``ValueError``) a packed file is damaged, or does not belong to its config.
        ValueError: nothing claims to be N:M, a claimed weight is missing, or the manifest or a file is
            not valid.
        FileNotFoundError: there is no such folder, or no weights in it.
        huggingface_hub.errors.HfHubHTTPError: as huggingface_hub raises.
    """
    if pattern is not None:
        if manifest is not None:
            raise ValueError("verify takes manifest= or pattern=, which both say what to check")
        asked = NMPattern.parse(pattern)
        return _by_pattern(model_or_path, asked, targets, progress, revision=revision, token=token)
    if targets is not None:
        raise ValueError("targets= of verify says which weights must keep pattern=; give that too")
    if isinstance(model_or_path, nn.Module):
        return _of_model(model_or_path, manifest)
    path = weights_folder(model_or_path, revision=revision, token=token)
    if path.is_file() and path.suffix == ".safetensors":
        return _of_file(path, manifest, progress)
    config = read_config(path, "verify")
    data = config.get(KEY) if manifest is None else manifest
    with open_folder(path, config) as stored:
        claimed = Manifest.required(data, path / CONFIG)
        claims = claimed.claims(stored.tensors)
        if not claims.keys() <= stored.tensors.keys() and (kind := named_class(config)) is not None:
            return _of_parameters(path, kind, claimed, stored, progress)
        return _of_stored(stored, claims, progress)


def _by_pattern(
    model_or_path: nn.Module | str | Path,
    pattern: NMPattern,
    targets: str | Iterable[str] | None,
    progress: Progress | None,
    **download: Any,
) -> Report:
    """What the caller asks for, whatever is claimed."""
    if isinstance(model_or_path, nn.Module):
        inner = unwrap(model_or_path)
        tensors = ((name, gathered(weight)) for name, weight in inner.named_parameters())
        candidates = of_tensors(tensors, dims_of(inner))
        return check_by_pattern(candidates, pattern, targets, "the model", Count(progress, 0))
    path = weights_folder(model_or_path, **download)
    single = path.is_file() and path.suffix == ".safetensors"
    folder = path.parent if single else path
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    with open_file(path) if single else open_folder(path, config) as stored:
        dims = _dims_by_class(folder, config)
        return verify_stored(stored, pattern, targets, str(path), dims, progress)


def _dims_by_class(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Input dimensions by the class that a config names; none where there is none, or it is another
    library's."""
    if (kind := named_class(config)) is None:
        return {}
    try:
        return dims_of(shapes(kind, folder)[0])
    except Exception:  # a damaged config can be wrong in more ways than transformers has names for
        return {}


def _of_model(model: nn.Module, manifest: Any) -> Report:
    model = unwrap(model)
    parameters = dict(model.named_parameters())
    sparse = sparse_weights(model)
    if manifest is not None:
        claims = Manifest.from_dict(manifest).claims(parameters)
    elif sparse:
        claims = {w.name: (w.pattern, w.state.dim) for w in sparse}
    else:
        claims = recorded_claims(model)
        if not claims:
            Manifest.required(None, "the model has no N:M layer and its config")
    return _of_tensors(claims, ((name, gathered(weight)) for name, weight in parameters.items()))


def _of_tensors(claims: Claims, tensors: Iterator[tuple[str, Tensor]]) -> Report:
    layers: dict[str, LayerRow] = {}
    skipped = []
    for name, tensor in tensors:
        shape = tuple(tensor.shape)
        if name in claims:
            pattern, dim = claims[name]
            layers[name] = LayerRow(name, pattern, shape, check_pattern(name, tensor, pattern, dim))
        elif len(shape) >= 2:
            skipped.append(_skipped(name, shape))
    return _report(claims, layers, skipped)


def _of_file(path: Path, manifest: Any, progress: Progress | None) -> Report:
    """One file: what its config claims of it, or what it was packed as."""
    config = path.parent / CONFIG
    beside = read_json(config) if config.is_file() else {}
    with open_file(path) as stored:
        data = beside.get(KEY) if manifest is None else manifest
        if data is None and stored.packed:
            claims = {
                name: (tensor.layout.pattern, tensor.layout.dim)
                for name, tensor in stored.tensors.items()
                if tensor.layout is not None
            }
            return _of_stored(stored, claims, progress)
        claimed = Manifest.required(data, f"{config} {'is not there or ' if not beside else ''}")
        claims = claimed.claims(stored.tensors)
        # The other shards hold the rest.
        here = {name: claim for name, claim in claims.items() if name in stored.tensors}
        if not here:
            raise ValueError(
                f"{path} holds none of the {len(claims)} weights claimed to be N:M (first: "
                f"{next(iter(claims))}); verify the folder"
            )
        return _of_stored(stored, here, progress)


def _of_stored(stored: Stored, claims: Claims, progress: Progress | None) -> Report:
    count = _start(stored, claims, progress)
    layers: dict[str, LayerRow] = {}
    skipped = []
    for name, tensor in stored.tensors.items():
        if name in claims:
            pattern, dim = claims[name]
            layers[name] = _check(name, tensor, pattern, dim)
        elif len(tensor.shape) >= 2:
            skipped.append(_skipped(name, tensor.shape))
        count.add(tensor.size, "verifying")
    return _report(claims, layers, skipped)


def _start(stored: Stored, claims: Claims, progress: Progress | None) -> Count:
    count = Count(progress, stored.size * (2 if stored.packed else 1))
    if stored.packed:
        check_claims(stored, claims)
        stored.check(count)
    return count


def _check(name: str, tensor: StoredTensor, pattern: NMPattern, dim: int) -> LayerRow:
    check = PieceCheck(name, tensor.shape, tensor.torch_dtype, pattern, dim)
    if math.prod(tensor.shape):
        for bits in tensor.runs(pattern, dim):
            check.add(bits)
    return LayerRow(name, pattern, tensor.shape, check.result())


def _of_parameters(
    folder: Path, kind: Any, claimed: Manifest, stored: Stored, progress: Progress | None
) -> Report:
    """The report where files and parameters differ in their names."""
    try:
        model, parameters = shapes(kind, folder)
        found = list(conversions(model, stored.tensors))
    except Exception:  # a model that does not like the meta device, a mapping that has moved
        return _of_loaded(folder, kind, claimed)
    claims = claimed.claims(parameters)
    count = _start(stored, claimed.claims(stored.tensors), progress)
    layers: dict[str, LayerRow] = {}
    for conversion in found:
        for name, row in _check_conversion(conversion, claims).items():
            if row.shape != parameters[name]:
                raise ValueError(
                    f"transformers cannot load {folder} as a {kind.__name__}: {name} is stored as "
                    f"{list(row.shape)}, but has {list(parameters[name])} in the model"
                )
            layers[name] = row
        count.add(sum(source.size for source in conversion.sources), "verifying")
    left = ((name, shape) for name, shape in parameters.items() if name not in claims)
    return _report(claims, layers, [_skipped(*row) for row in left if len(row[1]) >= 2])


def _check_conversion(conversion: Conversion, claims: Claims) -> dict[str, LayerRow]:
    """The rows of the claimed parameters that a conversion makes."""
    name = conversion.name
    if conversion.is_rename:
        source = conversion.sources[-1]
        return {name: _check(name, source, *claims[name])} if name in claims else {}
    try:
        made = conversion.convert()
    except PackedError:
        raise
    except Exception as error:
        raise ValueError(
            f"transformers cannot make {name} of {conversion.sources[0].name} and others: {error}"
        ) from error
    rows = {}
    for full, tensor in made.items():
        if full in claims:
            pattern, dim = claims[full]
            kept = check_pattern(full, tensor, pattern, dim)
            rows[full] = LayerRow(full, pattern, tuple(tensor.shape), kept)
    return rows


def _of_loaded(folder: Path, kind: Any, claimed: Manifest) -> Report:
    """The report of all parameters at once, as transformers loads them: the last resort."""
    try:
        loaded: Any = kind.from_pretrained(
            folder, dtype="auto", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a config can be wrong in more ways than transformers has names for
        raise ValueError(
            f"transformers cannot load {folder} as a {kind.__name__}: {error}"
        ) from error
    model, read = loaded
    missing = set(read["missing_keys"])
    parameters = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if name not in missing
    }
    return _of_tensors(claimed.claims(parameters), iter(parameters.items()))


def _skipped(name: str, shape: tuple[int, ...]) -> SkippedRow:
    return SkippedRow(name, shape, "not claimed to be N:M")


def _report(claims: Claims, layers: dict[str, LayerRow], skipped: list[SkippedRow]) -> Report:
    missing = [name for name in claims if name not in layers]
    if missing:
        raise ValueError(
            f"{len(missing)} weights claimed to be N:M are not there (first: {missing[0]}); the "
            "checkpoint is incomplete, or was saved from another model than its config"
        )
    return Report([layers[name] for name in claims], skipped)
