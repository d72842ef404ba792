"""Pruning a checkpoint once by magnitude: the starting point of ASP, without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_nm.checkpoint.model_class import model_class
from hf_nm.checkpoint.source import whole_folder
from hf_nm.checkpoint.verify import verify
from hf_nm.formats.folder import copy_rest, new_folder
from hf_nm.model.report import Report
from hf_nm.model.surgery import finalize, sparsify
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.selection import Selection


def prune(
    source: str | Path,
    destination: str | Path,
    n: int = 2,
    m: int = 4,
    *,
    targets: Selection = None,
    exclude: Selection = None,
    patterns: Mapping[str, str | NMPattern] | None = None,
    overwrite: bool = False,
    **download: Any,
) -> Report:
    """Keep the ``n`` largest magnitudes of every ``m`` weights of a dense checkpoint, once.

    What is written is a sparse checkpoint with method ``"fixed"``: ``hf_nm.restore`` trains it on with
    these masks (ASP's second step), ``restore(model, method="sr-ste")`` lets them move.

    Args:
        source: a folder, or a model's id on the Hub.
        destination: a folder that does not exist yet, or is empty.
        n: weights kept per group.
        m: weights per group.
        targets: as for :func:`hf_nm.sparsify`.
        exclude: as for :func:`hf_nm.sparsify`.
        patterns: as for :func:`hf_nm.sparsify`.
        overwrite: whether another model's folder may be replaced.
        **download: ``revision``, ``token`` and what else ``huggingface_hub.snapshot_download`` takes.

    Returns:
        What :func:`hf_nm.verify` found in the new checkpoint.

    Raises:
        ValueError: the checkpoint is sparse already or incomplete, nothing in it can be N:M, or an
            argument is not valid.
        FileExistsError: the destination has files, and is not a model's or ``overwrite`` is not set.
        OSError: there is no such checkpoint.
    """
    from transformers import AutoConfig

    folder = whole_folder(source, **download)
    with new_folder(Path(destination), folder, overwrite=overwrite) as beside:
        kind = model_class(AutoConfig.from_pretrained(folder))
        model, read = kind.from_pretrained(
            folder, dtype="auto", local_files_only=True, output_loading_info=True
        )
        if read["missing_keys"]:
            missing = sorted(read["missing_keys"])
            raise ValueError(
                f"{source} lacks {len(missing)} weights of {kind.__name__} (first: {missing[0]}), which "
                "would be random; name the class that saved it in its config's architectures"
            )
        sparsify(model, n, m, method="fixed", targets=targets, exclude=exclude, patterns=patterns)
        finalize(model).save_pretrained(beside)
        copy_rest(folder, beside, set())
        return verify(beside)
