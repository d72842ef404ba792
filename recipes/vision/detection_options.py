"""What can be set when a detector is trained."""

from dataclasses import dataclass, field

from options import CONFIGS, VisionArguments
from transformers import TrainingArguments

from hf_nm.experiments import options as recipe_options
from hf_nm.experiments.options import within

FORMS = ".json in COCO's form, .parquet, or a folder of .parquet"


@dataclass
class DetectionArguments(VisionArguments):
    """Options of object detection."""

    train_data: str | None = field(default=None, metadata={"help": f"{FORMS}; needs --test_data"})
    train_images: str | None = field(
        default=None,
        metadata={"help": "folder of a COCO json's images; where the json lies if not given"},
    )
    validation_images: str | None = field(default=None)
    test_images: str | None = field(default=None)
    objects_column: str = field(
        default="objects", metadata={"help": "of parquet and the Hub: with bbox and category"}
    )
    validation_rows: int = field(
        default=100, metadata={"help": "taken out of the training rows if there is no validation"}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "a new head for a checkpoint of other classes"}
    )
    image_size: list[int] = field(
        default_factory=lambda: [512],
        metadata={"help": "height and width in pixels, or one for both, from scratch"},
    )
    sparse_backbone: bool = field(
        default=True,
        metadata={"help": "whether the backbone's convolutions become N:M, but for the first"},
    )
    flip: bool = field(default=False, metadata={"help": "mirror every second image, by chance"})
    flip_vertically: bool = field(
        default=False, metadata={"help": "the same upside down, for images without an upside"}
    )
    drawn_images: int = field(
        default=8, metadata={"help": "test images drawn with their boxes into samples.png"}
    )
    drawn_from: float = field(
        default=0.5, metadata={"help": "the score from which a found box is drawn"}
    )

    @property
    def image_folders(self) -> dict[str, str | None]:
        """Where the images of a COCO json lie, by split."""
        return {
            "train": self.train_images,
            "validation": self.validation_images,
            "test": self.test_images,
        }

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Of images from scratch, in pixels."""
        return self.image_size[0], self.image_size[-1]

    def check(self, arguments: TrainingArguments) -> None:
        """Raise for options that cannot work."""
        super().check(arguments)
        within(self, 1, None, "validation_rows")
        within(self, 0, None, "drawn_images", "drawn_from")
        if len(self.image_size) not in (1, 2) or min(self.image_size) < 1:
            raise ValueError(
                f"--image_size is {' '.join(map(str, self.image_size))}; it must be a height and a "
                "width in pixels, or one number for both."
            )
        if self.teacher:
            raise ValueError(
                "--teacher is not for detection: what a query of one model finds need not be what "
                "the same query of another does; leave it out."
            )


def parse(argv: list[str]) -> tuple[DetectionArguments, TrainingArguments]:
    """Options from a YAML file, if one comes first (or detect_quick.yaml), then the command line's."""
    kinds = (DetectionArguments, TrainingArguments)
    recipe, arguments = recipe_options.parse(argv, kinds, CONFIGS / "detect_quick.yaml")
    if recipe.model_name_or_path and "--config_name" not in argv:
        # the command line takes the file's place
        recipe.config_name = recipe.config_overrides = None
    return recipe, arguments
