"""Plots, drawn with matplotlib where it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_nm.optim.sad_log import read_layers, sad_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Weights in the model's order, steps, and a number for each: `[weights, steps]`.
LayerMap = tuple[list[str], list[int], Tensor]


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


def layer_map(folder: str | Path, entries: Mapping[str, int]) -> LayerMap | None:
    """SAD of each weight and logging interval, in per cent of its entries, from a run's `nm_sad.jsonl`.

    Args:
        folder: the run's.
        entries: how many each weight has, by its name; others are left out.

    Returns:
        None where no SAD per layer is left.
    """
    rows = read_layers(folder)
    if not rows:
        return None
    names = [name for name in rows[0][1] if name in entries]
    values = [[100 * sads.get(name, 0) / entries[name] for _, sads in rows] for name in names]
    shown = [name.removeprefix("model.").removesuffix(".weight") for name in names]
    return shown, [step for step, _ in rows], torch.tensor(values)


def draw_layer_maps(maps: Mapping[str, LayerMap]) -> Figure:
    """Heat maps of SAD per layer beside each other, on one scale, each under its title."""
    figure = blank_figure("sad_layers.png")
    longest = max(len(names) for names, _, _ in maps.values())
    figure.set_size_inches(4 + 4 * len(maps), max(3.5, 1.5 + 0.16 * longest))
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    top = max(float(values.max()) for _, _, values in maps.values()) or 1.0
    for number, (axis, (title, (names, steps, values))) in enumerate(
        zip(axes, maps.items(), strict=True)
    ):
        image = axis.imshow(
            values.numpy(), aspect="auto", vmin=0, vmax=top, cmap="viridis", interpolation="nearest"
        )
        axis.set_title(title)
        axis.set_xlabel("step")
        shown = range(0, len(steps), max(1, len(steps) // 5))
        axis.set_xticks([*shown], [str(steps[at]) for at in shown])
        same_names = number > 0 and names == next(iter(maps.values()))[0]
        axis.set_yticks([*range(len(names))], [] if same_names else names, fontsize=6)
    label = "SAD per logging interval (% of the layer's entries)"
    figure.colorbar(image, ax=list(axes), label=label)
    return figure
