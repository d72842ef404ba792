"""Which weights of a model become N:M: the rule on six models, and how callers change it."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from models import MODELS, VIT_IS_RENAMED, WIDTH, bert, llama, marian, mlp
from report_rows import reasons, sparse_names
from torch import Tensor, nn

import hf_nm
from hf_nm import NMLinear, NMPattern, nm_mask
from hf_nm.targets.rule import OUTSIDE_BLOCKS

ATTENTION = ["k_proj", "v_proj", "q_proj", "out_proj"]
LAYERS: dict[str, list[str]] = {
    "marian": [
        *[f"model.encoder.layers.{i}.self_attn.{p}" for i in range(2) for p in ATTENTION],
        *[f"model.decoder.layers.{i}.self_attn.{p}" for i in range(2) for p in ATTENTION],
        *[f"model.decoder.layers.{i}.encoder_attn.{p}" for i in range(2) for p in ATTENTION],
        *[
            f"model.{s}.layers.{i}.fc{k}"
            for s in ("encoder", "decoder")
            for i in (0, 1)
            for k in (1, 2)
        ],
    ],
    "bert": [
        f"bert.encoder.layer.{i}.{part}"
        for i in range(2)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ],
    "t5": [
        *[f"encoder.block.{i}.layer.0.SelfAttention.{p}" for i in range(2) for p in "qkvo"],
        *[f"decoder.block.{i}.layer.0.SelfAttention.{p}" for i in range(2) for p in "qkvo"],
        *[f"decoder.block.{i}.layer.1.EncDecAttention.{p}" for i in range(2) for p in "qkvo"],
        *[f"encoder.block.{i}.layer.1.DenseReluDense.{p}" for i in range(2) for p in ("wi", "wo")],
        *[f"decoder.block.{i}.layer.2.DenseReluDense.{p}" for i in range(2) for p in ("wi", "wo")],
    ],
    "llama": [
        *[f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"],
        *[f"model.layers.{i}.mlp.{p}_proj" for i in range(2) for p in ("gate", "up", "down")],
    ],
    "vit": [
        *[f"vit.layers.{i}.attention.{p}_proj" for i in range(2) for p in "qkvo"],
        *[f"vit.layers.{i}.mlp.fc{k}" for i in range(2) for k in (1, 2)],
    ],
}
LAYERS["bart"] = LAYERS["marian"]
if not VIT_IS_RENAMED:
    LAYERS["vit"] = [
        name.replace("bert.", "vit.", 1).replace(".self.", ".attention.") for name in LAYERS["bert"]
    ]
DENSE: dict[str, dict[str, str]] = {
    "marian": {
        "model.shared.weight": OUTSIDE_BLOCKS,
        "model.encoder.embed_positions.weight": OUTSIDE_BLOCKS,
        "model.decoder.embed_positions.weight": OUTSIDE_BLOCKS,
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight": OUTSIDE_BLOCKS,
        "bert.embeddings.position_embeddings.weight": OUTSIDE_BLOCKS,
        "bert.embeddings.token_type_embeddings.weight": OUTSIDE_BLOCKS,
        "bert.pooler.dense.weight": OUTSIDE_BLOCKS,
        "classifier.weight": OUTSIDE_BLOCKS,
    },
    "t5": {
        "shared.weight": OUTSIDE_BLOCKS,
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "an embedding",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "an embedding",
    },
    "llama": {"model.embed_tokens.weight": OUTSIDE_BLOCKS, "lm_head.weight": OUTSIDE_BLOCKS},
    "vit": {
        "vit.embeddings.cls_token": OUTSIDE_BLOCKS,
        "vit.embeddings.position_embeddings": OUTSIDE_BLOCKS,
        "vit.embeddings.patch_embeddings.projection.weight": OUTSIDE_BLOCKS,
        "classifier.weight": OUTSIDE_BLOCKS,
    },
}
DENSE["bart"] = DENSE["marian"]


def test_the_rule(kind: str) -> None:
    """Red if any linear layer inside the blocks is left out, or anything else becomes sparse."""
    model = MODELS[kind]()
    assert hf_nm.sparsify(model) is model
    assert sparse_names(model) == {f"{name}.weight" for name in LAYERS[kind]}
    assert reasons(model) == DENSE[kind]


def test_the_rule_on_the_meta_device(kind: str) -> None:
    with torch.device("meta"):
        model = MODELS[kind]()
    model.tie_weights()  # transformers 5.0 has not done so on the meta device
    hf_nm.sparsify(model)
    assert sparse_names(model) == {f"{name}.weight" for name in LAYERS[kind]}
    assert reasons(model) == DENSE[kind]


@pytest.mark.parametrize("tied", [True, False])
def test_output_head(tied: bool) -> None:
    """Red if a head that shares the embedding's weight can be made sparse."""
    model = llama(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    if tied:
        with pytest.raises(ValueError, match=r"lm_head\.weight \[64, 32\]: tied to an embedding"):
            hf_nm.sparsify(model, targets="lm_head")
        assert not hasattr(model.config, "nm_sparsity")
        assert type(model.lm_head) is nn.Linear
    else:
        hf_nm.sparsify(model, targets="lm_head")
        assert sparse_names(model) == {"lm_head.weight"}
        assert reasons(model)["model.layers.0.mlp.up_proj.weight"] == "not in targets"


def test_plain_torch_model() -> None:
    """Red if modules that read ``.weight`` without a forward are left out or converted wrongly."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)).eval()
    masked = copy.deepcopy(model)
    x = torch.randn(2, 5, 16)
    hf_nm.sparsify(model)
    blocks = [f"0.layers.{i}" for i in range(2)]
    parts = ["self_attn.in_proj_weight", "self_attn.out_proj.weight"]
    parts += ["linear1.weight", "linear2.weight"]
    assert sparse_names(model) == {f"{b}.{part}" for b in blocks for part in parts}
    assert reasons(model) == {"1.weight": OUTSIDE_BLOCKS}
    out_proj = model[0].layers[0].self_attn.out_proj
    assert isinstance(out_proj, NMLinear)
    assert isinstance(out_proj, nn.modules.linear.NonDynamicallyQuantizableLinear)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if name in sparse_names(model):
                parameter.mul_(nm_mask(parameter, 2, 4))
        assert torch.equal(model(x), masked(x))
        assert torch.equal(model.train()(x), masked.train()(x))
    hf_nm.finalize(model)
    assert type(out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear


def test_targets_and_exclude() -> None:
    model = marian()
    hf_nm.sparsify(model, targets=["*.fc1", "*.fc2.weight"], exclude="model.decoder.*")
    assert sparse_names(model) == {
        f"model.encoder.layers.{i}.fc{k}.weight" for i in (0, 1) for k in (1, 2)
    }
    assert reasons(model)["model.decoder.layers.0.fc1.weight"] == "excluded"
    assert reasons(model)["model.encoder.layers.0.self_attn.q_proj.weight"] == "not in targets"


def test_targets_reach_outside_the_blocks() -> None:
    model = bert()
    hf_nm.sparsify(model, targets="bert.pooler.dense")
    assert sparse_names(model) == {"bert.pooler.dense.weight"}


def test_predicates() -> None:
    model = bert()
    hf_nm.sparsify(
        model,
        targets=lambda name, module: isinstance(module, nn.Linear) and module.out_features == WIDTH,
        exclude=lambda name, module: "attention" in name,
    )
    expected = {f"bert.encoder.layer.{i}.output.dense.weight" for i in range(2)}
    assert sparse_names(model) == expected | {"bert.pooler.dense.weight"}


def test_exclude_alone_keeps_the_rule() -> None:
    model = llama()
    hf_nm.sparsify(model, exclude=lambda name, module: name.endswith("down_proj"))
    left = [name for name in LAYERS["llama"] if not name.endswith("down_proj")]
    assert sparse_names(model) == {f"{name}.weight" for name in left}


def test_patterns() -> None:
    """Red if an earlier glob wins over a later one, or another pattern's mask is computed."""
    model = llama()
    hf_nm.sparsify(
        model,
        patterns={
            "*.mlp.*": "1:4",
            "*.down_proj": NMPattern(4, 8),
            "model.layers.1.mlp.down_proj.weight": "1:16",
        },
    )
    found = {row.name: str(row.pattern) for row in hf_nm.report(model).layers}
    for i in range(2):
        assert found[f"model.layers.{i}.self_attn.q_proj.weight"] == "2:4"
        assert found[f"model.layers.{i}.mlp.up_proj.weight"] == "1:4"
    assert found["model.layers.0.mlp.down_proj.weight"] == "4:8"
    assert found["model.layers.1.mlp.down_proj.weight"] == "1:16"
    for w in hf_nm.sparse_weights(model):
        assert torch.equal(w.mask, nm_mask(w.dense_weight(), w.pattern.n, w.pattern.m))
    hf_nm.verify(model)


def test_size_that_m_does_not_divide_is_left_dense_by_the_rule() -> None:
    model = llama(intermediate_size=66)
    hf_nm.sparsify(model)
    message = "input size 66 is not a multiple of m=4"
    assert reasons(model)["model.layers.0.mlp.down_proj.weight"] == message
    assert "model.layers.0.mlp.up_proj.weight" in sparse_names(model)


def test_size_that_m_does_not_divide_is_an_error_when_named() -> None:
    model = llama(intermediate_size=66)
    text = r"model\.layers\.0\.mlp\.down_proj\.weight \[32, 66\]: input size 66 .* m=4"
    with pytest.raises(ValueError, match=text):
        hf_nm.sparsify(model, targets="*.mlp.*")
    hf_nm.sparsify(model, targets="*.mlp.*", patterns={"*.down_proj": "1:3"})
    assert len(sparse_names(model)) == 6


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("model.layers.0.self_attn.q_prj", "near names: model.layers.0.self_attn.q_proj"),
        ("q_proj", "globs match whole names: write '*.q_proj'"),
        ("model.layers.1", "there are 7 inside it: write 'model.layers.1.*'"),
        ("model.embed_tokens", "it matches only Embedding (model.embed_tokens.weight)"),
        ("*norm*", "it matches only LlamaRMSNorm"),
        ("*.bias", "near names:"),
    ],
)
@pytest.mark.parametrize("argument", ["targets", "exclude", "patterns"])
def test_glob_that_matches_nothing(argument: str, glob: str, message: str) -> None:
    model = llama()
    selection: Any = {glob: "1:4"} if argument == "patterns" else ["*.up_proj", glob]
    with pytest.raises(ValueError, match=re.escape(f"{glob!r} in {argument}=")) as raised:
        hf_nm.sparsify(model, **{argument: selection})
    assert message in str(raised.value)
    assert not hf_nm.sparse_weights(model)


