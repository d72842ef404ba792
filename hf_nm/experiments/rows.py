"""How rows of text are read: TSV, CSV or JSONL, each also .gz.

Every error is one line with the file, the line, what was found there and what to do. Files are read
as they are iterated over, so an error comes when its line is reached.

The parsers are Python's own. pandas and `datasets` were tried and would let bad rows through: pandas'
fast engine, which `datasets` reads CSV with, fills up a row that lacks cells, takes `"a "b"` for a
value and \\r for a line end and renames doubled columns, all without a word; its strict engine is the
csv module, less the line where a row starts. Their JSON readers skip empty lines and name no line in
an error, and `datasets`' makes a number of the text "1" where its column has a number elsewhere.
"""

import csv
import difflib
import gzip
import json
import math
import reprlib
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

ENDINGS = (".tsv", ".csv", ".jsonl", ".json")  # .json is read as JSONL too
BINARY = {
    b"\x1f\x8b": "gzip; end its name in .gz, or unpack it",
    b"PK\x03\x04": "zip, as .xlsx files are too; unpack it or save it as CSV",
    b"PAR1\x15": "Parquet; save it as CSV or JSONL",
}
SHORT = reprlib.Repr()  # a message stays readable where a file's first line is huge
SHORT.maxlist, SHORT.maxstring = 20, 60


def read_lines(file: str | Path) -> Iterator[tuple[int, str]]:
    r"""Line number, from 1, and text; lines end at \n alone, as `wc -l` counts, not at U+2028.

    A \r before the \n and a byte order mark are taken off.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: the file is empty, not a whole gzip file, or not UTF-8 text.
    """
    path = Path(file)
    if path.is_dir():
        raise IsADirectoryError(f"{file}: a directory; give a file in it.")
    if not path.exists():
        raise FileNotFoundError(f"{file}: no such file.")
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1 and raw.startswith(tuple(BINARY)):
                    kind = next(kind for start, kind in BINARY.items() if raw.startswith(start))
                    raise ValueError(f"{file}: this looks like {kind}.")
                if b"\0" in raw:
                    raise ValueError(
                        f"{file}, line {number}: a NUL byte, so this is a binary or UTF-16 file; "
                        "give UTF-8 text."
                    )
                yield number, decoded_line(raw, number, f"{file}, ")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file}: not a whole gzip file ({error}); drop .gz or copy it again."
        ) from None
    if not number:
        raise ValueError(f"{file}: the file is empty; give one with text in it.")


def decoded_line(raw: bytes, number: int, where: str = "") -> str:
    """A line's text, without its end and, in line 1, without a byte order mark.

    Args:
        raw: as it was read.
        number: from 1.
        where: put before the number in the message.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}line {number}: byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8; convert "
            "it (iconv -f latin1 -t utf-8), or unpack an archive."
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def read_rows(
    file: str | Path, columns: Sequence[str], remedy: str = "", nested: str = ""
) -> Iterator[tuple[int, dict[str, object]]]:
    r"""Number of the line on which a row starts, and the row's values in `columns`.

    The ending says how the file is read. `.tsv`: line 1 names the columns; quotes are ordinary
    characters. `.csv`: the same with commas; a value in double quotes may hold commas, line ends
    (\r\n comes out as \n) and doubled quotes. `.jsonl`, `.json`: an object on every line.

    Args:
        columns: names of the columns that are needed; the others may hold anything.
        remedy: what to do about a wrong column, such as ``"see --text_columns"``; it goes into the
            message.
        nested: a key of JSONL whose object, where a line has one, is read in the line's place, such
            as ``"translation"`` in ``{"translation": {"en": "one", "de": "eins"}}``.

    Yields:
        Strings from TSV and CSV; strings, finite numbers and booleans from JSONL.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: anything else that cannot be read, or a file without rows.
    """
    lines = read_lines(file)
    path = Path(file)
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if ending not in ENDINGS:
        next(lines)  # an error about what is in the file says more than one about its name
        raise ValueError(
            f"{file}: the name's ending does not say how to read it; known are "
            f"{', '.join(ENDINGS)}, and these with .gz."
        )
    remedy = f" ({remedy})" if remedy else ""
    if ending == ".tsv":
        cells = ((number, line.split("\t")) for number, line in lines)
        yield from _table(file, cells, columns, "tabs", remedy)
    elif ending == ".csv":
        yield from _table(file, _csv(file, lines), columns, "commas", remedy)
    else:
        yield from _objects(file, lines, columns, nested, remedy)


def _csv(file: str | Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # in the whole process; the default is 131,072 characters
    reader = csv.reader((line + "\n" for _, line in lines), strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {start}: the row that starts here is not CSV ({error}); put a value "
            "with quotes, commas or line ends in double quotes, and double the quotes inside."
        ) from None


def _table(
    file: str | Path,
    cells: Iterator[tuple[int, list[str]]],
    columns: Sequence[str],
    separators: str,
    remedy: str,
) -> Iterator[tuple[int, dict[str, object]]]:
    _, header = next(cells)
    for name, count in Counter(header).items():
        if count > 1:
            raise ValueError(
                f"{file}, line 1: {count} columns are called {SHORT.repr(name)}; rename or take "
                "out all but one."
            )
    rule = f"line 1 must name the columns, with {separators} between them{remedy}."
    _require(columns, header, f"{file}, line 1", rule)
    number = 1
    for number, row in cells:
        if len(row) != len(header):
            cell = "cell" if len(row) == 1 else "cells"
            found = "an empty line" if row in ([], [""]) else f"{len(row)} {cell}"
            raise ValueError(
                f"{file}, line {number}: {found}, but line 1 names {len(header)} columns; mend or "
                f"take out the row, and look for {separators} inside its values."
            )
        values = dict(zip(header, row, strict=True))
        yield number, {column: values[column] for column in columns}
    if number == 1:
        raise ValueError(f"{file}: no row below line 1; it names the columns, rows come after it.")


def _objects(
    file: str | Path,
    lines: Iterator[tuple[int, str]],
    columns: Sequence[str],
    nested: str,
    remedy: str,
) -> Iterator[tuple[int, dict[str, object]]]:
    example = json.dumps(dict.fromkeys(columns, "..."))
    rule = f"every line must be a JSON object such as {example}{remedy}."
    for number, line in lines:
        try:
            row = json.loads(line)
            found = line[:60]
        except (ValueError, RecursionError) as error:
            # the parser calls this line "line 1"
            row, found = None, str(error).replace("line 1 ", "") if line else "an empty line"
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: not a JSON object ({found}); {rule}")
        if isinstance(row.get(nested), dict):
            row = row[nested]
        _require(columns, row, f"{file}, line {number}", rule)
        for column in columns:
            value = row[column]
            if not isinstance(value, str | int | float) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise ValueError(
                    f"{file}, line {number}: column {column!r} holds {SHORT.repr(value)}; it "
                    f"must be text, a finite number, true or false{remedy}."
                )
        yield number, {column: row[column] for column in columns}


def _require(columns: Sequence[str], names: Collection[str], where: str, rule: str) -> None:
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{where}: no column {column!r}{hint} among {SHORT.repr(list(names))}; {rule}"
            )
