"""What can be set: this recipe's options, read from a YAML file and the command line."""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

CONFIGS = Path(__file__).parent / "configs"
METHODS = ("dense", "ste", "sr-ste", "fixed")


@dataclass
class RecipeArguments:
    """What this recipe adds to transformers' `Seq2SeqTrainingArguments`."""

    corpus: str = field(default="embedded", metadata={"choices": ["embedded", "files", "wmt14"]})
    train_files: list[str] | None = field(
        default=None,
        metadata={"help": "x.en x.de, or one .tsv or .jsonl; .gz too. Given: corpus is files"},
    )
    validation_files: list[str] | None = field(default=None)
    test_files: list[str] | None = field(default=None)
    source_column: str = field(
        default="en", metadata={"help": "name of the source in TSV and JSONL"}
    )
    target_column: str = field(
        default="de", metadata={"help": "name of the target in TSV and JSONL"}
    )

    method: str = field(default="sr-ste", metadata={"choices": METHODS})
    n: int = field(default=2, metadata={"help": "weights kept of every m"})
    m: int = field(default=4)
    decay: float = field(
        default=2e-4, metadata={"help": "SR-STE's pull on pruned weights, gradient units"}
    )
    mask_interval: int = field(default=1, metadata={"help": "optimizer steps between new masks"})
    freeze_masks_at: int | None = field(
        default=None, metadata={"help": "step from which masks stay"}
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


def parse(argv: list[str]) -> tuple[RecipeArguments, Seq2SeqTrainingArguments]:
    """Options from a YAML file, if one comes first (or embedded.yaml), then from the command line.

    The file's keys become options before the command line's, so one parser checks both and the
    later one wins. An unknown or unreadable one ends the program with a message.
    """
    parser = HfArgumentParser((RecipeArguments, Seq2SeqTrainingArguments), allow_abbrev=False)
    config = CONFIGS / "embedded.yaml"
    if argv and argv[0].endswith((".yaml", ".yml")):
        config, argv = Path(argv[0]), argv[1:]
    if not config.is_file():
        parser.error(f"no configuration file {config}; the shipped ones are in {CONFIGS}.")
    try:
        values = yaml.safe_load(config.read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        parser.error(f"{config}: not YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{config}: a configuration must hold keys and values, got {values!r}.")
    known = {action.dest for action in parser._actions} - {"help"}
    options: list[str] = []
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            parser.error(
                f"{config}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
            )
        if value is not None:
            parts = value if isinstance(value, list) else [value]
            # JSON is what nested options such as lr_scheduler_kwargs are read from.
            options += [
                f"--{key}",
                *(json.dumps(part) if isinstance(part, dict) else str(part) for part in parts),
            ]
    recipe, arguments, rest = parser.parse_args_into_dataclasses(
        [*options, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        near = difflib.get_close_matches(rest[0].lstrip("-").split("=")[0], known, n=1)
        parser.error(
            f"unknown option {' '.join(rest)}"
            + (f"; did you mean --{near[0]}?" if near else "; see --help.")
        )
    return recipe, arguments
