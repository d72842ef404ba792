"""Optical flow run whole: what is learned, what a reader opens, resumed runs, refusals; RAFT."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import recipe_loading
import torch
from launching import launch_two
from PIL import Image
from recipe_loading import VISION, checkpoint_after, history, importing, results_of
from safetensors.torch import load_file
from transformers import PerceiverForOpticalFlow

import hf_nm
from hf_nm.experiments.comparison import compare
from hf_nm.hub.scores import read_scores

with importing("vision"):
    import textures
    from flow_file import write_flow
    from flow_scoring import predict

flow = partial(recipe_loading.run, "vision", script="flow")
QUICK = VISION / "configs" / "flow_quick.yaml"
TINY = {
    "train_size": [8, 12],
    "num_latents": 8,
    "d_latents": 16,
    "qk_channels": 16,
    "v_channels": 16,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 2,
    "attention_probs_dropout_prob": 0.0,
}
SHORT = "--max_steps 6 --logging_steps 1 --warmup_steps 2 --per_device_train_batch_size 4"
SHORT += " --disable_tqdm true"
TOY = [QUICK, "--config_overrides", json.dumps(TINY), *SHORT.split()]


def local(folder: Path) -> list[str]:
    """12 pairs to train on and 3 to score, in FlyingChairs' form: the options that name them."""
    options = []
    for split, count in {"train": 12, "test": 3}.items():
        inner = folder / split
        inner.mkdir(parents=True)
        for i in range(count):
            *pair, truth = textures.draw(split, i, (11, 15))
            for name, frame in zip(("img1", "img2"), pair, strict=True):
                Image.fromarray(frame).save(inner / f"{i:05}_{name}.ppm")
            write_flow(inner / f"{i:05}_flow.flo", truth)
        options += [f"--{split}_data", str(inner)]
    return [*options, "--validation_rows", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return local(tmp_path_factory.mktemp("chairs"))


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense")
    flow(*TOY, *data, "--method", "dense", "--output_dir", out)
    return out


@pytest.fixture(scope="module")
def sparse(data, dense, tmp_path_factory):
    """SR-STE beside the dense run, with a checkpoint in the middle of an epoch (3 updates each)."""
    out = tmp_path_factory.mktemp("sparse")
    options = [*TOY, *data, "--save_strategy", "steps", "--save_steps", 4, "--dense_run", dense]
    flow(*options, "--output_dir", out)
    return out, options


def test_checkpoint_and_results(sparse, dense):
    """Red if the folder is no ordinary sparse checkpoint with what its score was made of, or a larger
    error is said to be better."""
    out, _ = sparse
    results = results_of(out)
    assert results["reloaded_logits_equal"] is True
    assert (results["score"]["metric"], results["score"]["higher_is_better"]) == (
        "end-point error",
        False,
    )
    assert {"epe", "epe_zero", "epe_mean", "outliers"} <= results["score"]["metrics"].keys()
    assert results["rows"] == {"train": 10, "validation": 2, "test": 3}
    layers = {row.name for row in hf_nm.verify(out).layers}
    assert any("self_attends" in name for name in layers)
    assert not any("final_layer" in name for name in layers)
    assert results["model"]["nm_weights_kept"] * 2 == results["model"]["nm_weights"]
    assert results["sad"]["total"] >= 0
    for name in ("flow.png", "sad.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    (found,) = read_scores(out, dense)
    assert not found.higher_is_better
    assert found.recovery == pytest.approx(found.dense / found.value)
    row = compare([dense, out]).splitlines()[3]
    recovery = 100 * results_of(dense)["score"]["test"] / results["score"]["test"]
    assert f" {recovery:.1f} " in row
    assert "end-point error" in (out / "README.md").read_text()


def test_plain_transformers_opens_it(sparse, data):
    """Red if the score is of another model than anybody would open, of other pairs, or the config does
    not say what a unit of the output is."""
    out, _ = sparse
    model, loading = PerceiverForOpticalFlow.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.config.flow_scale == 100.0
    total = count = 0
    for i in range(3):
        *pair, truth = textures.draw("test", i, (11, 15))
        found = predict(model.eval(), *pair, size=(8, 12), scale=model.config.flow_scale)
        total += np.linalg.norm(found - truth, axis=-1).sum(dtype=np.float64)
        count += truth[..., 0].size
    assert results_of(out)["score"]["test"] == pytest.approx(total / count)


def test_resumed_run_is_the_same(sparse, tmp_path):
    """Red if a resumed run, here in epoch 1, sees other crops, mirror images or batches."""
    out, options = sparse
    checkpoint = checkpoint_after(1000, out / "checkpoint-4", tmp_path / "before")
    resumed = tmp_path / "resumed"
    flow(*options, "--output_dir", resumed, "--resume_from_checkpoint", checkpoint)
    assert results_of(resumed)["time"]["train_s"] > 1000
    assert history(resumed) == history(out)
    weights, others = (load_file(folder / "model.safetensors") for folder in (out, resumed))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_a_checkpoint_is_trained_on(data, dense, tmp_path):
    """Red if a run that starts from a checkpoint forgets its scale, its size, or its updates."""
    given = [QUICK, *data, *SHORT.split(), "--model_name_or_path", dense, "--flow_scale", "100"]
    flow(*given, "--method", "fixed", "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert (results["steps_before"], results["arm"]) == (6, "ASP 2:4")
    assert results["model"]["train_size"] == [8, 12]


@pytest.mark.slow
def test_two_processes_equal_one(data, tmp_path):
    """Red if a loss is scaled by the processes or the accumulation, or crops hang on the process."""
    options = [*TOY, *data, "--per_device_train_batch_size", 1]
    flow(*options, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "one")
    launch_two(VISION / "flow.py", *options, "--output_dir", tmp_path / "two")
    assert results_of(tmp_path / "two")["hardware"]["processes"] == 2
    for ours, theirs in zip(history(tmp_path / "two"), history(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_it_learns(monkeypatch, tmp_path):
    """Red if the default setting does not find motion: 250 updates end far below predicting zero.

    (With the flow's components swapped, or flips that keep its sign, it stays at the zero's error.)
    """
    monkeypatch.setattr(textures, "ROWS", {"train": 600, "validation": 16, "test": 50})
    flow("--max_steps", 250, "--disable_tqdm", "true", "--output_dir", tmp_path)
    found = results_of(tmp_path)["score"]["metrics"]
    assert found["epe"] < 0.75 * found["epe_zero"]
    assert found["epe"] < 0.75 * found["epe_mean"]


LARGE = json.dumps(TINY | {"train_size": [200, 12]}, separators=(",", ":"))
REFUSED = {
    "--config_name bert": "optical flow is predicted by a perceiver, not a bert",
    "--config_overrides train_size=[8]": "train_size must be a height and a width",
    '--config_overrides {"train_size":[8,12],"num_cross_attention_heads":5}': "--config_overrides {",
    '--config_overrides {"train_sise":[8,12]}': "did you mean 'train_size'",
    f"--config_overrides {LARGE}": "15 x 11 pixels, but the model sees 12 x 200",
    "--teacher out/dense": "--teacher does nothing for optical flow",
    "--flow_scale 0": "--flow_scale is 0.0; it must be above 0",
    "--test_data nowhere": "nowhere: no such folder",
    "--validation_rows 12": "must leave something of the 12 training pairs",
    "--model_name_or_path nowhere": "no such folder, and not on the Hub",
}


@pytest.mark.parametrize("options", REFUSED)
def test_refusals(options, data, tmp_path, capsys):
    """Red if what cannot work trains, or ends in a traceback."""
    with pytest.raises(SystemExit) as caught:
        flow(*TOY, *data, *options.split(" "), "--output_dir", tmp_path)
    said = str(caught.value) + capsys.readouterr().err
    assert REFUSED[options] in said
    assert "Traceback" not in said


def test_deepmind_sizes():
    """Red if the options for GPUs make no model, or leave most of it dense: 24 blocks of 6 square
    weights, and what the two cross-attentions make of the latents."""
    with importing("vision"):
        from flow_model import load_model
        from flow_options import parse
    recipe, _ = parse([str(VISION / "configs" / "flow_chairs.yaml"), "--bf16", "false"])
    with torch.device("meta"):
        model = load_model(recipe)
    assert model.config.flow_scale == 20.0
    recipe.sparsify(model)
    layers = hf_nm.report(model).layers
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert 24 * 6 <= len(layers) <= 24 * 6 + 8
    assert sum(np.prod(row.shape) for row in layers) > 0.9 * weights


def trained_by_targets(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Make a model's convolutions 2:4 where m divides their channels, take a step, and verify them
    all; returns how many."""

    def targets(name: str, module: torch.nn.Module) -> bool:
        return isinstance(module, torch.nn.Conv2d) and module.in_channels % 4 == 0

    hf_nm.sparsify(model, 2, 4, targets=targets)
    names = [row.name for row in hf_nm.report(model).layers]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    hf_nm.attach(optimizer, model)
    loss().backward()
    optimizer.step()
    assert any(not torch.equal(model.get_parameter(name), old) for name, old in before.items())
    checked = hf_nm.verify(model, pattern="2:4", targets=names)
    assert {row.name for row in checked.layers} == set(names)
    return len(names)


def test_raft_by_targets():
    """Red if torchvision's RAFT cannot be made sparse along input channels, trained and verified."""
    try:
        from torchvision.models.optical_flow import raft_small
    except Exception as error:  # beside another torch its import fails in more than one way
        pytest.skip(f"torchvision does not import here: {error}")
    torch.manual_seed(0)
    model = raft_small(weights=None, progress=False)
    first, second = torch.rand(2, 1, 3, 128, 128) * 2 - 1

    def loss() -> torch.Tensor:
        flows = model(first, second, num_flow_updates=2)
        return torch.linalg.vector_norm(flows[-1] - 1, dim=1).mean()

    assert trained_by_targets(model, loss) > 20


def test_convolutions_by_targets():
    """Red if what the test of RAFT does fails for any convolutions, also where RAFT is not."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(2 * 3, 8, 7),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.ReLU(),
    ]
    model = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 2, (1, 5)))
    frames = torch.rand(1, 6, 20, 20)
    loss = lambda: torch.linalg.vector_norm(model(frames) - 1, dim=1).mean()  # noqa: E731
    assert trained_by_targets(model, loss) == 2  # m does not divide 6
