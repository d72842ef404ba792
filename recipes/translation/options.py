"""What can be set: this recipe's options, read from a YAML file and the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainingArguments

from hf_nm.experiments import options as recipe_options
from hf_nm.experiments.options import within

SMALLEST_VOCABULARY = 258  # the 256 bytes and the 2 special tokens
CONFIGS = Path(__file__).parent / "configs"


@dataclass
class RecipeArguments(recipe_options.SparseArguments):
    """What this recipe adds to transformers' `Seq2SeqTrainingArguments`."""

    corpus: str = field(default="embedded", metadata={"choices": ["embedded", "files", "wmt14"]})
    train_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "x.en x.de, or one .tsv, .csv or .jsonl; .gz too. Given: corpus is files"
        },
    )
    validation_files: list[str] | None = field(default=None)
    test_files: list[str] | None = field(default=None)
    source_column: str = field(
        default="en", metadata={"help": "name of the source in TSV, CSV and JSONL"}
    )
    target_column: str = field(
        default="de", metadata={"help": "name of the target in TSV, CSV and JSONL"}
    )

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "a run of this recipe of the same sizes, whose model is trained on"},
    )
    dense_run: str | None = field(
        default=None, metadata={"help": "output directory of the dense run, for the card"}
    )
    vocab_size: int = field(default=8000, metadata={"help": "joint byte-level BPE, both languages"})
    d_model: int = field(default=512)
    ffn_dim: int = field(default=2048)
    layers: int = field(default=6, metadata={"help": "in the encoder, and as many in the decoder"})
    heads: int = field(default=8)
    dropout: float = field(default=0.1)
    attention_dropout: float = field(default=0.0)
    activation_dropout: float = field(default=0.0)
    init_std: float = field(
        default=0.02, metadata={"help": "standard deviation of initial weights"}
    )

    max_length: int = field(
        default=256, metadata={"help": "tokens; longer training pairs are left out and counted"}
    )
    max_tokens: int = field(
        default=4096,
        metadata={"help": "sentences x longest, of a micro-batch on one process, on each side"},
    )
    sort_window: int = field(default=8192, metadata={"help": "sentences sorted by length together"})
    num_beams: int = field(default=4)
    length_penalty: float = field(
        default=0.6, metadata={"help": "exponent of the length in the beam score"}
    )

    def check(self, arguments: Any) -> None:
        """Raise for options that cannot work."""
        super().check(arguments)
        within(self, SMALLEST_VOCABULARY, None, "vocab_size")
        within(self, 1, None, "d_model", "ffn_dim", "layers", "heads", "num_beams", "sort_window")
        within(self, 2, None, "max_length", "max_tokens")  # a token and the end of the sentence
        within(self, 0, 1, "dropout", "attention_dropout", "activation_dropout")
        within(self, 0, None, "init_std")
        if self.d_model % self.heads:
            raise ValueError(
                f"--heads {self.heads} does not divide --d_model {self.d_model}; each head takes an "
                "equal part of it."
            )


def parse(argv: list[str]) -> tuple[RecipeArguments, Seq2SeqTrainingArguments]:
    """Options from a YAML file, if one comes first (or embedded.yaml), then the command line's."""
    kinds = (RecipeArguments, Seq2SeqTrainingArguments)
    recipe, arguments = recipe_options.parse(argv, kinds, CONFIGS / "embedded.yaml")
    return recipe, arguments
