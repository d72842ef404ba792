"""Each kind of weight, and the dimension its dot products sum over, judged by what modules compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.aria import modeling_aria
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.granitemoe import modeling_granitemoe
from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.pytorch_utils import Conv1D

import hf_nm
from hf_nm.targets.kinds import acts_linearly, input_dims
from hf_nm.targets.rule import find_targets


class Named:
    """A config of the few sizes that a module of transformers reads."""

    num_experts = num_local_experts = moe_num_experts = 3
    hidden_size = 8
    intermediate_size = 12
    hidden_act = "silu"
    swiglu_alpha, swiglu_limit = 1.0, 10.0
    experts_implementation = _experts_implementation = "eager"


def filled(module: nn.Module) -> nn.Module:
    """Some of transformers' modules leave their parameters as the memory was."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module.double()


def routed(module: nn.Module, x: Tensor) -> Tensor:
    """Every token to the first expert with weight 1."""
    index = torch.zeros(len(x), 1, dtype=torch.long)
    return module(x, index, torch.ones(len(x), 1, dtype=x.dtype))


# Each: a module, the parameter that reads the module's input first, and how it is called.
READS_INPUT: dict[str, tuple[Callable[[], nn.Module], str, Callable, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 12), "weight", lambda f, x: f(x), (5, 8)),
    "conv1d of gpt2": (lambda: Conv1D(12, 8), "weight", lambda f, x: f(x), (5, 8)),
    "convolution": (
        lambda: nn.Conv2d(8, 12, 3),
        "weight",
        lambda f, x: f(x).flatten(1),
        (5, 8, 3, 3),
    ),
    "transposed": (
        lambda: nn.ConvTranspose1d(8, 12, 2),
        "weight",
        lambda f, x: f(x).flatten(1),
        (5, 8, 1),
    ),
    "recurrent": (lambda: nn.LSTM(8, 12), "weight_ih_l0", lambda f, x: f(x)[0], (5, 8)),
    "mixtral": (lambda: MixtralExperts(Named()), "gate_up_proj", routed, (5, 8)),
    "gpt_oss": (lambda: GptOssExperts(Named()), "gate_up_proj", routed, (5, 8)),
    "aria": (lambda: modeling_aria.AriaExperts(Named()), "gate_up_proj", routed, (5, 8)),
    "llama4": (
        lambda: Llama4TextExperts(Named()),
        "gate_up_proj",
        lambda f, x: f(torch.cat([x, x, x])),
        (5, 8),
    ),
    "jetmoe": (
        lambda: JetMoeParallelExperts(3, 8, 12),
        "weight",
        lambda f, x: f(x, [len(x), 0, 0]),
        (5, 8),
    ),
}


def of_the_first(module: nn.Module, x: Tensor) -> Tensor:
    """Every token to the first of three experts."""
    return module(x, torch.tensor([len(x), 0, 0]))


# Experts that older versions of transformers keep in classes of their own.
if hasattr(modeling_aria, "AriaGroupedExpertsGemm"):
    READS_INPUT["aria"] = (
        lambda: modeling_aria.AriaGroupedExpertsGemm(8, 12, 3),
        "weight",
        of_the_first,
        (5, 8),
    )
if hasattr(modeling_granitemoe, "GraniteMoeParallelExperts"):
    READS_INPUT["granitemoe"] = (
        lambda: modeling_granitemoe.GraniteMoeParallelExperts(3, 8, 12),
        "weight",
        lambda f, x: f(x, [len(x), 0, 0]),
        (5, 8),
    )


@pytest.mark.parametrize("name", list(READS_INPUT))
def test_input_dimension(name: str) -> None:
    """Zeroing input feature 3 must have the effect of zeroing index 3 of the weight's input dimension.
    Red if any dimension is taken wrongly."""
    build, parameter_name, call, shape = READS_INPUT[name]
    module = filled(build())
    dim = input_dims(module)[parameter_name]
    assert dim < 0
    x = torch.randn(shape, dtype=torch.float64)
    without = x.clone()
    without[:, 3] = 0
    expected = call(module, without)
    with torch.no_grad():
        getattr(module, parameter_name).select(dim, 3).zero_()
    torch.testing.assert_close(call(module, x), expected)
    assert not torch.equal(expected, call(module, x + 1))


def test_convolution_with_groups() -> None:
    """Each output sums over its own group's channels: those are the groups of m."""
    assert input_dims(nn.Conv1d(8, 8, 1, groups=2)) == {"weight": -2}
    assert input_dims(nn.ConvTranspose1d(8, 8, 1, groups=2)) == {}
    depthwise = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3))])
    found, skipped = find_targets(depthwise, hf_nm.NMPattern(2, 4))
    assert [t.name for t in found] == ["0.1.weight"]
    assert skipped == {"0.0.weight": "input size 1 is not a multiple of m=4"}


def test_attention_with_other_key_sizes() -> None:
    """Three matrices in place of the fused one."""
    fused, parts = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=12, vdim=4)
    assert input_dims(fused) == {"in_proj_weight": -1}
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    assert input_dims(parts) == dict.fromkeys(names, -1)


def test_convolutions_among_linear_layers() -> None:
    """By default only where the blocks hold no linear layer, unless it is one by another name."""

    def blocks(*, linear: bool) -> nn.Module:
        kinds = [lambda: nn.Conv2d(8, 8, 3), lambda: nn.Conv2d(8, 8, 1)]
        kinds += [lambda: nn.Conv2d(8, 8, 2, stride=2)] + [lambda: nn.Linear(8, 8)] * linear
        return nn.ModuleList([nn.Sequential(*[kind() for kind in kinds]) for _ in range(2)])

    assert len(hf_nm.sparse_weights(hf_nm.sparsify(blocks(linear=False)))) == 6
    mixed = hf_nm.sparsify(blocks(linear=True))
    assert [w.name for w in hf_nm.sparse_weights(mixed)] == [
        f"{i}.{j}.weight" for i in (0, 1) for j in (1, 2, 3)
    ]
    reasons = {row.name: row.reason for row in hf_nm.report(mixed).skipped}
    assert reasons["0.0.weight"] == "a convolution among linear layers"
    named = hf_nm.sparsify(blocks(linear=True), targets="*.0")
    assert [w.name for w in hf_nm.sparse_weights(named)] == ["0.0.weight", "1.0.weight"]


@pytest.mark.parametrize(
    ("module", "linear"),
    [
        (nn.Linear(4, 4), True),
        (nn.Conv1d(4, 4, 3), True),
        (nn.Conv2d(4, 4, 1), True),
        (nn.Conv2d(4, 4, 4, stride=4), True),
        (nn.Conv2d(4, 4, 4, stride=2), False),
        (nn.Conv3d(4, 4, 3), False),
    ],
)
def test_acts_linearly(module: nn.Module, linear: bool) -> None:
    assert acts_linearly(module) is linear


class OddExperts(nn.Module):
    """Stacked matrices of which nothing tells the layout."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(2, 8, 8))


def test_unknown_layout_stays_dense() -> None:
    """Better dense than pruned along the wrong axis; explicitly named it is refused."""
    model = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(8, 8), "b": OddExperts()})])
    hf_nm.sparsify(model)
    assert [w.name for w in hf_nm.sparse_weights(model)] == ["0.a.weight"]
    reasons = {row.name: row.reason for row in hf_nm.report(model).skipped}
    assert reasons == {"0.b.up_proj": "a parameter of OddExperts, which is not supported"}
