"""Weights in bf16 without master copies: most small updates round away, and ``attach`` says so once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from trainers import arguments, one_layer_bert, rows
from training import loss_of, sparse_mlp, train

import hf_nm

SAYS = r"2 of the 2 N:M weights.*bfloat16.*dtype=torch\.float32.*bf16=True"


class KahanSGD(torch.optim.SGD):
    """An optimizer that says it keeps what rounds away, as optimi's and torchdistx's do."""

    def __init__(self, params, keeps: bool) -> None:
        super().__init__(params, lr=0.1)
        self.defaults["use_kahan_summation"] = keeps


def test_said_once():
    """Red if nothing is said, or it is said again for the same optimizer or at each step."""
    model = sparse_mlp(dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    with pytest.warns(UserWarning, match=SAYS) as said:
        hf_nm.attach(optimizer, model)
    assert len(said) == 1
    assert said[0].filename == __file__
    hf_nm.attach(optimizer, model)  # warnings are errors here
    train(model, optimizer, range(2))


def test_what_it_says_is_true():
    """Red if masks move in bf16 as they do in fp32: then nothing needs to be said."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = sparse_mlp(64, 128, 64, dtype=dtype)
        before = torch.cat([w.dense_weight().flatten() for w in hf_nm.sparse_weights(model)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hf_nm.attach(optimizer, model)
        for step in range(20):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(32, 64, generator=generator).to(dtype)
            model(x).square().mean().backward()
            optimizer.step()
        after = torch.cat([w.dense_weight().flatten() for w in hf_nm.sparse_weights(model)])
        moved[dtype] = (after != before).float().mean().item()
    assert moved[torch.float32] > 0.95
    assert moved[torch.bfloat16] < 0.7


def test_not_said_where_weights_are_fp32():
    """Red if autocast, or other parameters in bf16, are taken for N:M weights in bf16."""
    model = sparse_mlp()
    model[0].bias.data = model[0].bias.data.bfloat16().float()
    embedding = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([*model.parameters(), embedding], lr=0.01)
    hf_nm.attach(optimizer, model)
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model, 0).backward()
    optimizer.step()


def test_not_said_of_frozen_weights():
    """Red if weights that nothing trains are counted."""
    model = sparse_mlp(dtype=torch.bfloat16).requires_grad_(False)
    model[0].bias.requires_grad_(True)
    hf_nm.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)


@pytest.mark.parametrize("keeps", [True, False])
def test_not_said_where_the_optimizer_keeps_what_rounds_away(keeps):
    """Red if an optimizer with compensated sums is warned about, or one that could have them and has
    not passes."""
    model = sparse_mlp(dtype=torch.bfloat16)
    optimizer = KahanSGD(model.parameters(), keeps)
    if keeps:
        hf_nm.attach(optimizer, model)
    else:
        with pytest.warns(UserWarning, match=SAYS):
            hf_nm.attach(optimizer, model)


def test_in_a_trainer(tmp_path: Path):
    """Red if the remedy that the warning names is warned about too, or the Trainer says it twice."""
    model = hf_nm.sparsify(one_layer_bert())
    hf_nm.NMTrainer(
        model=model, args=arguments(tmp_path, max_steps=1, bf16=True), train_dataset=rows(model)
    ).train()
    half = hf_nm.sparsify(one_layer_bert().to(torch.bfloat16))
    trainer = hf_nm.NMTrainer(
        model=half, args=arguments(tmp_path, max_steps=1), train_dataset=rows(half)
    )
    with pytest.warns(UserWarning, match=r"dtype=torch\.float32") as said:
        trainer.train()
    assert len([w for w in said if "N:M" in str(w.message)]) == 1
