"""Translate every line of standard input: a run of this recipe as a filter."""

import argparse
import io
import signal
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from decoding import translate
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

import hf_nm  # noqa: F401  # with it, transformers reads packed folders too
from hf_nm.experiments.rows import decoded_line

DESCRIPTION = """\
Translate the sentences on standard input, one a line.

Each line in gives one line out, in the same order; an empty line gives an empty line, so that line
numbers stay the same. As many lines as --window says are read at once, sorted by length and
translated in batches: memory stays bounded however many there are. The search is the checkpoint's own
(its generation_config.json) unless options say otherwise. What is too long for the model is cut, and
counted at the end on standard error.

Text is UTF-8. A line that is not ends the run with exit code 1 after the translations of the lines
before it. A folder that does not hold a translation model: exit code 1. Wrong options: exit code 2.
"""


def main(argv: list[str] | None = None) -> int:
    """Translate standard input; the exit code."""
    options = _parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a test's or a notebook's may be another
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    try:
        model, tokenizer = load_translator(options.folder, options.device)
        window = 1 if sys.stdin.isatty() else options.window  # somebody types
        cut = 0
        for lines in _windows(sys.stdin.buffer, window):
            texts = [line for line in lines if line.strip()]
            found, too_long = translate(
                model,
                tokenizer,
                texts,
                max_tokens=options.max_tokens,
                max_length=_longest(model),
                **_search(options),
            )
            cut += too_long
            waiting = iter(found)
            for line in lines:
                # A line end in a translation would shift all the lines after it.
                print(" ".join(next(waiting).splitlines()) if line.strip() else "")
            sys.stdout.flush()
        if cut:
            print(f"translate.py: {cut} lines were too long and were cut", file=sys.stderr)
    except ValueError as error:
        print(f"translate.py: {error}", file=sys.stderr)
        return 1
    return 0


def load_translator(folder: Path, device: str | None = None) -> tuple[Any, Any]:
    """The model and the tokenizer of a checkpoint folder, plain or packed.

    Args:
        folder: as train.py, `save_pretrained` or `hf-nm pack` wrote it.
        device: such as `cpu`; None for the accelerator if there is one.

    Raises:
        ValueError: no such folder, or it does not hold a translation model with all its weights and a
            tokenizer; transformers itself would fill in random weights for missing ones.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the one that training wrote.")
    try:
        model, found = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a folder's files make transformers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{folder}: no translation model can be loaded from it: {reason}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder}: its weights lack {missing[0]} (of {len(missing)} missing); give the folder of a "
            "trained model."
        )
    if len(tokenizer) != model.config.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, its model {model.config.vocab_size}; "
            "save the tokenizer of the training there."
        )
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else str(accelerator)
    return model.to(device), tokenizer


def _longest(model: Any) -> int:
    """Tokens of a source that leave the target its 64 positions more, as in training."""
    return max(2, model.config.max_position_embeddings - 64)


def _search(options: argparse.Namespace) -> dict[str, Any]:
    given = {"num_beams": options.num_beams, "length_penalty": options.length_penalty}
    return {name: value for name, value in given.items() if value is not None}


def _windows(stream: Iterable[bytes], size: int) -> Iterator[list[str]]:
    """Lines in lists of `size`; those before a faulty line are given out before it is reported."""
    numbered = enumerate(stream, 1)
    while raw := list(islice(numbered, size)):
        lines: list[str] = []
        for number, line in raw:
            try:
                lines.append(decoded_line(line, number))
            except ValueError:
                yield lines
                raise
        yield lines


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="translate.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="a run's output directory, or a packed one")
    parser.add_argument(
        "--num_beams", type=_positive, help="1 is greedy (default: the checkpoint's)"
    )
    parser.add_argument(
        "--length_penalty", type=float, help="exponent of the length (default: the checkpoint's)"
    )
    parser.add_argument(
        "--max_tokens",
        type=_positive,
        default=4096,
        help="beams x sentences x longest, of a batch (default: 4096)",
    )
    parser.add_argument(
        "--window",
        type=_positive,
        default=2000,
        help="lines read before they are translated (default: 2000); 1 answers each at once, and is "
        "used where somebody types",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the accelerator, if any)")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


if __name__ == "__main__":
    for name in ("SIGPIPE", "SIGINT"):  # end quietly, as filters do: `| head`, Ctrl-C
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.exit(main())
