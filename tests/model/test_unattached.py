"""Training sparse layers with an optimizer that was never attached is found, however it writes."""

from __future__ import annotations

import copy
from pathlib import Path

import models
import pytest
import torch
from torch import nn
from training import SIZES, assert_sparse, example, loss_of, sparse_mlp, state_of, train
from transformers import Adafactor, Trainer, TrainingArguments

import hf_nm

NAMES_ATTACH = r"hf_nm\.attach\(optimizer, model\)"


class WritesData(torch.optim.Optimizer):
    """As older optimizers do: through ``.data``, which no version counter sees."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad.data, alpha=-0.1)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "adamw-foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "adamw-fused": lambda params: torch.optim.AdamW(params, fused=True),
    "data": WritesData,
    "adafactor": lambda params: Adafactor(params),
    "torch-adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_backward_after_the_first_step_raises(name):
    """Red if the probe trusts version counters, which half of these optimizers do not move."""
    model = sparse_mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    loss_of(model, 0).backward()
    optimizer.step()
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        loss_of(model, 1).backward()


def test_plain_trainer_with_its_default_fused_optimizer(tmp_path: Path):
    """Red if nothing looks at the weights while no optimizer is attached."""
    model = hf_nm.sparsify(models.bert())
    rows = [{k: v[0] for k, v in models.batch(model, 1, seed).items()} for seed in range(32)]
    args = TrainingArguments(tmp_path, max_steps=3, use_cpu=True, report_to=[], save_strategy="no")
    assert args.optim == "adamw_torch_fused"
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        Trainer(model=model, args=args, train_dataset=rows).train()


def test_accumulation_does_not_hide_it():
    model = sparse_mlp()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for step in range(4):
        loss_of(model, step).backward()
    optimizer.step()
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        loss_of(model, 4).backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend):
    """Red if the probe sits in the forward, which a compiled graph would not run."""
    model = sparse_mlp()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = torch.optim.AdamW(compiled.parameters(), fused=True)
    loss_of(compiled, 0).backward()
    optimizer.step()
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        loss_of(compiled, 1).backward()


def test_wrapped_in_ddp(single_process_group):
    """Red if DDP's own writes to the parameters pass for steps, or its hooks replace the probe."""
    wrapped = nn.parallel.DistributedDataParallel(sparse_mlp())
    optimizer = torch.optim.AdamW(wrapped.parameters(), fused=True)
    loss_of(wrapped, 0).backward()
    optimizer.step()
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        loss_of(wrapped, 1).backward()


def test_gradient_checkpointing():
    model = hf_nm.sparsify(models.bert()).train()
    getattr(model, f"{models.RECOMPUTE}_enable")()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(**models.batch(model)).loss.backward()
    optimizer.step()
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        model(**models.batch(model)).loss.backward()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_optimizer_that_took_the_place_of_the_attached_one(accumulate):
    """Red if a weight once stepped by an attached optimizer is never looked at again."""
    model = sparse_mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    hf_nm.attach(optimizer, model)

    def update(optimizer, first):
        optimizer.zero_grad()
        for micro_step in range(accumulate):
            loss_of(model, first + micro_step).backward()
        optimizer.step()

    for step in range(5):
        update(optimizer, step * accumulate)
    other = torch.optim.AdamW(model.parameters())
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):  # noqa: PT012
        for step in range(4):
            update(other, step * accumulate)


def test_after_remove():
    model = sparse_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = hf_nm.attach(optimizer, model)
    train(model, optimizer, range(3))
    handle.remove()
    assert_sparse(model)
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        train(model, optimizer, range(2))


def test_frozen_at_sparsify_then_unfrozen():
    """Red if the probe is only placed on weights that require gradients at sparsify."""
    model = models.mlp(*SIZES).requires_grad_(False)
    hf_nm.sparsify(model, targets="*")
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        train(model, optimizer, range(2))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "assign", "to"])
def test_copies_and_replaced_parameters_are_watched(how, tmp_path):
    """Red if the probe stays on the parameter that was replaced."""
    model = sparse_mlp()
    if how == "deepcopy":
        model = copy.deepcopy(model)
    elif how == "pickle":
        torch.save(model, tmp_path / "model.pt")
        model = torch.load(tmp_path / "model.pt", weights_only=False)
    elif how == "assign":
        other = sparse_mlp()
        state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        model.load_state_dict(state, assign=True)
    else:
        model.to(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(hf_nm.BrokenPatternError, match=NAMES_ATTACH):
        train(model, optimizer, range(2))


def test_no_false_alarm():
    """Red if the probe takes evaluation, accumulation or backwards without a step for a broken model."""
    model = sparse_mlp()
    for step in range(20):  # not attached yet, nothing written
        loss_of(model, step).backward()
    optimizer = torch.optim.AdamW(model.parameters())
    hf_nm.attach(optimizer, model)
    for accumulate in (1, 7, 2, 33, 1):
        optimizer.zero_grad()
        for step in range(accumulate):
            loss_of(model, step).backward()
        optimizer.step()
    with torch.no_grad():
        model(example(0)[0])
    train(model, optimizer, range(3))
    assert_sparse(model)


def test_the_probe_does_not_change_training():
    """Red if watching touches weights or gradients: one step equals the plain layer's at ``S``."""
    model = sparse_mlp()
    plain = models.mlp(*SIZES)
    plain.load_state_dict(model.state_dict())
    loss_of(model, 0).backward()
    loss_of(plain, 0).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert state_of(plain).keys() <= state_of(model).keys()
