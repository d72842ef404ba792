"""``hf-nm report``: how the masks of a finished or running training moved, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import hf_nm
from hf_nm.hub.figures import draw_layer_maps, layer_map, plot_sad
from hf_nm.optim.sad_log import read_history, read_layers


class LayerMovement(NamedTuple):
    """How one weight's mask moved.

    Args:
        name: the parameter's.
        pattern: n:m.
        entries: of the weight.
        last: SAD of the last logging interval, mask entries.
        largest: that of the interval in which it was largest.
        largest_at: the step at which that interval ended.
        from_start: SAD between the start and the last log, mask entries.
    """

    name: str
    pattern: str
    entries: int
    last: int
    largest: int
    largest_at: int
    from_start: int


def report_run(folder: Path, destination: Path) -> tuple[list[LayerMovement], list[Path]]:
    """Read a run's SAD per layer, and draw it.

    Args:
        folder: what a Trainer of this package wrote to: `nm_sad.jsonl`, and a checkpoint for the sizes
            of the weights, in it or in one of its `checkpoint-*`.
        destination: where the figures go: `sad.png` (SAD beside the loss), `sad_layers.png`.

    Returns:
        The layers in the model's order, and the figures.

    Raises:
        FileNotFoundError: there is no SAD per layer, or no sparse checkpoint.
    """
    rows, start = read_layers(folder), read_layers(folder, "sad_init")
    if not rows:
        raise FileNotFoundError(
            f"{folder} has no nm_sad.jsonl with a line, so no masks were followed there; give the "
            "output_dir of a run of NMTrainer, NMCallback or a recipe whose masks move"
        )
    layers = {row.name: row for row in hf_nm.verify(_checkpoint(folder)).layers}
    found = []
    for name in rows[0][1]:
        if name not in layers:
            continue
        curve = [(sads.get(name, 0), step) for step, sads in rows]
        largest, at = max(curve, key=lambda pair: pair[0])
        layer = layers[name]
        found.append(
            LayerMovement(
                name,
                str(layer.pattern),
                math.prod(layer.shape),
                curve[-1][0],
                largest,
                at,
                start[-1][1].get(name, 0),
            )
        )
    destination.mkdir(parents=True, exist_ok=True)
    paths = [destination / "sad.png", destination / "sad_layers.png"]
    plot_sad(read_history(folder), paths[0], title=folder.name)
    drawn: Any = layer_map(folder, {row.name: row.entries for row in found})
    draw_layer_maps({folder.name: drawn}).savefig(paths[1], dpi=120)
    return found, paths


def _checkpoint(folder: Path) -> Path:
    """The run's checkpoint: the folder itself, or the newest of its `checkpoint-*`."""
    within = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    for place in (folder, *reversed(within)):
        if any(place.glob("*.safetensors")):
            return place
    raise FileNotFoundError(
        f"{folder} has no checkpoint, neither itself nor in a checkpoint-*, so the sizes of its weights "
        "are not known; let the run save one (save_strategy, trainer.save_model)"
    )
