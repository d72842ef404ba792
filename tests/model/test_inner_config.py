"""Models whose config belongs to a module inside them: names in the manifest are that module's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import nn
from training import assert_sparse
from transformers import BertModel, LlamaModel

import hf_nm


class Wrapped(nn.Module):
    """Somebody's own model around one of transformers'."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(models.WIDTH, 3)


class Answering(Wrapped):
    """One that answers for the module inside, as sentence-transformers' and PEFT's do."""

    @property
    def config(self) -> Any:
        return self.encoder.config


class Two(nn.Module):
    """Two models inside, which share a layer or do not."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.query = models.bert().bert
        self.document = models.llama().model
        if shared:
            self.document = models.bert().bert
            self.document.encoder.layer[0] = self.query.encoder.layer[0]


def verified(what: Any) -> list[str]:
    """Names of the weights that were found to be N:M (a config's keys are saved in another order)."""
    return sorted(row.name for row in hf_nm.verify(what).layers)


@pytest.mark.parametrize("kind", [Wrapped, Answering])
def test_one_model_inside(kind: type[Wrapped], tmp_path: Path) -> None:
    """Red if names carry the outer prefix in the config, or lose it in the report."""
    model = hf_nm.sparsify(kind(models.bert().bert))
    full = [w.name for w in hf_nm.sparse_weights(model)]
    assert full
    assert all(name.startswith("encoder.encoder.layer.") for name in full)
    assert [row.name for row in hf_nm.report(model).layers] == full
    own = [name.removeprefix("encoder.") for name in full]
    assert list(model.encoder.config.nm_sparsity["modules"]) == own
    model.encoder.save_pretrained(tmp_path)
    assert verified(tmp_path) == sorted(own)

    loaded = kind(BertModel.from_pretrained(tmp_path))
    assert verified(loaded) == sorted(full)
    reasons = {row.name: row.reason for row in hf_nm.report(loaded).skipped}
    assert "2:4 in config.nm_sparsity" in reasons[full[0]]
    with pytest.raises(ValueError, match="restore"):
        hf_nm.sparsify(loaded)
    hf_nm.restore(loaded)
    assert [w.name for w in hf_nm.sparse_weights(loaded)] == full
    assert loaded.encoder.config.nm_sparsity == model.encoder.config.nm_sparsity
    assert_sparse(loaded)
    hf_nm.finalize(loaded)
    assert verified(loaded) == sorted(full)


@pytest.mark.parametrize("shared", [False, True])
def test_two_models_inside(shared: bool, tmp_path: Path) -> None:
    """Red if one config names the other's weights, or a layer that both hold stands in one of them."""
    model = hf_nm.sparsify(Two(shared=shared))
    for part in ("query", "document"):
        getattr(model, part).save_pretrained(tmp_path / part)
        hf_nm.verify(tmp_path / part)
    first, second = (
        set(inner.config.nm_sparsity["modules"]) for inner in (model.query, model.document)
    )
    assert (first == second) == shared
    names = [w.name for w in hf_nm.sparse_weights(model)]
    loaded = Two(shared=False)
    loaded.query = BertModel.from_pretrained(tmp_path / "query")
    kind = BertModel if shared else LlamaModel
    loaded.document = kind.from_pretrained(tmp_path / "document")
    if shared:
        loaded.document.encoder.layer[0] = loaded.query.encoder.layer[0]
    assert verified(loaded) == sorted(names)
    assert [w.name for w in hf_nm.sparse_weights(hf_nm.restore(loaded))] == names


def test_another_module_is_damaged(tmp_path: Path) -> None:
    """Red if restore changes the first of two models before it has looked at the second."""
    model = hf_nm.sparsify(Two(shared=False))
    hf_nm.finalize(model)
    with torch.no_grad():
        model.document.layers[1].mlp.up_proj.weight.fill_(1.0)
    with pytest.raises(hf_nm.BrokenPatternError, match=r"document\.layers\.1\.mlp\.up_proj"):
        hf_nm.restore(model)
    assert not hf_nm.sparse_weights(model)


def test_a_model_with_a_config_of_its_own_names_everything(tmp_path: Path) -> None:
    """Red if a composite's weights are recorded in the configs of its parts alone: the composite is
    what is saved."""
    model = hf_nm.sparsify(models.bert())
    assert all(name.startswith("bert.") for name in model.config.nm_sparsity["modules"])


# PEFT asks transformers for is_gradient_checkpointing, which it renames in version 6
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
# PEFT 0.18 looks on the Hub for the config of a model without a name
@pytest.mark.filterwarnings("ignore:Could not find a config file in  -:UserWarning")
def test_sparsified_under_adapters(tmp_path: Path) -> None:
    """Red if names that only the wrapped model has are saved with the merged one."""
    peft = pytest.importorskip("peft", reason="the adapters are PEFT's")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    model = hf_nm.sparsify(peft.get_peft_model(models.llama(), config))
    claimed = model.config.nm_sparsity["modules"]
    assert "model.layers.0.self_attn.q_proj.weight" in claimed
    hf_nm.verify(model)
    names = [w.name for w in hf_nm.sparse_weights(model)]
    hf_nm.finalize(model)
    assert verified(model) == sorted(names)
    merged = model.unload()
    merged.save_pretrained(tmp_path)
    assert verified(tmp_path) == sorted(claimed)
