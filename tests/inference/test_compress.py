"""``compress``: the same model with less memory, by every way to a product."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import LIKE_5_24, MODELS, batch, bert, llama, mlp
from tolerances import TOLERANCES, assert_close, assert_same_bits
from torch import Tensor, nn
from zoo import ZOO

import hf_nm
from hf_nm import NMPattern
from hf_nm.inference.packed_tensor import PackedWeight, frozen, pack_weight
from hf_nm.inference.product import WAYS, ways_at

# Linear, Conv1D, experts in both layouts, stacked of single ones, and bare.
KINDS = ["gpt2", "mixtral", "llama4", "gpt_oss", "qwen3_moe", "dbrx"]
SHAPES = [
    (2, 4, -1, (24, 32)),
    (1, 4, -2, (32, 24)),
    (4, 8, -1, (3, 7, 16)),
    (3, 5, -1, (6, 15)),
    (1, 16, -1, (9, 32)),
    (6, 8, -2, (2, 16, 5)),
]


def sparse(shape: tuple[int, ...], n: int, m: int, dim: int, dtype: torch.dtype) -> Tensor:
    weight = torch.randn(shape).to(dtype)
    return torch.where(hf_nm.nm_mask(weight, n, m, dim), weight, 0)


def packed_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if isinstance(p, PackedWeight)}


@pytest.mark.parametrize(("n", "m", "dim", "shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_pack_weight(n, m, dim, shape, dtype) -> None:
    """Every value comes back; as many bytes as counted. Red if a layout or a pattern is confused."""
    weight = sparse(shape, n, m, dim, dtype)
    packed = pack_weight(weight, NMPattern(n, m), dim)
    assert packed.shape == weight.shape
    assert packed.dtype == dtype
    assert_same_bits(packed.dense(), weight)
    assert_same_bits(packed + 0, weight + 0)  # an operation that knows nothing of it
    matrices = shape[0] if len(shape) == 3 else 1
    each = weight.numel() // matrices
    bits = -(-each // 8)
    assert packed.packed_bytes == matrices * (each // m * n * weight.itemsize + bits)


def test_two_of_four_in_bf16() -> None:
    """0.5625 of the dense weight. Red if anything is kept beside values and one bit an entry."""
    weight = sparse((64, 64), 2, 4, -1, torch.bfloat16)
    assert pack_weight(weight, NMPattern(2, 4), -1).packed_bytes == 0.5625 * weight.nbytes


def test_minus_zero_is_a_zero() -> None:
    """Red if a pruned -0.0 counts as kept, or takes the place of a value."""
    weight = torch.tensor([[-0.0, 1.0, -0.0, 2.0], [-0.0, -0.0, -0.0, 3.0]])
    packed = pack_weight(weight, NMPattern(2, 4), -1)
    assert torch.equal(packed.dense(), weight)
    with pytest.raises(hf_nm.BrokenPatternError, match="weight is not 2:4"):
        pack_weight(torch.ones(4, 4), NMPattern(2, 4), -1)


@pytest.mark.parametrize("rows", [(), (1,), (3, 5), (0, 4)])
def test_product_against_float64(rows, device) -> None:
    """By every way that this device has, in every dtype. Red if a way reads another weight's entries,
    leaves the bias out, or sums in the weight's dtype."""
    for n, m in ((2, 4), (1, 4), (4, 8), (3, 5), (6, 8), (1, 16)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            weight = sparse((40, 16 * m), n, m, -1, dtype).to(device)
            packed = pack_weight(weight, NMPattern(n, m), -1)
            bias = torch.randn(40, device=device).to(dtype)
            inputs = torch.randn(*rows, 16 * m, device=device).to(dtype)
            exact = F.linear(inputs.double(), weight.double(), bias.double())
            rtol, atol = TOLERANCES[dtype]
            # sums of up to 128 products of order 1, some of which cancel
            close = {"rtol": rtol, "atol": 1e-5 if dtype == torch.float32 else 10 * atol}
            torch.testing.assert_close(
                F.linear(inputs, frozen(packed), bias).double(), exact, **close
            )
            if not inputs.numel():
                continue
            count = inputs.numel() // inputs.shape[-1]
            for way in ways_at(count, packed.kept, n, m):
                got = WAYS[way](inputs, packed.kept, packed.bits, bias, n, m)
                torch.testing.assert_close(got.double(), exact, msg=way, **close)


def test_a_weight_of_many_pieces() -> None:
    """Red if a piece's rows, or the bits of the mask that belong to them, are those of another."""
    weight = sparse((700, 1024), 2, 4, -1, torch.float32)
    packed = pack_weight(weight, NMPattern(2, 4), -1)
    inputs, bias = torch.randn(2, 3, 1024), torch.randn(700)
    exact = F.linear(inputs.double(), weight.double(), bias.double())
    torch.testing.assert_close(F.linear(inputs, packed, bias).double(), exact, rtol=1e-5, atol=1e-4)


def test_every_model(kind: str, tmp_path: Path) -> None:
    """Outputs as of the dense model, what it saves byte for byte, and packed by loading. Red if
    a weight is lost, confused, or saved in another form."""
    if kind == "bert" and not LIKE_5_24:
        pytest.skip("transformers 5.0 saves a loaded BERT's LayerNorms by their old names")
    model = hf_nm.sparsify(MODELS[kind]())
    assert_same_when_compressed(model, batch(model), tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_weight(name: str, tmp_path: Path) -> None:
    """The same where weights are Conv1D's, or experts in a stack."""
    assert_same_when_compressed(hf_nm.sparsify(ZOO[name].build()), ZOO[name].batch(), tmp_path)


def assert_same_when_compressed(model, inputs, folder: Path) -> None:
    model.save_pretrained(folder / "a")
    hf_nm.pack(folder / "a", folder / "b")
    names = {w.name for w in hf_nm.sparse_weights(model)}
    plain = type(model).from_pretrained(folder / "a").eval()
    loaded = hf_nm.load_packed(folder / "b", compressed=True)
    with torch.no_grad():
        expected = plain(**inputs)[0]
        assert hf_nm.compress(plain) is plain
        for compressed in (plain, loaded):
            assert packed_names(compressed) == names
            assert type(compressed) is type(model)
            assert_close(compressed(**inputs)[0], expected)
    loaded.save_pretrained(folder / "c")
    for file in (folder / "a").glob("*.safetensors"):
        assert (folder / "c" / file.name).read_bytes() == file.read_bytes()
    assert len(hf_nm.verify(loaded).layers) == len(names)


def test_a_model_in_training_is_finalized() -> None:
    """Red if masks stay beside a packed weight, or the config forgets the pattern."""
    model = hf_nm.sparsify(llama(), 1, 4, patterns={"*.up_proj": "2:4"})
    inputs = {"input_ids": batch(model)["input_ids"]}
    expected = model(**inputs).logits.detach()
    hf_nm.compress(model)
    assert not hf_nm.sparse_weights(model)
    assert len(packed_names(model)) == 14
    assert model.model.layers[0].mlp.up_proj.weight.pattern == NMPattern(2, 4)
    assert model.model.layers[0].mlp.down_proj.weight.pattern == NMPattern(1, 4)
    assert_close(model(**inputs).logits.detach(), expected)


def test_generate_and_dtypes() -> None:
    """The same tokens; bf16 as the dense model cast to it. Red if a cast reaches one part alone."""
    model = hf_nm.finalize(hf_nm.sparsify(llama())).eval()
    tokens = torch.tensor([[3, 4, 5]])
    compressed = hf_nm.compress(copy.deepcopy(model))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(compressed.generate(tokens, **options), model.generate(tokens, **options))
    compressed.to(torch.bfloat16)
    model.to(torch.bfloat16)
    assert {p.dtype for p in compressed.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert_close(compressed(tokens).logits, model(tokens).logits)
        with torch.autocast("cpu", torch.bfloat16):
            assert compressed.float()(tokens).logits.dtype == torch.bfloat16


def test_torch_compile() -> None:
    """One graph, the weight packed in it. Red if a part of it cannot be traced."""
    layer = nn.Linear(32, 24)
    weight = sparse((24, 32), 2, 4, -1, torch.float32)
    layer.weight = frozen(pack_weight(weight, NMPattern(2, 4), -1))
    inputs = torch.randn(5, 32)
    expected = F.linear(inputs, weight, layer.bias).detach()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(inputs).detach(), expected)
    with torch.no_grad():
        assert_close(compiled(inputs), expected)


def test_copies_and_state_dicts() -> None:
    """Red if a copy shares memory with its model, or a state dict does not go back in."""
    model = hf_nm.compress(hf_nm.sparsify(mlp(16, 32, 8), targets="*"))
    inputs = torch.randn(3, 16)
    expected = model(inputs).detach()
    twin = copy.deepcopy(model)
    assert twin[0].weight.kept.data_ptr() != model[0].weight.kept.data_ptr()
    assert_close(twin(inputs).detach(), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert isinstance(state["0.weight"], PackedWeight)
    twin.load_state_dict({name: 0 * tensor for name, tensor in state.items()})  # dense, too
    assert not twin(inputs).any()
    twin.load_state_dict(state)
    assert_close(twin(inputs).detach(), expected)
    with pytest.raises(hf_nm.BrokenPatternError, match="a loaded weight is not 2:4"):
        twin[0].weight.data.copy_(torch.ones(32, 16))


def test_one_weight_in_two_modules(tmp_path: Path) -> None:
    """Red if a shared weight is packed twice, or one tied to an embedding is packed at all."""
    shared = mlp(16, 16, 16)
    shared[2].weight = shared[0].weight
    shared.append(nn.Embedding(8, 16))
    shared.append(nn.Linear(16, 8, bias=False))
    shared[4].weight = shared[3].weight
    with torch.no_grad():
        shared[0].weight.copy_(sparse((16, 16), 2, 4, -1, torch.float32))
        shared[3].weight.copy_(sparse((8, 16), 2, 4, -1, torch.float32))
    with pytest.warns(
        UserWarning, match=r"3\.weight: shared with a Embedding|4\.weight: shared with"
    ):
        hf_nm.compress(shared, pattern="2:4")
    assert shared[2].weight is shared[0].weight
    assert isinstance(shared[0].weight, PackedWeight)
    assert not isinstance(shared[3].weight, PackedWeight)


def test_attention_of_torch() -> None:
    """``out_proj``'s forward is never called; its weight is read all the same. Red if it is not."""
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with torch.no_grad():
        for weight in (attention.in_proj_weight, attention.out_proj.weight):
            weight.copy_(sparse(tuple(weight.shape), 2, 4, -1, torch.float32))
    inputs = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = attention(inputs, inputs, inputs)[0]
        hf_nm.compress(attention, pattern="2:4")
        assert len(packed_names(attention)) == 2
        torch.testing.assert_close(attention(inputs, inputs, inputs)[0], expected)


def test_what_stays_dense_is_named() -> None:
    """Red if a weight is left without a word."""
    model = nn.ModuleDict(
        {"conv": nn.Conv1d(8, 8, 3), "lstm": nn.LSTM(8, 8), "fc": nn.Linear(8, 8)}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.warns(UserWarning, match="1 weights are packed") as caught:
        hf_nm.compress(model, pattern="2:4")
    text = str(caught[0].message)
    assert "conv.weight: a weight of Conv1d: convolutions take dense weights only" in text
    assert "lstm.weight_hh_l0: a weight_hh_l0 of LSTM: torch's recurrent kernels" in text
    double = hf_nm.sparsify(nn.Sequential(nn.Linear(8, 8).to(torch.float8_e5m2)), 7, 8, targets="*")
    with pytest.raises(ValueError, match=r"7:8 in torch\.float8_e5m2 takes no less memory packed"):
        hf_nm.compress(double)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing says which weights .* pattern='2:4'"):
        hf_nm.compress(bert())
    with pytest.raises(ValueError, match="found no matrix of the model that is 2:4"):
        hf_nm.compress(bert(), pattern="2:4")
    model = hf_nm.compress(hf_nm.sparsify(bert()))
    for again in (hf_nm.compress, hf_nm.sparsify, hf_nm.restore):
        with pytest.raises(ValueError, match=r"compressed .* load the plain checkpoint"):
            again(model)
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    with pytest.raises(TypeError, match="writes to a compressed weight"):
        weight.mul_(2)
    with pytest.raises(TypeError, match="writes to a compressed weight"):
        weight[0, 0] = 1.0
    with pytest.raises(RuntimeError, match="sizes and dtypes have to agree"):
        model.bert.encoder.layer[0].attention.self.query(torch.randn(2, 32).double())
    weight.requires_grad_(True)
    with pytest.raises(TypeError, match=r"requires a gradient.*hf_nm\.restore"):
        model(**batch(model))


def test_what_is_not_packed_can_be_trained() -> None:
    """Gradients of inputs and biases as through the dense weight. Red if one is lost or transposed."""
    plain = hf_nm.finalize(hf_nm.sparsify(mlp(16, 32, 8), targets="*"))
    packed = hf_nm.compress(copy.deepcopy(plain), pattern="2:4")
    inputs = torch.randn(3, 16, requires_grad=True)
    twin = inputs.detach().clone().requires_grad_()
    plain(inputs).square().sum().backward()
    packed(twin).square().sum().backward()
    torch.testing.assert_close(twin.grad, inputs.grad)
    for one, other in ((plain[0].bias, packed[0].bias), (plain[2].bias, packed[2].bias)):
        torch.testing.assert_close(other.grad, one.grad)
    assert packed[0].weight.grad is None


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own, on what it renames
def test_lora_on_top() -> None:
    """Adapters train on packed weights as on dense ones. Red if PEFT's layer gets other numbers."""
    peft = pytest.importorskip("peft")
    plain = hf_nm.finalize(hf_nm.sparsify(llama()))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    found = []
    for model in (copy.deepcopy(plain), hf_nm.compress(copy.deepcopy(plain))):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, config)
        adapted(**batch(plain)).loss.backward()
        found.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 8
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_only_if_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a layer that loses is packed, or one that wins is not. (Times are made up.)"""
    times = {24: {"unpack": 2.0, "dense": 1.0}, 16: {"unpack": 1.0, "dense": 2.0}}
    seen = []

    def timed(dense, packed, rows):
        seen.append(rows)
        return times[dense.shape[0]]

    monkeypatch.setattr("hf_nm.inference.compress.time_product", timed)
    model = hf_nm.sparsify(mlp(16, 24, 16, 24), targets="*")
    with pytest.warns(UserWarning, match=r"no faster at 4 rows on this cpu: 2\.000 ms packed"):
        hf_nm.compress(model, only_if_faster=True, rows=4)
    assert packed_names(model) == {"2.weight"}
    assert seen == [4, 4]  # the third is of the first one's shape
