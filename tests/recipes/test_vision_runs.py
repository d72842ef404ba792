"""Image classification run whole: arms, models of several kinds, resumed runs, what a reader opens."""

import json
import sys
from pathlib import Path

import pytest
import torch
from launching import launch_two, run_python
from models import LIKE_5_24
from recipe_loading import VISION, checkpoint_after, history, importing, results_of
from safetensors.torch import load_file
from transformers import AutoImageProcessor, ResNetForImageClassification, pipeline
from vision import PLAIN, RESNET, SHORT, classify, toy_folders

import hf_nm
from hf_nm.experiments.comparison import compare
from hf_nm.experiments.results import read_predictions

with importing("vision"):
    from model import load_model
    from objective import classification_loss
    from options import parse

TOY = ["--config_name", "resnet", "--config_overrides", RESNET, *SHORT.split()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_folders(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    """A dense run of a plain ResNet."""
    out = tmp_path_factory.mktemp("dense")
    classify(PLAIN, *data, *TOY, "--method", "dense", "--output_dir", out)
    return out


@pytest.fixture(scope="module")
def sparse(data, dense, tmp_path_factory):
    """SR-STE from scratch, beside the dense run, with checkpoints in the middle of an epoch."""
    out = tmp_path_factory.mktemp("sparse")
    options = [PLAIN, *data, *TOY, "--max_steps", 20, "--learning_rate", 0.05]
    options += ["--save_strategy", "steps", "--save_steps", 13, "--dense_run", dense]
    classify(*options, "--output_dir", out)
    return out, options


def test_checkpoint_and_results(sparse, dense):
    """Red if the folder is no ordinary sparse checkpoint with what its score was made of, or nothing
    is learned: red and blue are told apart by their mean."""
    out, _ = sparse
    results = results_of(out)
    assert results["reloaded_logits_equal"] is True
    assert results["score"]["test"] == 1.0
    assert results["score"]["signature"].endswith("|test|rows:16|size:16x16")
    assert (results["steps"], results["batch"], results["arm"]) == (
        20,
        8,
        "SR-STE 2:4, decay 0.0002",
    )
    assert {row.name.split(".")[1] for row in hf_nm.verify(out).layers} == {"encoder"}
    assert results["model"]["nm_weights_kept"] * 2 == results["model"]["nm_weights"]
    assert results["sad"]["total"] > 0
    card = (out / "README.md").read_text()
    assert "image-classification" in card
    assert (out / "sad.png").read_bytes().startswith(b"\x89PNG")
    table = compare([dense, out])
    assert "sr-ste" in table
    assert results_of(dense)["sad"] is None


def test_plain_transformers_opens_it(sparse, data):
    """Red if the score is of another model than anybody would open, or of other images."""
    out, _ = sparse
    model, loading = ResNetForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.config.label2id == {"blue": 0, "red": 1}
    classified = pipeline("image-classification", model=str(out))
    references, predictions = read_predictions(out)
    assert references.tolist() == [0] * 8 + [1] * 8
    files = sorted(Path(data[5]).rglob("*.png"))
    found = [classified(str(file))[0]["label"] for file in files]
    assert found == [("blue", "red")[i] for i in predictions.tolist()]
    mean = AutoImageProcessor.from_pretrained(out).image_mean
    assert mean == pytest.approx([120 / 255, 60 / 255, 120 / 255], abs=0.02)


def test_resumed_run_is_the_same(sparse, tmp_path):
    """Red if a resumed run, here in epoch 3, sees other crops, mirror images or batches."""
    out, options = sparse
    checkpoint = checkpoint_after(1000, out / "checkpoint-13", tmp_path / "before")
    resumed = tmp_path / "resumed"
    classify(*options, "--output_dir", resumed, "--resume_from_checkpoint", checkpoint)
    assert results_of(resumed)["time"]["train_s"] > 1000
    assert history(resumed) == history(out)
    weights, others = (load_file(folder / "model.safetensors") for folder in (out, resumed))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.parametrize("method", ["fixed", "ste"])
def test_other_arms(method, data, dense, tmp_path):
    """Red if an arm trains by another method, or ASP's masks move."""
    start = f"--model_name_or_path {dense} --n 1 --method {method}"
    classify(PLAIN, *data, *SHORT.split(), *start.split(), "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert results["arm"] == {"fixed": "ASP 1:4", "ste": "STE 1:4"}[method]
    assert (results["steps_before"], results["steps"]) == (6, 6)
    assert json.loads((tmp_path / "config.json").read_text())["nm_sparsity"]["method"] == method
    assert (results["sad"]["total"] > 0) == (method == "ste")


def test_distillation(data, dense, tmp_path):
    """Red if a teacher needs a tokenizer, or one that sees other pixels is taken."""
    teach = ["--model_name_or_path", dense, "--teacher", dense, "--distillation_weight", 0.7]
    classify(PLAIN, *data, *SHORT.split(), *teach, "--output_dir", tmp_path / "out")
    last = [row for row in history(tmp_path / "out") if "loss" in row][-1]
    assert "distillation/divergence" in last
    scratch = [*data, *TOY, "--image_size", 24, "--teacher", dense]
    with pytest.raises(SystemExit, match="its image processor gives other pixels"):
        classify(PLAIN, *scratch, "--output_dir", tmp_path / "other")


KINDS = {
    "vit": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,patch_size=8",
    "deit": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,patch_size=8",
    "swin": '{"embed_dim":8,"depths":[1,1],"num_heads":[2,2],"window_size":2,"patch_size":4}',
    "convnext": '{"hidden_sizes":[8,16],"depths":[1,1],"patch_size":4,"num_stages":2}',
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures(kind, data, tmp_path):
    """Red if a model of another kind cannot be trained from scratch and opened."""
    given = ["--config_name", kind, "--config_overrides", KINDS[kind], *SHORT.split()]
    options = ["--max_steps", 2, "--optim", "adamw_torch", "--learning_rate", 0.001]
    classify(PLAIN, *data, *given, *options, "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert results["reloaded_logits_equal"] is True
    assert results["model"]["type"] == kind
    assert hf_nm.verify(tmp_path).layers


def test_cifar_resnet_opens_where_the_recipe_is_not(data, tmp_path):
    """Red if the 3x3 stem is lost on the way, opens as another model without a word, or needs hf_nm."""
    small = ["--config_overrides", RESNET, *SHORT.split(), "--max_steps", 2]
    classify(PLAIN, *data, *small, "--output_dir", tmp_path / "out")
    assert results_of(tmp_path / "out")["reloaded_logits_equal"] is True
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["resnet.embedder.embedder.convolution.weight"].shape == (8, 3, 3, 3)
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()
    run_python(
        "-c",
        "import sys, torch\n"
        "from transformers import AutoModelForImageClassification as Auto\n"
        f"model = Auto.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True).eval()\n"
        "assert model(torch.zeros(1, 3, 16, 16), output_hidden_states=True)"
        ".hidden_states[0].shape[-1] == 16\n"
        "assert 'hf_nm' not in sys.modules\n"
        "try:\n"
        f"    Auto.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=False)\n"
        "except ValueError as error:\n"
        "    assert 'trust_remote_code' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('opened as another model')\n",
    )
    again = ["--model_name_or_path", tmp_path / "out", *SHORT.split(), "--max_steps", 2]
    classify(PLAIN, *data, *again, "--output_dir", tmp_path / "longer")
    assert results_of(tmp_path / "longer")["steps_before"] == 2


def test_convolutions_are_grouped_as_the_papers():
    """Red if a group runs along anything but the input channels of one position of one filter.

    The authors' code moves the input channels to the end, (0, 2, 3, 1), and cuts groups of M.
    """
    conv = torch.nn.Conv2d(4, 1, kernel_size=(1, 2), bias=False)
    with torch.no_grad():  # [filter, channel, 1, position]: 4 channels at each of two positions
        conv.weight.copy_(torch.tensor([[[[9.0, -1]], [[1, -8]], [[2, 7]], [[-8, 2]]]]))
    model = torch.nn.Sequential(conv)
    hf_nm.sparsify(model, 2, 4, targets="*")
    expected = torch.tensor([[[[9.0, 0]], [[0, -8]], [[0, 7]], [[-8, 0]]]])
    assert torch.equal(conv.weight.detach(), expected)


def load(overrides: str, *options: str) -> torch.nn.Module:
    class Data:
        labels, task = ("a", "b"), "it"

    given = [str(PLAIN), "--config_overrides", overrides, "--output_dir", "out", *options]
    recipe, _ = parse(given)
    return load_model(recipe, Data())


@pytest.mark.skipif(
    not LIKE_5_24, reason="transformers 5.0 looks the model's module up in sys.modules"
)
@pytest.mark.parametrize("layout", ["true", "false"])
def test_every_convolution_of_resnet_20(layout):
    """Red if one of its masks is not the paper's, in either memory layout; or the first convolution or
    the classifier is sparse."""
    sizes = '{"embedding_size":16,"hidden_sizes":[16,32,64],"depths":[3,3,3],"layer_type":"basic"}'
    model = load(sizes, "--channels_last", layout)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    hf_nm.sparsify(model, 1, 8)
    names = {row.name for row in hf_nm.report(model).layers}
    assert names == {
        name for name, value in before.items() if value.ndim == 4 and "embedder" not in name
    }
    assert len(names) == 20  # 18 of 3x3 and two 1x1 shortcuts
    for name, value in model.named_parameters():
        if name not in names:
            assert torch.equal(value, before[name])
            continue
        moved = before[name].permute(0, 2, 3, 1)
        groups = moved.abs().reshape(-1, 8)
        mask = torch.zeros_like(groups).scatter_(1, groups.argmax(1, keepdim=True), 1)
        expected = (moved.reshape(-1, 8) * mask).reshape(moved.shape).permute(0, 3, 1, 2)
        assert torch.equal(value.detach(), expected), name


def test_channels_that_m_does_not_divide_are_reported(data, tmp_path, capsys):
    """Red if a convolution stays dense without a word."""
    sizes = '{"embedding_size":6,"hidden_sizes":[8,16],"depths":[1,1],"layer_type":"basic"}'
    given = ["--config_overrides", sizes, *SHORT.split(), "--max_steps", 1]
    classify(PLAIN, *data, *given, "--output_dir", tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "stays dense" in line]
    assert len(said) == 2  # the first convolution of the first block, and its shortcut
    assert all("input size 6 is not a multiple of m=4" in line for line in said)


def test_two_processes_equal_one(data, tmp_path):
    """Red if a loss is scaled by the processes or the accumulation, or crops hang on the process.

    (A ViT: batch norms count each process's images.)
    """
    small = KINDS["vit"] + ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"
    given = ["--config_name", "vit", "--config_overrides", small, *SHORT.split(), "--optim"]
    options = [PLAIN, *data, *given, "adamw_torch", "--learning_rate", 0.001]
    options += [
        "--per_device_train_batch_size",
        4,
    ]  # 40 images: each epoch is made of whole updates
    classify(*options, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "one")
    workers = ["--dataloader_num_workers", 1]
    launch_two(VISION / "classify.py", *options, *workers, "--output_dir", tmp_path / "two")
    assert results_of(tmp_path / "two")["hardware"]["processes"] == 2
    for ours, theirs in zip(history(tmp_path / "two"), history(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_loss_is_per_image_of_the_update():
    """Red if label smoothing, or the update's size, is left out."""
    logits, labels = torch.tensor([[2.0, 0, 0], [0, 1, 0]]), torch.tensor([0, 2])
    for smoothing in (0.0, 0.3):
        plain = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels)
        found = classification_loss({"logits": logits}, labels, smoothing=smoothing)
        torch.testing.assert_close(found, plain)
        part = classification_loss({"logits": logits}, labels, 8, smoothing=smoothing)
        torch.testing.assert_close(part, plain / 4)


def test_the_short_command(monkeypatch, tmp_path):
    """Red if the README's command without options does not run to its end (fewer images, 3 updates)."""
    with importing("vision"):
        shapes = sys.modules["shapes"]
    monkeypatch.setattr(shapes, "ROWS", {"train": 48, "validation": 16, "test": 16})
    classify("--max_steps", 3, "--warmup_steps", 1, "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert (results["data"], results["rows"]["test"]) == ("embedded (test)", 16)
    assert results["reloaded_logits_equal"] is True
