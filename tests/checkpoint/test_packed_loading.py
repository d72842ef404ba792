"""Packed folders opened by transformers: the plain model with hf_nm, a loud refusal without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from launching import run_python
from models import MODELS, batch, bert, llama, vit
from report_rows import sparse_names
from tolerances import assert_same_bits
from transformers import AutoModelForSequenceClassification, BertForTokenClassification
from zoo import ZOO

import hf_nm

ROOT = Path(__file__).parents[2]

# Experts in both layouts, apart, fused; convolutions; Conv1D; bare matrices; names that differ.
KINDS = ["gpt2", "mixtral", "llama4", "gpt_oss", "qwen3_moe", "dbrx", "wav2vec2", "xlnet"]

# Run by another Python: each way a user would open the folder, without hf_nm.
OPEN_PLAIN = """
import sys, transformers
folder = sys.argv[1]
config = transformers.AutoConfig.from_pretrained(folder)
for name in ("AutoModel", "AutoModelForSequenceClassification", "BertForSequenceClassification"):
    for arguments in ({}, {"config": config}, {"use_safetensors": True}):
        try:
            getattr(transformers, name).from_pretrained(folder, **arguments)
        except ValueError as error:
            assert "import hf_nm" in str(error), error
        else:
            raise SystemExit(f"{name} opened it")
try:  # the file alone, under the name that transformers looks for
    transformers.BertForSequenceClassification.from_pretrained(sys.argv[2])
except RuntimeError as error:
    assert "mismatch" in str(error), error
else:
    raise SystemExit("the renamed file was opened")
assert "hf_nm" not in sys.modules
"""
# hf_nm before transformers, which it must not import. (Here, in the tests, it comes after.)
OPEN_BEFORE = """
import sys, hf_nm
assert "transformers" not in sys.modules
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
assert type(model).__name__ == "BertModel"
loader = sys.modules["transformers.modeling_utils"].__loader__
assert not type(loader).__module__.startswith("hf_nm")
"""


def run(code: str, *folders: Path, isolated: bool = False) -> None:
    run_python(*(["-I"] if isolated else []), "-c", code, *folders)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    hf_nm.sparsify(bert()).save_pretrained(tmp_path / "plain")
    return hf_nm.pack(tmp_path / "plain", tmp_path / "packed")


def assert_same_state(model: Any, other: Any) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name in state:
        assert_same_bits(state[name], expected[name], name)


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_load_packed(kind: str, shards: str, tmp_path: Path) -> None:
    """Red if a weight, the config or the class is not the plain checkpoint's."""
    model = hf_nm.sparsify(MODELS[kind](), 1, 4, patterns={"*0*": "2:4"}).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "a", max_shard_size=shards)
    plain = type(model).from_pretrained(tmp_path / "a")
    loaded = hf_nm.load_packed(hf_nm.pack(tmp_path / "a", tmp_path / "b"))
    assert_same_state(loaded, plain)
    assert type(loaded) is type(model)
    assert loaded.config.nm_sparsity == model.config.nm_sparsity
    assert loaded.__dict__.keys() == plain.__dict__.keys()  # nothing of a quantized model stays
    assert loaded.config.to_diff_dict() == plain.config.to_diff_dict()
    loaded.save_pretrained(tmp_path / "c", max_shard_size=shards)
    plain.save_pretrained(tmp_path / "d", max_shard_size=shards)
    for file in (tmp_path / "d").iterdir():
        assert (tmp_path / "c" / file.name).read_bytes() == file.read_bytes(), file.name


