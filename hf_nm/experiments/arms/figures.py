"""The figures of a comparison: SAD over steps and per layer, the score over steps, the decay's ablation.

Each `draw_` function gives a figure, or None where the runs have nothing for it. Curves are means over
an arm's seeds; where there are several, each seed's is drawn thin behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from hf_nm.experiments.arms.finished import FinishedRun, arms_of
from hf_nm.experiments.arms.table import scale_of
from hf_nm.hub.figures import LayerMap, blank_figure, draw_layer_maps, layer_map
from hf_nm.optim.sad_log import sad_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[int, float]]
MOVING = ("ste", "sr-ste")  # methods whose masks move
NOT_SCORES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
LOSSES = ("eval_nll", "eval_loss")  # what is drawn where no score was logged


def write_figures(runs: Sequence[FinishedRun], folder: str | Path) -> dict[str, str]:
    """Draw what there is into PNG files.

    Returns:
        File name -> what it shows, in the order in which they are to be read.
    """
    drawn: dict[str, tuple[Callable[[Sequence[FinishedRun]], Figure | None], str]] = {
        "sad.png": (draw_sad, "SAD of each logging interval over the steps of training"),
        "sad_layers.png": (
            draw_layers,
            "SAD of each layer and logging interval, in per cent of its entries; one scale for all",
        ),
        "scores.png": (draw_scores, "The validation set over the steps of training"),
        "decays.png": (draw_decays, "The decay: score and flips at the end (STE is a decay of 0)"),
    }
    written = {}
    for name, (draw, caption) in drawn.items():
        figure = draw(runs)
        path = Path(folder) / name
        path.unlink(missing_ok=True)  # of an earlier call, with other runs
        if figure is not None:
            figure.savefig(path, dpi=120)
            written[name] = caption
    return written


def draw_sad(runs: Sequence[FinishedRun]) -> Figure | None:
    """SAD of each logging interval, mask entries, over steps: a panel for each pattern, a line for each
    arm whose masks move."""
    moving = [run for run in runs if run.method in MOVING]
    curves = {
        run.folder: [(step, float(sad)) for step, sad in sad_curve(run.history)] for run in moving
    }
    if not any(curves.values()):
        return None
    patterns = list(dict.fromkeys(run.pattern for run in moving))
    figure = blank_figure("sad.png")
    figure.set_size_inches(5 * len(patterns) + 1, 4)
    axes = figure.subplots(1, len(patterns), squeeze=False)[0]
    for axis, pattern in zip(axes, patterns, strict=True):
        own = [run for run in moving if run.pattern == pattern]
        _lines(
            axis, {arm: [curves[run.folder] for run in each] for arm, each in arms_of(own).items()}
        )
        axis.set_title(pattern)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.legend()
    axes[0].set_ylabel("SAD per logging interval (mask entries)")
    return figure


def draw_layers(runs: Sequence[FinishedRun]) -> Figure | None:
    """SAD of each N:M weight and logging interval, in per cent of its entries, as a heat map for each
    arm whose masks move; mean over its seeds."""
    maps: dict[str, LayerMap] = {}
    for arm, own in arms_of([run for run in runs if run.method in MOVING]).items():
        each = [found for run in own if (found := layer_map(run.folder, run.entries)) is not None]
        same_axes = [found for found in each if found[:2] == each[0][:2]]
        if same_axes:
            mean = torch.stack([values for _, _, values in same_axes]).mean(0)
            maps[arm] = (*same_axes[0][:2], mean)
    if not maps:
        return None
    return draw_layer_maps(maps)


def draw_scores(runs: Sequence[FinishedRun]) -> Figure | None:
    """The score on the validation set over steps, a line for each arm, ASP's after its dense part's
    updates; the loss there where no score was logged on the way."""
    key = _score_key(runs)
    if key is None:
        return None
    figure = blank_figure("scores.png")
    axis = figure.subplots()
    arms = arms_of(runs)
    _lines(axis, {arm: [_evaluated(run, key) for run in own] for arm, own in arms.items()})
    axis.set_xlabel("step")
    axis.set_ylabel(f"{key.removeprefix('eval_')} on the validation set")
    axis.legend()
    return figure


def draw_decays(runs: Sequence[FinishedRun]) -> Figure | None:
    """Score (means as a line, runs as points) and flips per weight and step over SR-STE's decays, STE
    first; a panel for each pattern with at least two of them, the dense arm's mean as a level."""
    panels: dict[str, dict[str, list[FinishedRun]]] = {}
    for run in (run for run in runs if run.method in MOVING):
        at = "0 (STE)" if run.method == "ste" else str(run.decay)
        panels.setdefault(str(run.pattern), {}).setdefault(at, []).append(run)
    panels = {pattern: decays for pattern, decays in panels.items() if len(decays) > 1}
    if not panels:
        return None
    dense = [run.score for run in runs if run.method == "dense"]
    scale, _ = scale_of(runs)
    metric = runs[0].facts["score"]["metric"] + (" x 100" if scale != 1 else "")
    figure = blank_figure("decays.png")
    figure.set_size_inches(5.5 * len(panels) + 1, 4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (pattern, decays) in zip(axes, panels.items(), strict=True):
        order = sorted(decays, key=_place)
        means = [scale * fmean(run.score for run in decays[decay]) for decay in order]
        axis.plot(range(len(order)), means, color="tab:blue", marker="o", label=metric)
        points = [
            (at, scale * run.score) for at, decay in enumerate(order) for run in decays[decay]
        ]
        axis.plot(*zip(*points, strict=True), color="tab:blue", linestyle="", marker=".", alpha=0.5)
        if dense:
            level = scale * fmean(dense)
            axis.axhline(level, color="tab:gray", linestyle="--", label="dense")
        axis.set_xticks([*range(len(order))], order)
        axis.set_xlabel("decay")
        axis.set_ylabel(f"{metric}, test set", color="tab:blue")
        axis.set_title(pattern)
        axis.legend()
        rates = [
            [run.facts["sad"]["mean_flip_rate"] for run in decays[decay] if run.facts.get("sad")]
            for decay in order
        ]
        if all(rates):
            right = axis.twinx()
            right.plot(
                range(len(order)), [fmean(each) for each in rates], color="tab:red", marker="s"
            )
            right.set_ylabel("flips per weight and step", color="tab:red")
            right.set_ylim(bottom=0)
    return figure


def _place(decay: str) -> tuple[int, float, str]:
    """STE, then numbers by their size, then words."""
    if decay.startswith("0 "):
        return 0, 0.0, decay
    try:
        return 1, float(decay), decay
    except ValueError:
        return 2, 0.0, decay


def _lines(axis: Any, arms: Mapping[str, Sequence[Curve]]) -> None:
    """Each arm's mean over its seeds at the steps that all of them have, and its seeds behind it."""
    for number, (arm, curves) in enumerate(arms.items()):
        points = [dict(curve) for curve in curves if curve]
        if not points:
            continue
        color = f"C{number}"
        steps = sorted(set.intersection(*(set(curve) for curve in points)))
        mean = [fmean(curve[step] for curve in points) for step in steps]
        axis.plot(steps, mean, color=color, label=arm, marker="" if len(steps) > 1 else "o")
        if len(points) > 1:
            for curve in points:
                each = [curve[step] for step in sorted(curve)]
                axis.plot(sorted(curve), each, color=color, alpha=0.3, linewidth=0.8)


def _score_key(runs: Sequence[FinishedRun]) -> str | None:
    """What was logged of the validation set: a score before a loss."""
    logged = [
        {key for row in run.history for key in row if key.startswith("eval_")} for run in runs
    ]
    everywhere = set.intersection(*logged) if logged else set()
    scores = sorted(everywhere - {*NOT_SCORES, *LOSSES})
    wanted = f"eval_{str(runs[0].facts['score']['metric']).lower()}"
    return next(
        (key for key in (wanted, *scores, *LOSSES) if key in everywhere),
        None,
    )


def _evaluated(run: FinishedRun, key: str) -> Curve:
    """What was logged under the key at each step, the dense part's first."""
    if run.before is None:
        return [(row["step"], row[key]) for row in run.history if key in row]
    done = run.before.facts["steps"]
    later = [(done + row["step"], row[key]) for row in run.history if key in row]
    return [*_evaluated(run.before, key), *later]
