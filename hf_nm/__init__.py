"""N:M fine-grained structured sparse training for Hugging Face transformers (SR-STE, SAD).

The three lines: ``hf_nm.sparsify(model, n=2, m=4)``, ``trainer = hf_nm.NMTrainer(model=model, ...)``,
``trainer.train()``. In a plain loop: ``hf_nm.attach(optimizer, model)``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_nm.checkpoint import register as arrival
from hf_nm.checkpoint.pack import pack, unpack
from hf_nm.checkpoint.verify import verify
from hf_nm.formats.packed_weight import PackedError
from hf_nm.hub.scores import Score
from hf_nm.methods.method import Method
from hf_nm.model.layers import NMLinear
from hf_nm.model.report import Report, report
from hf_nm.model.surgery import finalize, restore, sparsify
from hf_nm.model.weights import SparseWeight, dense_weights, sparse_weights
from hf_nm.optim.attach import Attachment, attach
from hf_nm.sparsity.check import BrokenPatternError
from hf_nm.sparsity.divergence import sad
from hf_nm.sparsity.mask import nm_mask
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.trainer.distillation import Distillation
from hf_nm.version import __version__

if TYPE_CHECKING:
    from hf_nm.checkpoint.inspection import inspect
    from hf_nm.checkpoint.packed_loader import load_packed
    from hf_nm.checkpoint.prune import prune
    from hf_nm.hub.push import push_to_hub
    from hf_nm.inference.compress import compress
    from hf_nm.inference.semi_structured import to_semi_structured
    from hf_nm.trainer.callback import NMCallback
    from hf_nm.trainer.trainers import NMSeq2SeqTrainer, NMTrainer

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
    "compress",
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
    "NMCallback": "trainer.callback",
    "NMSeq2SeqTrainer": "trainer.trainers",
    "NMTrainer": "trainer.trainers",
    "compress": "inference.compress",
    "inspect": "checkpoint.inspection",
    "load_packed": "checkpoint.packed_loader",
    "prune": "checkpoint.prune",
    "push_to_hub": "hub.push",
    "to_semi_structured": "inference.semi_structured",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"hf_nm.{_LATER[name]}"), name)
    raise AttributeError(f"module 'hf_nm' has no attribute {name!r}")


arrival.follow()


def __dir__() -> list[str]:
    return sorted(__all__)
