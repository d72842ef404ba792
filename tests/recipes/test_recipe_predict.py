"""The classifier as a filter: lines in, labels out, and what it says of what it cannot read."""

import io
import os
from pathlib import Path

import pytest
import torch
from launching import running
from models import bert
from recipe_loading import CLASSIFICATION, importing
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import hf_nm

with importing("classification"):
    import predict

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "plot", "cast", "was", "good", "bad"]
LABELS = {0: "bad", 1: "fair", 2: "good"}


def save_tokenizer(folder: Path) -> None:
    """Word level, with a pair's second sentence as segment 1."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def save_classifier(folder: Path, **changes) -> None:
    # the wide initialization sets the labels of different sentences apart
    bert(initializer_range=0.5, **changes).save_pretrained(folder)
    save_tokenizer(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    save_classifier(folder, id2label=LABELS)
    return folder


@pytest.fixture
def ask(monkeypatch, capsys):
    """Run the filter here: exit code, output lines, errors."""

    def run(text: str | bytes, *argv) -> tuple[int, list[str], str]:
        data = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = predict.main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        return code, out.split("\n")[:-1], err

    return run


def expected(folder: Path, *sentences: str) -> list[tuple[str, float]]:
    """A slow twin: one sentence or pair through the model itself, labels best first."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(*sentences, return_tensors="pt")).logits[0]
    scores = (logits if len(logits) == 1 else logits.softmax(-1)).tolist()
    return sorted(
        ((model.config.id2label[i], score) for i, score in enumerate(scores)),
        key=lambda row: -row[1],
    )


def check(line: str, labels: list[tuple[str, float]], text: str) -> None:
    cells = line.split("\t", 2 * len(labels))
    assert cells[-1] == text
    assert cells[:-1:2] == [label for label, _ in labels]
    for written, (_, score) in zip(cells[1:-1:2], labels, strict=True):
        assert len(written.split(".")[1]) == 4
        assert float(written) == pytest.approx(score, abs=6e-5)


def test_lines_and_pairs(folder, ask):
    """Red if a pair is read as one sentence, padding changes a score, or the order is lost."""
    lines = ["the plot was good", "bad", "the plot was good\tthe cast was bad", "the cast was bad"]
    for size in (1, 3, 32):
        code, answers, err = ask("\n".join(lines) + "\n", folder, "--batch_size", size)
        assert (code, err, len(answers)) == (0, "", len(lines))
        for line, answer in zip(lines, answers, strict=True):
            check(answer, expected(folder, *line.split("\t"))[:1], line)
    pair = expected(folder, "the plot was good", "the cast was bad")[0][1]
    assert abs(pair - expected(folder, "the plot was good the cast was bad")[0][1]) > 1e-3


def test_top_k(folder, ask):
    """Red if labels are missing, unsorted, or `all` is not all."""
    labels = expected(folder, "the plot was bad")
    for k, count in [("all", 3), (2, 2), (9, 3)]:
        code, (answer,), _ = ask("the plot was bad\n", folder, "--top_k", k)
        assert code == 0
        check(answer, labels[:count], "the plot was bad")


def test_line_numbers_stay(folder, ask):
    """Red if an empty line vanishes, which shifts all later answers, or is classified."""
    code, answers, _ = ask("\ufeffgood\r\n\n  \nbad\u2028plot", folder, "--batch_size", "2")
    assert code == 0
    assert [answer.split("\t")[-1] for answer in answers] == ["good", "", "", "bad\u2028plot"]
    assert ask("", folder) == (0, [], "")


def test_long_lines_are_cut(folder, ask):
    """Red if a sentence longer than the model's positions stops the run."""
    long = "good " * 100
    code, answers, _ = ask(f"{long}\n{long}\tbad\n", folder)
    assert code == 0
    check(answers[0], expected(folder, "good " * 30)[:1], long)
    check(answers[1], expected(folder, "good " * 28, "bad")[:1], f"{long}\tbad")


def test_regression_is_raw(tmp_path, ask):
    """Red if the value of a regression model is squeezed through a sigmoid."""
    save_classifier(tmp_path, num_labels=1)
    ((label, value),) = expected(tmp_path, "the plot was good")
    code, (answer,), _ = ask("the plot was good\n", tmp_path)
    assert code == 0
    check(answer, [(label, value)], "the plot was good")
    assert abs(value - torch.tensor(value).sigmoid().item()) > 1e-2


def test_packed_folder(folder, tmp_path, ask):
    """Red if what hf_nm packed is not read, or gives other scores."""
    sparse, packed = tmp_path / "sparse", tmp_path / "packed"
    hf_nm.prune(folder, sparse)
    hf_nm.pack(sparse, packed)
    code, answers, _ = ask("the plot was good\n", packed)
    assert (code, answers) == ask("the plot was good\n", sparse)[:2]
    assert code == 0


BAD_LINES = [
    (b"good\nbad\na\tb\tc\ngood\n", "line 3: 2 tabs; give one sentence, or two"),
    (b"good\nbad\ncaf\xe9\n", r"line 3: byte 3 (0xe9) is not UTF-8; convert"),
]


@pytest.mark.parametrize(("text", "message"), BAD_LINES)
def test_bad_lines(folder, ask, text, message):
    """Red if a faulty line is guessed at, or swallows the answers before it."""
    code, answers, err = ask(text, folder)
    assert (code, len(answers)) == (1, 2)
    assert message in err
    assert err.count("\n") == 1


def no_folder(folder: Path) -> None:
    pass


def empty_folder(folder: Path) -> None:
    folder.mkdir()


def encoder_only(folder: Path) -> None:
    bert().bert.save_pretrained(folder)
    save_tokenizer(folder)


def no_tokenizer(folder: Path) -> None:
    bert().save_pretrained(folder)


def damaged_weights(folder: Path) -> None:
    save_classifier(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")


BAD_FOLDERS = [
    (no_folder, "no such folder"),
    (empty_folder, "no classifier can be loaded from it"),
    (encoder_only, "its weights lack classifier.bias (of 2 missing)"),
    (no_tokenizer, "no tokenizer in it"),
    (damaged_weights, "no classifier can be loaded from it"),
]


@pytest.mark.parametrize(("build", "message"), BAD_FOLDERS)
def test_bad_folders(tmp_path, ask, build, message):
    """Red if transformers' random weights or empty tokenizer answer, or a traceback is shown."""
    build(tmp_path / "bad")
    code, answers, err = ask("good\n", tmp_path / "bad")
    assert (code, answers) == (1, [])
    assert err.startswith(f"predict.py: {tmp_path / 'bad'}: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", [["--batch_size", "0"], ["--top_k", "none"], ["--topk", "2"]])
def test_wrong_options(folder, ask, capsys, option):
    """Red if a wrong option is taken for something else."""
    with pytest.raises(SystemExit) as stopped:
        ask("good\n", folder, *option)
    assert stopped.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_answers_at_once(folder):
    """Red if an answer waits for the end of the input, or a closed output ends in a traceback."""
    command = [CLASSIFICATION / "predict.py", folder, "--batch_size", "1"]
    # PYTHONUNBUFFERED would flush by itself
    with running(*command, env=os.environ | {"PYTHONUNBUFFERED": ""}) as process:
        for text in (b"good\n", b"the plot was bad\n"):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\t" + text)
        process.stdout.close()
        process.stdin.write(b"good\n")
        process.stdin.close()
        assert b"Traceback" not in process.stderr.read()