def test_selections_that_choose_nothing() -> None:
    model = llama()
    with pytest.raises(ValueError, match=r"targets=\[\] names nothing"):
        hf_nm.sparsify(model, targets=[])
    with pytest.raises(ValueError, match="predicate in targets= chose none of the 15 weights"):
        hf_nm.sparsify(model, targets=lambda name, module: False)
    with pytest.raises(ValueError, match="predicate in exclude= chose none"):
        hf_nm.sparsify(model, exclude=lambda name, module: False)
    with pytest.raises(TypeError, match="takes globs such as"):
        hf_nm.sparsify(model, targets=[3])  # type: ignore[list-item]
    with pytest.raises(
        ValueError, match="'lm_head' in patterns= matches only weights that stay dense"
    ):
        hf_nm.sparsify(model, patterns={"lm_head": "1:4"})
    with pytest.raises(ValueError, match='is written "n:m"'):
        hf_nm.sparsify(model, patterns={"*.up_proj": "half"})


def test_nothing_found_lists_what_was_skipped() -> None:
    model = llama()
    with pytest.raises(ValueError, match="found no weight to make 3:7") as raised:
        hf_nm.sparsify(model, 3, 7)
    text = str(raised.value)
    assert "model.layers.0.self_attn.q_proj.weight [32, 32]: input size 32" in text
    assert f"lm_head.weight [64, 32]: {OUTSIDE_BLOCKS}" in text
    with pytest.raises(ValueError, match=r"0\.weight \[32, 16\]: outside .*|targets="):
        hf_nm.sparsify(mlp(16, 32, 8))
    with pytest.raises(ValueError, match="no weight of two dimensions"):
        hf_nm.sparsify(nn.LayerNorm(8))
    with pytest.raises(ValueError, match="and 10 more"):
        hf_nm.sparsify(nn.ModuleDict({f"x{i}": nn.Linear(4, 4) for i in range(30)}))


