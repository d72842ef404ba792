"""How good found boxes are: mean average precision by pycocotools, and images with boxes drawn."""

import contextlib
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from boxed_rows import AnnotatedRows
from detection_batches import BoxedPixels, StackBoxed
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from transformers.utils.logging import tqdm

METRICS = ("mAP", "mAP@50", "mAP@75", "mAP small", "mAP medium", "mAP large")
IMAGES_A_ROW, TILE = 4, 320  # pixels
TRUTH, FOUND = (30, 160, 60), (220, 40, 40)


@torch.inference_mode()
def detections(
    model: nn.Module, processor: Any, images: BoxedPixels, batch_size: int, quiet: bool = False
) -> list[dict[str, np.ndarray]]:
    """What a detector finds, by the processor's own post-processing, however low its score.

    Args:
        model: in evaluation mode.
        processor: its image processor.
        images: of one split.
        batch_size: images at a time, where all are scaled to one size; else one at a time, as a
            pipeline sees them.
        quiet: no progress bar.

    Returns:
        For each image `boxes` ``[found, 4]`` (left, top, width, height in its pixels), `labels` and
        `scores` ``[found]``.
    """
    stack, device = StackBoxed(images.scaled, model), next(model.parameters()).device
    step = batch_size if images.scaled.one_size else 1
    found = []
    starts = tqdm(
        range(0, len(images), step), desc="scoring", unit="batch", disable=quiet, leave=False
    )
    for start in starts:
        numbers = range(start, min(start + step, len(images)))
        batch = stack([images[i] for i in numbers])
        seen = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        sizes = torch.tensor([images.rows.sizes[i][::-1] for i in numbers], device=device)
        outputs = model(**seen)
        for each in processor.post_process_object_detection(
            outputs, threshold=0.0, target_sizes=sizes
        ):
            boxes = each["boxes"].float().cpu().numpy().astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            labels, scores = (each[key].cpu().numpy() for key in ("labels", "scores"))
            found.append({"boxes": boxes, "labels": labels, "scores": scores})
    return found


def mean_average_precision(
    rows: AnnotatedRows, labels: list[str], found: list[dict[str, np.ndarray]]
) -> dict[str, float]:
    """COCO's scores, by pycocotools' COCOeval.

    Args:
        rows: the images with their true boxes.
        labels: names of the classes by their number.
        found: as :func:`detections` gives it.

    Returns:
        `mAP` (mean over IoU 0.5 to 0.95), `mAP@50`, `mAP@75`, those of small, medium and large boxes,
        and `AP NAME` of each class: 0 to 1. What has no true box is left out.
    """
    number = {label: i for i, label in enumerate(labels)}
    truth = []
    for i, (boxes, names, crowds) in enumerate(
        zip(rows.boxes, rows.labels, rows.crowds, strict=True)
    ):
        for box, name, crowd in zip(boxes.tolist(), names, crowds, strict=True):
            truth.append(_annotation(i, number[name], box) | {"iscrowd": int(crowd)})
    guesses = [
        _annotation(i, int(label), box) | {"score": float(score)}
        for i, image in enumerate(found)
        for box, label, score in zip(
            image["boxes"].tolist(), image["labels"], image["scores"], strict=True
        )
        if label < len(labels)
    ]
    for annotations in (truth, guesses):
        for i, annotation in enumerate(annotations, 1):  # 0 is no annotation to COCOeval
            annotation["id"] = i
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        score = COCOeval(_coco(rows, labels, truth), _coco(rows, labels, guesses), "bbox")
        score.evaluate()
        score.accumulate()
        score.summarize()
    scores = {name: float(value) for name, value in zip(METRICS, score.stats, strict=False)}
    precision = score.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all areas
    for i, label in enumerate(labels):
        known = precision[:, :, i][precision[:, :, i] > -1]
        scores[f"AP {label}"] = float(known.mean()) if len(known) else -1.0
    return {name: value for name, value in scores.items() if value >= 0}  # -1: no true box


def signature(task: str, test: str, images: int) -> str:
    """Says how a score was computed."""
    return f"{task}|{test}|images:{images}|COCOeval bbox|pycocotools:{version('pycocotools')}"


def draw_samples(
    path: str | Path,
    rows: AnnotatedRows,
    labels: list[str],
    found: list[dict[str, np.ndarray]],
    count: int,
    lowest: float,
) -> None:
    """Draw test images into one PNG: true boxes in green, found ones in red with class and score.

    Args:
        path: of the PNG file.
        rows: the images, the first `count` of which are drawn.
        labels: names of the classes by their number.
        found: as :func:`detections` gives it.
        count: images.
        lowest: the score from which a found box is drawn.
    """
    count = min(count, len(rows))
    sheet = Image.new("RGB", (TILE * min(count, IMAGES_A_ROW), TILE * -(-count // IMAGES_A_ROW)))
    for i in range(count):
        image = rows.open(i)
        factor = TILE / max(image.size)
        tile = image.resize((round(image.width * factor), round(image.height * factor)))
        pen = ImageDraw.Draw(tile)
        for box in rows.boxes[i]:
            pen.rectangle(_corners(box, factor), outline=TRUTH, width=2)
        kept = found[i]["scores"] >= lowest
        for box, label, score in zip(*(found[i][key][kept] for key in FOUND_KEYS), strict=True):
            left, top, right, bottom = _corners(box, factor)
            pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=FOUND, width=1)
            pen.text((left + 2, max(0, top - 11)), f"{labels[int(label)]} {score:.2f}", fill=FOUND)
        sheet.paste(tile, (TILE * (i % IMAGES_A_ROW), TILE * (i // IMAGES_A_ROW)))
    sheet.save(path)


FOUND_KEYS = ("boxes", "labels", "scores")


def _corners(box: Any, factor: float) -> tuple[float, float, float, float]:
    left, top, width, height = (float(value) * factor for value in box)
    return left, top, left + width, top + height


def _annotation(image: int, label: int, box: list[float]) -> dict[str, Any]:
    area = box[2] * box[3]
    return {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}


def _coco(rows: AnnotatedRows, labels: list[str], annotations: list[dict]) -> COCO:
    made = COCO()
    made.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(rows))],
        "categories": [{"id": i, "name": label} for i, label in enumerate(labels)],
        "annotations": annotations,
    }
    made.createIndex()
    return made