def test_restored_and_trained_on(packed: Path) -> None:
    model = hf_nm.restore(hf_nm.load_packed(packed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    model(**batch(model)).loss.backward()
    optimizer.step()
    assert len(hf_nm.verify(model).layers) == 12


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_weight(name: str, tmp_path: Path) -> None:
    """Red if a layout of weights, or a name that only transformers knows, does not load or verify, or
    if verify has to load the whole model."""
    model = hf_nm.sparsify(ZOO[name].build())
    model.save_pretrained(tmp_path / "a")
    hf_nm.pack(tmp_path / "a", tmp_path / "b")
    loaded = hf_nm.load_packed(tmp_path / "b")
    assert_same_state(loaded, type(model).from_pretrained(tmp_path / "a", dtype="auto"))
    rows = sorted(hf_nm.verify(model).layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_nm.checkpoint.verify._of_loaded", None)
        assert sorted(hf_nm.verify(tmp_path / "a").layers) == rows
        assert sorted(hf_nm.verify(tmp_path / "b").layers) == rows
    assert sparse_names(hf_nm.restore(loaded)) == sparse_names(model)
    hf_nm.unpack(tmp_path / "b", tmp_path / "c")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "c" / file.name).read_bytes() == file.read_bytes(), file.name


def test_other_classes(packed: Path, tmp_path: Path) -> None:
    """Red if AutoModel, another head or a pipeline gets other weights than from the plain folder."""
    auto = AutoModelForSequenceClassification.from_pretrained(packed)
    assert_same_state(auto, AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain"))
    torch.manual_seed(0)
    headed = BertForTokenClassification.from_pretrained(packed)
    torch.manual_seed(0)  # the head is new in both
    assert_same_state(headed, BertForTokenClassification.from_pretrained(tmp_path / "plain"))
    hf_nm.restore(headed)
    cast = hf_nm.load_packed(packed, dtype=torch.float16)
    assert_same_state(cast, type(cast).from_pretrained(tmp_path / "plain", dtype=torch.float16))


def test_dtype_that_only_the_weights_tell(tmp_path: Path) -> None:
    """Red if packed bytes decide what dtype="auto" means."""
    hf_nm.sparsify(llama()).to(torch.bfloat16).save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    hf_nm.pack(tmp_path / "a", tmp_path / "b")
    assert hf_nm.load_packed(tmp_path / "b", dtype="auto").dtype == torch.bfloat16


def test_loaded_on_a_device(packed: Path, device: torch.device, tmp_path: Path) -> None:
    model = hf_nm.load_packed(packed, device_map={"": device})
    assert {parameter.device.type for parameter in model.parameters()} == {device.type}
    assert_same_state(
        model.to("cpu"),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain"),
    )


def test_without_hf_nm(packed: Path, tmp_path: Path) -> None:
    """Red if transformers alone opens it, with random weights or any: must be an error."""
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    file = packed / "model.nm_packed.safetensors"
    (renamed / "model.safetensors").write_bytes(file.read_bytes())
    (renamed / "config.json").write_bytes((tmp_path / "plain" / "config.json").read_bytes())
    run(OPEN_PLAIN, packed, renamed, isolated=True)


def test_imported_before_transformers(packed: Path) -> None:
    """Red if the loader is registered only when transformers is imported first."""
    run(OPEN_BEFORE, packed)


def test_registering_twice() -> None:
    from hf_nm.checkpoint import packed_loader as loader
    from hf_nm.checkpoint import register as arrival

    loader.register()
    arrival.follow()
    loader.register()


def test_a_transformers_that_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if transformers could not be imported any more because hf_nm does not know it."""
    from hf_nm.checkpoint import register as arrival

    monkeypatch.setattr("hf_nm.checkpoint.packed_loader.register", None)
    with pytest.warns(UserWarning, match=r"cannot be told .* hf_nm\.load_packed.* hf_nm\.unpack"):
        arrival.follow()


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_damaged(packed: Path) -> None:
    """Red if a damaged file loads."""
    file = packed / "model.nm_packed.safetensors"
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:-9] + b"x" + whole[-8:], whole[:100] + b"~" + whole[101:]):
        file.write_bytes(data)
        for load in (hf_nm.load_packed, AutoModelForSequenceClassification.from_pretrained):
            with pytest.raises(hf_nm.PackedError, match=r"model\.nm_packed\.safetensors"):
                load(packed)


def test_config_that_does_not_belong(packed: Path, tmp_path: Path) -> None:
    """Red if a manifest or a list of files other than the one that was written is believed."""
    config = json.loads((packed / "config.json").read_text())
    sparsity, form = config["nm_sparsity"], config["quantization_config"]
    modules = sparsity["modules"]
    first = next(iter(modules))
    for changes, message in (
        ({"nm_sparsity": sparsity | {"modules": modules | {first: "1:4"}}}, "packed as 2:4"),
        ({"nm_sparsity": sparsity | {"dims": {first: -2}}}, "along -2"),
        (
            {"nm_sparsity": sparsity | {"modules": {first: "2:4"}}},
            "does not claim that it is N:M",
        ),
        ({"quantization_config": form | {"version": 2}}, "version 2"),
        ({"quantization_config": form | {"files": {}}}, "needs exactly"),
        ({"quantization_config": form | {"files": {"../x.nm_packed.safetensors": ""}}}, "needs"),
        ({"quantization_config": form | {"more": 1}}, "needs exactly"),
    ):
        (packed / "config.json").write_text(json.dumps(config))
        edit_config(packed, **changes)
        for job in (
            hf_nm.verify,
            hf_nm.load_packed,
            lambda folder: hf_nm.unpack(folder, tmp_path / "c"),
        ):
            with pytest.raises(hf_nm.PackedError, match=message):
                job(packed)


def test_what_load_packed_refuses(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not packed.*load it with AutoModel"):
        hf_nm.load_packed(tmp_path / "plain")
    with pytest.raises(OSError, match="nowhere"):
        hf_nm.load_packed(tmp_path / "nowhere")
    edit_config(packed, architectures=["os"])
    with pytest.raises(ValueError, match="has no model class 'os'"):
        hf_nm.load_packed(packed)


def test_vit_under_its_older_names(tmp_path: Path) -> None:
    """Red if packed weights under other names than the parameters' go unchecked by restore."""
    hf_nm.sparsify(vit()).save_pretrained(tmp_path / "a")
    hf_nm.pack(tmp_path / "a", tmp_path / "b")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "b")
    hf_nm.restore(model)
    assert len(hf_nm.sparse_weights(model)) == 12
