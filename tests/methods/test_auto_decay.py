"""The rule of ``decay="auto"``: its arithmetic, its name, and what a checkpoint says of it."""

from __future__ import annotations

import math
import re

import pytest
import torch
from models import mlp
from transformers import BertConfig, BertModel

import hf_nm
from hf_nm.formats.manifest import Manifest
from hf_nm.methods import auto_decay
from hf_nm.methods.auto_decay import MEMORY, PULL, follow, mean_square


def test_by_hand():
    """A gradient of rms 6 at kept weights of rms 2, then of rms 0. Red if squares are not averaged, the
    first step is weighted as the later ones, or the ratio is the other way round."""
    gradient = mean_square(torch.tensor([[6.0, -6.0], [0.0, 8.485281374]]), 4)  # (36+36+72)/4
    weight = mean_square(torch.tensor([[2.0, 0.0], [0.0, -2.0]]), 2)
    assert (gradient.item(), weight.item()) == pytest.approx((36.0, 4.0))
    first = follow(torch.tensor([0.0]), gradient.view(1), weight.view(1))
    assert first.item() == pytest.approx(PULL * 3)
    second = follow(first, torch.tensor([0.0]), weight.view(1))
    assert second.item() == pytest.approx(PULL * 3 * math.sqrt(MEMORY))


def test_what_cannot_be_followed():
    """Red if a weight of zeros or a gradient that is not finite spoils the decay."""
    before = torch.tensor([0.5, 0.5, 0.5, 0.0])
    after = follow(
        before, torch.tensor([math.nan, math.inf, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    )
    assert torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mean_square_is_summed_in_float32(dtype):
    """Red if it is summed in half precision, where the square of a large entry overflows."""
    assert mean_square(torch.full((4, 4), 512.0, dtype=dtype), 16).item() == 512.0**2


@pytest.mark.parametrize(
    ("decay", "said"),
    [
        (
            "automatic",
            "decay must be a number >= 0, but got 'automatic'; the default is 2e-4, and 'auto'",
        ),
        (None, "decay must be a number >= 0, but got None"),
        (-1, "decay must be finite and >= 0, but got -1"),
        ("AUTO", "decay must be a number >= 0, but got 'AUTO'"),
    ],
)
def test_bad_input(decay, said):
    """One line that says what to type."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        hf_nm.sparsify(mlp(8, 8), targets="*", decay=decay)
    assert "\n" not in str(caught.value)


def test_manifest_and_restore(tmp_path):
    """Red if ``"auto"`` is written as the number that it was, or restored as another."""
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
    )
    model = hf_nm.sparsify(BertModel(config), decay="auto")
    manifest = model.config.nm_sparsity
    assert manifest["decay"] == "auto"
    assert Manifest.from_dict(manifest).to_dict() == manifest
    model.save_pretrained(tmp_path)
    assert hf_nm.verify(tmp_path).layers
    restored = hf_nm.restore(BertModel.from_pretrained(tmp_path))
    assert {w.state.spec.decay for w in hf_nm.sparse_weights(restored)} == {"auto"}
    assert all(auto_decay.DECAY in w.state.parts.extras for w in hf_nm.sparse_weights(restored))
    number = hf_nm.restore(BertModel.from_pretrained(tmp_path), decay=0.5)
    assert number.config.nm_sparsity["decay"] == 0.5
    with pytest.raises(ValueError, match="nm_sparsity: decay must be a number >= 0, but got 'x'"):
        Manifest.from_dict(manifest | {"decay": "x"})