class Block(nn.Module):
    def __init__(self, first: nn.Linear | None = None) -> None:
        super().__init__()
        self.first = first or nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def blocks(*elements: nn.Module) -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList(elements)
    return model


def test_module_in_two_blocks() -> None:
    """Red if one layer is converted twice, or listed twice."""
    shared = nn.Linear(8, 8)
    model = blocks(Block(shared), Block(shared))
    hf_nm.sparsify(model)
    assert [row.name for row in hf_nm.report(model).layers] == [
        "layers.0.first.weight",
        "layers.0.second.weight",
        "layers.1.second.weight",
    ]
    assert model.layers[0].first is model.layers[1].first is shared
    hf_nm.finalize(model)
    assert type(shared) is nn.Linear


def test_block_in_two_places() -> None:
    block = Block()
    model = blocks(block, block)
    model.other = model.layers
    hf_nm.sparsify(model)
    assert sparse_names(model) == {"layers.0.first.weight", "layers.0.second.weight"}


def test_module_inside_and_outside_the_blocks_stays_dense() -> None:
    """Red if only a module's first name is asked."""
    model = blocks(Block())
    model.head = model.layers[0].first
    hf_nm.sparsify(model)
    assert sparse_names(model) == {"layers.0.second.weight"}
    message = "shared with head.weight, which stays dense"
    assert reasons(model) == {"layers.0.first.weight": message}


