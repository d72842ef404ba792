"""Layers that are not quite what they seem: recast behind our back, initialised again, empty, shared."""

from __future__ import annotations

import copy

import pytest
import torch
from models import bert
from torch import nn
from training import assert_sparse, sparse_mlp, trained
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d
from transformers.pytorch_utils import Conv1D

import hf_nm
from hf_nm import nm_mask
from hf_nm.targets.kinds import input_dims


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_replaced_by_another_dtype(dtype: torch.dtype) -> None:
    """``parameter.data = parameter.data.float()``, which calls nothing of ours. Red if the bits of a
    pruned part are read as another dtype's."""
    model, optimizer = trained(dtype=torch.bfloat16)
    expected = {w.name: w.dense_weight().to(dtype) for w in hf_nm.sparse_weights(model)}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.dense_weight(), expected[w.name])
    optimizer.zero_grad(set_to_none=True)
    model(torch.randn(4, 16, dtype=dtype)).sum().backward()
    hf_nm.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    optimizer.state.clear()
    optimizer.step()
    assert_sparse(model)
    assert all(p.isfinite().all() for p in model.parameters())


def test_memory_that_was_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """``to_empty`` on a model with fixed masks fills them with anything. Red if that is believed."""
    model = sparse_mlp(method="fixed")
    dense = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    model.to_empty(device="cpu")
    for w in hf_nm.sparse_weights(model):
        w.state.mask.fill_(True)
    model.load_state_dict(dense)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.mask, nm_mask(dense[w.name], 2, 4))
    assert_sparse(model)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 3), nn.LSTM(8, 8)])
def test_initialised_again(layer: nn.Module) -> None:
    """Red if new values meet an old mask."""
    model = hf_nm.sparsify(nn.ModuleList([copy.deepcopy(layer)]), targets="*")
    model[0].reset_parameters()
    assert_sparse(model)
    assert any(w.dense_weight().count_nonzero() > w.mask.sum() for w in hf_nm.sparse_weights(model))


def test_a_class_without_reset_has_none() -> None:
    """What asks for ``reset_parameters`` by hasattr must not find one that fails."""
    model = hf_nm.sparsify(nn.ModuleList([Conv1D(8, 8)]), targets="*")
    assert not hasattr(model[0], "reset_parameters")


def test_nothing_in_it() -> None:
    """A weight without entries stays dense and can be printed."""
    empty = nn.Linear(8, 8)
    empty.weight = nn.Parameter(torch.empty(0, 8))
    model = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8), empty])])
    hf_nm.sparsify(model)
    assert "it has no entry" in str(hf_nm.report(model))


def test_zeros_that_do_not_last() -> None:
    """BiT subtracts the mean of a weight before using it: zeros in it are none in what computes."""
    assert input_dims(WeightStandardizedConv2d(8, 8, 3)) == {}


def test_weight_norm_of_a_recurrent_layer() -> None:
    """Red if the direction of a normed weight is taken for a weight."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.LSTM(8, 8), "weight_hh_l0")
    assert input_dims(layer) == {"weight_ih_l0": -1}


def test_parametrized_afterwards() -> None:
    """Moving such a model must not stop half-way for want of a leaf to watch."""
    model = sparse_mlp()
    nn.utils.parametrizations.spectral_norm(model[0])
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_model_called_router() -> None:
    """Red if every layer of a model whose class is called a router is taken for one."""

    class RouterModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8)]) for _ in range(2)])

    model = hf_nm.sparsify(nn.ModuleDict({"router": RouterModel()}))
    assert len(hf_nm.sparse_weights(model)) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own imports
def test_a_part_is_compiled() -> None:
    """Names of what is compiled region by region change: refused as a whole model's are."""
    model = bert()
    layers = model.bert.encoder.layer
    layers[0] = torch.compile(layers[0])
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0 is already compiled"):
        hf_nm.sparsify(model)


def test_shared_by_layers_of_two_kinds() -> None:
    """One weight, summed over its first dimension by one layer and its last by the other."""
    linear, transposed = nn.Linear(8, 8), Conv1D(8, 8)
    transposed.weight = linear.weight
    other = nn.Linear(8, 8)
    model = hf_nm.sparsify(nn.ModuleList([nn.ModuleList([linear, transposed, other])]))
    assert [w.name for w in hf_nm.sparse_weights(model)] == ["0.2.weight"]
    (row,) = hf_nm.report(model).skipped
    assert row.reason == "shared by layers that sum over different dimensions of it"


def test_before_processes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP gives a rank other weights than its masks belong to, until the first step: they keep the
    pattern, so they can be saved; what does not cannot."""
    model = sparse_mlp()
    monkeypatch.setattr("hf_nm.model.state.several_processes", lambda: True)
    for w in hf_nm.sparse_weights(model):
        groups = w.weight.data.unflatten(-1, (-1, 4))
        w.weight.data.copy_(groups.roll(1, -1).flatten(-2))
    model.state_dict()
    hf_nm.sparse_weights(model)[0].weight.data.fill_(1)
    with pytest.raises(hf_nm.BrokenPatternError):
        model.state_dict()
