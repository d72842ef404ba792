"""How many launches and bytes the N:M work of a step takes on a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from recipe_loading import importing

with importing("benchmark"):
    import traffic


@pytest.mark.parametrize("shape", [(768, 3072), (256, 256)])
def test_kernels_keep_the_bound(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 4 launches a group and 40 bytes a fp32 weight at 2:4. Red if a kernel is split, or reads
    or writes memory once more (``test_kernels.py`` holds the stated bytes against the kernels)."""
    arguments = ["--shape", *map(str, shape), "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["traffic.py", *arguments])
    traffic.main()
    rows = {row["arm"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    for method in ("sr-ste", "ste", "fixed"):
        row, functions = rows[f"{method}: kernels"], rows[f"{method}: torch functions"]
        assert row["launches"] <= 4
        assert row["bytes"] <= 40
        assert functions["launches"] > 4 * row["launches"]
        assert functions["bytes"] > 2 * row["bytes"]


def test_what_is_counted() -> None:
    """Red if a view counts as a launch, or a tensor that is only written counts as read."""
    a, b = (torch.empty(10, dtype=torch.float32, device="meta") for _ in range(2))
    with traffic.Count() as count:
        a.view(2, 5)[1:].detach()
        torch.empty_like(a)
    assert (count.launches, count.bytes) == (0, 0)
    with traffic.Count() as count:
        a.copy_(b)
        torch.add(a, b, out=b)
        a.mul_(2)
    assert (count.launches, count.bytes) == (3, 80 + 120 + 80)
