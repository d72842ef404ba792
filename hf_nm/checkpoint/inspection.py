"""What ``sparsify`` would do to a model that nobody has downloaded: from its config alone."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_nm.checkpoint.model_class import model_class
from hf_nm.checkpoint.source import asking_the_hub, existing
from hf_nm.formats.folder import CONFIG, is_diffusers, read_json
from hf_nm.formats.packed_config import QUANTIZATION, is_packed_config
from hf_nm.formats.recorded import recorded
from hf_nm.model.report import Report, report
from hf_nm.model.surgery import restore, sparsify
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.selection import Selection


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        source: what was inspected.
        architecture: the model's class.
        claimed: whether the config says that the checkpoint is sparse already.
        report: what is N:M, and why the rest is not.
        parameters: entries of all parameters, each counted once.
        dense_bytes: size of a checkpoint with all entries written out.
        packed_bytes: size of a packed one: kept entries and one bit for each N:M entry.
    """

    source: str
    architecture: str
    claimed: bool
    report: Report = field(repr=False)
    parameters: int
    dense_bytes: int
    packed_bytes: int

    @property
    def share(self) -> float:
        """N:M entries as a fraction of all."""
        return self.report.weights / self.parameters

    def groups(self) -> list[dict[str, Any]]:
        """Rows of the report with layer numbers joined: ``name`` with ``*`` for them, ``count``,
        ``shape``, and ``pattern`` or ``reason``."""
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for layer in self.report.layers:
            row = {"name": _numberless(layer.name), "shape": list(layer.shape)}
            row |= {"pattern": str(layer.pattern)}
            _count(rows, row)
        for skipped in self.report.skipped:
            row = {"name": _numberless(skipped.name), "shape": list(skipped.shape)}
            _count(rows, row | {"reason": skipped.reason})
        return list(rows.values())

    def to_dict(self) -> dict[str, Any]:
        """What ``hf-nm inspect --json`` prints."""
        return {
            "source": self.source,
            "architecture": self.architecture,
            "sparse_checkpoint": self.claimed,
            "parameters": self.parameters,
            "nm_weights": len(self.report.layers),
            "nm_entries": self.report.weights,
            "kept_entries": self.report.kept,
            "dense_bytes": self.dense_bytes,
            "packed_bytes": self.packed_bytes,
            "weights": self.groups(),
        }


def inspect(
    source: str | Path,
    n: int = 2,
    m: int = 4,
    *,
    targets: Selection = None,
    exclude: Selection = None,
    patterns: Mapping[str, str | NMPattern] | None = None,
    dtype: str | None = None,
    **download: Any,
) -> Inspection:
    """Say what :func:`hf_nm.sparsify` would do to a model, without its weights.

    Args:
        source: a ``config.json``, a folder with one, or a model's id on the Hub. If it is a sparse
            checkpoint's, its own patterns are shown.
        n: weights kept per group.
        m: weights per group.
        targets: as for :func:`hf_nm.sparsify`.
        exclude: as for :func:`hf_nm.sparsify`.
        patterns: as for :func:`hf_nm.sparsify`.
        dtype: of the checkpoint, such as ``"bfloat16"``; the config's own if None.
        **download: ``revision``, ``token``, ``cache_dir`` and what else ``AutoConfig.from_pretrained``
            takes.

    Raises:
        ValueError: transformers does not know the model, nothing in it can be N:M, or an argument is
            not valid.
        OSError: there is no such config.
    """
    model = _on_meta(source, dtype, download)
    claimed = bool(recorded(model))
    if claimed and (targets is not None or exclude is not None or patterns is not None):
        raise ValueError(
            f"{source} is a sparse checkpoint, whose own patterns are shown; leave targets, exclude and "
            "patterns out"
        )
    if claimed:
        restore(model)
    else:
        sparsify(model, n, m, targets=targets, exclude=exclude, patterns=patterns)
    found = report(model)
    sizes = {name: p.element_size() for name, p in model.named_parameters()}
    dense_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    packed_bytes = dense_bytes
    for row in found.layers:
        entries = math.prod(row.shape)
        packed_bytes += row.kept * sizes[row.name] + -(-entries // 8) - entries * sizes[row.name]
    return Inspection(
        source=str(source),
        architecture=type(model).__name__.removeprefix("NM"),
        claimed=claimed,
        report=found,
        parameters=sum(p.numel() for p in model.parameters()),
        dense_bytes=dense_bytes,
        packed_bytes=packed_bytes,
    )


def _on_meta(source: str | Path, dtype: str | None, download: dict[str, Any]) -> Any:
    """A model of the right class without memory, from its config alone."""
    from transformers import AutoConfig

    if (found := _diffusers_config(Path(source), download)) is not None:
        return _diffusers_model(found, dtype)
    with nullcontext() if Path(existing(source)).exists() else asking_the_hub(source):
        config = AutoConfig.from_pretrained(source, **download)
    if is_packed_config(vars(config)):  # its layers are plain ones
        delattr(config, QUANTIZATION)
    chosen = _torch_dtype(dtype or getattr(config, "dtype", None) or "float32")
    with torch.device("meta"):
        model: Any = model_class(config)(config)
        model.tie_weights()  # transformers 5.0 does not tie what is built here
    return model.to(chosen)


def _torch_dtype(chosen: Any) -> torch.dtype:
    if isinstance(chosen, str):
        name = chosen
        chosen = getattr(torch, name, None)
        if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
            raise ValueError(
                f"dtype must name a floating-point dtype of torch, but got {name!r}; write bfloat16, "
                "float16 or float32"
            )
    return chosen


def _diffusers_config(source: Path, download: dict[str, Any]) -> dict[str, Any] | None:
    """The config of a diffusers model that is here; None where it is another's, or not here."""
    folder = source / (download.get("subfolder") or "")
    path = folder / CONFIG if folder.is_dir() else source
    if not path.is_file():
        return None
    config = read_json(path)
    return config if is_diffusers(config) else None


def _diffusers_model(config: dict[str, Any], dtype: str | None) -> Any:
    """A diffusers model of the class that its config names, without memory."""
    name = config.get("_class_name")
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            f"this is the config of a diffusers model ({name}), of which diffusers alone knows the "
            "layers; install it: pip install diffusers"
        ) from error
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not hasattr(kind, "from_config"):
        raise ValueError(
            f"diffusers {diffusers.__version__} has no model class {name!r}, which the config names"
        )
    with torch.device("meta"):
        model: Any = kind.from_config(config)
    return model.to(_torch_dtype(dtype or "float32"))


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _count(rows: dict[tuple[Any, ...], dict[str, Any]], row: dict[str, Any]) -> None:
    key = tuple(str(value) for value in row.values())
    rows.setdefault(key, {"count": 0} | row)["count"] += 1
