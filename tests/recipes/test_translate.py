"""translate.py: a run as a filter over lines of text."""

import io
import subprocess
import sys
from types import SimpleNamespace

import models
import pytest
from recipe_loading import TRANSLATION, importing

import hf_nm

with importing("translation"):
    import translate
    from corpus import embedded_corpus
    from tokenizer import train_bpe

SENTENCES = [pair[0] for pair in embedded_corpus().splits["test"][:6]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sparse model, untrained, with its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_bpe(
        [text for pair in embedded_corpus().splits["train"][:200] for text in pair], 400
    )
    special = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    model = hf_nm.sparsify(models.marian(vocab_size=len(tokenizer), init_std=0.4, **special))
    model.generation_config.update(num_beams=2, max_new_tokens=None)
    hf_nm.finalize(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def filtered(monkeypatch, capsys, text, *options):
    """Lines that come out, the exit code, and what was said."""
    data = text if isinstance(text, bytes) else text.encode()
    stdin = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    code = translate.main([str(option) for option in options])
    said = capsys.readouterr()
    return said.out.split("\n")[:-1], code, said.err


def test_order_and_empty_lines(folder, monkeypatch, capsys):
    """Red if sorting by length changes the order, an empty line is left out, or a batch or window does
    not translate as each line alone does."""
    lines = [SENTENCES[0], "", SENTENCES[1], "  ", *SENTENCES[2:], ""]
    text = "".join(line + "\n" for line in lines)
    whole, code, _ = filtered(monkeypatch, capsys, text, folder)
    assert (len(whole), code) == (len(lines), 0)
    assert [not line for line in whole] == [not line.strip() for line in lines]
    assert len(set(whole)) > 3  # not one answer for all
    for options in (["--window", 1], ["--window", 3, "--max_tokens", 64]):
        found, _, _ = filtered(monkeypatch, capsys, text.rstrip("\n") + "\n\n", folder, *options)
        assert found == whole, options
    assert filtered(monkeypatch, capsys, "", folder)[:2] == ([], 0)
    assert filtered(monkeypatch, capsys, "\n\n", folder)[:2] == (["", ""], 0)


def test_packed_folder(folder, monkeypatch, capsys, tmp_path):
    """Red if the packed form of a run is not read, or translates otherwise."""
    hf_nm.pack(folder, tmp_path / "packed")
    text = "\n".join(SENTENCES) + "\n"
    plain = filtered(monkeypatch, capsys, text, folder)
    assert filtered(monkeypatch, capsys, text, tmp_path / "packed") == plain


def test_windows_are_read_one_at_a_time(folder, monkeypatch, capsys):
    """Red if all of the input is read before the first line is answered: memory would grow with it."""
    seen = []

    def lines():
        for number in range(9):
            seen.append((number, capsys.readouterr().out.count("\n")))
            yield f"{SENTENCES[0]}\n".encode()

    stdin = SimpleNamespace(buffer=lines(), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    assert translate.main([str(folder), "--window", "4"]) == 0
    assert seen == [(number, 4 if number in (4, 8) else 0) for number in range(9)]


@pytest.mark.parametrize(
    ("text", "lines", "said"),
    [
        (b"a\nb\xe9\nc\n", 1, "line 2: byte 1 (0xe9) is not UTF-8"),
        ("word " * 3000 + "\n", 1, "1 lines were too long and were cut"),
    ],
)
def test_input_that_is_told_of(text, lines, said, folder, monkeypatch, capsys):
    """Red if it ends in a traceback, or the lines before it are lost."""
    found, code, error = filtered(monkeypatch, capsys, text, folder, "--num_beams", 1)
    assert (len(found), code) == (lines, 1 if "UTF" in said else 0)
    assert said in error


def test_folders_that_do_not_translate(folder, tmp_path):
    """Red if a folder without a translation model gives random translations, or a traceback."""
    (tmp_path / "no_tokenizer").mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / "no_tokenizer" / name).write_bytes((folder / name).read_bytes())
    for name, said in {"missing": "no such folder", "no_tokenizer": "token"}.items():
        script = [sys.executable, str(TRANSLATION / "translate.py"), str(tmp_path / name)]
        done = subprocess.run(script, input="a\n", capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert said in line
