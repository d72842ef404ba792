"""What is trained: a detector of a checkpoint, or from scratch, and its image processor."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from annotated import Annotated
from boxed_rows import AnnotatedRows
from detection_options import DetectionArguments
from images import Scaled
from model import start
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    PreTrainedModel,
)

from hf_nm.experiments.options import opened
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.rule import find_targets

MEASURED = 500  # images that a new processor's mean and deviation are of
TOKENS_STD = 0.2  # of a new YOLOS's tokens


class WholeImages(Scaled):
    """A detector's processor: the whole image scaled, to one size or keeping its shape.

    Args:
        processor: an image processor of transformers, with either backend.

    Attributes:
        size: height and width of what it gives; of a wide image where `one_size` is false.
        one_size: whether all images come out alike.

    Raises:
        ValueError: it crops or pads, so that a box is elsewhere in what it gives; or its pixels are not
            a linear function of the image's.
    """

    def __init__(self, processor: Any) -> None:
        self.processor, self.keeps_size = processor, False
        white = self._processed(Image.new("RGB", (300, 200), "white"))
        if np.ptp(white, axis=(1, 2)).max() > 0.05:  # there is black beside it
            raise ValueError(
                f"{type(processor).__name__} pads an image, so its boxes would be elsewhere; set "
                "do_pad to false in preprocessor_config.json (a batch is padded here, with a mask)."
            )
        self.scale, self.shift = self._normalisation()
        self.size = self(Image.new("RGB", (96, 64))).shape[:2]
        self.one_size = self(Image.new("RGB", (64, 160))).shape[:2] == self.size
        noise = np.random.default_rng(0).integers(0, 256, (*self.size, 3), dtype=np.uint8)
        same = np.array_equal(self(Image.fromarray(noise)), noise)
        self.keeps_size = self.one_size and same


def load_processor(recipe: DetectionArguments, rows: AnnotatedRows) -> Any:
    """The checkpoint's image processor, or a new one of the model's kind: the whole image scaled to one
    size, the channels normalised by their mean and deviation over the training images.

    Args:
        recipe: names the checkpoint, or the size.
        rows: the training images.
    """
    if recipe.model_name_or_path:
        return opened(AutoImageProcessor, "model_name_or_path", recipe.model_name_or_path)
    height, width = recipe.height_and_width
    name = str(recipe.config_name)
    known = Path(name).is_dir() or "/" in name
    config = opened(AutoConfig, "config_name", name) if known else AutoConfig.for_model(name)
    chosen = np.unique(np.linspace(0, len(rows) - 1, MEASURED).astype(int))
    size = width, height
    pixels = np.stack([np.asarray(rows.open(int(i)).resize(size)) for i in chosen]) / 255
    made = {
        "size": {"height": height, "width": width},
        "do_pad": False,
        "image_mean": [round(float(value), 4) for value in pixels.mean((0, 1, 2))],
        # images of one colour have no deviation
        "image_std": [max(round(float(value), 4), 0.01) for value in pixels.std((0, 1, 2))],
    }
    # transformers picks the class that belongs to the model, with the backend that a reader gets
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"model_type": config.model_type}))
        Path(folder, "preprocessor_config.json").write_text(json.dumps(made))
        return AutoImageProcessor.from_pretrained(folder)


def load_model(recipe: DetectionArguments, data: Annotated) -> PreTrainedModel:
    """The model, with a head for the data's classes.

    Raises:
        ValueError: the checkpoint has a head of other classes, or an option is wrong.
    """
    head: dict[str, Any] = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: i for i, label in enumerate(data.labels)},
    }
    sizes = {"image_size": list(recipe.height_and_width)} if recipe.config_name else {}
    model = start(
        AutoModelForObjectDetection,
        recipe,
        head,
        sizes,
        lambda source: _check_head(source, recipe, data),
        new_head=recipe.ignore_mismatched_sizes,
    )
    if recipe.config_name:
        _spread_tokens(model)
    return model


def sparsify(recipe: DetectionArguments, model: PreTrainedModel) -> None:
    """Make the detector sparse in place: what hf_nm's rule finds, and with `--sparse_backbone` every
    convolution of the backbone whose input channels m divides.

    The rule alone leaves convolutions beside linear layers dense. Batch norms are frozen or not as the
    model has them.

    Raises:
        ValueError: as :meth:`SparseArguments.sparsify`; or no backbone is there to be left dense.
    """
    backbones = tuple(
        name for name, _ in model.named_modules() if name.rpartition(".")[2] == "backbone"
    )
    if not backbones and not recipe.sparse_backbone:
        raise ValueError(
            f"--sparse_backbone False does nothing: {type(model).__name__} has no backbone apart from "
            "its transformer; leave it out."
        )
    if not recipe.sparse or getattr(model.config, "nm_sparsity", None) or not backbones:
        recipe.sparsify(model)
        return
    inside = tuple(f"{name}." for name in backbones)
    pattern = NMPattern(recipe.n, recipe.m)
    found = {target.name.rpartition(".")[0] for target in find_targets(model, pattern)[0]}
    if recipe.sparse_backbone:
        for name, module in model.named_modules():
            if not (isinstance(module, nn.Conv2d) and name.startswith(inside)):
                continue
            if module.in_channels != 3 and module.weight.shape[1] % recipe.m == 0:
                found.add(name)
    else:
        found = {name for name in found if not name.startswith(inside)}
    recipe.sparsify(model, targets=lambda name, _: name in found)


def _spread_tokens(model: nn.Module) -> None:
    """Tell a new YOLOS's detection tokens and positions apart: transformers begins both with zeros, as
    they come from a checkpoint, and equal tokens find the same box for a long time."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("detection_tokens", "position_embeddings")) and not parameter.any():
                nn.init.normal_(parameter, std=TOKENS_STD)


def _check_head(source: str, recipe: DetectionArguments, data: Annotated) -> None:
    """Raise unless the checkpoint has no head yet, one for these classes, or is to get a new one."""
    config = opened(AutoConfig, "model_name_or_path", source)
    if not any("ForObjectDetection" in name for name in config.architectures or []):
        return
    had, has = list(map(str, config.id2label.values())), data.labels
    alike = {*map(str.casefold, had)} == {*map(str.casefold, has)}
    if not alike and not (recipe.ignore_mismatched_sizes and len(had) != len(has)):
        raise ValueError(
            f"{source} is a detector of {len(had)} classes ({', '.join(had[:20])}), but {data.task} has "
            f"{len(has)} ({', '.join(has[:20])}); name the classes alike (another number of them: "
            "--ignore_mismatched_sizes True makes a new head)."
        )
