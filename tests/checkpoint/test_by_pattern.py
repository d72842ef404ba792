"""``verify(pattern=...)``: files that no manifest belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import llama
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import hf_nm
from hf_nm.cli import app as cli

LAST = " along its last dimension, and nothing tells which its input dimension is"
GROUP = torch.tensor([1.0, 0.0, 2.0, 0.0])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two 2:4 matrices of which one is 1:4 too, and what is none."""
    path = tmp_path / "bare.safetensors"
    tensors = {
        "a.mlp.up": GROUP.repeat(6, 2),
        "a.mlp.down": (GROUP * torch.tensor([1.0, 1.0, 0.0, 0.0])).repeat(6, 2),
        "a.attn.q": torch.ones(6, 8),
        "a.attn.k": GROUP.repeat(8, 2).T.contiguous(),  # 2:4 along the other dimension
        "embed": torch.ones(3, 6),
        "lora_B": torch.zeros(8, 4),
        "ids": torch.zeros(4, 4, dtype=torch.int64),
        "norm": torch.zeros(8),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, path)
    return path


def test_what_keeps_it(file: Path) -> None:
    """Red if a dense weight counts as sparse, a zero one as evidence, or a sparse one is left out."""
    report = hf_nm.verify(file, pattern="2:4")
    rows = sorted((row.name, row.kept) for row in report.layers)
    assert rows == [("a.mlp.down", 12), ("a.mlp.up", 24)]
    assert {row.name: row.reason for row in report.skipped} == {
        "a.attn.q": f"not 2:4{LAST}",
        "a.attn.k": f"not 2:4{LAST}",
        "embed": "its last dimension of 6 is not a multiple of m=4",
        "lora_B": "all zero",
        "ids": "dtype torch.uint8 cannot be N:M",
        "none": "it has no entry",
    }
    assert [row.name for row in hf_nm.verify(file, pattern=hf_nm.NMPattern(1, 4)).layers] == [
        "a.mlp.down"
    ]


def test_named_ones_must(file: Path) -> None:
    """Red if a named weight that breaks the pattern passes, or a name that matches nothing."""
    report = hf_nm.verify(file, pattern="2:4", targets="*.mlp.*")
    assert len(report.layers) == 2
    assert {row.reason for row in report.skipped} == {"not in targets"}
    with pytest.raises(hf_nm.BrokenPatternError, match=r"a\.attn\.q is not 2:4"):
        hf_nm.verify(file, pattern="2:4", targets=["*.mlp.*", "*.q"])
    with pytest.raises(ValueError, match=r"'\*\.mpl' in targets= names no matrix.*whole names"):
        hf_nm.verify(file, pattern="2:4", targets="*.mpl")
    with pytest.raises(ValueError, match="in targets= names no matrix"):
        hf_nm.verify(file, pattern="2:4", targets=[])
    with pytest.raises(ValueError, match=r"embed: .*4 divides"):
        hf_nm.verify(file, pattern="2:4", targets="embed")


def test_nothing_keeps_it(file: Path) -> None:
    """Red if a dense file passes, or options that say nothing together."""
    with pytest.raises(hf_nm.BrokenPatternError, match=r"none of the 8 weights .* is 1:8"):
        hf_nm.verify(file, pattern="1:8")
    with pytest.raises(ValueError, match="give that too"):
        hf_nm.verify(file, targets="*")
    with pytest.raises(ValueError, match="manifest= or pattern="):
        hf_nm.verify(file, pattern="2:4", manifest={})


def test_folders_models_and_packed_ones(tmp_path: Path) -> None:
    """Red if the same weights are judged otherwise in another form; 2:8 is read of a 2:4 file too."""
    model = hf_nm.sparsify(llama(), n=1, m=4)
    model.save_pretrained(tmp_path / "plain", max_shard_size="20KB")
    hf_nm.pack(tmp_path / "plain", tmp_path / "packed")
    expected = sorted(hf_nm.verify(model).layers)
    for pattern in ("1:4", "2:8"):
        for source in (model, tmp_path / "plain", tmp_path / "packed"):
            found = hf_nm.verify(source, pattern=pattern).layers
            assert sorted((r.name, r.kept) for r in found) == [(r.name, r.kept) for r in expected]
    (tmp_path / "plain" / "config.json").unlink()
    assert len(hf_nm.verify(tmp_path / "plain", pattern="1:4").layers) == len(expected)
    with pytest.raises(hf_nm.BrokenPatternError):
        hf_nm.verify(llama(), pattern="2:4")


def test_along_the_input_dimension(tmp_path: Path) -> None:
    """Red if GPT-2's ``Conv1D`` (input dimension first) or a convolution is judged along its last
    dimension although the model, or the class that the config names, tells better."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=8)
    model = hf_nm.sparsify(GPT2LMHeadModel(config))
    model.save_pretrained(tmp_path)
    expected = sorted((row.name, row.kept) for row in hf_nm.verify(model).layers)
    assert any("c_attn" in name for name, _ in expected)
    for source in (model, tmp_path, tmp_path / "model.safetensors"):
        report = hf_nm.verify(source, pattern="2:4")
        assert sorted((row.name, row.kept) for row in report.layers) == expected
        assert "not 2:4" in {row.reason for row in report.skipped}  # the embedding
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        hf_nm.BrokenPatternError, match="nothing tells which its input dimension is"
    ):
        hf_nm.verify(tmp_path, pattern="2:4", targets=None)
    convolution = nn.Conv2d(8, 6, 1)
    with torch.no_grad():
        convolution.weight.copy_(GROUP.repeat(6, 2)[:, :, None, None])
    assert len(hf_nm.verify(convolution, pattern="2:4").layers) == 1


def test_exit_codes(file: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Red if a script cannot tell a sparse file from a dense one."""
    for options, code in (
        (["--pattern", "2:4"], 0),
        (["--pattern", "1:8"], 1),
        (["-p", "2:4", "--targets", "*.q"], 1),
        (["-p", "2:4", "--targets", "x"], 2),
    ):
        monkeypatch.setattr("sys.argv", ["hf-nm", "verify", str(file), *options])
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert int(done.value.code or 0) == code
    assert "a.mlp.up" in capsys.readouterr().out
    assert load_file(file)
