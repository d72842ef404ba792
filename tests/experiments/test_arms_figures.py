"""The figures of a comparison, from made-up folders; what they show worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arms import LOG, left, sad_logged

from hf_nm.experiments.arms import figures
from hf_nm.experiments.arms.finished import FinishedRun, read_finished
from hf_nm.experiments.arms.report import write_comparison


def layers(a: int, b: int) -> dict[str, int]:
    return {"model.a.weight": a, "model.b.weight": b}


def for_figures(root: Path) -> list[FinishedRun]:
    """Two patterns; two seeds of STE 2:4; three decays; scores on the way; SAD of two layers."""
    evaluated = [{"step": 20, "eval_bleu": 10.0, "eval_loss": 3.0}]
    evaluated += [{"step": 40, "eval_bleu": 20.0, "eval_loss": 2.0}]
    dense = left(root / "d", "dense", 1, score=30.0, logged=evaluated)
    half = left(
        root / "half", "dense", 1, score=20.0, steps=10, logged=[{"step": 10, "eval_bleu": 5.0}]
    )
    asp = left(
        root / "asp", "fixed", 1, score=27.0, pattern="2:4", start="half", steps_before=10,
        logged=[{"step": 30, "eval_bleu": 15.0}],
    )  # fmt: skip
    common: dict[str, Any] = {"pattern": "2:4"}
    moved = [
        left(
            root / "ste1", "ste", 1, score=28.0, sad=(60, 0.06), **common,
            logged=[*sad_logged(10, 20, 30), *evaluated],
            layers=[layers(32, 8), layers(16, 4)],
        ),
        left(
            root / "ste2", "ste", 2, score=29.0, sad=(80, 0.08), **common,
            logged=[*sad_logged(30, 40, 50), *evaluated],
            layers=[layers(64, 0), layers(0, 4)],
        ),
        left(
            root / "sr1", "sr-ste", 1, score=29.5, decay=2e-4, sad=(6, 0.006), **common,
            logged=[*sad_logged(1, 2, 3), *evaluated],
        ),
        left(
            root / "sr2", "sr-ste", 1, score=29.7, decay=2e-3, sad=(3, 0.003), **common,
            logged=[*sad_logged(1, 1, 1), *evaluated],
        ),
        left(
            root / "wide", "ste", 1, score=20.0, sad=(90, 0.09), pattern="1:8",
            logged=[*sad_logged(7, 8, 9), *evaluated],
        ),
    ]  # fmt: skip
    return read_finished([dense, half, asp, *moved], LOG)


def lines_on(axis: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> what a line goes through."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axis.get_lines()
    }


def test_figure_of_sad(tmp_path: Path) -> None:
    """Red if a line is another arm's, the seeds are not averaged, or patterns share a panel."""
    figure = figures.draw_sad(for_figures(tmp_path))
    assert figure is not None
    first, second = figure.axes
    assert [axis.get_title() for axis in (first, second)] == ["2:4", "1:8"]
    found = lines_on(first)
    named = {label for label in found if not label.startswith("_")}
    assert named == {"STE 2:4", "SR-STE 2:4, decay 2e-4", "SR-STE 2:4, decay 2e-3"}
    assert found["STE 2:4"] == ([10, 20, 30], [20, 30, 40])
    assert found["SR-STE 2:4, decay 2e-4"] == ([10, 20, 30], [1, 2, 3])
    assert len(first.get_lines()) == 5  # the two seeds of STE, thin
    assert lines_on(second) == {"STE 1:8": ([10, 20, 30], [7, 8, 9])}


def test_figure_of_layers(tmp_path: Path) -> None:
    """Red if a layer is in another's row, its size is not divided by, or seeds are not averaged.

    Layer a, first interval: (32 + 64) / 2 of 64 entries is 75%.
    """
    figure = figures.draw_layers(for_figures(tmp_path))
    assert figure is not None
    axis, colors = figure.axes
    assert axis.get_title() == "STE 2:4"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    (image,) = axis.get_images()
    np.testing.assert_allclose(image.get_array(), [[75.0, 12.5], [6.25, 6.25]])
    assert "%" in colors.get_ylabel()


def test_figure_of_scores(tmp_path: Path) -> None:
    """Red if a loss is drawn where a score was logged, or ASP's curve begins at its second half."""
    figure = figures.draw_scores(for_figures(tmp_path))
    assert figure is not None
    (axis,) = figure.axes
    found = lines_on(axis)
    assert found["dense"] == ([20, 40], [10.0, 20.0])
    assert found["ASP 2:4"] == ([10, 40], [5.0, 15.0])
    assert axis.get_ylabel() == "bleu on the validation set"


def test_figure_of_scores_from_losses(tmp_path: Path) -> None:
    """Red if what is drawn is called a score where it is the loss."""
    folder = left(tmp_path / "d", "dense", 1, score=1.0, logged=[{"step": 5, "eval_loss": 2.0}])
    figure = figures.draw_scores(read_finished([folder], LOG))
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "loss on the validation set"
    assert lines_on(figure.axes[0]) == {"dense": ([5], [2.0])}


def test_figure_of_decays(tmp_path: Path) -> None:
    """Red if decays are out of order, STE is not their zero, or the dense level is missing."""
    figure = figures.draw_decays(for_figures(tmp_path))
    assert figure is not None
    axis, right = figure.axes  # 1:8 has no second decay
    assert axis.get_title() == "2:4"
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["0 (STE)", "2e-4", "2e-3"]
    found = lines_on(axis)
    assert found["BLEU"] == ([0, 1, 2], [28.5, 29.5, 29.7])
    assert found["dense"][1] == [30.0, 30.0]
    (points,) = (line for label, line in found.items() if label.startswith("_"))
    assert points == ([0, 0, 1, 2], [28.0, 29.0, 29.5, 29.7])
    assert next(iter(lines_on(right).values())) == ([0, 1, 2], pytest.approx([0.07, 0.006, 0.003]))


def test_figures_are_embedded(tmp_path: Path) -> None:
    """Red if results.md shows a figure that is not there, or an old one is left."""
    folders = [run.folder for run in for_figures(tmp_path)]
    out = tmp_path / "out"
    write_comparison(folders, out, LOG, resamples=10)
    text = (out / "results.md").read_text("utf-8")
    for name in ("sad.png", "sad_layers.png", "scores.png", "decays.png"):
        assert f"]({name})" in text
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    write_comparison([tmp_path / "d"], out, LOG)
    assert {path.name for path in out.glob("*.png")} == {"scores.png"}
    assert "decays.png" not in (out / "results.md").read_text("utf-8")
