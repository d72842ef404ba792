"""A checkpoint's whole way: trained, saved, verified, packed, unpacked, pushed, loaded, trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from models import batch
from torch import nn
from trainers import build, one_layer_bert
from training import assert_sparse
from transformers import AutoModelForSequenceClassification

import hf_nm

REPO = "alice/whole-way"


@pytest.mark.parametrize("packed", [False, True])
def test_whole_way(packed: bool, tmp_path: Path, hub: HubServer) -> None:
    """Over HTTP, plain and packed. Red if any station changes a single bit of what the model computes,
    or training on starts from anything else."""
    model = hf_nm.sparsify(one_layer_bert(), patterns={"*.output.dense": "1:4"})
    trainer = build(tmp_path / "run", model=model)
    trainer.train()
    inputs = {"input_ids": batch(model)["input_ids"]}

    def logits(found: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return found.eval()(**inputs).logits

    expected = logits(model)
    trainer.save_model(str(tmp_path / "saved"))
    claimed = sorted(hf_nm.verify(model).layers)

    def station(found: nn.Module, where: Path | str | None = None) -> None:
        assert torch.equal(logits(found), expected)
        assert sorted(hf_nm.verify(found).layers) == claimed
        if where is not None:
            assert sorted(hf_nm.verify(where).layers) == claimed

    kind = AutoModelForSequenceClassification
    station(kind.from_pretrained(tmp_path / "saved"), tmp_path / "saved")
    hf_nm.pack(tmp_path / "saved", tmp_path / "packed")
    station(hf_nm.load_packed(tmp_path / "packed"), tmp_path / "packed")
    hf_nm.unpack(tmp_path / "packed", tmp_path / "unpacked")
    station(kind.from_pretrained(tmp_path / "unpacked"), tmp_path / "unpacked")

    hf_nm.push_to_hub(tmp_path / ("packed" if packed else "unpacked"), REPO)
    for folder in ("run", "saved", "packed", "unpacked"):
        shutil.rmtree(tmp_path / folder)
    loaded = kind.from_pretrained(REPO)
    station(loaded, REPO)

    hf_nm.restore(loaded)
    station(loaded)
    again = build(tmp_path / "again", model=loaded)
    again.train()
    assert_sparse(loaded)
    assert again.state.log_history[0]["nm/sad"] > 0
    assert not torch.equal(logits(loaded), expected)
