"""What can be set in every recipe, and how options are read: a YAML file, then the command line."""

import argparse
import difflib
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedConfig,
    TrainingArguments,
)

from hf_nm.formats.manifest import KEY
from hf_nm.methods.method import AUTO
from hf_nm.model.surgery import restore, sparsify
from hf_nm.trainer.distillation import Distillation

METHODS = {"dense": "dense", "fixed": "ASP", "ste": "STE", "sr-ste": "SR-STE"}  # and their names

AT_LEAST_ONE = ["per_device_train_batch_size", "per_device_eval_batch_size"]
AT_LEAST_ONE += ["gradient_accumulation_steps"]
NOT_NEGATIVE = ["learning_rate", "warmup_steps", "weight_decay", "adam_epsilon", "max_grad_norm"]
NOT_NEGATIVE += ["dataloader_num_workers", "seed"]


def decay_option(text: str) -> float | str:
    """What follows ``--decay``: a number, or ``auto``."""
    try:
        return text if text == AUTO else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {AUTO!r}") from None


@dataclass
class SparseArguments:
    """How a recipe's model becomes sparse: options that all of them have."""

    method: str = field(default="sr-ste", metadata={"choices": list(METHODS)})
    n: int = field(default=2, metadata={"help": "weights kept of every m"})
    m: int = field(default=4)
    decay: decay_option = field(  # type: ignore[valid-type]  # argparse calls what stands here
        default=2e-4,
        metadata={"help": "SR-STE's pull on pruned weights, gradient units; or auto"},
    )
    decay_warmup_steps: int = field(
        default=0, metadata={"help": "steps over which the decay rises linearly"}
    )
    mask_interval: int = field(default=1, metadata={"help": "optimizer steps between new masks"})
    freeze_masks_at: int | None = field(
        default=None, metadata={"help": "the last step at which masks are computed"}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "a dense checkpoint of the same task to learn from"}
    )
    distillation_weight: float = field(
        default=0.5, metadata={"help": "of the divergence from the teacher's logits, 0 to 1"}
    )
    temperature: float = field(default=2.0, metadata={"help": "of both models' logits there"})
    hidden_weight: float = field(
        default=0.0, metadata={"help": "of the squared difference of hidden states"}
    )

    start_over: bool = field(
        default=False,
        metadata={
            "help": "remove the checkpoints, logs and results of an earlier run in output_dir, nothing "
            "else"
        },
    )

    @property
    def sparse(self) -> bool:
        """Whether anything becomes sparse."""
        return self.method != "dense"

    @property
    def pattern(self) -> str | None:
        """Such as ``"2:4"``; None for a dense run."""
        return f"{self.n}:{self.m}" if self.sparse else None

    def check(self, arguments: TrainingArguments) -> None:
        """Raise for options that cannot work, before anything is loaded; a recipe adds its own.

        Args:
            arguments: those of training.

        Raises:
            ValueError: one of them is out of range, or no finite number: one line that names it.
        """
        for group in (self, arguments):
            for each in fields(group):
                value = getattr(group, each.name, None)
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"--{each.name} is {value}; it must be a finite number.")
        within(arguments, 1, None, *AT_LEAST_ONE)
        within(arguments, 0, None, *NOT_NEGATIVE)
        within(arguments, 0, 1, "adam_beta1", "adam_beta2", "label_smoothing_factor")
        within(self, 0, None, "decay_warmup_steps")  # the others are sparsify's and the Trainer's
        if arguments.max_steps == 0 or (
            arguments.max_steps < 0 and arguments.num_train_epochs <= 0
        ):
            raise ValueError(
                f"--max_steps {arguments.max_steps} and --num_train_epochs "
                f"{arguments.num_train_epochs:g} are no training; give at least one update."
            )

    def sparsify(self, model: nn.Module) -> None:
        """Make the model sparse in place, unless the run is dense; a sparse checkpoint trains on.

        Raises:
            ValueError: pattern or decay is out of range, nothing can be sparse, or the checkpoint is
                sparse in another pattern, or for a dense run.
        """
        config: Any = model.config
        manifest = getattr(config, KEY, None)
        if manifest is None:
            if self.sparse:
                sparsify(model, self.n, self.m, method=self.method, decay=self.decay)
        elif (manifest["n"], manifest["m"]) == (self.n, self.m) and self.sparse:
            restore(model, method=self.method, decay=self.decay)
        else:
            raise ValueError(
                f"{config.name_or_path} is sparse already ({manifest['n']}:{manifest['m']}), but this "
                f"run is {self.pattern or 'dense'}; start from a dense checkpoint, or train on with "
                f"--n {manifest['n']} --m {manifest['m']}."
            )

    def trainer_options(self, kind: Any, model: nn.Module, tokenizer: Any) -> dict[str, Any]:
        """Keyword arguments for `NMTrainer`; none for a dense run.

        Args:
            kind: the Auto class that opens the teacher.
            model: the student.
            tokenizer: the student's, and the teacher needs the same; None for models that have none.

        Raises:
            ValueError: there is no such teacher, or one for a dense run, without a trained head, of
                other tokens or labels; an option is out of range, or has no effect.
        """
        if not self.teacher:
            for name in ("distillation_weight", "temperature", "hidden_weight"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"--{name} does nothing without --teacher; give both or none.")
        if not self.sparse:
            if self.teacher:
                raise ValueError("--teacher is for the sparse methods; leave it out with dense.")
            return {}
        if self.decay_warmup_steps and self.method != "sr-ste":
            raise ValueError(f"--decay_warmup_steps is for sr-ste; {self.method} has no decay.")
        options = {
            "mask_interval": self.mask_interval,
            "freeze_masks_at": self.freeze_masks_at,
            "decay_warmup_steps": self.decay_warmup_steps,
        }
        if not self.teacher:
            return options
        teacher, loading = opened(kind, "teacher", self.teacher, output_loading_info=True)
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ValueError(
                f"--teacher {self.teacher}: lacks {len(missing)} weights of {type(teacher).__name__} "
                f"(first: {missing[0]}), which would be random; give a checkpoint that was trained on "
                "this task."
            )
        tokens = (
            {} if tokenizer is None else opened(AutoTokenizer, "teacher", self.teacher).get_vocab()
        )
        if tokenizer is not None and tokens != tokenizer.get_vocab():
            raise ValueError(
                f"--teacher {self.teacher}: its tokenizer has other tokens ({len(tokens)}) than the "
                f"model's ({len(tokenizer)}), so the same numbers are other words; train both from "
                "one checkpoint, or on the same training text."
            )
        distillation = Distillation(
            teacher, self.distillation_weight, self.temperature, self.hidden_weight
        )
        distillation.check(model)
        return options | {"distillation": distillation}

    def __str__(self) -> str:
        """Method, pattern and whatever differs from the defaults, as in `SR-STE 2:4, decay 0.02`."""
        said = [f"{METHODS[self.method]} {self.pattern}" if self.sparse else "dense"]
        if self.method == "sr-ste":
            said.append(f"decay {self.decay if self.decay == AUTO else format(self.decay, 'g')}")
            if self.decay_warmup_steps:
                said.append(f"rising over {self.decay_warmup_steps} steps")
        if self.sparse and self.mask_interval > 1:
            said.append(f"masks every {self.mask_interval} steps")
        if self.sparse and self.freeze_masks_at:
            said.append(f"masks frozen at {self.freeze_masks_at}")
        if self.sparse and self.teacher:
            said.append(f"distilled {self.distillation_weight:g}, T {self.temperature:g}")
            if self.hidden_weight:
                said.append(f"hidden states {self.hidden_weight:g}")
        return ", ".join(said)


