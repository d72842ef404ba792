"""The vision recipes on toys: tiny models, a few updates, a few images in folders."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import recipe_loading
from PIL import Image
from recipe_loading import VISION

classify = partial(recipe_loading.run, "vision", script="classify")
detect = partial(recipe_loading.run, "vision", script="detect")

PLAIN = VISION / "configs" / "cifar_resnet20.yaml"
RESNET = '{"embedding_size":8,"hidden_sizes":[8,16],"depths":[1,1],"layer_type":"basic"}'
SHORT = "--max_steps 6 --logging_steps 1 --eval_strategy steps --eval_steps 3 --warmup_steps 2"
SHORT += " --per_device_train_batch_size 8 --per_device_eval_batch_size 8 --image_size 16"
SHORT += " --crop_padding 2 --disable_tqdm true"
COLOURS = {"blue": (40, 60, 200), "red": (200, 60, 40)}


def coloured(colour: str, number: int, side: int = 16) -> Image.Image:
    """A noisy image of a colour, always the same one for a number."""
    noise = np.random.default_rng(number).normal(0, 30, size=(side, side, 3))
    pixels = np.array(COLOURS[colour]) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> dict[str, Any]:
    """An image as a row of `datasets.Image(decode=False)`: the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def toy_folders(folder: Path, side: int = 16) -> list[str]:
    """40 red and blue images to train on, 8 for validation, 16 to score: the options that name them."""
    options = []
    for split, count in {"train": 20, "validation": 4, "test": 8}.items():
        for colour in COLOURS:
            inner = folder / split / colour
            inner.mkdir(parents=True)
            for i in range(count):
                coloured(colour, i + 100 * len(split), side).save(inner / f"{i:02}.png")
        options += [f"--{split}_data", str(folder / split)]
    return options
