"""STE: the gradient at the sparse weight goes to the dense one as it is (Zhou et al. 2021)."""

from __future__ import annotations

from hf_nm.methods.method import Method

STE = Method("ste", uses_decay=False)
