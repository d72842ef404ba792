"""Layers of diffusion models that turn a time step or a condition into scales and shifts stay dense."""

from __future__ import annotations

from torch import nn

import hf_nm
from hf_nm.targets.rule import find_targets


class _DiffusionBlock(nn.Module):
    """Shaped like diffusers' blocks: adaptive norms, a time embedding, attention, feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(16, 96), "norm": nn.LayerNorm(16)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(16, 96))
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(16, 96))
        self.time_emb_proj = nn.Linear(16, 16)
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(16, 16), "to_out": nn.Linear(16, 16)})
        self.modulation = nn.Linear(16, 16)  # FocalNet's attention
        self.time_mix = nn.Linear(16, 16)
        self.ff = nn.ModuleDict({"net": nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16))})


def test_conditioning_layers_stay_dense():
    """Red if what makes scales and shifts of a time step becomes N:M, or attention and feed-forward
    networks beside it do not."""
    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([_DiffusionBlock(), _DiffusionBlock()])
    found, skipped = find_targets(model, hf_nm.NMPattern(2, 4))
    first = {t.name.removeprefix("transformer_blocks.0.") for t in found if ".0." in t.name[:21]}
    assert first == {
        *("attn1.to_q.weight", "attn1.to_out.weight", "modulation.weight", "time_mix.weight"),
        *("ff.net.0.weight", "ff.net.1.weight"),
    }
    assert set(skipped.values()) == {"a layer of an adaptive norm or a time embedding"}
    assert len(skipped) == 8
    named, _ = find_targets(model, hf_nm.NMPattern(2, 4), targets="*.norm1.linear")
    assert len(named) == 2
