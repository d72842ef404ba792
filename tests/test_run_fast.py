"""``docs/pages/run_fast.md`` is executed."""

from __future__ import annotations

import re
from pathlib import Path

import models
import pytest
import torch

import hf_nm
from hf_nm.inference.packed_tensor import PackedWeight

PAGE = (Path(__file__).parents[1] / "docs" / "pages" / "run_fast.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:0 weights are packed")
def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, one after the other. Red if one fails, or ``compress`` of the page packs nothing."""
    monkeypatch.chdir(tmp_path)
    hf_nm.sparsify(models.llama()).save_pretrained("my-org/my-sparse-llama")
    pruned = hf_nm.finalize(hf_nm.sparsify(models.llama()))
    del pruned.config.nm_sparsity
    pruned.save_pretrained("somebody/pruned-llama")
    names: dict = {}
    for number, code in enumerate(BLOCKS, 1):
        exec(compile(code, f"docs/pages/run_fast.md, block {number}", "exec"), names)
        if "compress(model)" in code or "compressed=True" in code:
            packed = [p for p in names["model"].parameters() if isinstance(p, PackedWeight)]
            assert len(packed) == 14
    assert sum(isinstance(p, PackedWeight) for p in names["other"].parameters()) == 14
    assert torch.equal(
        names["other"].model.layers[0].mlp.up_proj.weight.dense(),
        pruned.model.layers[0].mlp.up_proj.weight,
    )
