"""Models of diffusers: the manifest in a config that cannot be changed, weights under other names."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import hf_nm


class Frozen(OrderedDict):
    """As diffusers' ``FrozenDict``: nothing in it can be changed."""

    def __setitem__(self, name: str, value: Any) -> None:
        if getattr(self, "frozen", False):
            raise TypeError("it is frozen")
        super().__setitem__(name, value)

    def freeze(self) -> Frozen:
        self.frozen = True
        return self


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(16, 96), "norm": nn.LayerNorm(16)})
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(16, 16), "to_out": nn.Linear(16, 16)})
        self.ff = nn.ModuleDict({"net": nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16))})


class StandIn(nn.Module):
    """Keeps, saves and reads its config and weights as diffusers' ``ModelMixin`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block(), Block()])
        self._internal_dict = Frozen({"_class_name": "StandIn", "_diffusers_version": "0"}).freeze()

    @property
    def config(self) -> Frozen:
        return self._internal_dict

    def register_to_config(self, **values: Any) -> None:
        self._internal_dict = Frozen({**self._internal_dict, **values}).freeze()

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(dict(self._internal_dict)))
        save_file(self.state_dict(), folder / "diffusion_pytorch_model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> StandIn:
        model = cls()
        model.register_to_config(**json.loads((folder / "config.json").read_text()))
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        return model


def real() -> Any:
    """A model of diffusers itself."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_num_groups=2,
    )


@pytest.fixture(params=[StandIn, real], ids=["stand-in", "diffusers"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param()


def test_recorded_saved_verified_and_restored(model: Any, tmp_path: Path) -> None:
    """Red if the manifest is not in what is saved, the file's name is not known, or a dense weight in it
    passes."""
    hf_nm.sparsify(model)
    names = [row.name for row in hf_nm.verify(model).layers]
    assert names
    assert not any("norm" in name or "emb" in name for name in names)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert sorted(row.name for row in hf_nm.verify(folder).layers) == sorted(names)

    loaded = type(hf_nm.finalize(model)).from_pretrained(folder)
    assert sorted(row.name for row in hf_nm.verify(loaded).layers) == sorted(names)
    hf_nm.restore(loaded)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    hf_nm.attach(optimizer, loaded)
    for parameter in loaded.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert sorted(row.name for row in hf_nm.verify(loaded).layers) == sorted(names)
    with pytest.raises(ValueError, match="already"):
        hf_nm.restore(loaded)

    with pytest.raises(ValueError, match="is a diffusers model, which loads no packed weights"):
        hf_nm.pack(folder, tmp_path / "packed")
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors[names[0]] = torch.ones_like(tensors[names[0]])
    save_file(tensors, path)
    with pytest.raises(hf_nm.BrokenPatternError, match=names[0]):
        hf_nm.verify(folder)


def test_inspected(tmp_path: Path) -> None:
    """Red if a diffusers config, dense or sparse, is refused as one that transformers does not know."""
    model = real()
    model.save_pretrained(tmp_path / "dense")
    dense = hf_nm.inspect(tmp_path / "dense")
    assert (dense.claimed, dense.architecture) == (False, "DiTTransformer2DModel")
    hf_nm.sparsify(model, 1, 4)
    model.save_pretrained(tmp_path / "sparse")
    sparse = hf_nm.inspect(tmp_path / "sparse", dtype="bfloat16")
    assert sparse.claimed
    assert {str(row.pattern) for row in sparse.report.layers} == {"1:4"}
    assert [row.name for row in sparse.report.layers] == [row.name for row in dense.report.layers]


def test_inspected_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the message does not say what is missing."""
    StandIn().save_pretrained(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        ValueError, match=r"a diffusers model \(StandIn\), .* pip install diffusers"
    ):
        hf_nm.inspect(tmp_path / "model")
