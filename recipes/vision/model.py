"""What is trained: an image classifier of a checkpoint, or from scratch, and its image processor."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from images import Scaled
from labelled import Labelled, LabelledRows
from options import ClassificationArguments, VisionArguments
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.utils.import_utils import is_torchvision_available

from hf_nm.experiments.options import new_config, opened

MEASURED = 2000  # images that a new processor's mean and deviation are of

# `--config_name cifar_resnet`; its checkpoints take their class along.
AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig, exist_ok=True)
AutoModelForImageClassification.register(
    CifarResNetConfig, CifarResNetForImageClassification, exist_ok=True
)
CifarResNetConfig.register_for_auto_class()
CifarResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")


def load_processor(recipe: ClassificationArguments, rows: LabelledRows) -> Any:
    """The checkpoint's image processor, or a new one: the shorter side scaled, the middle cropped, the
    channels normalised by their mean and deviation over the training images.

    Args:
        recipe: names the checkpoint, or the size.
        rows: the training images.
    """
    if recipe.model_name_or_path:
        return opened(AutoImageProcessor, "model_name_or_path", recipe.model_name_or_path)
    size = recipe.image_size
    made = _scaling_class()(
        size={"shortest_edge": round(size / recipe.shown)},
        crop_size={"height": size, "width": size},
    )
    scaled = Scaled(made)
    chosen = np.unique(np.linspace(0, len(rows) - 1, MEASURED).astype(int))
    pixels = np.stack([scaled(rows.open(int(i))) for i in chosen]) / 255
    made.image_mean = [round(float(value), 4) for value in pixels.mean((0, 1, 2))]
    # images of one colour have no deviation
    made.image_std = [max(round(float(value), 4), 0.01) for value in pixels.std((0, 1, 2))]
    return made


def _scaling_class() -> Any:
    """The processor that scales the shorter side and crops, with the backend that a reader gets."""
    pillow = getattr(transformers, "BitImageProcessorPil", None)
    if pillow is None or is_torchvision_available():  # transformers 5.0 has one, on Pillow
        return transformers.BitImageProcessor
    return pillow


def load_model(recipe: ClassificationArguments, data: Labelled) -> PreTrainedModel:
    """The model, with a head for the data's classes.

    Raises:
        ValueError: the checkpoint has a head of other classes, or an option is wrong.
    """
    head: dict[str, Any] = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: i for i, label in enumerate(data.labels)},
        "problem_type": "single_label_classification",
    }
    return start(
        AutoModelForImageClassification,
        recipe,
        head,
        {"image_size": recipe.image_size},
        lambda source: _check_head(source, recipe, data),
        new_head=recipe.ignore_mismatched_sizes,
    )


def start(
    auto: Any,
    recipe: VisionArguments,
    head: dict[str, Any],
    sizes: dict[str, Any],
    check: Callable[[str], None],
    *,
    new_head: bool,
) -> PreTrainedModel:
    """A model from scratch or of a checkpoint, in the memory layout that was asked for.

    Args:
        auto: transformers' Auto class.
        recipe: names the config, or the checkpoint.
        head: what the config says of classes.
        sizes: of a config from scratch, where it has them.
        check: raises where a checkpoint's head is another one.
        new_head: whether a head of another size is replaced.

    Raises:
        ValueError: an option is wrong, or what `check` raises.
    """
    if recipe.config_name:
        config = new_config(recipe.config_name, recipe.config_overrides, head, sizes)
        config.architectures = (
            config.architectures or []
        )  # transformers looks for DeiT's among them
        try:
            model = auto.from_config(config)
        except (TypeError, ValueError, IndexError, ZeroDivisionError, ImportError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            given = (
                f"--config_name {recipe.config_name} --config_overrides {recipe.config_overrides}"
            )
            raise ValueError(f"{given}: {said}") from error
    else:
        source = str(recipe.model_name_or_path)
        check(source)
        model = opened(
            auto,
            "model_name_or_path",
            source,
            dtype=torch.float32,  # small updates round away in a bf16 checkpoint's own dtype
            **head,
            ignore_mismatched_sizes=new_head,
        )
    if recipe.channels_last:
        # of four dimensions only: other parameters have no such layout
        model.to(memory_format=torch.channels_last)
    return model


def known_labels(recipe: VisionArguments) -> list[str]:
    """The classes of the checkpoint, in its order; none from scratch."""
    if not recipe.model_name_or_path:
        return []
    config = opened(AutoConfig, "model_name_or_path", recipe.model_name_or_path)
    return list(map(str, config.id2label.values()))


def check_teacher(teacher: str | None, scaled: Scaled, labels: Sequence[str]) -> None:
    """Raise if a teacher sees images in another way than its student, or has other classes."""
    if not teacher:
        return
    theirs = Scaled(opened(AutoImageProcessor, "teacher", teacher))
    alike = torch.allclose(theirs.scale, scaled.scale) and torch.allclose(
        theirs.shift, scaled.shift
    )
    if theirs.size != scaled.size or not alike:
        raise ValueError(
            f"--teacher {teacher}: its image processor gives other pixels ({theirs.size}) than the "
            f"model's ({scaled.size}); train both from one checkpoint, or with one --image_size on the "
            "same training images."
        )
    config = opened(AutoConfig, "teacher", teacher)
    classes = list(map(str, config.id2label.values()))
    if classes != list(labels):
        raise ValueError(
            f"--teacher {teacher}: its classes are {', '.join(classes[:20])}, the data's "
            f"{', '.join(labels[:20])}; train it on the same data."
        )


def _check_head(source: str, recipe: ClassificationArguments, data: Labelled) -> None:
    """Raise unless the checkpoint has no head yet, one for these classes, or is to get a new one."""
    config = opened(AutoConfig, "model_name_or_path", source)
    if not any("ForImageClassification" in name for name in config.architectures or []):
        return
    had, has = list(map(str, config.id2label.values())), data.labels
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in had)
    alike = unnamed or {*map(str.casefold, had)} == {*map(str.casefold, has)}
    new_head = recipe.ignore_mismatched_sizes and len(had) != len(has)
    if not new_head and (len(had) != len(has) or not alike):
        raise ValueError(
            f"{source} is a classifier of {len(had)} labels ({', '.join(had[:20])}), but {data.task} "
            f"has {len(has)} ({', '.join(has[:20])}); start from the pretrained model, or name the "
            "labels alike (another number of them: --ignore_mismatched_sizes True makes a new head)."
        )
