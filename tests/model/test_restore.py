"""Plain layers for publishing, and sparse again for training."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MODELS, batch, bert, llama
from report_rows import sparse_names
from tolerances import assert_same_bits
from transformers import BertForTokenClassification, BertModel, PreTrainedModel
from zoo import ZOO

import hf_nm


def test_finalize(kind: str) -> None:
    """Red if the pruned part comes back, a class stays sparse, or the manifest is dropped."""
    model, plain = MODELS[kind](), MODELS[kind]()
    hf_nm.sparsify(model)
    sparse = {w.name: w.weight.detach().clone() for w in hf_nm.sparse_weights(model)}
    assert hf_nm.finalize(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [set(m.__dict__) for m in model.modules()] == [set(m.__dict__) for m in plain.modules()]
    for name, parameter in model.named_parameters():
        if name in sparse:
            assert_same_bits(parameter.detach(), sparse[name], name)
    assert set(model.config.nm_sparsity["modules"]) == set(sparse)
    hf_nm.verify(model)


def test_finalize_refuses() -> None:
    with pytest.raises(ValueError, match="needs a sparsified model"):
        hf_nm.finalize(bert())
    model = hf_nm.sparsify(bert())
    with (
        hf_nm.dense_weights(model),
        pytest.raises(ValueError, match=r"leave `with hf_nm\.dense_weights"),
    ):
        hf_nm.finalize(model)
    assert hf_nm.sparse_weights(model)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.fill_(1.0)
    with pytest.raises(hf_nm.BrokenPatternError, match=r"layer\.0\.output\.dense\.weight"):
        hf_nm.finalize(model)


def test_finalized_model_trains_as_a_plain_one() -> None:
    """Red if a hook or a guard stays behind."""
    model = hf_nm.finalize(hf_nm.sparsify(llama()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(**batch(model)).loss.backward()
        optimizer.step()
    model.state_dict()


@pytest.mark.parametrize("method", ["sr-ste", "ste", "fixed"])
def test_restore(kind: str, method: str) -> None:
    """Red if masks, patterns, method or decay are not those that were saved."""
    model = hf_nm.sparsify(MODELS[kind](), 1, 4, method=method, decay=0.5, patterns={"*1*": "2:4"})
    masks = {w.name: w.mask.clone() for w in hf_nm.sparse_weights(model)}
    before = hf_nm.report(model)
    manifest = model.config.nm_sparsity
    hf_nm.finalize(model)
    assert hf_nm.restore(model) is model
    after = hf_nm.report(model)
    assert after.layers == before.layers
    assert [row[:2] for row in after.skipped] == [row[:2] for row in before.skipped]
    assert {row.reason for row in after.skipped} == {"dense in config.nm_sparsity"}
    assert model.config.nm_sparsity == manifest
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.mask, masks[w.name])
        assert torch.equal(w.dense_weight(), w.weight)
        assert (w.state.method.name, w.state.spec.decay) == (method, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    model(**batch(model)).loss.backward()
    optimizer.step()
    hf_nm.verify(model)


def test_restore_with_another_method() -> None:
    model = hf_nm.finalize(hf_nm.sparsify(bert()))
    hf_nm.restore(model, method="fixed", decay=0.25)
    state = hf_nm.sparse_weights(model)[0].state
    assert (state.method.name, state.spec.decay) == ("fixed", 0.25)


def test_restore_of_a_method_of_ones_own() -> None:
    method = hf_nm.Method("mine", lambda *_: None)
    model = hf_nm.finalize(hf_nm.sparsify(bert(), method=method))
    with pytest.raises(ValueError, match="but got 'mine'"):
        hf_nm.restore(model)
    hf_nm.restore(model, method=method)


def test_restore_refuses() -> None:
    with pytest.raises(TypeError, match="but got dict"):
        hf_nm.restore({})  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"config has 'nm_sparsity', .* call hf_nm\.sparsify"):
        hf_nm.restore(bert())
    model = bert()
    model.config.nm_sparsity = {"version": 99}
    with pytest.raises(ValueError, match="version 99"):
        hf_nm.restore(model)


def test_restore_names_the_broken_group() -> None:
    """Red if a weight that is not N:M is taken, or the wrong place is named."""
    model = hf_nm.finalize(hf_nm.sparsify(bert()))
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.weight[5, 8:12] = 1.0
    text = (
        r"bert\.encoder\.layer\.1\.intermediate\.dense\.weight is not 2:4: group 2 of row \[5\] holds "
        r"4 non-zero entries where 2 of 4 are allowed \(1 of 512 groups"
    )
    with pytest.raises(hf_nm.BrokenPatternError, match=text):
        hf_nm.restore(model)
    assert not hf_nm.sparse_weights(model)


@pytest.mark.parametrize(
    ("kind", "name", "place", "where"),
    [
        # Conv1D [in, out]: a group is a piece of a column.
        ("gpt2", "*.h.1.mlp.c_fc.weight", (slice(8, 12), 5), r"2 of row \[5\]"),
        # [experts, out, in]
        ("mixtral", "*.layers.1.mlp.experts.down_proj", (1, 3, slice(4, 8)), r"1 of row \[1, 3\]"),
        # [experts, in, out]
        ("gpt_oss", "*.layers.1.mlp.experts.down_proj", (1, slice(4, 8), 3), r"1 of row \[1, 3\]"),
        # [out, in, kernel]
        ("fastspeech2_conformer", "*.conv1.weight", (3, slice(4, 8), 0), r"1 of row \[3, 0\]"),
    ],
)
def test_restore_names_the_broken_group_of_other_weights(
    kind: str, name: str, place: Any, where: str, tmp_path: Path
) -> None:
    """Red if groups are looked for along another dimension than the weight's input, in a loaded model
    or in its file."""
    model = hf_nm.finalize(hf_nm.sparsify(ZOO[kind].build()))
    chosen = fnmatch.filter(model.config.nm_sparsity["modules"], name)[0]
    model.save_pretrained(tmp_path / "sound")
    loaded = type(model).from_pretrained(tmp_path / "sound")
    hf_nm.restore(loaded)
    assert [w.state.dim for w in hf_nm.sparse_weights(loaded) if w.name == chosen]
    with torch.no_grad():
        model.get_parameter(chosen)[place] = 1.0
    model.save_pretrained(tmp_path / "broken")
    text = rf"{re.escape(chosen)} is not 2:4: group .*{where} holds 4 non-zero"
    with pytest.raises(hf_nm.BrokenPatternError, match=text):
        hf_nm.restore(type(model).from_pretrained(tmp_path / "broken"))
    with pytest.raises(hf_nm.BrokenPatternError, match=text):
        hf_nm.verify(tmp_path / "broken")


def claim(model: PreTrainedModel, name: str, pattern: str) -> PreTrainedModel:
    """A finalized model whose manifest names one weight more."""
    model.config.nm_sparsity["modules"][name] = pattern
    return model


def test_restore_refuses_names_that_do_not_fit() -> None:
    def finalized() -> PreTrainedModel:
        return hf_nm.finalize(hf_nm.sparsify(bert()))

    with pytest.raises(
        ValueError, match=r"1 weights that this BertFor\w+ does not have \(first: x\.y\)"
    ):
        hf_nm.restore(claim(finalized(), "x.y", "2:4"))
    with pytest.raises(ValueError, match="a parameter of Embedding, which cannot be N:M"):
        hf_nm.restore(claim(finalized(), "bert.embeddings.word_embeddings.weight", "2:4"))
    with pytest.raises(ValueError, match="a parameter of Linear, which cannot be N:M"):
        hf_nm.restore(claim(finalized(), "bert.pooler.dense.bias", "2:4"))
    with pytest.raises(ValueError, match=r"classifier\.weight: 3:7 needs an input dimension"):
        hf_nm.restore(claim(finalized(), "classifier.weight", "3:7"))


def test_restore_under_another_head(tmp_path: Any) -> None:
    """Red if names that differ by the head's prefix are not found."""
    model = hf_nm.sparsify(bert())
    model.save_pretrained(tmp_path)
    base = BertModel.from_pretrained(tmp_path)
    assert len(hf_nm.verify(base).layers) == 12
    hf_nm.restore(base)
    assert sparse_names(base) == {name.removeprefix("bert.") for name in sparse_names(model)}
    other = BertForTokenClassification.from_pretrained(tmp_path)
    hf_nm.restore(other)
    assert sparse_names(other) == sparse_names(model)

    hf_nm.sparsify(bert().bert).save_pretrained(tmp_path / "base")
    assert len(hf_nm.verify(tmp_path / "base").layers) == 12
    headed = BertForTokenClassification.from_pretrained(tmp_path / "base")
    assert len(hf_nm.verify(headed).layers) == 12
    hf_nm.restore(headed)
    assert sparse_names(headed) == sparse_names(model)


def test_restore_with_another_method_says_so_in_the_config() -> None:
    """Red if the next save would publish the old method."""
    model = hf_nm.finalize(hf_nm.sparsify(bert()))
    hf_nm.restore(model, method="ste", decay=0.5)
    assert model.config.nm_sparsity["method"] == "ste"
    assert model.config.nm_sparsity["decay"] == 0.5
