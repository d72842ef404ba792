"""Where the transformer blocks of a model are, and what inside them the rule leaves dense."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hf_nm
from hf_nm.targets.blocks import transformer_blocks


class GradientCheckpointingLayer(nn.Module):
    """Told by its name, as the package reads models without importing transformers."""


class Marked(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)


class Layer(nn.Module):
    """Attention by its class's name, a feed-forward part beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SelfAttention()
        self.fc = nn.Linear(8, 8)


def mlp_head() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def model(**parts: nn.Module) -> nn.Module:
    whole = nn.Module()
    for name, part in parts.items():
        whole.add_module(name, part)
    return whole


def lists(kind: type[nn.Module], count: int = 2) -> nn.ModuleList:
    return nn.ModuleList([kind() for _ in range(count)])


def test_marked_and_attending_blocks() -> None:
    """A tower of each kind, and a prediction head for each layer. Red if one kind hides the other."""
    whole = model(text=lists(Marked), vision=lists(Layer), boxes=lists(mlp_head))
    assert transformer_blocks(whole) == ["text.0", "text.1", "vision.0", "vision.1"]


def test_outermost() -> None:
    """A stage of marked layers is not a block, a layer inside a layer not another one."""
    stages = nn.ModuleList([model(blocks=lists(Marked)), model(blocks=lists(Marked))])
    assert transformer_blocks(model(stages=stages)) == [
        f"stages.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)
    ]
    nested = model(layers=nn.ModuleList([model(attn=lists(SelfAttention), fc=nn.Linear(8, 8))]))
    assert transformer_blocks(nested) == ["layers.0"]


def test_sequence_of_equals() -> None:
    """Blocks of plain torch models are in a Sequential; a pipeline of other things is not repeated."""
    tower = model(tower=nn.Sequential(Layer(), Layer()))
    assert transformer_blocks(tower) == ["tower.0", "tower.1"]
    assert transformer_blocks(nn.Sequential(Layer(), mlp_head())) == []


def test_without_attention() -> None:
    """Linear layers in a list; convolutions only where there are none."""
    convolutions = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3)) for _ in range(2)])
    assert transformer_blocks(model(a=convolutions)) == ["a.0", "a.1"]
    assert transformer_blocks(model(a=convolutions, b=lists(mlp_head))) == ["b.0", "b.1"]


@pytest.mark.parametrize("name", ["head", "lm_heads", "mask_head", "pooler", "classifier"])
def test_heads(name: str) -> None:
    """Blocks of a head stay dense, unless the model has no others."""
    head = model(layers=lists(Layer))
    assert transformer_blocks(model(layers=lists(Layer), **{name: head})) == [
        "layers.0",
        "layers.1",
    ]
    assert transformer_blocks(model(**{name: head})) == [f"{name}.layers.0", f"{name}.layers.1"]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.is_transposed = False
        self.up_proj = nn.Parameter(torch.randn(4, 8, 8))


class TopKRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))


class Mixture(GradientCheckpointingLayer):
    """A gate for the experts, one for the shared expert, a router with a network, and a projection
    that is called a gate but does not choose experts."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts
        self.gate = nn.Linear(8, 4)
        self.shared_expert_gate = nn.Linear(8, 1)
        self.chooser = TopKRouter()
        self.router = mlp_head()
        self.output_gate = nn.Linear(8, 8)
        self.relative_position_bias_table = nn.Parameter(torch.randn(16, 8))
        self.up_bias = nn.Parameter(torch.randn(4, 8))


@pytest.mark.parametrize("fused", [True, False])
def test_routers_and_tables(fused: bool) -> None:
    """Red if anything that chooses experts becomes sparse, or any other gate stays dense."""
    experts = Experts() if fused else nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
    whole = hf_nm.sparsify(model(layers=nn.ModuleList([Mixture(experts)])))
    inside = ["up_proj"] if fused else [f"{i}.weight" for i in range(4)]
    assert [w.name for w in hf_nm.sparse_weights(whole)] == [
        *[f"layers.0.experts.{name}" for name in inside],
        "layers.0.output_gate.weight",
    ]
    assert {
        row.name.removeprefix("layers.0."): row.reason for row in hf_nm.report(whole).skipped
    } == {
        "gate.weight": "a router",
        "shared_expert_gate.weight": "a router",
        "chooser.weight": "a router",
        "router.0.weight": "a router",
        "router.2.weight": "a router",
        "relative_position_bias_table": "a relative-position table",
        "up_bias": "a bias",
    }


def test_a_router_by_name() -> None:
    """Who names it gets it."""
    whole = model(layers=nn.ModuleList([Mixture(Experts())]))
    hf_nm.sparsify(whole, targets="*.gate")
    assert [w.name for w in hf_nm.sparse_weights(whole)] == ["layers.0.gate.weight"]
