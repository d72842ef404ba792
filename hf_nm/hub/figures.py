"""Plots, drawn with matplotlib where it is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_nm.optim.sad_log import sad_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank_figure(path: str | Path) -> Figure:
    """What a plot is drawn on, before it is saved to `path`.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"drawing {path} needs {error.name}, which is missing: pip install 'hf_nm[recipes]'"
        ) from error

    # Figure and canvas directly, not pyplot: no global state, no display, no change of the user's
    # backend.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_sad(
    log_history: Sequence[dict], path: str | Path, title: str = "", loss_unit: str = "nats"
) -> None:
    """Draw SAD of each logging interval (mask entries) beside the training loss into a PNG file.

    A dense run has no SAD: the loss is drawn alone.
    """
    figure = blank_figure(path)
    axis = figure.subplots()
    losses = [(row["step"], row["loss"]) for row in log_history if "loss" in row]
    flips = sad_curve(log_history)
    axis.set_xlabel("step")
    axis.set_ylabel(f"training loss ({loss_unit})")
    if losses:
        axis.plot(*zip(*losses, strict=True), color="tab:gray", label="training loss")
    if flips:
        right = axis.twinx()
        right.plot(*zip(*flips, strict=True), color="tab:red", label="SAD")
        right.set_ylabel("SAD per logging interval (mask entries)", color="tab:red")
        right.set_ylim(bottom=0)
    axis.set_title(title)
    figure.savefig(path, dpi=120)
