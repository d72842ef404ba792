"""The average of checkpoints: dense weights are averaged, then pruned."""

import pytest
import torch
from recipe_loading import importing
from trainers import build, one_layer_bert
from training import assert_sparse
from transformers import Trainer, TrainerCallback

import hf_nm

with importing("translation"):
    from averaging import average_checkpoints, dense_state, last_checkpoints, mean_of


def test_mean_on_paper():
    """Red if sparse weights are averaged: masks of 1:2 that move would give another result.

    W1 = [4, 3], W2 = [1, 5], so S1 = [4, 0], S2 = [0, 5]: the mean of W is [2.5, 4], pruned [0, 4];
    the mean of S is [2, 2.5], pruned [0, 2.5].
    """
    dense = mean_of([{"w": torch.tensor([[4.0, 3.0]])}, {"w": torch.tensor([[1.0, 5.0]])}])
    assert dense["w"].tolist() == [[2.5, 4.0]]
    mask = hf_nm.nm_mask(dense["w"], 1, 2)
    assert (dense["w"] * mask).tolist() == [[0.0, 4.0]]
    many = [{"w": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    assert mean_of(many)["w"].item() == pytest.approx(1 / 3)  # in float32 the 1 would be lost


class Keep(TrainerCallback):
    """Copies the dense weights whenever a checkpoint is written."""

    def __init__(self):
        self.kept = {}

    def on_save(self, args, state, control, model=None, **kwargs):
        sparse = {w.name: w.dense_weight() for w in hf_nm.sparse_weights(model)}
        others = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.kept[state.global_step] = others | sparse


@pytest.mark.parametrize("method", ["sr-ste", "fixed", "dense"])
def test_average_of_a_run(method, tmp_path):
    """Red if the pruned parts are left out, other checkpoints are taken, or the result is not N:M."""
    model, kind = one_layer_bert(), Trainer
    if method != "dense":
        model, kind = hf_nm.sparsify(model, method=method), hf_nm.NMTrainer
    trainer = build(tmp_path, kind, model=model, save_strategy="steps", save_steps=2)
    saved = Keep()
    trainer.add_callback(saved)
    trainer.train()
    (tmp_path / "checkpoint-8" / "optimizer.pt").write_bytes(b"PK cut short")  # not a whole one
    assert average_checkpoints(trainer.model, tmp_path, 3, main=True) == [6, 10, 12]
    sparse = {w.name: w for w in hf_nm.sparse_weights(trainer.model)}
    for name, parameter in trainer.model.named_parameters():
        mean = sum(saved.kept[step][name].double() for step in (6, 10, 12)).div(3).float()
        if name in sparse:
            mean = mean * hf_nm.nm_mask(mean, 2, 4)
        torch.testing.assert_close(parameter.detach(), mean, rtol=1e-6, atol=1e-8)
    if method == "sr-ste":
        assert_sparse(trainer.model)
        moved = saved.kept[6][name := next(iter(sparse))], saved.kept[12][name]
        assert not torch.equal(*(hf_nm.nm_mask(weight, 2, 4) for weight in moved))


def test_checkpoints_without_their_pruned_parts(tmp_path):
    """Red if sparse weights are averaged as if they were dense ones."""
    trainer = build(tmp_path, save_strategy="steps", save_steps=12)
    assert average_checkpoints(trainer.model, tmp_path, 3, main=True) == []
    trainer.train()
    (folder,) = last_checkpoints(tmp_path, 3)
    path = folder / "optimizer.pt"
    state = torch.load(path)
    del state["nm_sparsity"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"holds no pruned part of .*give --average_checkpoints 1"):
        dense_state(folder, {w.name for w in hf_nm.sparse_weights(trainer.model)})
