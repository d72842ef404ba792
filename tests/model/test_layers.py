"""Sparse layers as modules: by hand, cast, moved, copied, saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from models import batch, bert, llama, marian, mlp
from report_rows import reasons, sparse_names
from tolerances import assert_same_bits
from torch import Tensor, nn

import hf_nm
from hf_nm import NMLinear, NMPattern, nm_mask


def test_linear_by_hand(device: torch.device) -> None:
    layer = NMLinear(16, 8, n=1, m=4, method="ste", decay=0.1, device=device, dtype=torch.float64)
    assert layer.pattern == NMPattern(1, 4)
    assert layer.weight.dtype == torch.float64
    assert layer.mask.dtype == torch.bool
    assert layer.mask.device == layer.weight.device
    assert torch.equal(layer.mask, nm_mask(layer.dense_weight(), 1, 4))
    assert torch.equal(layer.weight, layer.dense_weight() * layer.mask)
    x = torch.randn(2, 16, device=device, dtype=torch.float64)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert repr(layer) == "NMLinear(in_features=16, out_features=8, bias=True, 1:4 ste)"
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(NMLinear(16, 8, bias=False).state_dict()) == ["weight"]


def test_linear_by_hand_refuses() -> None:
    with pytest.raises(ValueError, match="has 6 entries"):
        NMLinear(6, 8)
    with pytest.raises(ValueError, match="1 <= n < m"):
        NMLinear(8, 8, n=4)
    with pytest.raises(ValueError, match="method must be one of"):
        NMLinear(8, 8, method="magnitude")
    with pytest.raises(ValueError, match="decay must be"):
        NMLinear(8, 8, decay=-1.0)


def test_linear_on_the_meta_device() -> None:
    layer = NMLinear(16, 8, device="meta")
    assert layer.mask is None
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer.weight, layer.dense_weight() * nm_mask(layer.dense_weight(), 2, 4))


def test_reset_parameters() -> None:
    """Red if a new initialisation is not projected."""
    layer = NMLinear(16, 8)
    before = layer.dense_weight()
    layer.reset_parameters()
    assert not torch.equal(layer.dense_weight(), before)
    assert torch.equal(layer.weight, layer.dense_weight() * nm_mask(layer.dense_weight(), 2, 4))


class Scaled(nn.Linear):
    """A linear layer with its own forward and state."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


def test_subclass_of_linear() -> None:
    """Red if its own forward is lost, or its class after finalize."""
    model, masked = nn.Sequential(Scaled(8, 8)), nn.Sequential(Scaled(8, 8))
    masked.load_state_dict(model.state_dict())
    hf_nm.sparsify(model, targets="*")
    layer = model[0]
    assert isinstance(layer, NMLinear)
    assert isinstance(layer, Scaled)
    assert type(layer).__name__ == "NMScaled"
    x = torch.randn(2, 8)
    with torch.no_grad():
        masked[0].weight.mul_(layer.mask)
    assert torch.equal(model(x), masked(x))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is type(layer)
        assert torch.equal(twin(x), model(x))
    hf_nm.finalize(model)
    assert type(layer) is Scaled


def test_hooks_survive() -> None:
    """Red if the module object is replaced."""
    model = llama()
    seen: list[str] = []
    layer = model.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.weight.register_hook(lambda gradient: seen.append("gradient"))
    hf_nm.sparsify(model)
    model(**batch(model)).loss.backward()
    assert seen == ["forward", "gradient"]
    hf_nm.finalize(model)
    model(**batch(model)).loss.backward()
    assert seen == ["forward", "gradient"] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_change_of_dtype_keeps_the_mask(dtype: torch.dtype) -> None:
    """Red if the mask is computed again: in low precision other entries tie."""
    for change in (lambda m: m.to(dtype), lambda m: m.type(dtype)):
        layer = NMLinear(256, 64)
        mask, dense = layer.mask.clone(), layer.dense_weight()
        change(layer)
        assert layer.mask.dtype == torch.bool
        assert torch.equal(layer.mask, mask)
        assert_same_bits(layer.dense_weight(), dense.to(dtype), "W")
        assert torch.equal(layer.weight, dense.to(dtype) * mask)


def test_move_takes_everything_along(device: torch.device) -> None:
    layer = NMLinear(16, 8)
    dense = layer.dense_weight()
    layer.to(device)
    assert {layer.mask.device, layer.dense_weight().device} == {layer.weight.device}
    assert layer.weight.device.type == device.type
    assert_same_bits(layer.dense_weight().cpu(), dense, "W")