def within(options: Any, lowest: float, below: float | None, *names: str) -> None:
    """Check numbers among the options.

    Args:
        options: the dataclass that has them.
        lowest: what each must reach.
        below: what each must stay below; None for no limit.
        names: of the numbers; those that are None, or that this version does not have, are left out.

    Raises:
        ValueError: one of them is outside; it is named.
    """
    for name in names:
        value = getattr(options, name, None)
        if value is not None and not (lowest <= value and (below is None or value < below)):
            limit = "" if below is None else f" and below {below:g}"
            raise ValueError(f"--{name} is {value}; it must be at least {lowest:g}{limit}.")


def parse(argv: list[str], kinds: Iterable[Any], default: Path) -> tuple[Any, ...]:
    """Options from a YAML file, if one comes first (or `default`), then from the command line.

    The file's keys become options before the command line's, so one parser checks both and the
    later one wins. An unknown or unreadable one ends the program with a message.

    Args:
        argv: the command line, without the program's name.
        kinds: dataclasses whose fields are the options, such as `Seq2SeqTrainingArguments`.
        default: the file that is read where `argv` names none; the shipped ones lie beside it.

    Returns:
        An instance of each of `kinds`, in their order.
    """
    parser = HfArgumentParser(kinds, allow_abbrev=False)
    config = default
    if argv and argv[0].endswith((".yaml", ".yml")):
        config, argv = Path(argv[0]), argv[1:]
    if not config.is_file():
        parser.error(f"no configuration file {config}; the shipped ones are in {default.parent}.")
    try:
        values = yaml.safe_load(config.read_bytes()) or {}
    except yaml.YAMLError as error:
        parser.error(f"{config}: not YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{config}: a configuration must hold keys and values, got {values!r}.")
    known = {field.name for kind in kinds for field in fields(kind) if field.init}
    options: list[str] = []
    for key, value in _as_this_version_names_them(values, known).items():
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
    *parsed, rest = parser.parse_args_into_dataclasses(
        [*options, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        near = difflib.get_close_matches(rest[0].lstrip("-").split("=")[0], known, n=1)
        parser.error(
            f"unknown option {' '.join(rest)}"
            + (f"; did you mean --{near[0]}?" if near else "; see --help.")
        )
    return tuple(parsed)


def _as_this_version_names_them(values: dict[Any, Any], known: set[str]) -> dict[Any, Any]:
    """Options of a file under the names that the installed transformers has for them."""
    named = dict(values)
    # transformers 5.0 has a switch for one way to sample rows, and no other than the usual one.
    if "group_by_length" in known and "train_sampling_strategy" not in known:
        strategy = named.get("train_sampling_strategy")
        if strategy in ("random", "group_by_length"):
            del named["train_sampling_strategy"]
            named["group_by_length"] = strategy == "group_by_length"
    return named


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around whatever reads the user's input: what is wrong with it ends the program with its message
    alone, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: error: {error}") from error


@contextmanager
def one_line_without_room() -> Iterator[None]:
    """Around a whole program (``@one_line_without_room()`` over its ``main``): where a file cannot be
    written for want of room, it ends with one line and a non-zero exit, without a traceback.

    What was half-written then counts as nothing: results are written whole or not at all, and half a
    checkpoint is skipped by a resume.
    """
    try:
        yield
    except Exception as error:
        if (said := _no_room(error)) is None:
            raise
        raise SystemExit(
            f"{Path(sys.argv[0]).name}: error: no room to write ({said}); make room, then "
            "--resume_from_checkpoint True goes on from the last whole checkpoint, --start_over true "
            "begins anew where there is none."
        ) from error


# A full disk, a quota, the largest size of a file: what Python says of them, safetensors' Rust
# ("os error 28") and Arrow.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of a file that it could not write torch says no more.
_TORCH = ("iostream error", "unexpected pos", "PytorchStreamWriter")


def _no_room(error: BaseException | None) -> str | None:
    """What an error, or one that it came from, says of room that is missing; None if it is another."""
    seen = list[BaseException]()
    while error is not None and error not in seen:
        seen.append(error)
        text = (str(error).splitlines() or [""])[0]
        number = error.errno if isinstance(error, OSError) else None
        if number in _NO_ROOM or any(os.strerror(code) in text for code in _NO_ROOM):
            return text
        if isinstance(error, RuntimeError) and any(part in text for part in _TORCH):
            return f"torch.save: {text}"
        error = error.__cause__ or error.__context__
    return None


def opened(kind: Any, option: str, name: str, **options: Any) -> Any:
    """``kind.from_pretrained(name, **options)`` of an option's value.

    Raises:
        ValueError: there is no such checkpoint, or it cannot be opened: one line that names the option.
    """
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        there = Path(name).is_dir()
        where = "cannot be opened" if there else "no such folder, and not on the Hub"
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"--{option} {name}: {where}: {said}") from error


def new_config(
    name: str, overrides: str | None, head: Mapping[str, Any], sizes: Mapping[str, Any]
) -> PreTrainedConfig:
    """The config of a model from scratch.

    Args:
        name: a model type such as `bert`, or a checkpoint.
        overrides: the value of `--config_overrides`.
        head: what the recipe sets, such as labels.
        sizes: what a model type gets from the data, unless it is overridden or the type lacks it.

    Raises:
        ValueError: an override is not of the form, names nothing, or its value is refused: one line.
    """
    changes = _overrides(overrides)
    build: Callable = AutoConfig.for_model
    if name not in CONFIG_MAPPING:
        build = lambda name, **options: opened(AutoConfig, "config_name", name, **options)  # noqa: E731
    plain = build(name)
    for key in changes:
        if not hasattr(plain, key):
            near = difflib.get_close_matches(key, plain.to_dict(), n=1)
            raise ValueError(
                f"--config_overrides: {name} has no {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
            )
    if name in CONFIG_MAPPING:
        changes = {key: value for key, value in sizes.items() if hasattr(plain, key)} | changes
    try:
        return build(name, **head, **changes)
    except StrictDataclassError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--config_overrides {overrides}: {said}") from error


def _overrides(text: str | None) -> dict[str, Any]:
    """`hidden_size=128,hidden_act=relu`, or a JSON object, as a dict."""
    found = {}
    if text and text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"--config_overrides {text}: not a JSON object ({error}); name=value,name=value is "
                "taken too."
            ) from error
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                f"--config_overrides: {part!r} must be name=value, as in hidden_size=128."
            )
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:  # a word
            found[name.strip()] = value.strip()
    return found
