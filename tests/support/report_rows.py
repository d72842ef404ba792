"""A model's report as plain Python values."""

from __future__ import annotations

from torch import nn

import hf_nm


def sparse_names(model: nn.Module) -> set[str]:
    """Names of the N:M weights."""
    return {row.name for row in hf_nm.report(model).layers}


def reasons(model: nn.Module) -> dict[str, str]:
    """Name of each weight that stays dense, with the reason."""
    return {row.name: row.reason for row in hf_nm.report(model).skipped}
