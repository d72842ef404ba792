"""``hf-nm``: what it prints, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path

import pytest
import torch
from launching import running
from models import bert, llama
from safetensors.torch import load_file, save_file

import hf_nm
from hf_nm.cli import app as cli
from hf_nm.cli import terminal

COMMANDS = ["inspect", "verify", "prune", "pack", "unpack", "push", "bench", "report"]


@pytest.fixture
def hf(monkeypatch, capsys):
    """Runs the command: its exit code, standard output and standard error.

    Its signal handlers go with it: a worker that is told to end would fail a later test instead.
    """
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-nm", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as done:
            code = int(done.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run
    for name, handler in handlers.items():
        signal.signal(name, handler)


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A sparse checkpoint."""
    folder = tmp_path / "sparse"
    hf_nm.sparsify(llama().bfloat16()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
def test_help(command, hf):
    """Every command says what it does and names its arguments."""
    code, out, _ = hf(*command, "--help")
    assert code == 0
    assert "Usage" in out
    for name in COMMANDS if not command else ["--help", f"Example: hf-nm {command[0]} "]:
        assert name in out


def test_inspect(hf, sparse):
    code, out, _ = hf("inspect", sparse)
    assert code == 0
    assert "model.layers.*.mlp.down_proj.weight" in out
    assert "as it claims" in out
    code, out, _ = hf("inspect", sparse / "config.json", "--json")
    assert json.loads(out) == hf_nm.inspect(sparse / "config.json").to_dict()


def test_inspect_with_options(hf, tmp_path):
    bert().save_pretrained(tmp_path)
    options = ["--pattern", "1:4", "--patterns", "*.1.*=2:8", "--exclude", "*.query", "--json"]
    code, out, _ = hf("inspect", tmp_path, *options)
    assert code == 0
    patterns = {row["pattern"] for row in json.loads(out)["weights"] if "pattern" in row}
    assert patterns == {"1:4", "2:8"}
    reasons = [row for row in json.loads(out)["weights"] if row.get("reason") == "excluded"]
    assert reasons


def test_verify(hf, sparse):
    """Exit code 1 where a group keeps more than n, and nothing else."""
    code, out, _ = hf("verify", sparse)
    assert code == 0
    assert "14 N:M weights (14 x 2:4)" in out
    code, out, _ = hf("verify", sparse, "--json")
    assert code == 0
    assert len(json.loads(out)["layers"]) == 14

    weights = load_file(sparse / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 1
    save_file(weights, sparse / "model.safetensors", {"format": "pt"})
    code, out, err = hf("verify", sparse)
    assert code == 1
    assert not out
    assert "model.layers.0.mlp.up_proj.weight is not 2:4: group 0 of row [0]" in err


def test_prune_pack_and_unpack(hf, tmp_path):
    """From a dense checkpoint to a packed one and back: the same weights."""
    dense = llama().bfloat16()
    dense.save_pretrained(tmp_path / "dense")
    assert hf("prune", tmp_path / "dense", tmp_path / "sparse")[0] == 0
    code, out, _ = hf("pack", tmp_path / "sparse", tmp_path / "packed")
    assert code == 0
    assert " to " in out
    assert hf("verify", tmp_path / "packed")[0] == 0
    assert hf("unpack", tmp_path / "packed", tmp_path / "again")[0] == 0
    before = load_file(tmp_path / "sparse" / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    code, _, err = hf("pack", tmp_path / "sparse", tmp_path / "packed")
    assert code == 2
    assert "--overwrite" in err
    assert hf("pack", tmp_path / "sparse", tmp_path / "packed", "--overwrite")[0] == 0


def test_bench(hf, sparse):
    """Every distinct shape, and the reason where there is no kernel."""
    code, out, _ = hf(
        "bench", sparse, "--rounds", "1", "--tokens", "8", "--json", "--device", "cpu"
    )
    assert code == 0
    rows = json.loads(out)
    assert {tuple(row["shape"]): row["layers"] for row in rows} == {
        (64, 32): 4,
        (32, 64): 2,
        (32, 32): 4,
        (16, 32): 4,
    }
    assert {row["why_no_kernel"] for row in rows} == {"no 2:4 kernel on cpu"}
    assert {row["packed_way"] for row in rows} == {"unpack"}
    assert all(row["packed_ms"] > 0 for row in rows)
    assert "2:4 kernel" in hf("bench", sparse, "--rounds", "1", "--tokens", "8")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "./nowhere"], "./nowhere does not exist"),
        (["inspect", "{sparse}", "--pattern", "4:2"], "1 <= n < m"),
        (["inspect", "{sparse}", "--patterns", "1:4"], "GLOB=n:m"),
        (["verify", "./nowhere"], "./nowhere"),
        (["prune", "{sparse}", "{sparse}-2"], "hf_nm.restore"),
        (["unpack", "{sparse}", "{sparse}-2"], "packed"),
        (["pack", "./nowhere", "{sparse}-2"], "./nowhere"),
        (["frobnicate"], "No such command"),
        (["verify"], "Missing argument"),
    ],
)
def test_what_was_wrong(arguments, message, hf, sparse):
    """One clear message and exit code 2, no traceback, nothing written."""
    before = sorted(sparse.parent.rglob("*"))
    code, out, err = hf(*[argument.format(sparse=sparse) for argument in arguments])
    assert code == 2
    assert message in (out + err).replace("\n", " ")
    assert "Traceback" not in err
    assert sorted(sparse.parent.rglob("*")) == before


