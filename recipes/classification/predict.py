"""Which label, and how sure, for every line of standard input: a trained classifier as a filter."""

import argparse
import io
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TextClassificationPipeline,
    pipeline,
)
from transformers.utils import logging

import hf_nm  # noqa: F401  # with it, transformers reads packed folders too
from hf_nm.experiments.rows import decoded_line

DESCRIPTION = """\
Classify the sentences on standard input, one a line; a tab separates the two sentences of a pair.

Each line in gives one line out, in the same order: label, tab, score with 4 decimals, tab, the line
itself; with --top_k as many labels with their scores, best first, before the line. An empty line
gives an empty line, so that line numbers stay the same. Scores are probabilities; of a regression
model, which has one label, the value itself. What is too long for the model is cut at the end.

Text is UTF-8. A line that is not, or has two tabs, ends the run with exit code 1 after the answers
to the lines before it. A folder that is not a classifier: exit code 1. Wrong options: exit code 2.
"""


def main(argv: list[str] | None = None) -> int:
    """Answer standard input line by line; the exit code."""
    options = _parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a test's or a notebook's may be another
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    try:
        classifier = load_classifier(options.folder)
        tokenizer: Any = classifier.tokenizer
        one_by_one = sys.stdin.isatty() or tokenizer.pad_token_id is None
        for lines in _batches(sys.stdin.buffer, 1 if one_by_one else options.batch_size):
            for answer in classify(classifier, lines, options.top_k):
                print(answer)
            sys.stdout.flush()
    except ValueError as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    return 0


def load_classifier(folder: Path) -> TextClassificationPipeline:
    """The classifier of a checkpoint folder, on the accelerator if there is one.

    Raises:
        ValueError: no such folder, or it does not hold a classifier with all its weights and a
            tokenizer; transformers itself would fill in random weights for missing ones.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the one that training wrote.")
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a folder's files make transformers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder}: no classifier can be loaded from it: {reason}") from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder}: its weights lack {missing[0]} (of {len(missing)} missing), so it is not a "
            "trained classifier; give the folder of a fine-tuned one."
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one up
        raise ValueError(f"{folder}: no tokenizer in it; save the one of the training there.")
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    return pipeline(
        "text-classification",
        model=model,
        tokenizer=tokenizer,
        function_to_apply="none" if model.config.num_labels == 1 else None,
        truncation=True,
        max_length=min(limit for limit in limits if limit),
    )


def classify(
    classifier: TextClassificationPipeline, lines: list[str], top_k: int | None
) -> list[str]:
    """One answer a line, as --help describes; `top_k` None: all labels."""
    texts = [line for line in lines if line.strip()]
    inputs = [dict(zip(("text", "text_pair"), text.split("\t"), strict=False)) for text in texts]
    found: Any = classifier(inputs, batch_size=len(inputs), top_k=top_k) if inputs else []
    scores = (
        "\t".join(f"{row['label']}\t{row['score']:.4f}" for row in labels) for labels in found
    )
    return [f"{next(scores)}\t{line}" if line.strip() else "" for line in lines]


def _batches(stream: Iterable[bytes], size: int) -> Iterator[list[str]]:
    """Lines in lists of `size`; those before a faulty line are given out before it is reported."""
    batch: list[str] = []
    for number, raw in enumerate(stream, 1):
        try:
            batch.append(_line(number, raw))
        except ValueError:
            yield batch
            raise
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


def _line(number: int, raw: bytes) -> str:
    line = decoded_line(raw, number)
    if line.count("\t") > 1:
        raise ValueError(
            f"line {number}: {line.count(chr(9))} tabs; give one sentence, or two with a tab between."
        )
    return line


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", type=Path, help="a checkpoint, as training or save_pretrained wrote it"
    )
    parser.add_argument(
        "--batch_size",
        type=_positive,
        default=32,
        help="lines read before they are answered (default: 32); 1 answers each at once, which a "
        "program that waits for the answer needs, and is used where somebody types",
    )
    parser.add_argument(
        "--top_k",
        type=lambda text: None if text == "all" else _positive(text),
        default=1,
        metavar="K",
        help="labels given for each line: a number, or all (default: 1)",
    )
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
