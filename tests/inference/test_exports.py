"""A sparse model in other engines: ONNX keeps the zeros; torch's 2:4 kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import batch, bert, llama

import hf_nm
from hf_nm import NMPattern
from hf_nm.sparsity.mask import count_kept

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


# The exporter's own: it deep-copies old pytree specs, and folds constants it then warns about.
@pytest.mark.filterwarnings("ignore")
def test_onnx(tmp_path: Path) -> None:
    """Exported by torch, run by onnxruntime: the same logits, and the very weights as initializers. Red
    if the exported weights are the dense ones."""
    model = hf_nm.finalize(hf_nm.sparsify(bert())).eval()
    inputs = {"input_ids": batch(model)["input_ids"]}
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (), path, kwargs=inputs, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = {name.name: inputs["input_ids"].numpy() for name in session.get_inputs()}
    logits = torch.from_numpy(session.run(None, fed)[0])
    torch.testing.assert_close(logits, model(**inputs).logits.detach(), rtol=1e-4, atol=1e-5)

    arrays = [
        torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(path).graph.initializer
    ]
    for row in hf_nm.verify(model).layers:
        weight = model.get_parameter(row.name).detach()
        assert any(
            torch.equal(array, stored)
            for array in arrays
            for stored in (weight, weight.T)
            if array.shape == stored.shape
        ), row.name


def test_semi_structured_needs_cuda() -> None:
    with pytest.raises(ValueError, match=r"model on a CUDA device, but this one is on \['cpu'\]"):
        hf_nm.to_semi_structured(hf_nm.sparsify(bert()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n", [1, 2])
def test_semi_structured(n: int) -> None:
    """The same logits as with zeros in dense weights; layers that cannot are named. Red if a layer of
    another pattern is compressed."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    model = llama(**sizes).to("cuda", torch.bfloat16)
    hf_nm.sparsify(model, n, 4, patterns={"*.0.mlp.up_proj": "4:8"})
    inputs = {"input_ids": batch(model)["input_ids"]}
    expected = model(**inputs).logits
    wide = model.model.layers[0].mlp.up_proj.weight
    assert (count_kept(wide, NMPattern(2, 4)) > 2).any()
    with pytest.warns(UserWarning, match=r"0\.mlp\.up_proj\.weight: more than two non-zeros"):
        assert hf_nm.to_semi_structured(model) is model
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=2e-2, atol=2e-2)
