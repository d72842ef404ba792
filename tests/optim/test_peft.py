"""LoRA (the real PEFT) on a sparse base: the base stays N:M, merging goes through ``dense_weights``."""

from __future__ import annotations

import models
import pytest
import torch
from safetensors.torch import load_file
from tolerances import assert_close
from torch import nn
from trainers import arguments, rows
from training import assert_same_state, assert_sparse, dense_parts, state_of
from transformers import Trainer

import hf_nm

peft = pytest.importorskip("peft")

# PEFT asks transformers for is_gradient_checkpointing, which it renames in version 6
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
TARGETS = ["q_proj", "v_proj", "up_proj"]


def with_lora(base: nn.Module, **options) -> peft.PeftModel:
    """A LoRA model whose adapters are not zero."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False, **options
    )
    return peft.get_peft_model(base, config)


def train_adapters(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(**models.batch(model.base_model.model, seed=step)).loss.backward()
        optimizer.step()
    model.eval()


def deltas(model: nn.Module) -> dict[str, torch.Tensor]:
    """What merging adds to each base weight, by its name in the base model."""
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


# PEFT 0.18 looks on the Hub for the config of a model without a name
@pytest.mark.filterwarnings("ignore:Could not find a config file in  -:UserWarning")
# PEFT before 0.19 leaves the name in what it unloads
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_only_the_adapters_train(tmp_path):
    """Red if wrapping a sparse layer loses its state, or training adapters touches the base."""
    base = hf_nm.sparsify(models.llama())
    names = [w.name for w in hf_nm.sparse_weights(base)]
    before = state_of(base)
    model = with_lora(base)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    adapters = {name: model.get_parameter(name).detach().clone() for name in trainable}
    train_adapters(model)
    for name in trainable:
        assert not torch.equal(model.get_parameter(name), adapters[name]), name
    assert_sparse(model)
    hf_nm.verify(model)
    assert len(hf_nm.sparse_weights(model)) == len(names)

    answer = model(**models.batch(base)).logits
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    unloaded = model.unload()
    assert_same_state(state_of(unloaded), before)
    again = peft.PeftModel.from_pretrained(unloaded, tmp_path)
    assert torch.equal(again(**models.batch(base)).logits, answer)
    assert_sparse(again)


def test_in_a_plain_trainer(tmp_path):
    """Red if a Trainer whose optimizer holds no N:M weight changes the base, or hf_nm's own is silent
    about having nothing to do."""
    base = hf_nm.sparsify(models.llama())
    before = dense_parts(base)
    model = with_lora(base)
    data = rows(base)
    with pytest.raises(ValueError, match=r"holds none of .*frozen"):
        hf_nm.NMTrainer(model=model, args=arguments(tmp_path), train_dataset=data).train()
    Trainer(model=model, args=arguments(tmp_path, max_steps=3), train_dataset=data).train()
    assert_sparse(model)
    assert all(
        torch.equal(dense, w)
        for dense, w in zip(before.values(), dense_parts(model).values(), strict=True)
    )


def test_merging_breaks_the_pattern_and_is_found(tmp_path):
    """Red if a merged model, which is dense, can be saved with a config that claims N:M weights."""
    model = with_lora(hf_nm.sparsify(models.llama()))
    merged = model.merge_and_unload()
    with pytest.raises(hf_nm.BrokenPatternError, match=r"q_proj\.weight is not 2:4"):
        hf_nm.verify(merged)
    with pytest.raises(hf_nm.BrokenPatternError, match=r"is not 2:4 any more.*dense_weights"):
        merged.save_pretrained(tmp_path)


@pytest.mark.parametrize("safe", [False, True])
def test_merged_inside_dense_weights(safe, tmp_path):
    """Red if the adapter is added to the sparse instead of the dense weight, or masks stay."""
    base = hf_nm.sparsify(models.llama())
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, base)
    for step in range(2):  # so that there is a pruned part
        optimizer.zero_grad()
        base(**models.batch(base, seed=step)).loss.backward()
        optimizer.step()
    handle.remove()
    dense = dense_parts(base)
    model = with_lora(base)
    train_adapters(model)
    added = deltas(model)
    assert len(added) == 2 * len(TARGETS)
    with pytest.warns(UserWarning, match="merging adapters"), hf_nm.dense_weights(model):
        merged = model.merge_and_unload(safe_merge=safe)
    assert_sparse(merged)
    for w in hf_nm.sparse_weights(merged):
        expected = dense[w.name] + added[w.name] if w.name in added else dense[w.name]
        assert_close(w.dense_weight(), expected.detach(), w.name)
        assert torch.equal(w.mask, hf_nm.nm_mask(w.dense_weight(), 2, 4))
    merged.save_pretrained(tmp_path)
    assert len(hf_nm.verify(tmp_path).layers) == 14
    merged.requires_grad_(True)  # and on from there
    optimizer = torch.optim.AdamW(merged.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, merged)
    merged(**models.batch(merged)).loss.backward()
    optimizer.step()
    assert handle.sad() > 0
    assert_sparse(merged)


@pytest.mark.parametrize("unload", [True, False])
def test_merging_says_what_is_pruned_again(unload):
    """Red if the share is not the squared size of what was added at pruned places over all of it, if
    mask entries are counted wrong, or if it is said twice or again without a merge."""
    model = with_lora(hf_nm.sparsify(models.llama()))
    base = model.base_model.model
    before = {w.state: (w.dense_weight(), w.mask.clone()) for w in hf_nm.sparse_weights(base)}
    with pytest.warns(UserWarning, match="merging adapters") as said, hf_nm.dense_weights(model):
        base = model.merge_and_unload() if unload else model.merge_adapter() or base
    assert len(said) == 1
    assert said[0].filename == __file__
    removed = total = flips = changed = 0.0
    for w in hf_nm.sparse_weights(base):
        dense, mask = before[w.state]
        added = w.dense_weight() - dense
        changed += bool(added.any())
        total += added.square().sum().item()
        removed += added[~w.mask].square().sum().item()
        flips += (w.mask != mask).sum().item()
    text = str(said[0].message)
    assert f"{changed:.0f} N:M weights" in text
    assert 0.05 < removed / total < 0.95
    assert f"{removed / total:.1%} of what they add" in text
    assert flips > 0
    assert f"{flips:,.0f} mask entries" in text
    with hf_nm.dense_weights(model):  # nothing is merged: nothing is said
        pass


def test_merging_with_fixed_masks_says_the_share():
    """Red if the share is taken of masks that would move, where they stay."""
    model = with_lora(hf_nm.sparsify(models.llama(), method="fixed"))
    base = model.base_model.model
    masks = {w.name.replace(".base_layer", ""): w.mask.clone() for w in hf_nm.sparse_weights(base)}
    added = deltas(model)
    removed = sum(delta[~masks[name]].square().sum().item() for name, delta in added.items())
    total = sum(delta.square().sum().item() for delta in added.values())
    with (
        pytest.warns(UserWarning, match=f"{removed / total:.1%} of what they add"),
        hf_nm.dense_weights(model),
    ):
        model.merge_adapter()


def test_sparsify_leaves_adapters_dense():
    """Red if LoRA's A and B, linear layers inside the blocks, are made N:M with the base."""
    model = with_lora(models.llama())
    hf_nm.sparsify(model)
    names = [w.name for w in hf_nm.sparse_weights(model)]
    assert len(names) == 14
    assert not [name for name in names if "lora" in name]


def test_finalize_under_peft() -> None:
    """Red if finalize stops half-way on a wrapper that answers for the model inside, or a module to save
    is listed twice under one name."""
    config = peft.LoraConfig(target_modules=["q"], modules_to_save=["wo"])
    model = peft.get_peft_model(hf_nm.sparsify(models.t5()), config)
    names = [w.name for w in hf_nm.sparse_weights(model)]
    assert len(names) == len(set(names))
    assert any(".modules_to_save.default.weight" in name for name in names)
    assert len(hf_nm.verify(model).layers) == len(names)
    hf_nm.finalize(model)
    assert not hf_nm.sparse_weights(model)
