"""What can be set for optical flow: options read from a YAML file and the command line."""

from dataclasses import dataclass, field, fields

from flow_data import PASSES
from options import CONFIGS, VisionArguments
from transformers import TrainingArguments

from hf_nm.experiments import options as recipe_options
from hf_nm.experiments.options import within

FOLDERS = "a folder in the form of FlyingChairs or of MPI Sintel's training data"
# Options of every image recipe that mean nothing here: flow is read from folders alone, Perceiver has no
# convolutions, and distillation compares the probabilities of classes.
NO_EFFECT = (
    *("dataset_name", "dataset_config_name", "test_split", "image_column", "channels_last"),
    *("image_memory", "teacher", "distillation_weight", "temperature", "hidden_weight"),
)


@dataclass
class FlowArguments(VisionArguments):
    """Options of optical flow."""

    train_data: str | None = field(
        default=None, metadata={"help": f"{FOLDERS}; needs --test_data; textures if not given"}
    )
    test_data: str | None = field(default=None, metadata={"help": f"{FOLDERS}, which is scored"})
    sintel_pass: str = field(
        default="clean", metadata={"help": "frames of MPI Sintel", "choices": list(PASSES)}
    )
    validation_rows: int = field(
        default=64, metadata={"help": "taken out of the training pairs if there is no validation"}
    )
    flow_scale: float | None = field(
        default=None,
        metadata={
            "help": "pixels of one unit of the model's output; the checkpoint's, or 20 as DeepMind's"
        },
    )
    shown_pairs: int = field(default=4, metadata={"help": "test pairs drawn into flow.png"})

    def check(self, arguments: TrainingArguments) -> None:
        """Raise for options that cannot work."""
        super().check(arguments)
        within(self, 1, None, "validation_rows", "shown_pairs")
        if self.flow_scale is not None and self.flow_scale <= 0:
            raise ValueError(f"--flow_scale is {self.flow_scale}; it must be above 0.")
        if arguments.label_smoothing_factor:
            raise ValueError("--label_smoothing_factor is for classes; leave it out for flow.")
        defaults = {each.name: each.default for each in fields(self)}
        for name in NO_EFFECT:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{name} does nothing for optical flow; leave it out.")


def parse(argv: list[str]) -> tuple[FlowArguments, TrainingArguments]:
    """Options from a YAML file, if one comes first (or flow_quick.yaml), then the command line's."""
    kinds = (FlowArguments, TrainingArguments)
    recipe, arguments = recipe_options.parse(argv, kinds, CONFIGS / "flow_quick.yaml")
    if recipe.model_name_or_path and "--config_name" not in argv:
        recipe.config_name = recipe.config_overrides = (
            None  # the command line takes the file's place
        )
    return recipe, arguments