def _through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Red if a copy loses masks or pruned parts, or shares them with the original."""
    model = hf_nm.sparsify(marian(), 1, 4)
    dense = {w.name: w.dense_weight() for w in hf_nm.sparse_weights(model)}
    twin = copied(model)
    assert reasons(twin) == reasons(model)
    assert sparse_names(twin) == sparse_names(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    hf_nm.attach(optimizer, twin)
    for w in hf_nm.sparse_weights(twin):
        assert_same_bits(w.dense_weight(), dense[w.name], w.name)
    twin(**batch(twin)).loss.backward()
    optimizer.step()
    for w, other in zip(hf_nm.sparse_weights(model), hf_nm.sparse_weights(twin), strict=True):
        assert_same_bits(w.dense_weight(), dense[w.name], w.name)
        assert torch.equal(w.mask, nm_mask(dense[w.name], 1, 4))
        assert not torch.equal(other.dense_weight(), dense[w.name])


def test_state_dict_is_sparse_and_loads_into_a_dense_model() -> None:
    model, plain = hf_nm.sparsify(llama()), llama()
    state = model.state_dict()
    assert plain.load_state_dict(state).missing_keys == []
    inputs = batch(model)
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, model(**inputs).logits)


def test_load_state_dict_splits_again() -> None:
    """Red if a loaded weight keeps the old mask or the old pruned part."""
    model = hf_nm.sparsify(bert(), 1, 4)
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.mask, nm_mask(other[w.name], 1, 4))
        assert_same_bits(w.dense_weight(), other[w.name], w.name)
    sparse = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(sparse)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.dense_weight(), sparse[w.name]), "a sparse file has no pruned part"


def test_load_that_fails_changes_nothing() -> None:
    layer = NMLinear(8, 8)
    dense = layer.dense_weight()
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict({"weight": torch.randn(4, 8), "bias": torch.zeros(8)})
    assert_same_bits(layer.dense_weight(), dense)


def test_load_inside_dense_weights() -> None:
    """Red if the parameter is projected before the context is left."""
    model = mlp(16, 8)
    hf_nm.sparsify(model, targets="*")
    loaded = {"0.weight": torch.randn(8, 16), "0.bias": torch.zeros(8)}
    with hf_nm.dense_weights(model):
        model.load_state_dict(loaded)
        assert torch.equal(model[0].weight, loaded["0.weight"])
    assert_same_bits(model[0].dense_weight(), loaded["0.weight"])
    assert torch.equal(model[0].mask, nm_mask(loaded["0.weight"], 2, 4))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("method", ["sr-ste", "fixed"])
def test_meta_then_load(method: str, assign: bool) -> None:
    """Red if loaded weights are not projected, or the masks are not theirs."""
    with torch.device("meta"):
        model = bert()
    hf_nm.sparsify(model, method=method)
    assert all(w.mask is None for w in hf_nm.sparse_weights(model))
    if not assign:
        model.to_empty(device="cpu")
    dense = bert().state_dict()
    model.load_state_dict(copy.deepcopy(dense), assign=assign)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.mask, nm_mask(dense[w.name], 2, 4))
        assert torch.equal(w.weight, dense[w.name] * w.mask)
        if method == "sr-ste":
            assert_same_bits(w.dense_weight(), dense[w.name], w.name)
    hf_nm.verify(model)


@pytest.mark.parametrize("then", ["finalize", "state_dict", "dense_weights", "attach"])
def test_meta_then_filled_in_place(then: str) -> None:
    """Red if weights that no load brought stay dense: they would be saved so."""
    with torch.device("meta"):
        model = mlp(16, 32, 8)
    hf_nm.sparsify(model, targets="*")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    if then == "finalize":
        hf_nm.finalize(model)
    elif then == "state_dict":
        model.state_dict()
    elif then == "dense_weights":
        with hf_nm.dense_weights(model):
            pass
    else:
        hf_nm.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for layer in (model[0], model[2]):
        assert (layer.weight.unflatten(-1, (-1, 4)).ne(0).sum(-1) == 2).all()


def test_to_the_meta_device_and_back() -> None:
    """Red if a mask is made from memory that was never written."""
    model = hf_nm.sparsify(bert(), method="fixed")
    dense = bert().state_dict()
    model.to("meta")
    assert all(w.mask is None for w in hf_nm.sparse_weights(model))
    model.to_empty(device="cpu")
    assert all(w.mask is None for w in hf_nm.sparse_weights(model))
    model.load_state_dict(dense)
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.mask, nm_mask(dense[w.name], 2, 4))
