"""Making a model sparse in place: what changes, what stays as it was, and every refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import MODELS, batch, bert, mlp, t5, vit
from report_rows import sparse_names
from tolerances import assert_same_bits
from torch import nn
from transformers import BertForSequenceClassification

import hf_nm
from hf_nm import nm_mask


def test_weights_are_projected(kind: str) -> None:
    """Red if a weight is not ``E*W``, the dense weight is lost, or another parameter is touched."""
    model, dense = MODELS[kind](), MODELS[kind]()
    hf_nm.sparsify(model, 1, 4)
    before = dict(dense.named_parameters())
    weights = {w.name: w for w in hf_nm.sparse_weights(model)}
    for name, parameter in model.named_parameters():
        if name in weights:
            mask = nm_mask(before[name], 1, 4)
            assert torch.equal(weights[name].mask, mask)
            assert_same_bits(weights[name].dense_weight(), before[name].detach(), name)
            assert torch.equal(parameter, before[name] * mask)
        else:
            assert_same_bits(parameter.detach(), before[name].detach(), name)


def test_parameters_and_keys_stay(kind: str) -> None:
    """Red if a parameter is replaced, a key of the state dict changes, or a tie is cut."""
    model = MODELS[kind]()
    before = dict(model.named_parameters(remove_duplicate=False))
    keys, modules = list(model.state_dict()), dict(model.named_modules())
    hf_nm.sparsify(model)
    for _ in range(2):  # sparse, then plain again
        after = dict(model.named_parameters(remove_duplicate=False))
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)
        assert list(model.state_dict()) == keys
        assert all(module is modules[name] for name, module in model.named_modules())
        if hf_nm.sparse_weights(model):
            hf_nm.finalize(model)


def test_output_is_that_of_the_masked_dense_model(kind: str) -> None:
    """Red if a forward sees other weights than ``E*W``."""
    model, masked = MODELS[kind](), MODELS[kind]()
    hf_nm.sparsify(model)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if name in sparse_names(model):
                parameter.mul_(nm_mask(parameter, 2, 4))
        inputs = batch(model)
        assert torch.equal(model(**inputs).logits, masked(**inputs).logits)


def test_manifest_is_in_the_config(kind: str) -> None:
    model = MODELS[kind]()
    hf_nm.sparsify(model, 1, 4, method="ste", decay=0.5, patterns={"*1*": "2:4"})
    manifest = model.config.nm_sparsity
    assert (manifest["n"], manifest["m"], manifest["method"]) == (1, 4, "ste")
    assert (manifest["decay"], manifest["hf_nm"]) == (0.5, hf_nm.__version__)
    assert manifest["modules"] == {row.name: str(row.pattern) for row in hf_nm.report(model).layers}
    assert set(manifest["modules"].values()) == {"1:4", "2:4"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 4, "m": 4}, ValueError, "n = m would be dense"),
        ({"n": 0}, ValueError, "1 <= n < m"),
        ({"n": 2.0}, TypeError, "needs integers"),
        ({"n": "2"}, TypeError, "needs integers"),
        ({"n": True}, TypeError, "needs integers"),
        ({"method": "srste"}, ValueError, "'sr-ste', 'ste', 'fixed' or a Method, but got 'srste'"),
        ({"method": None}, ValueError, "but got None"),
        ({"decay": -1e-4}, ValueError, "finite and >= 0"),
        ({"decay": float("nan")}, ValueError, "finite and >= 0"),
        ({"decay": float("inf")}, ValueError, "finite and >= 0"),
        ({"decay": "2e-4"}, ValueError, "a number >= 0, but got '2e-4'"),
        ({"decay": True}, ValueError, "a number >= 0"),
    ],
)
def test_arguments_out_of_range(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = bert()
    with pytest.raises(error, match=message):
        hf_nm.sparsify(model, **arguments)
    assert not hf_nm.sparse_weights(model)
    assert not hasattr(model.config, "nm_sparsity")


def test_method_name_that_a_checkpoint_could_not_hold() -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        hf_nm.Method("my method", lambda *_: None)


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"works on a torch\.nn\.Module, but got str"):
        hf_nm.sparsify("bert-base-uncased")  # type: ignore[type-var]


def test_already_sparse() -> None:
    model = hf_nm.sparsify(bert())
    with pytest.raises(ValueError, match=r"already sparse \(12 weights, .* 2:4\); use patterns="):
        hf_nm.sparsify(model)
    with pytest.raises(ValueError, match="already sparse"):
        hf_nm.sparsify(model, targets="classifier")
    with pytest.raises(ValueError, match="already sparse"):
        hf_nm.restore(model)
    hf_nm.finalize(model)
    with pytest.raises(ValueError, match=r"hf_nm\.restore\(model\)"):
        hf_nm.sparsify(model)


@pytest.mark.parametrize("config", [{"width": 8}, SimpleNamespace(width=8), None, "small"])
def test_config_of_another_kind_is_left_alone(config: Any) -> None:
    """Red if a model that is not transformers' fails halfway, or its config is written to."""
    model = mlp(16, 32, 8)
    model.config = config
    before = copy.deepcopy(config)
    hf_nm.sparsify(model, targets="*")
    assert model.config == before
    hf_nm.finalize(model)


