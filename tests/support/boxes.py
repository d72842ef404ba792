"""A few images with boxes, as the detection recipe reads them: COCO json and parquet."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from vision import encoded

CLASSES = ["dark", "bright"]
YOLOS = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,patch_size=8"
YOLOS += ",num_detection_tokens=5,use_mid_position_embeddings=false"
BRIEF = "--max_steps 4 --logging_steps 1 --eval_strategy steps --eval_steps 2 --warmup_steps 1"
BRIEF += " --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --disable_tqdm true"


def boxed(number: int, size: tuple[int, int] = (40, 32)) -> tuple[Image.Image, list, list[int]]:
    """A grey image of a width and height with up to two rectangles: the image, boxes, classes."""
    random = np.random.default_rng(number)
    width, height = size
    pixels = np.full((height, width, 3), 120, np.uint8)
    boxes, classes = [], []
    for half in range(number % 3):  # left half, right half; none in every third image
        left = int(random.integers(0, width // 4)) + half * width // 2
        top = int(random.integers(0, height // 2))
        wide, high = width // 4, int(random.integers(4, height // 2))
        kind = int(random.integers(2))
        pixels[top : top + high, left : left + wide] = (20, 235)[kind]
        boxes.append([left, top, wide, high])
        classes.append(kind)
    return Image.fromarray(pixels), boxes, classes


def coco(folder: Path, count: int = 12, first: int = 0) -> Path:
    """A COCO json with its images beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 + 4 * i, "name": name} for i, name in enumerate(CLASSES)],
    }
    for i in range(count):
        image, boxes, classes = boxed(first + i)
        image.save(folder / f"{i}.png")
        found["images"].append(
            {"id": 100 + i, "file_name": f"{i}.png", "width": image.width, "height": image.height}
        )
        for box, kind in zip(boxes, classes, strict=True):
            found["annotations"].append(
                {
                    "id": len(found["annotations"]) + 1,
                    "image_id": 100 + i,
                    "category_id": 3 + 4 * kind,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    (folder / "annotations.json").write_text(json.dumps(found))
    return folder / "annotations.json"


def parquet(file: Path, count: int = 12, first: int = 0, kind: Any = None) -> Path:
    """The same as the Hub's data sets have it."""
    rows = [boxed(first + i) for i in range(count)]
    kind = kind or ClassLabel(names=CLASSES)
    features = Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.List(datasets.List(Value("float64"))),
                "category": datasets.List(kind),
            },
        }
    )
    named = [
        classes if isinstance(kind, ClassLabel) else [CLASSES[i] for i in classes]
        for _, _, classes in rows
    ]
    table = {
        "image": [encoded(image) for image, _, _ in rows],
        "objects": [
            {"bbox": boxes, "category": classes}
            for (_, boxes, _), classes in zip(rows, named, strict=True)
        ],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(table, features=features).to_parquet(str(file))
    return file


def changed(file: Path, change: Any) -> Path:
    """A copy of a COCO json beside it, changed by a function."""
    found = json.loads(file.read_text())
    change(found)
    copied = file.with_name("changed.json")
    copied.write_text(json.dumps(found))
    return copied
