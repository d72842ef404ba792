"""How a recipe's options are read: a YAML file, then the command line."""

import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around whatever reads the user's input: what is wrong with it ends the program with its message
    alone, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: error: {error}") from error