def test_what_others_raise(hf, tmp_path):
    """Whatever a file makes torch, safetensors or transformers raise: not exit code 1, no traceback."""
    llama().save_pretrained(tmp_path / "dense")
    whole = (tmp_path / "dense" / "model.safetensors").read_bytes()
    (tmp_path / "dense" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    code, _, err = hf("prune", tmp_path / "dense", tmp_path / "sparse")
    assert (code, "Traceback" in err) == (2, False)
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    config["num_attention_heads"] = 0
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    code, _, err = hf("inspect", tmp_path / "dense")
    assert (code, "Traceback" in err) == (2, False)
    code, _, err = hf("bench", tmp_path / "dense", "--device", "tpu")
    assert code == 2
    assert "device must be cpu" in err


def test_names_are_printed_not_obeyed(hf, sparse):
    """Red if what a file calls a tensor is taken for markup, or for an emoji."""
    odd = "a[/b].weight:m:"
    weights = load_file(sparse / "model.safetensors")
    weights[odd] = weights["model.layers.0.mlp.up_proj.weight"].clone()
    save_file(weights, sparse / "model.safetensors", {"format": "pt"})
    config = json.loads((sparse / "config.json").read_text())
    config["nm_sparsity"]["modules"] = {odd: "2:4"}
    (sparse / "config.json").write_text(json.dumps(config))
    code, out, _ = hf("verify", sparse)
    assert code == 0
    assert odd in out


ODD = "a\x1b[2J\x9b2J\u202e\ud800\r\x07b"


@pytest.mark.parametrize("debug", ["", "1"])
def test_messages_are_printed_not_obeyed(debug, hf, sparse, monkeypatch):
    """Red if a name from a file clears the screen, or writes over what was printed before it."""
    if debug:
        monkeypatch.setenv("HF_NM_DEBUG", debug)
    config = json.loads((sparse / "config.json").read_text())
    config["nm_sparsity"]["modules"] = {"a\x9b2J\u202e\ud800b": "2:4"}
    (sparse / "config.json").write_text(json.dumps(config))
    code, out, err = hf("verify", sparse)
    assert code == 2
    assert "a\\x9b2J\\u202e\\ud800b" in err
    terminal.print_warning(ODD)
    error = ValueError(ODD)
    error.add_note(ODD)
    terminal.print_error(error)
    out, err = hf("verify", sparse)[1:]
    assert all(sign.isprintable() or sign == "\n" for sign in out + err)
    assert err.count("a\\x1b[2J\\x9b2J\\u202e\\ud800\\r\\x07b") == (5 if debug else 3)


def test_version_and_a_dense_push(hf, tmp_path):
    assert hf("--version")[1].strip() == f"hf-nm {hf_nm.__version__}"
    bert().save_pretrained(tmp_path)
    code, _, err = hf("push", tmp_path, "alice/dense")
    assert code == 2
    assert "hf-nm prune" in err


# A command that says when it comes to the check of what it wrote, and checks until it is stopped. Many
# short sleeps: a signal that comes just before a long one is seen after it. SIGINT's handler: what a
# shell starts with `&` ignores SIGINT, and so do its children.
STOPPED = """
import signal, time
from hf_nm.checkpoint import prune
from hf_nm.cli import main

def verify(folder):
    print("now", flush=True)
    while True:
        time.sleep(0.01)

signal.signal(signal.SIGINT, signal.default_int_handler)
prune.verify = verify
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(number, code, tmp_path):
    """Red if a stopped command leaves a folder, whole or half."""
    llama(num_hidden_layers=8).save_pretrained(tmp_path / "dense")
    arguments = ["-c", STOPPED, "prune", tmp_path / "dense", tmp_path / "sparse"]
    with running(*arguments, text=True) as process:
        assert process.stdout.readline().strip() == "now"
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code, err
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_report(hf, sparse, tmp_path):
    """Red if one interval is read as another, or per cent are of something else: a log of two lines."""
    name = "model.layers.0.self_attn.q_proj.weight"
    shapes = {row.name: row.shape for row in hf_nm.verify(sparse).layers}
    entries = math.prod(shapes[name])
    for step, sad, start in ((10, 400, 400), (20, 100, 450)):
        layers = {name: {"sad": sad, "flips": sad, "sad_init": start}}
        line = {"step": step, "nm/sad": sad, "nm/flip_rate": 0.0, "nm/sad_init": start}
        with (sparse / "nm_sad.jsonl").open("a") as file:
            file.write(json.dumps({**line, "layers": layers}) + "\n")
    code, out, err = hf("report", sparse, "--write", tmp_path / "figures", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["layers"]
    assert row == {
        "name": name,
        "pattern": "2:4",
        "entries": entries,
        "last": 100,
        "largest": 400,
        "largest_at": 10,
        "from_start": 450,
    }
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["sad.png", "sad_layers.png"]
    code, out, err = hf("report", sparse)
    assert code == 0, err
    assert f"100 ({10000 / entries:.2f}%)" in out


def test_report_of_a_run_whose_masks_nobody_followed(hf, sparse):
    code, _, err = hf("report", sparse)
    assert code == 2
    assert "has no nm_sad.jsonl" in err
