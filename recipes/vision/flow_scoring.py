"""How far a flow is from the truth: the loss, the predictions of whole frames, and their errors."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from flow_batches import UNKNOWN, patches
from flow_data import Pairs
from torch import nn
from transformers.utils.logging import tqdm

OVERLAP = 0.25  # of a tile's side, at least
FAR = 3.0  # pixels; a pixel whose error is larger is an outlier


def end_point_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    scale: float,
) -> torch.Tensor:
    """The mean end-point error in pixels, over the pixels of the whole update whose flow is known.

    Args:
        outputs: a model output with `logits` [batch, height, width, 2].
        labels: of that shape, in pixels; `UNKNOWN` in both components where the flow is not known.
        num_items_in_batch: known components of the whole update, two a pixel, over accumulation and
            processes.
        scale: pixels of one unit of the model's output.
    """
    known = (labels != UNKNOWN).all(-1)
    errors = torch.linalg.vector_norm(outputs["logits"].float() * scale - labels, dim=-1)
    total = torch.where(known, errors, 0).sum()
    count = known.sum() if num_items_in_batch is None else num_items_in_batch / 2
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def starts(whole: int, side: int) -> list[int]:
    """Where tiles of a side begin, so that they cover the whole and overlap by a quarter or more."""
    if whole < side:
        raise ValueError(f"{whole} pixels hold no tile of {side}")
    step = max(1, int(side * (1 - OVERLAP)))
    count = 1 + -(-(whole - side) // step)
    return [int(start) for start in np.linspace(0, whole - side, count).round()]


@torch.no_grad()
def predict(
    model: nn.Module,
    first: np.ndarray,
    second: np.ndarray,
    *,
    size: tuple[int, int],
    scale: float,
    batch_size: int = 8,
) -> np.ndarray:
    """The flow of a pair of frames of any size from the model's up.

    Larger frames are cut into overlapping tiles of the model's size; where tiles overlap, their flows
    are averaged, each weighted by the distance to its own rim, as in DeepMind's code.

    Args:
        model: gives `logits` [batch, height, width, 2] of a size.
        first, second: uint8 ``[height, width, 3]``.
        size: height and width that the model sees.
        scale: pixels of one unit of its output.
        batch_size: tiles at a time.

    Returns:
        float32 ``[height, width, 2]``, in pixels.
    """
    device = next(model.parameters()).device
    frames = np.stack([first, second])
    corners = [
        (top, left)
        for top in starts(first.shape[0], size[0])
        for left in starts(first.shape[1], size[1])
    ]
    near = [np.minimum(np.arange(side) + 1, side - np.arange(side)) for side in size]
    weight = np.minimum(near[0][:, None], near[1][None])[..., None].astype(np.float32)
    total = np.zeros((*first.shape[:2], 2), np.float32)
    weights = np.zeros((*first.shape[:2], 1), np.float32)
    for i in range(0, len(corners), batch_size):
        chosen = corners[i : i + batch_size]
        cut = [frames[:, y : y + size[0], x : x + size[1]] for y, x in chosen]
        inputs = patches(torch.from_numpy(np.stack(cut)).to(device))
        flows = model(inputs=inputs)["logits"].float().cpu().numpy() * scale
        for (y, x), flow in zip(chosen, flows, strict=True):
            total[y : y + size[0], x : x + size[1]] += weight * flow
            weights[y : y + size[0], x : x + size[1]] += weight
    return total / weights


def mean_flow(pairs: Pairs, quiet: bool = False) -> np.ndarray:
    """The mean of all known flow of a split: float64 ``[2]``, in pixels."""
    total, count = np.zeros(2), 0
    rows = tqdm(range(len(pairs)), desc="mean flow", unit="pair", disable=quiet, leave=False)
    for i in rows:
        flow = pairs.open(i)[2]
        known = flow[~np.isnan(flow).any(-1)]
        total, count = total + known.sum(0, dtype=np.float64), count + len(known)
    return total / count


def errors(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """End-point errors of the pixels whose flow is known, in pixels: ``[known]``."""
    known = ~np.isnan(truth).any(-1)
    return np.linalg.norm((flow - truth)[known], axis=-1)


def score(
    model: nn.Module,
    pairs: Pairs,
    constants: dict[str, np.ndarray],
    *,
    size: tuple[int, int],
    scale: float,
    batch_size: int = 8,
    quiet: bool = False,
) -> dict[str, float]:
    """End-point errors over all known pixels of a split, of the model and of constant flows.

    Args:
        model, size, scale, batch_size: see :func:`predict`.
        pairs: of the split, in their full size.
        constants: by name a flow ``[2]`` that is predicted everywhere.
        quiet: no progress bar.

    Returns:
        `epe` in pixels and `outliers`, the share of pixels with an error above 3 pixels; the same for
        each constant as `epe_<name>` and `outliers_<name>`.
    """
    count = 0
    sums = {key: np.zeros(2) for key in ("", *(f"_{name}" for name in constants))}
    for first, second, truth in _opened(pairs, size, quiet):
        flow = predict(model, first, second, size=size, scale=scale, batch_size=batch_size)
        guesses = {"": flow} | {f"_{name}": value for name, value in constants.items()}
        for key, guess in guesses.items():
            found = errors(np.broadcast_to(guess, truth.shape), truth)
            sums[key] += (found.sum(dtype=np.float64), (found > FAR).sum())
        count += len(found)
    means = {key: value / count for key, value in sums.items()}
    return {
        f"{what}{key}": float(means[key][column])
        for key in sums
        for column, what in enumerate(("epe", "outliers"))
    }


def _opened(pairs: Pairs, size: tuple[int, int], quiet: bool) -> Iterator[Any]:
    for i in tqdm(range(len(pairs)), desc="scoring", unit="pair", disable=quiet, leave=False):
        yield pairs.open(i, size)
