"""What can be set: these recipes' options, read from a YAML file and the command line."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from hf_nm.experiments import options as recipe_options
from hf_nm.experiments.options import within

CONFIGS = Path(__file__).parent / "configs"
FORMS = (
    "a folder with a folder of images for each class, .parquet (or a folder of it), or .csv, .tsv, "
)
FORMS += ".jsonl with paths and labels"


@dataclass
class VisionArguments(recipe_options.SparseArguments):
    """What every recipe for images adds to transformers' `TrainingArguments`."""

    task: str | None = field(
        default=None, metadata={"help": "name in tables; the data's if not given"}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "a data set of the Hub, such as uoft-cs/cifar10"}
    )
    dataset_config_name: str | None = field(default=None)
    test_split: str | None = field(
        default=None, metadata={"help": "of the Hub's data set: test, or validation if it has none"}
    )
    train_data: str | None = field(default=None, metadata={"help": f"{FORMS}; needs --test_data"})
    validation_data: str | None = field(default=None)
    test_data: str | None = field(default=None, metadata={"help": "what is scored"})
    image_column: str | None = field(
        default=None, metadata={"help": "found by its kind or name if not given"}
    )
    image_memory: float = field(
        default=2.0,
        metadata={
            "help": "GiB of scaled images kept in memory; more are opened in each epoch anew"
        },
    )

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "a checkpoint, pretrained or fine-tuned"}
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "from scratch: a model type such as resnet, or a checkpoint's config"},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "for --config_name: name=value,name=value, or JSON"}
    )
    channels_last: bool = field(
        default=True, metadata={"help": "convolutions in that memory layout, which is faster"}
    )
    momentum: float = field(default=0.9, metadata={"help": "of --optim sgd"})

    dense_run: str | None = field(
        default=None, metadata={"help": "output directory of the dense run, for the card"}
    )
    arm: str | None = field(
        default=None, metadata={"help": "name in tables; made of method and options if not given"}
    )

    @property
    def data(self) -> dict[str, str | None]:
        """Local data by split."""
        return {
            "train": self.train_data,
            "validation": self.validation_data,
            "test": self.test_data,
        }

    def optimizer(self, arguments: TrainingArguments) -> dict:
        """The Trainer's keyword for SGD with momentum, which `--optim sgd` alone has not in every
        version; none for another optimizer."""
        if arguments.optim != "sgd":
            return {}
        options = {"lr": arguments.learning_rate, "momentum": self.momentum}
        return {"optimizer_cls_and_kwargs": (torch.optim.SGD, options)}

    def check(self, arguments: TrainingArguments) -> None:
        """Raise for options that cannot work."""
        super().check(arguments)
        within(self, 0, 1, "momentum")
        within(self, 0, None, "image_memory")
        if self.dataset_name and any(self.data.values()):
            raise ValueError("--dataset_name and --train_data exclude each other; give one.")
        if bool(self.model_name_or_path) == bool(self.config_name):
            raise ValueError(
                "give --model_name_or_path (a checkpoint) or --config_name (from scratch), one of them; "
                "the shipped files of options have one."
            )


@dataclass
class ClassificationArguments(VisionArguments):
    """Options of image classification."""

    label_column: str | None = field(
        default=None, metadata={"help": "found by its kind or name if not given"}
    )
    validation_rows: int = field(
        default=500, metadata={"help": "taken out of the training rows if there is no validation"}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "a new head for a checkpoint of other classes"}
    )
    image_size: int = field(
        default=224, metadata={"help": "pixels a side, from scratch; a checkpoint has its own"}
    )
    shown: float = field(
        default=1.0,
        metadata={"help": "share of the shorter side that the middle crop shows in evaluation"},
    )
    crop_padding: int = field(
        default=0, metadata={"help": "black pixels around, of which a random crop is taken"}
    )
    flip: bool = field(default=False, metadata={"help": "mirror every second image, by chance"})
    min_crop_area: float = field(
        default=1.0,
        metadata={
            "help": "random crops of this share of the area and more, scaled; ImageNet: 0.08"
        },
    )

    def check(self, arguments: TrainingArguments) -> None:
        """Raise for options that cannot work."""
        super().check(arguments)
        within(self, 1, None, "validation_rows", "image_size")
        within(self, 0, None, "crop_padding")
        for name in ("shown", "min_crop_area"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"--{name} is {getattr(self, name)}; it must be above 0, at most 1."
                )


def parse(argv: list[str]) -> tuple[ClassificationArguments, TrainingArguments]:
    """Options from a YAML file, if one comes first (or quick.yaml), then the command line's."""
    kinds = (ClassificationArguments, TrainingArguments)
    recipe, arguments = recipe_options.parse(argv, kinds, CONFIGS / "quick.yaml")
    if recipe.model_name_or_path and "--config_name" not in argv:
        recipe.config_name = recipe.config_overrides = (
            None  # the command line takes the file's place
        )
    return recipe, arguments