def test_config_with_a_bad_manifest() -> None:
    model = bert()
    model.config.nm_sparsity = {"version": 99}
    with pytest.raises(ValueError, match="version 99"):
        hf_nm.sparsify(model)


@pytest.mark.usefixtures("single_process_group")
def test_ddp() -> None:
    model = nn.parallel.DistributedDataParallel(bert())
    with pytest.raises(
        ValueError, match="wrapped by DistributedDataParallel; make the plain model"
    ):
        hf_nm.sparsify(model)


def test_data_parallel() -> None:
    with pytest.raises(ValueError, match="wrapped by DataParallel"):
        hf_nm.sparsify(nn.DataParallel(bert()))


def test_offloaded() -> None:
    """Red if weights that only exist elsewhere are silently left dense."""
    from accelerate import cpu_offload

    model = bert()
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(ValueError, match="offloaded"):
        hf_nm.sparsify(model)


def test_device_map() -> None:
    """accelerate's hooks move inputs; weights that lie where they compute are like any others."""
    from accelerate import dispatch_model

    plain = hf_nm.sparsify(bert())
    model = dispatch_model(bert(), {"": "cpu"}, force_hooks=True)
    hf_nm.sparsify(model)
    inputs = batch(model)
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


def test_fsdp1_and_deepspeed_by_name() -> None:
    fsdp1 = type("FullyShardedDataParallel", (nn.Linear,), {})
    engine = type("DeepSpeedEngine", (nn.Linear,), {"__module__": "deepspeed.runtime.engine"})
    with pytest.raises(ValueError, match="wrapped by FullyShardedDataParallel"):
        hf_nm.sparsify(fsdp1(8, 8), targets="*")
    with pytest.raises(ValueError, match="wrapped by DeepSpeed"):
        hf_nm.sparsify(engine(8, 8), targets="*")


def test_compiled() -> None:
    with pytest.raises(ValueError, match=r"already compiled; .* then call torch\.compile"):
        hf_nm.sparsify(torch.compile(bert(), backend="eager"))


@pytest.mark.parametrize(
    "mark",
    [
        lambda model: setattr(model, "hf_quantizer", SimpleNamespace()),
        lambda model: setattr(model.config, "quantization_config", {"quant_method": "gptq"}),
        lambda model: setattr(model, "is_quantized", True),
    ],
)
def test_quantized(mark: Callable[[nn.Module], None]) -> None:
    model = bert()
    mark(model)
    with pytest.raises(ValueError, match="the model is quantized"):
        hf_nm.sparsify(model)


def test_a_sparse_model_can_still_be_resized_and_tied() -> None:
    """Red if transformers' own surgery meets something it does not know."""
    model = hf_nm.sparsify(t5())
    names = sparse_names(model)
    model.resize_token_embeddings(80)
    model.tie_weights()
    assert sparse_names(model) == names
    hf_nm.verify(model)


def test_two_models_do_not_see_each_other() -> None:
    first, second = vit(), vit()
    hf_nm.sparsify(first)
    assert not hf_nm.sparse_weights(second)
    layer = hf_nm.sparse_weights(first)[-1].name.removesuffix(".weight")
    assert type(second.get_submodule(layer)) is nn.Linear
    hf_nm.sparsify(second, 1, 4)
    hf_nm.finalize(first)
    assert len(hf_nm.sparse_weights(second)) == 12


def test_a_config_shared_by_two_models_is_not_written() -> None:
    """Red if the dense model claims what the sparse one is."""
    config = bert().config
    sparse, dense = (BertForSequenceClassification(config) for _ in range(2))
    hf_nm.sparsify(sparse)
    assert sparse.config.nm_sparsity["n"] == 2
    assert sparse.bert.config is sparse.config
    assert not hasattr(dense.config, "nm_sparsity")
    hf_nm.sparsify(dense)


def test_a_lazy_layer_is_named() -> None:
    model = nn.Sequential(nn.LazyLinear(8))
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet"):
        hf_nm.sparsify(model, targets="*")


def test_a_part_that_is_wrapped_is_found(single_process_group: None) -> None:
    inner = nn.parallel.DistributedDataParallel(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        hf_nm.sparsify(nn.Sequential(inner), targets="*")
