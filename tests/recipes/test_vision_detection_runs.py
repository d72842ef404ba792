"""Object detection run whole: arms, models of several kinds, a resumed run, and that it learns."""

import json

import pytest
import torch
from boxes import BRIEF, YOLOS, boxed, coco, parquet
from models import LIKE_5_24
from recipe_loading import importing, results_of
from safetensors.torch import load_file
from transformers import AutoImageProcessor, YolosForObjectDetection, pipeline
from vision import detect

import hf_nm
from hf_nm.experiments.comparison import compare

with importing("vision"):
    from detection_model import load_model, sparsify
    from detection_options import parse

TINY = ["--config_name", "yolos", "--config_overrides", YOLOS, "--image_size", 32, 40]
TINY += ["--optim", "adamw_torch", *BRIEF.split()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    train, test = coco(folder / "train", 16), parquet(folder / "test.parquet", 6, 50)
    return ["--train_data", train, "--test_data", test, "--validation_rows", 4]


@pytest.fixture(scope="module")
def sparse(data, tmp_path_factory):
    """SR-STE from scratch, with a checkpoint in the middle of an epoch."""
    out = tmp_path_factory.mktemp("sparse")
    options = [*data, *TINY, "--save_strategy", "steps", "--save_steps", 2]
    detect(*options, "--output_dir", out)
    return out, options


def test_checkpoint_and_results(sparse, data, tmp_path):
    """Red if the folder is no ordinary sparse checkpoint, with its score, SAD and drawn images."""
    out, _ = sparse
    results = results_of(out)
    assert results["reloaded_logits_equal"] is True
    assert results["score"]["metric"] == "mAP"
    assert results["score"]["signature"].startswith("annotations|test.parquet|images:6|COCOeval")
    # the six test images hold nothing dark, and what has no true box has no precision
    assert {"mAP", "mAP@50", "AP bright"} <= results["score"]["metrics"].keys()
    assert results["model"]["nm_weights_kept"] * 2 == results["model"]["nm_weights"]
    assert results["sad"]["total"] >= 0
    assert hf_nm.verify(out).layers
    for name in ("sad.png", "samples.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((out / "detections.json").read_text())["found"]) == 6
    assert "object-detection" in (out / "README.md").read_text()
    detect(*data, *TINY, "--method", "dense", "--output_dir", tmp_path)
    assert results_of(tmp_path)["sad"] is None
    assert "sr-ste" in compare([tmp_path, out])


def test_plain_transformers_opens_it(sparse):
    """Red if the score is of another model than anybody would open."""
    out, _ = sparse
    model, loading = YolosForObjectDetection.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.config.label2id == {"dark": 0, "bright": 1}
    assert AutoImageProcessor.from_pretrained(out).size == {"height": 32, "width": 40}
    found = pipeline("object-detection", model=str(out), threshold=0.0)(boxed(50)[0])
    ours = json.loads((out / "detections.json").read_text())["found"][0]
    assert sorted(each["score"] for each in found) == pytest.approx(
        sorted(ours["scores"]), abs=1e-3
    )


def test_resumed_run_is_the_same(sparse, tmp_path):
    """Red if a resumed run sees other batches or mirror images, or loses masks."""
    out, options = sparse
    checkpoint = out / "checkpoint-2"
    detect(*options, "--output_dir", tmp_path, "--resume_from_checkpoint", checkpoint)
    weights, others = (load_file(folder / "model.safetensors") for folder in (out, tmp_path))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_a_checkpoint_with_other_classes(sparse, tmp_path):
    """Red if a trained head is renamed without a word."""
    out, _ = sparse
    folder = tmp_path / "train"
    file = coco(folder, 8)
    file.write_text(file.read_text().replace("bright", "pale"))
    options = ["--train_data", file, "--test_data", file, "--validation_rows", 2, *BRIEF.split()]
    with pytest.raises(
        SystemExit, match=r"is a detector of 2 classes \(dark, bright\), but annotat"
    ):
        detect(*options, "--model_name_or_path", out, "--output_dir", tmp_path / "out")


WRONG = {
    "--teacher x": "--teacher is not for detection",
    "--image_size 32 32 32": "must be a height and a width in pixels",
    "--sparse_backbone False": "YolosForObjectDetection has no backbone apart",
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_options(option, data, tmp_path):
    """Red if an option without effect, or out of range, is taken."""
    with pytest.raises(SystemExit, match=WRONG[option]):
        detect(*data, *TINY, *option.split(), "--output_dir", tmp_path)


BACKBONE = '"backbone_config":'
BACKBONE += (
    '{"model_type":"resnet","embedding_size":8,"hidden_sizes":[8,16,16,16],"depths":[1,1,1,1],'
)
BACKBONE += '"layer_type":"basic","out_features":STAGES}'
LAYERS = '"d_model":16,"encoder_layers":1,"decoder_layers":2,"encoder_attention_heads":2,'
LAYERS += '"decoder_attention_heads":2,"encoder_ffn_dim":16,"decoder_ffn_dim":16,"num_queries":6,'
DETR = "{" + LAYERS + BACKBONE.replace("STAGES", '["stage4"]') + "}"
# its group norms have 32 groups
THREE = (
    "{"
    + LAYERS.replace('"d_model":16', '"d_model":32')
    + BACKBONE.replace("STAGES", '["stage2","stage3","stage4"]')
    + "}"
)
RT = '{"encoder_hidden_dim":16,"encoder_in_channels":[8,16,16],"encoder_ffn_dim":16,"d_model":16,'
RT += '"encoder_attention_heads":2,"decoder_in_channels":[16,16,16],"decoder_ffn_dim":16,'
RT += '"decoder_layers":1,"decoder_attention_heads":2,"num_queries":6,"num_denoising":0,'
RT += '"hidden_expansion":0.5,"backbone_config":{"model_type":"rt_detr_resnet","embedding_size":8,'
RT += '"hidden_sizes":[8,8,16,16],"depths":[1,1,1,1],"layer_type":"basic",'
RT += '"out_features":["stage2","stage3","stage4"]}}'
ONE_BACKBONE = pytest.mark.skipif(
    not LIKE_5_24, reason="transformers 5.0 takes no backbone_config beside its default backbone"
)
KINDS = {"detr": DETR, "conditional_detr": DETR, "deformable_detr": THREE, "rt_detr": RT}


@ONE_BACKBONE
@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures(kind, data, tmp_path):
    """Red if a detector of another kind cannot be trained from scratch and opened."""
    given = ["--config_name", kind, "--config_overrides", KINDS[kind], "--image_size", 64]
    options = ["--optim", "adamw_torch", *BRIEF.split(), "--max_steps", 2]
    detect(*data, *given, *options, "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert results["reloaded_logits_equal"] is True
    assert results["model"]["type"] == kind
    assert any("backbone" in layer.name for layer in hf_nm.verify(tmp_path).layers)


def load(*options: str):
    class Data:
        labels, task = ("a", "b"), "it"

    given = ["--config_name", "detr", "--config_overrides", DETR, "--output_dir", "out", *options]
    recipe, _ = parse(given)
    model = load_model(recipe, Data())
    sparsify(recipe, model)
    return model


@ONE_BACKBONE
def test_backbone_sparse_or_dense():
    """Red if the option leaves one convolution of the backbone dense, or takes the first; or the rest
    of the model depends on it. DETR's batch norms are frozen either way."""
    found = {
        option: {row.name for row in hf_nm.report(load("--sparse_backbone", option)).layers}
        for option in ("True", "False")
    }
    assert not any("backbone" in name for name in found["False"])
    assert found["False"] < found["True"]
    model = load()
    convolutions = {
        name
        for name, value in model.named_parameters()
        if "backbone" in name and value.ndim == 4 and value.shape[1] != 3
    }
    assert found["True"] - found["False"] == convolutions
    assert not any("normalization" in name for name, _ in model.named_parameters())


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Red if boxes or classes are not learned: 250 updates find scenes' shapes far better than a new
    model, whose mAP@50 is below 0.01."""
    detect(
        "--max_steps",
        250,
        "--eval_strategy",
        "no",
        "--output_dir",
        tmp_path,
        "--learning_rate",
        2e-3,
        "--disable_tqdm",
        "true",
    )
    results = results_of(tmp_path)
    assert results["score"]["metrics"]["mAP@50"] > 0.03
    assert any("backbone" in layer.name for layer in hf_nm.verify(tmp_path).layers)


def test_the_short_command(monkeypatch, tmp_path):
    """Red if the README's command without options does not run to its end (fewer images, 2 updates)."""
    with importing("vision"):
        import scenes
    monkeypatch.setattr(scenes, "ROWS", {"train": 48, "validation": 8, "test": 8})
    detect("--max_steps", 2, "--warmup_steps", 1, "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert (results["data"], results["rows"]["test"]) == ("embedded scenes (test)", 8)
    assert results["reloaded_logits_equal"] is True
