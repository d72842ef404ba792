"""A sparsified model that is changed before it trains equals one that was made so in the first place."""

from __future__ import annotations

import copy
import pickle

import models
import pytest
import torch
from models import mlp
from torch import nn
from training import (
    SIZES,
    State,
    assert_same_state,
    assert_sparse,
    example,
    loss_of,
    sparse_mlp,
    state_of,
    train,
    trained,
)

import hf_nm


def train_on(model: nn.Module, steps: int = 5) -> State:
    """The state of the model and its new optimizer after some steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    hf_nm.attach(optimizer, model)
    train(model, optimizer, range(steps))
    assert_sparse(model)
    return state_of(model, optimizer)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("source", ["dense", "sparse"])
def test_loading_equals_sparsifying_what_was_loaded(source, strict, assign):
    """Red if mask, pruned part or probe belong to the weights that the load replaced."""
    other = mlp(*SIZES) if source == "dense" else trained(steps=7)[0]
    with torch.no_grad():
        other[0].weight.mul_(-1.5)
    file = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    model, _ = trained()
    replaced = model[0].weight
    # (assigned tensors become the parameters, so they are projected in place)
    model.load_state_dict(copy.deepcopy(file), strict=strict, assign=assign)
    assert (model[0].weight is replaced) != assign
    expected = mlp(*SIZES)
    expected.load_state_dict(file)
    hf_nm.sparsify(expected, targets="*")
    assert_same_state(state_of(model), state_of(expected))
    assert_same_state(train_on(model), train_on(expected))


@pytest.mark.parametrize("when", ["before attach", "after attach"])
def test_a_head_added_later(when):
    """Red if a new dense part is projected, left out of training, or upsets the sparse weights."""
    model = nn.Sequential(*sparse_mlp(16, 24, 16, decay=0.05))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    if when == "after attach":
        hf_nm.attach(optimizer, model)
        inputs, _ = example(0)
        model(inputs).square().mean().backward()
        optimizer.step()
    head = nn.Linear(16, 8)
    model.append(head)
    optimizer.add_param_group({"params": head.parameters()})
    handle = hf_nm.attach(optimizer, model)
    before = head.weight.detach().clone()
    train(model, optimizer, range(5))
    assert len(handle.weights()) == 2
    assert handle.sad() > 0
    assert type(head) is nn.Linear
    assert head.weight.count_nonzero() == head.weight.numel()
    assert not torch.equal(head.weight, before)
    assert [row.name for row in hf_nm.verify(model).layers] == ["0.weight", "2.weight"]


def test_a_transformers_head_that_is_replaced(tmp_path):
    """Red if a new classifier and more tokens, as in fine-tuning, end in a folder that is refused."""
    model = hf_nm.sparsify(models.bert())
    model.classifier = nn.Linear(models.WIDTH, 5)
    model.num_labels = model.config.num_labels = 5
    model.resize_token_embeddings(models.VOCABULARY + 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, model)
    for step in range(3):
        optimizer.zero_grad()
        model(**models.batch(model, seed=step)).loss.backward()
        optimizer.step()
    assert handle.sad() > 0
    model.save_pretrained(tmp_path)
    assert len(hf_nm.verify(tmp_path).layers) == 12
    again = hf_nm.restore(type(model).from_pretrained(tmp_path))
    assert again.classifier.out_features == 5


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_cast_before_attach(dtype):
    """Red if what waits beside the weight stays in the old dtype. (Exact upwards only: in a coarser
    dtype ties may move a mask, which a cast does not.)"""
    model = sparse_mlp(decay=0.05).to(dtype)
    assert {w.dense_weight().dtype for w in hf_nm.sparse_weights(model)} == {dtype}
    state = train_on(model)
    if dtype == torch.float64:
        expected = hf_nm.sparsify(mlp(*SIZES).to(dtype), targets="*", decay=0.05)
        assert_same_state(state, train_on(expected))


@pytest.mark.parametrize("fill", ["load", "in place"])
def test_through_the_meta_device(fill):
    """Red if masks of values that are gone survive, or none are made of the new ones."""
    file = mlp(*SIZES).state_dict()
    model = sparse_mlp(decay=0.05).to("meta").to_empty(device="cpu")
    if fill == "load":
        model.load_state_dict(file)
    else:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file[name])
    assert_same_state(train_on(model), train_on(sparse_mlp(decay=0.05)))


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_copies_train_on_alike(again):
    """Red if a copy loses a pruned part, a mask or its method."""
    model, _ = trained(decay=0.05)
    copied = again(model)
    assert_same_state(state_of(copied), state_of(model))
    assert_same_state(train_on(copied), train_on(model))


def test_one_optimizer_over_two_models():
    """Red if one of two models in a ModuleDict is projected with the other's masks, or not at all."""
    together = nn.ModuleDict(
        {"one": sparse_mlp(decay=0.05), "two": sparse_mlp(n=1, m=8, method="ste")}
    )
    optimizer = torch.optim.AdamW(together.parameters(), lr=0.05)
    handle = hf_nm.attach(optimizer, together)
    apart = [sparse_mlp(decay=0.05), sparse_mlp(n=1, m=8, method="ste")]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.05) for model in apart]
    handles = [hf_nm.attach(*pair) for pair in zip(optimizers, apart, strict=True)]
    for step in range(5):
        optimizer.zero_grad()
        sum(loss_of(together[name], step) for name in ("one", "two")).backward()
        optimizer.step()
        for model, single in zip(apart, optimizers, strict=True):
            train(model, single, [step])
    for name, model in zip(("one", "two"), apart, strict=True):
        assert_same_state(state_of(together[name]), state_of(model))
    assert handle.sad() == sum(one.sad() for one in handles) > 0
    assert [w.name for w in handle.weights()] == [
        f"{name}.{index}.weight" for name in ("one", "two") for index in (0, 2)
    ]