@pytest.mark.parametrize("name", ["head", "layers.0.first", "head.weight"])
def test_module_is_found_under_each_of_its_names(name: str) -> None:
    model = blocks(Block())
    model.head = model.layers[0].first
    hf_nm.sparsify(model, targets=name)
    assert sparse_names(model) == {"layers.0.first.weight"}


def test_weight_in_two_modules() -> None:
    """Red if two states are kept for one weight."""
    model = blocks(Block(), Block())
    model.layers[1].first.weight = model.layers[0].first.weight
    hf_nm.sparsify(model)
    assert len(hf_nm.sparse_weights(model)) == 3
    one, other = model.layers[0].first, model.layers[1].first
    assert one.weight is other.weight
    assert one.mask is other.mask
    with hf_nm.dense_weights(model):
        one.weight.data.copy_(torch.randn(8, 8))
    assert torch.equal(other.mask, nm_mask(other.dense_weight(), 2, 4))


def test_weight_shared_with_a_module_outside_the_blocks() -> None:
    model = blocks(Block())
    model.head = nn.Linear(8, 8)
    model.head.weight = model.layers[0].first.weight
    hf_nm.sparsify(model)
    assert reasons(model) == {"layers.0.first.weight": "shared with head.weight, which stays dense"}
    model = blocks(Block())
    model.head = nn.Linear(8, 8)
    model.head.weight = model.layers[0].first.weight
    with pytest.raises(
        ValueError, match=r"shared with layers\.0\.first\.weight, which stays dense"
    ):
        hf_nm.sparsify(model, targets="head")
    hf_nm.sparsify(model, targets=["head", "layers.0.first"])
    assert sparse_names(model) == {"layers.0.first.weight"}


def test_integer_weights() -> None:
    model = blocks(Block())
    weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    model.layers[0].first.weight = weight
    hf_nm.sparsify(model)
    assert reasons(model) == {"layers.0.first.weight": "dtype torch.int8 cannot be N:M"}


def test_a_pattern_that_a_named_weight_cannot_have_is_refused() -> None:
    """Red if the weight is silently left dense although the default pattern fits it."""
    with pytest.raises(ValueError, match=r"input size 32 is not a multiple of m=64"):
        hf_nm.sparsify(bert(), patterns={"*.dense": "1:64"})
