"""What can be set: this recipe's options, read from a YAML file and the command line."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sacrebleu import BLEU
from transformers import Seq2SeqTrainingArguments

from hf_nm.experiments import options as recipe_options
from hf_nm.experiments.options import within

SMALLEST_VOCABULARY = 258  # the 256 bytes and the 2 special tokens
CONFIGS = Path(__file__).parent / "configs"


@dataclass
class RecipeArguments(recipe_options.SparseArguments):
    """What this recipe adds to transformers' `Seq2SeqTrainingArguments`."""

    corpus: str = field(default="embedded", metadata={"choices": ["embedded", "files", "hub"]})
    dataset: str = field(
        default="wmt14", metadata={"help": "of the Hub, with a column translation; for corpus hub"}
    )
    dataset_config: str | None = field(
        default="de-en", metadata={"help": "which part of it, such as a pair of languages"}
    )
    train_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "x.en x.de, or one .tsv, .csv or .jsonl; .gz too. Given: corpus is files"
        },
    )
    validation_files: list[str] | None = field(default=None)
    test_files: list[str] | None = field(default=None)
    source_column: str = field(
        default="en", metadata={"help": "name of the source, on the Hub and in TSV, CSV and JSONL"}
    )
    target_column: str = field(
        default="de",
        metadata={"help": "and of the target; a language's code says how it is scored"},
    )

    test_subset: str | None = field(
        default=None,
        metadata={
            "help": "sacreBLEU's name of a smaller set within the test set, scored beside it"
        },
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
    max_ratio: float | None = field(
        default=None,
        metadata={"help": "tokens of the longer side over the shorter's; other training pairs too"},
    )
    drop_duplicates: bool = field(
        default=False, metadata={"help": "equal training pairs are trained on once"}
    )
    max_tokens: int = field(
        default=4096,
        metadata={"help": "sentences x longest, of a micro-batch on one process, on each side"},
    )
    update_tokens: int | None = field(
        default=None,
        metadata={
            "help": "max_tokens of an update's micro-batches together, over accumulation and processes: "
            "sets gradient_accumulation_steps"
        },
    )
    sort_window: int = field(
        default=1_000_000,
        metadata={"help": "sentences sorted by length together: more means less padding"},
    )
    average_checkpoints: int = field(
        default=1,
        metadata={"help": "the last so many checkpoints' dense weights are averaged, then pruned"},
    )
    num_beams: int = field(default=4, metadata={"help": "1 is greedy"})
    length_penalty: float = field(
        default=0.6, metadata={"help": "exponent of the length in the beam score"}
    )

    @property
    def data(self) -> str:
        """What the results call it."""
        if self.train_files or self.corpus == "files":
            return "files"
        return self.dataset if self.corpus == "hub" else self.corpus

    @property
    def has_dictionary(self) -> bool:
        """Whether words can be looked up one by one: from English, in the embedded corpus."""
        return self.data == "embedded" and self.target_column == "de"

    def check(self, arguments: Any) -> None:
        """Raise for options that cannot work."""
        super().check(arguments)
        try:
            BLEU(trg_lang=self.target_column)
        except RuntimeError as error:  # Japanese and Korean need more than sacreBLEU alone
            said = " ".join(str(error).split())
            raise ValueError(f"--target_column {self.target_column}: {said}") from error
        within(self, SMALLEST_VOCABULARY, None, "vocab_size")
        within(self, 1, None, "d_model", "ffn_dim", "layers", "heads", "num_beams", "sort_window")
        within(self, 1, None, "max_ratio", "update_tokens", "average_checkpoints")
        within(self, 2, None, "max_length", "max_tokens")  # a token and the end of the sentence
        within(self, 0, 1, "dropout", "attention_dropout", "activation_dropout")
        within(self, 0, None, "init_std")
        if self.d_model % self.heads:
            raise ValueError(
                f"--heads {self.heads} does not divide --d_model {self.d_model}; each head takes an "
                "equal part of it."
            )

        self._share_updates(arguments)
        if self.average_checkpoints > 1:
            kept = arguments.save_total_limit
            if arguments.save_strategy == "no" or arguments.save_only_model:
                raise ValueError(
                    f"--average_checkpoints {self.average_checkpoints} needs checkpoints with their "
                    "optimizer, which holds the pruned weights; give --save_strategy steps --save_steps "
                    "N, or --average_checkpoints 1."
                )
            if os.environ.get("ACCELERATE_USE_FSDP") == "true":
                raise ValueError(
                    f"--average_checkpoints {self.average_checkpoints} reads whole checkpoints, and "
                    "FSDP's lie in shards; give --average_checkpoints 1, or launch without FSDP."
                )
            if kept is not None and kept < self.average_checkpoints:
                raise ValueError(
                    f"--save_total_limit {kept} keeps fewer checkpoints than --average_checkpoints "
                    f"{self.average_checkpoints} reads; raise it to that number."
                )

    def _share_updates(self, arguments: Any) -> None:
        """Set the accumulation with which these processes make updates of `update_tokens`."""
        if self.update_tokens is None:
            return
        batches = round(self.update_tokens / self.max_tokens)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if not batches or batches % processes or batches * self.max_tokens != self.update_tokens:
            raise ValueError(
                f"--update_tokens {self.update_tokens} in micro-batches of --max_tokens "
                f"{self.max_tokens} are {self.update_tokens / self.max_tokens:g}, which "
                f"{processes} process{'es' * (processes > 1)} cannot share alike; give --max_tokens "
                f"{self.update_tokens // processes}, or a whole part of that."
            )
        if arguments.gradient_accumulation_steps not in (1, batches // processes):
            raise ValueError(
                f"--gradient_accumulation_steps {arguments.gradient_accumulation_steps} contradicts "
                f"--update_tokens {self.update_tokens}, which makes it {batches // processes}; leave it "
                "out."
            )
        arguments.gradient_accumulation_steps = batches // processes


def parse(argv: list[str]) -> tuple[RecipeArguments, Seq2SeqTrainingArguments]:
    """Options from a YAML file, if one comes first (or embedded.yaml), then the command line's."""
    kinds = (RecipeArguments, Seq2SeqTrainingArguments)
    recipe, arguments = recipe_options.parse(argv, kinds, CONFIGS / "embedded.yaml")
    return recipe, arguments
