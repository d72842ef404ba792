"""Models that are saved under other names than their parameters have resume and end exactly."""

from __future__ import annotations

import models
import pytest
import torch
from safetensors.torch import load, load_file, save_file
from trainers import CrashError, StopAt, build, sad_file
from training import assert_same_state, assert_sparse, state_of
from transformers import Trainer
from zoo import ZOO

import hf_nm

MODELS = {
    "vit": models.vit,
    **{name: ZOO[name].build for name in ("mixtral", "qwen2_moe", "deepseek_v3")},
}


def make(folder, name, method, kind=hf_nm.NMTrainer, **changes):
    model = hf_nm.sparsify(MODELS[name](), method=method)
    changes = {"save_strategy": "steps", "save_steps": 5, "learning_rate": 0.001} | changes
    trainer = build(folder, kind, model=model, **changes)
    if kind is Trainer:
        hf_nm.NMCallback().install(trainer)
    return trainer


def start_elsewhere(model):
    """Other values everywhere, as a new process may start from; the masks move too."""
    with hf_nm.dense_weights(model), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("method", ["sr-ste", "fixed"])
@pytest.mark.parametrize("name", MODELS)
def test_resumed_equals_uninterrupted(name, method, tmp_path):
    """Red if one tensor keeps the values the new process started with: transformers' own Trainer looks
    for the file's names in the model and passes over what it does not find."""
    whole = make(tmp_path / "whole", name, method)
    whole.train()
    stopped = make(tmp_path / "stopped", name, method, options={"callbacks": [StopAt(8)]})
    with pytest.raises(CrashError):
        stopped.train()
    resumed = make(tmp_path / "stopped", name, method)
    start_elsewhere(resumed.model)
    resumed.train(resume_from_checkpoint=True)
    found = state_of(resumed.model, resumed.optimizer)
    assert_same_state(found, state_of(whole.model, whole.optimizer))
    assert_sparse(resumed.model)
    assert sad_file(tmp_path / "stopped") == sad_file(tmp_path / "whole")


@pytest.mark.parametrize("kind", [hf_nm.NMTrainer, Trainer])
@pytest.mark.parametrize("name", ["vit", "mixtral"])
def test_the_best_model_is_the_checkpoint(name, kind, tmp_path):
    """Red if the best model is mixed from two checkpoints."""
    trainer = make(
        tmp_path,
        name,
        "sr-ste",
        kind,
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
        metric_for_best_model="loss",
        greater_is_better=True,  # the first, so that there is something to go back to
        load_best_model_at_end=True,
        learning_rate=0.01,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("-12")
    expected = type(trainer.model).from_pretrained(best).state_dict()
    found = trainer.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert_sparse(trainer.model)


def test_a_checkpoint_that_lacks_a_weight(tmp_path):
    """Red if masks that are fixed go on, unsaid, with the values the new process started with."""
    make(tmp_path, "vit", "fixed").train()
    file = tmp_path / "checkpoint-10" / "model.safetensors"
    tensors = load(file.read_bytes())
    lost = next(name for name in tensors if name.endswith("query.weight"))
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != lost}, file, {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"checkpoint-10 lacks 1 of the model's N:M weights"):
        make(tmp_path, "vit", "fixed").train(resume_from_checkpoint=str(file.parent))


def test_these_models_are_saved_under_other_names(tmp_path):
    """Red if the tests above no longer test anything. (ViT's differ in newer transformers only.)"""
    for name in ("mixtral", "qwen2_moe", "deepseek_v3"):
        model = MODELS[name]()
        model.save_pretrained(tmp_path / name)
        stored = load_file(tmp_path / name / "model.safetensors").keys()
        assert stored - model.state_dict().keys(), name
