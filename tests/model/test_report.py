"""The report: rows, totals, the table, wrapped models."""

from __future__ import annotations

import pytest
import torch
from models import bert, llama, mlp
from torch import nn

import hf_nm
from hf_nm import NMPattern


def small() -> nn.Module:
    """Two layers of 16 and 32 inputs under one name each, and one whose size 4 does not divide."""
    model = nn.Module()
    model.layers = nn.ModuleList([mlp(16, 32), mlp(32, 8), mlp(6, 8)])
    return model


def test_rows() -> None:
    model = hf_nm.sparsify(small(), patterns={"layers.1.*": "1:8"})
    report = hf_nm.report(model)
    assert report.layers == [
        ("layers.0.0.weight", NMPattern(2, 4), (32, 16), 256),
        ("layers.1.0.weight", NMPattern(1, 8), (8, 32), 32),
    ]
    assert report.skipped == [
        ("layers.2.0.weight", (8, 6), "input size 6 is not a multiple of m=4")
    ]
    assert report.layers[0].name == "layers.0.0.weight"
    assert report.layers[0].pattern.sparsity == 0.5
    assert report.skipped[0].reason.startswith("input size 6")
    assert (report.weights, report.kept) == (768, 288)


def test_table() -> None:
    """Red if a column, a share or the last line is wrong."""
    model = hf_nm.sparsify(small(), patterns={"layers.1.*": "1:8"})
    assert str(hf_nm.report(model)).splitlines() == [
        "weight             shape  pattern  kept",
        "layers.0.0.weight  32x16  2:4      50.0%",
        "layers.1.0.weight  8x32   1:8      12.5%",
        "layers.2.0.weight  8x6    dense    input size 6 is not a multiple of m=4",
        "2 N:M weights (1 x 2:4, 1 x 1:8): 288 of 768 entries kept; 1 weights left dense",
    ]


def test_kept_is_counted_from_the_mask() -> None:
    """Red if zeros among the kept entries are not counted: they are kept, and verify counts values."""
    model = small()
    with torch.no_grad():
        model.layers[0][0].weight.zero_()
    hf_nm.sparsify(model)
    assert hf_nm.report(model).layers[0].kept == 256
    assert hf_nm.verify(model).layers[0].kept == 0


def test_every_weight_is_listed_once() -> None:
    """Red if a matrix of the model is in neither list or in both."""
    model = hf_nm.sparsify(bert())
    report = hf_nm.report(model)
    names = [row.name for row in (*report.layers, *report.skipped)]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, p in model.named_parameters() if p.ndim >= 2}


def test_meta_device() -> None:
    with torch.device("meta"):
        model = llama()
    report = hf_nm.report(hf_nm.sparsify(model, 1, 4))
    assert (report.weights, report.kept) == (18_432, 4_608)
    assert "25.0%" in str(report)


def test_dense_model() -> None:
    report = hf_nm.report(small())
    assert report.layers == []
    assert {row.reason for row in report.skipped} == {"not sparsified"}
    assert str(report).endswith("0 N:M weights (none): 0 of 0 entries kept; 3 weights left dense")


@pytest.mark.usefixtures("single_process_group")
def test_wrapped_models_are_looked_through() -> None:
    """Red if names get a wrapper's prefix."""
    model = hf_nm.sparsify(bert())
    plain = hf_nm.report(model)
    assert hf_nm.report(torch.compile(model, backend="eager")) == plain
    assert hf_nm.report(nn.DataParallel(model)) == plain
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert hf_nm.report(wrapped) == plain
    assert hf_nm.report(torch.compile(wrapped, backend="eager")) == plain
    assert [w.name for w in hf_nm.sparse_weights(wrapped)] == [row.name for row in plain.layers]


def test_sparse_weights() -> None:
    model = hf_nm.sparsify(llama())
    for w in hf_nm.sparse_weights(model):
        assert w.weight is model.get_parameter(w.name)
        assert w.pattern == NMPattern(2, 4)
        assert w.mask.shape == w.weight.shape
        assert w.dense_weight() is not w.weight
        assert w.layer is model.get_submodule(w.name.removesuffix(".weight"))
    assert hf_nm.sparse_weights(llama()) == []


def test_a_finalized_model_says_what_its_config_claims() -> None:
    model = hf_nm.finalize(hf_nm.sparsify(bert()))
    reasons = {row.name: row.reason for row in hf_nm.report(model).skipped}
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert reasons[query] == "a plain layer, 2:4 in config.nm_sparsity"
    assert reasons["classifier.weight"] == "not sparsified"
