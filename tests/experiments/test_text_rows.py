"""Rows of TSV, CSV and JSONL files, good and bad."""

import csv
import gzip
import io
import zipfile

import pytest

from hf_nm.experiments.rows import read_lines, read_rows


def rows(path, *columns, **options):
    return list(read_rows(path, columns or ("text", "label"), **options))


def test_lines(tmp_path):
    r"""Red if lines are cut at U+2028 or a lone \r, or a byte order mark or \r\n stays."""
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress("\ufeffone\u2028\rstill one\r\n\ntwo".encode()))
    assert list(read_lines(path)) == [(1, "one\u2028\rstill one"), (2, ""), (3, "two")]


def test_tables(tmp_path):
    """Red if TSV eats quotes, CSV does not, columns go by position, or a line number is off."""
    (tmp_path / "x.tsv").write_text('id\tlabel\ttext\n7\tyes\t"one, two\n8\t\t\n', "utf-8")
    assert rows(tmp_path / "x.tsv") == [
        (2, {"text": '"one, two', "label": "yes"}),
        (3, {"text": "", "label": ""}),
    ]
    text = 'label,"te\nxt",id\r\n1,"a ""b"", c\r\nd\r\n\r\ne",\r\n0,f,\r\n'
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert rows(tmp_path / "x.csv.gz", "te\nxt", "label") == [
        (3, {"te\nxt": 'a "b", c\nd\n\ne', "label": "1"}),
        (7, {"te\nxt": "f", "label": "0"}),
    ]


def test_one_column(tmp_path):
    """Red if an empty line of a one-column TSV, which is an empty text, is lost or refused."""
    (tmp_path / "x.tsv").write_text("text\na\n\n")
    assert rows(tmp_path / "x.tsv", "text") == [(2, {"text": "a"}), (3, {"text": ""})]


def test_objects(tmp_path):
    """Red if JSON's numbers and booleans come out as text, or other keys matter or come along."""
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"text": "a\\n\\u2028", "label": 3, "id": null}\n{"label": true, "text": 0.5}\n'
        '{"text": "outer", "label": 0, "in": {"text": "b", "label": "c"}}\n'
    )
    assert rows(path) == [
        (1, {"text": "a\n\u2028", "label": 3}),
        (2, {"text": 0.5, "label": True}),
        (3, {"text": "outer", "label": 0}),
    ]
    assert rows(path, nested="in")[2] == (3, {"text": "b", "label": "c"})


def test_long_field(tmp_path):
    """Red if a document longer than the csv module's 131,072 characters is refused."""
    csv.field_size_limit(131_072)  # importing datasets has raised it
    (tmp_path / "x.csv").write_text(f"text,label\n{'a' * 200_000},1\n")
    assert rows(tmp_path / "x.csv")[0][1]["text"] == "a" * 200_000


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.csv", "text,label\na,1\n")
    return packed.getvalue()


