"""What can be set: this recipe's options, read from a YAML file and the command line."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

from hf_nm.experiments import options as recipe_options
from hf_nm.experiments.options import within

CONFIGS = Path(__file__).parent / "configs"
METRICS = ("accuracy", "f1", "matthews_correlation", "pearsonr", "spearmanr")


@dataclass
class RecipeArguments(recipe_options.SparseArguments):
    """What this recipe adds to transformers' `TrainingArguments`."""

    task: str = field(
        default="embedded",
        metadata={
            "help": "sst2, cola, mrpc, rte, qnli, qqp, mnli, stsb, ag_news, trec (from the Hub, or "
            "its columns and metrics for local files), embedded, or any name for local files"
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": ".tsv, .csv or .jsonl; .gz too; needs --test_file"}
    )
    validation_file: str | None = field(default=None)
    test_file: str | None = field(default=None, metadata={"help": "what is scored"})
    validation_rows: int = field(
        default=500, metadata={"help": "taken out of the training rows if there is no validation"}
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "one or two columns; the task's own if not given"}
    )
    label_column: str | None = field(default=None, metadata={"help": "label if not given"})
    metrics: list[str] | None = field(
        default=None, metadata={"choices": METRICS, "help": "their mean is the score"}
    )
    positive_label: str | None = field(
        default=None, metadata={"help": "the class that f1 is of, if it is not 1 or the task's"}
    )
    regression: bool = field(default=False, metadata={"help": "labels are numbers to predict"})

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "a checkpoint, pretrained or fine-tuned"}
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "from scratch: a model type such as bert, or a checkpoint's config"},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "for --config_name: hidden_size=128,num_hidden_layers=2"}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "the checkpoint's if not given; from scratch one is trained"},
    )
    vocab_size: int = field(default=8000, metadata={"help": "of a tokenizer that is trained"})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "a new head for a checkpoint of another task"}
    )
    max_length: int = field(default=128, metadata={"help": "tokens; longer texts are cut"})

    dense_run: str | None = field(
        default=None, metadata={"help": "output directory of the dense run, for the card"}
    )
    arm: str | None = field(
        default=None, metadata={"help": "name in tables; made of method and options if not given"}
    )

    def check(self, arguments: TrainingArguments) -> None:
        """Raise for options that cannot work."""
        super().check(arguments)
        within(self, 6, None, "vocab_size")  # the 5 special tokens and one of the text
        within(self, 3, None, "max_length")  # a token between two special ones
        within(self, 1, None, "validation_rows")


def parse(argv: list[str]) -> tuple[RecipeArguments, TrainingArguments]:
    """Options from a YAML file, if one comes first (or embedded.yaml), then the command line's."""
    kinds = (RecipeArguments, TrainingArguments)
    recipe, arguments = recipe_options.parse(argv, kinds, CONFIGS / "embedded.yaml")
    return recipe, arguments
