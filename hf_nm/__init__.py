"""N:M fine-grained structured sparse training for Hugging Face transformers (SR-STE, SAD).

The three lines: ``hf_nm.sparsify(model, n=2, m=4)``, ``trainer = hf_nm.NMTrainer(model=model, ...)``,
``trainer.train()``. In a plain loop: ``hf_nm.attach(optimizer, model)``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_nm import arrival
from hf_nm.checkpoint import verify
from hf_nm.distillation import Distillation
from hf_nm.divergence import sad
from hf_nm.layers import NMLinear
from hf_nm.mask import nm_mask
from hf_nm.method import Method
from hf_nm.optim import Attachment, attach
from hf_nm.packed import pack, unpack
from hf_nm.packing import PackedError
from hf_nm.pattern import NMPattern
from hf_nm.report import Report, report
from hf_nm.results import Score
from hf_nm.state import BrokenPatternError
from hf_nm.surgery import finalize, restore, sparsify
from hf_nm.version import __version__
from hf_nm.weights import SparseWeight, dense_weights, sparse_weights

if TYPE_CHECKING:
    from hf_nm.hub import push_to_hub
    from hf_nm.inspection import inspect
    from hf_nm.loader import load_packed
    from hf_nm.oneshot import prune
    from hf_nm.semi_structured import to_semi_structured
    from hf_nm.trainer import NMCallback, NMSeq2SeqTrainer, NMTrainer

__all__ = [
    "Attachment",
    "BrokenPatternError",
    "Distillation",
    "Method",
    "NMCallback",
    "NMLinear",
    "NMPattern",
    "NMSeq2SeqTrainer",
    "NMTrainer",
    "PackedError",
    "Report",
    "Score",
    "SparseWeight",
    "__version__",
    "attach",
    "dense_weights",
    "finalize",
    "inspect",
    "load_packed",
    "nm_mask",
    "pack",
    "prune",
    "push_to_hub",
    "report",
    "restore",
    "sad",
    "sparse_weights",
    "sparsify",
    "to_semi_structured",
    "unpack",
    "verify",
]


# Loaded when first used: a plain loop needs neither transformers nor what comes after training.
_LATER = {
    "NMCallback": "trainer",
    "NMSeq2SeqTrainer": "trainer",
    "NMTrainer": "trainer",
    "inspect": "inspection",
    "load_packed": "loader",
    "prune": "oneshot",
    "push_to_hub": "hub",
    "to_semi_structured": "semi_structured",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"hf_nm.{_LATER[name]}"), name)
    raise AttributeError(f"module 'hf_nm' has no attribute {name!r}")


arrival.follow()


def __dir__() -> list[str]:
    return sorted(__all__)
