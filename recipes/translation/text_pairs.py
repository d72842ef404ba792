"""How sentence pairs are read: two line-by-line text files, one TSV or one JSONL, each also .gz."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict

Pairs = tuple[list[str], list[str]]


def read_pairs(files: list[str], source: str = "en", target: str = "de") -> Pairs:
    """Read source and target sentences, line `i` of one translating line `i` of the other.

    Args:
        files: either two text files, source first, one sentence a line; or one `.tsv` whose first
            line names the columns; or one `.jsonl` of objects with the two keys, or with a
            `translation` object that has them. Each may be gzipped (`.gz`).
        source, target: the column names in TSV and JSONL.
    """
    if len(files) == 2:
        sides = [[line for _, line in _lines(file)] for file in files]
        for file, side in zip(files, sides, strict=True):
            if not side:
                raise ValueError(f"{file}: the file is empty; give one sentence a line.")
        if len(sides[0]) != len(sides[1]):
            short, long = sorted(zip(map(len, sides), files, strict=True))
            raise ValueError(
                f"{long[1]} has {long[0]} lines and {short[1]} has {short[0]}: from line "
                f"{short[0] + 1} on there is nothing to pair. Both files need one sentence a line, "
                "line by line translations of each other."
            )
        return sides[0], sides[1]
    if len(files) != 1:
        raise ValueError(
            "expected two text files (source, target) or one TSV or JSONL file, got "
            f"{len(files)}: {files}"
        )
    kind = Path(files[0].removesuffix(".gz")).suffix
    if kind == ".tsv":
        rows = list(_tsv(files[0], source, target))
    elif kind in (".jsonl", ".json"):
        rows = list(_jsonl(files[0], source, target))
    else:
        raise ValueError(
            f"{files[0]}: one file alone must be .tsv or .jsonl (or .gz of these); for plain text "
            "give two files, source first."
        )
    if not rows:
        raise ValueError(f"{files[0]}: the file holds no sentence pair.")
    return [row[0] for row in rows], [row[1] for row in rows]


def load_pairs(
    files: dict[str, list[str]], source: str = "en", target: str = "de"
) -> tuple[DatasetDict, dict[str, int]]:
    """Read several splits, e.g. `{"train": ["x.en", "x.de"], "test": ["y.tsv"]}`.

    Training pairs with an empty side are left out; in any other split they are an error, since
    leaving them out would change the score.

    Returns:
        Splits with the columns `source` and `target`, and per split how many pairs were left out.
    """
    splits, left_out = DatasetDict(), {}
    for split, paths in files.items():
        pairs = list(zip(*read_pairs(paths, source, target), strict=True))
        full = [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
        if split != "train" and len(full) != len(pairs):
            number = next(
                i for i, pair in enumerate(pairs, 1) if not (pair[0].strip() and pair[1].strip())
            )
            raise ValueError(
                f"{' + '.join(paths)}: sentence pair {number} of the {split} split has an empty "
                "side; take it out of the file or fill it in."
            )
        if not full:
            raise ValueError(f"{' + '.join(paths)}: no pair has text on both sides.")
        left_out[split] = len(pairs) - len(full)
        splits[split] = Dataset.from_dict(
            {"source": [pair[0] for pair in full], "target": [pair[1] for pair in full]}
        )
    return splits, left_out


def _lines(file: str) -> Iterator[tuple[int, str]]:
    r"""Line number and text; lines end at \n alone, as `wc -l` counts, not at U+2028."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{file}: no such file.")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                if b"\0" in raw:
                    raise ValueError(
                        f"{file}, line {number}: a NUL byte, so this is a binary or UTF-16 file; "
                        "give UTF-8 text."
                    )
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{file}, line {number}: byte {error.start} (0x{raw[error.start]:02x}) is "
                        "not UTF-8; convert it (iconv -f latin1 -t utf-8), or unpack an archive."
                    ) from None
                yield number, text.removesuffix("\n").removesuffix("\r")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file}: not a whole gzip file ({error}); drop .gz or copy it again."
        ) from None


def _tsv(file: str, source: str, target: str) -> Iterator[tuple[str, str]]:
    """Rows of a tab-separated file; quotes are ordinary characters."""
    lines = _lines(file)
    header = next(lines, (0, ""))[1].split("\t")
    for column in (source, target):
        if column not in header:
            raise ValueError(
                f"{file}, line 1: no column {column!r} among {header}; the first line must name "
                "the columns (see --source_column and --target_column)."
            )
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise ValueError(
                f"{file}, line {number}: {len(cells)} columns, but line 1 names {len(header)}; "
                "replace tabs inside sentences."
            )
        row = dict(zip(header, cells, strict=True))
        yield row[source], row[target]


def _jsonl(file: str, source: str, target: str) -> Iterator[tuple[str, str]]:
    for number, line in _lines(file):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}, line {number}: not a JSON object ({error}); JSONL has one on every line."
            ) from None
        if isinstance(row, dict):
            row = row.get("translation", row)
        for column in (source, target):
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                raise ValueError(
                    f"{file}, line {number}: no text under the key {column!r}; every line must be "
                    f'an object such as {{"{source}": "...", "{target}": "..."}} (see '
                    "--source_column and --target_column)."
                )
        yield row[source], row[target]