GOOD = b"text,label\na,1\n"
BAD = [
    # which columns there are
    ("x.tsv", b"text\tlable\na\t1\n", r"x.tsv, line 1: no column 'label' \(did you mean 'lable'\?\) "
     r"among \['text', 'lable'\]; line 1 must name the columns, with tabs .* \(see --label\)"),
    ("x.csv", b"text;label\na;1,5\n", r"line 1: no column 'text' .*'text;label'.* with commas between"),
    ("x.csv", b"x" * 9999 + b"\n1\n", r"line 1: no column 'text' among \['x+\.\.\.x+'\]; "),
    ("x.csv", b"\na,1\n", r"x.csv, line 1: no column 'text' among \[\]"),
    ("x.csv", b"text,label,text\na,1,b\n", r"x.csv, line 1: 2 columns are called 'text'; rename"),
    ("x.csv", b"text,label,,\na,1,,\n", r"x.csv, line 1: 2 columns are called ''; rename"),
    ("x.jsonl", b'{"text": "a", "labels": 1}\n', r"line 1: no column 'label' \(did you mean 'labels'\?"
     r"\) among .* such as {\"text\": \"...\", \"label\": \"...\"} \(see --label\)"),
    # the row
    ("x.tsv", b"text\tlabel\na\t1\nb\n", r"x.tsv, line 3: 1 cell, but line 1 names 2 columns; .*tabs"),
    ("x.tsv", b"text\tlabel\na\tb\t1\n", r"x.tsv, line 2: 3 cells, but line 1 names 2"),
    ("x.tsv", b"text\tlabel\na\t1\n\n", r"x.tsv, line 3: an empty line, but .* take out the row"),
    ("x.csv", b'text,label\n"a\nb",1\n\nc,1\n', r"x.csv, line 4: an empty line"),
    ("x.csv", b"text,label\na, b,1\n", r"x.csv, line 2: 3 cells, .* look for commas"),
    ("x.csv", b'text,label\na,1\n"b,1\nc,1\nd,1\n', r"x.csv, line 3: the row that starts here is not "
     r"CSV \(unexpected end of data\); .* double the quotes"),
    ("x.csv", b'text,label\n"a "b",1\n', r"x.csv, line 2: .* not CSV \(',' expected after"),
    ("x.csv", b"text,label\ra,1\r", r"x.csv, line 1: .* not CSV \(new-line character seen"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', r"x.jsonl, line 2: not a JSON object "
     r"\(Expecting value: column 10 \(char 9\)\); every line must be"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n\n', r"x.jsonl, line 2: not a JSON object \(an empty line"),
    ("x.json", b'[{"text": "a", "label": 1}]\n', r"x.json, line 1: not a JSON object \(\[\{"),
    ("x.jsonl", b"[" * 99_999, r"x.jsonl, line 1: not a JSON object "),
    ("x.jsonl", b'{"text": "a", "label": 1' + b"0" * 5000 + b"}", r"line 1: not a JSON object \(Exceed"),
    ("x.jsonl", b'{"text": null, "label": 1}\n', r"x.jsonl, line 1: column 'text' holds None; it must "
     r"be text, a finite number, true or false \(see --label\)"),
    ("x.jsonl", b'{"text": "a", "label": [1]}\n', r"line 1: column 'label' holds \[1\]"),
    ("x.jsonl", b'{"text": "a", "label": {"b": 1}}\n', r"line 1: column 'label' holds \{'b': 1\}"),
    ("x.jsonl", b'{"text": "a", "label": NaN}\n', r"line 1: column 'label' holds nan"),
    # the file
    ("x.csv", b"", r"x.csv: the file is empty"),
    ("x.jsonl", b"", r"x.jsonl: the file is empty"),
    ("x.tsv", b"text\tlabel\n", r"x.tsv: no row below line 1"),
    ("x.csv", gzip.compress(GOOD), r"x.csv: this looks like gzip; end its name in .gz"),
    ("x.csv.gz", gzip.compress(gzip.compress(GOOD)), r"x.csv.gz: this looks like gzip; .*unpack it"),
    ("x.csv.gz", GOOD, r"x.csv.gz: not a whole gzip file \(Not a gzipped file"),
    ("x.csv.gz", gzip.compress(GOOD)[:-9], r"x.csv.gz: not a whole gzip file"),
    ("x.csv", _zip(), r"x.csv: this looks like zip, as .xlsx files are too; unpack it or save"),
    ("x.xlsx", _zip(), r"x.xlsx: this looks like zip"),
    ("x.parquet", b"PAR1\x15\x04\x15\n", r"x.parquet: this looks like Parquet; save it as CSV"),
    ("x.csv", GOOD + b"b\0,1\n", r"x.csv, line 3: a NUL byte"),
    ("x.tsv", "text\tlabel\n".encode("utf-16"), r"x.tsv, line 1: a NUL byte, so this is .* UTF-16"),
    ("x.csv", GOOD + b"\xfcber,1\n", r"x.csv, line 3: byte 0 \(0xfc\) is not UTF-8; convert"),
    ("x.txt", GOOD, r"x.txt: the name's ending .* known are .tsv, .csv, .jsonl, .json, .* with .gz"),
    ("x.gz", gzip.compress(GOOD), r"x.gz: the name's ending does not say how to read it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    BAD,
    ids=[f"{number}-{bad[0]}" for number, bad in enumerate(BAD)],
)
def test_bad_files(tmp_path, name, content, message):
    """Red if bad input is read as something else, or its message is long or leaves out the place."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        rows(tmp_path / name, remedy="see --label")
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_no_file(tmp_path):
    """Red if a wrong path, or a directory's, gives anything but its name and why."""
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(IsADirectoryError, match=r"x\.csv: a directory; give a file in it"):
        rows(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file"):
        rows(tmp_path / "nowhere.csv")
