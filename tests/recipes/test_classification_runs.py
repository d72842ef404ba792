"""The classification recipe run whole: arms one after another, two processes, other heads."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from classification import TINY, run, toy_files
from launching import launch_two
from models import KEEPS_NAMES
from recipe_loading import CLASSIFICATION, checkpoint_after, history, importing, results_of
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from transformers import AutoModelForSequenceClassification, pipeline

import hf_nm
from hf_nm.experiments.comparison import compare_tasks
from hf_nm.experiments.results import read_predictions

with importing("classification"):
    from objective import classification_loss

PLAIN = CLASSIFICATION / "configs" / "finetune.yaml"
SHORT = "--max_length 32 --max_steps 9 --logging_steps 1 --eval_steps 3 --warmup_steps 2"
SHORT += " --per_device_train_batch_size 4 --learning_rate 0.01"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_files(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def distilled(data, tiny_classifier, tmp_path_factory):
    """An SR-STE run with every option, from the dense run and with it as the teacher."""
    folder = tmp_path_factory.mktemp("distilled")
    options = "--method sr-ste --decay 0.01 --decay_warmup_steps 3 --freeze_masks_at 5"
    options += " --compact_state true"
    options += f" --teacher {tiny_classifier} --distillation_weight 0.7 --temperature 3"
    options += " --hidden_weight 0.1 --save_strategy steps --save_steps 7"
    options += f" --model_name_or_path {tiny_classifier} --dense_run {tiny_classifier}"
    options = [PLAIN, *data, *SHORT.split(), *options.split()]
    run(*options, "--gradient_accumulation_steps", 2, "--output_dir", folder)
    return folder, options


def test_saved_checkpoint_and_results(distilled, tiny_classifier):
    """Red if the folder is not an ordinary sparse checkpoint with what its score was made of."""
    folder, _ = distilled
    results = results_of(folder)
    assert results["reloaded_logits_equal"] is True
    assert (results["steps"], results["steps_before"], results["teacher_steps"]) == (9, 6, 6)
    assert results["batch"] == 8
    assert results["arm"] == (
        "SR-STE 2:4, decay 0.01, rising over 3 steps, masks frozen at 5, distilled 0.7, T 3, hidden "
        "states 0.1"
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.label2id == {"negative": 0, "positive": 1}
    rows = hf_nm.verify(folder).layers
    assert len(rows) == 6  # four of attention, two of the feed-forward
    assert results["model"]["nm_weights_kept"] * 2 == results["model"]["nm_weights"]
    assert {row.name for row in rows} <= set(dict(model.named_parameters()))
    references, predictions = read_predictions(folder)
    assert results["score"]["test"] == accuracy_score(references, predictions)
    assert results["score"]["signature"] == "local|test.tsv|rows:12|max_length:32"
    last = [row for row in history(folder) if "loss" in row][-1]
    assert {"distillation/divergence", "distillation/hidden", "nm/sad"} <= set(last)
    assert last["nm/sad"] == 0  # frozen
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert f"{results['score']['test']:.4g}" in card
    dense = results_of(tiny_classifier)
    assert (dense["method"], dense["pattern"], dense["sad"]) == ("dense", None, None)
    assert not (tiny_classifier / "README.md").exists()


def test_the_pipeline_gives_the_scored_labels(distilled, data):
    """Red if the score is of another model than anybody would open, or of other sentences."""
    folder, _ = distilled
    classify = pipeline("text-classification", model=str(folder))
    lines = (Path(data[5])).read_text().splitlines()[1:]
    _, predictions = read_predictions(folder)
    for line, prediction in zip(lines, predictions.tolist(), strict=True):
        found = classify(line.split("\t")[0])[0]
        assert found["label"] == ("negative", "positive")[prediction]


def test_two_processes_equal_one(distilled, tmp_path):
    """Red if a loss or gradient, the teacher's too, is scaled by the processes or the accumulation."""
    one, options = distilled
    launch_two(CLASSIFICATION / "train.py", *options, "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert results["hardware"]["processes"] == 2
    for ours, theirs in zip(history(tmp_path), history(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert results["score"] == results_of(one)["score"]
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, tmp_path))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(
    not KEEPS_NAMES, reason="resuming a BERT that was loaded needs transformers >= 5.6"
)
def test_resumed_run_is_the_same(distilled, tmp_path):
    """Red if a resumed run sees other batches, here in epoch 2, trains with another vocabulary, or
    counts the time of its last stretch only."""
    one, options = distilled
    checkpoint = checkpoint_after(1000, one / "checkpoint-7", tmp_path / "before")
    options = [*options, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path]
    run(*options, "--resume_from_checkpoint", checkpoint)
    time = results_of(tmp_path)["time"]
    assert (time["train_s"] > 1000, time["steps"]) == (True, 9)
    assert history(tmp_path) == history(one)


@pytest.mark.parametrize("method", ["fixed", "ste"])
def test_other_arms(method, data, tiny_classifier, tmp_path):
    """Red if an arm trains by another method, or ASP's masks move."""
    start = f"--model_name_or_path {tiny_classifier} --n 1 --method {method}"
    run(PLAIN, *data, *SHORT.split(), *start.split(), "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert results["arm"] == {"fixed": "ASP 1:4", "ste": "STE 1:4"}[method]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["nm_sparsity"]["method"] == method
    assert (results["sad"]["total"] > 0) == (method == "ste")
    table = compare_tasks([tiny_classifier, tmp_path], resamples=100)
    assert results["arm"] in table


def test_compare(distilled, tiny_classifier, tmp_path, monkeypatch, capsys):
    """Red if the script's tables or curves do not come out, or a wrong folder ends in a traceback."""
    one, _ = distilled
    command = ["compare.py", str(tiny_classifier), str(one / "results.json"), "--resamples", "50"]
    command += ["--write", str(tmp_path / "table.md"), "--plot", str(tmp_path / "flips.png")]
    script = str(CLASSIFICATION / "compare.py")
    monkeypatch.setattr(sys, "argv", command)
    with importing("classification"):
        runpy.run_path(script, run_name="__main__")
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "flips.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "nowhere")])
    failure = pytest.raises(SystemExit, match=r"nowhere/results.json: no results here")
    with importing("classification"), failure:
        runpy.run_path(script, run_name="__main__")


def test_pairs_and_a_regression(tmp_path):
    """Red if the second sentence is not read, or a number is trained or scored as a class."""
    rows = [(f"word{i % 7} a", f"word{i % 5} b", f"{i % 7 - i % 5}.5") for i in range(60)]
    for split, part in {"train": rows[:50], "test": rows[50:]}.items():
        lines = [",".join(row) for row in [("s1", "s2", "y"), *part]]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    given = f"--train_file {tmp_path}/train.csv --test_file {tmp_path}/test.csv"
    given += " --text_columns s1 s2 --label_column y --regression True --validation_rows 10"
    given += f" --task closeness --output_dir {tmp_path}/out"
    run(*TINY.split(), *given.split())
    results = results_of(tmp_path / "out")
    assert results["metrics"] == ["pearsonr", "spearmanr"]
    references, predictions = read_predictions(tmp_path / "out")
    assert references.tolist() == [float(row[2]) for row in rows[50:]]
    assert len(set(predictions.tolist())) > 1
    assert all(abs(value) < 20 for value in predictions.tolist())


HEADS = {
    "bart": "d_model=16,encoder_layers=1,decoder_layers=1,encoder_attention_heads=2,"
    "decoder_attention_heads=2,encoder_ffn_dim=32,decoder_ffn_dim=32",
    "roberta": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32",
    "deberta-v2": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32",
    "modernbert": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32",
    "llama": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2,"
    "intermediate_size=32",
}


@pytest.mark.parametrize("kind", HEADS)
def test_other_architectures(kind, data, tmp_path):
    """Red if a model with another head, or without token types, cannot be trained and opened."""
    options = TINY.replace("bert", kind, 1).split()
    options[options.index("--config_overrides") + 1] = HEADS[kind]
    run(*data, *options, "--max_steps", 2, "--output_dir", tmp_path)
    results = results_of(tmp_path)
    assert results["reloaded_logits_equal"] is True
    assert results["model"]["type"] == kind
    assert hf_nm.verify(tmp_path).layers


def test_a_sparse_checkpoint_trains_on(distilled, data, tmp_path, capsys):
    """Red if a sparse run cannot be continued, or a dense one fills its zeros unsaid."""
    one, _ = distilled
    given = [PLAIN, *data, *SHORT.split(), "--model_name_or_path", one, "--output_dir", tmp_path]
    run(*given, "--decay", "0.1", "--label_smoothing_factor", "0.5")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["nm_sparsity"]["decay"] == 0.1
    assert history(tmp_path)[-1]["eval_loss"] > 0.5
    for wrong in (["--method", "dense"], ["--n", "1"]):
        with pytest.raises(SystemExit, match="is sparse already"):
            run(*given, *wrong)


def test_pushed_with_its_score(data, tmp_path, hub):
    """Red if the card on the Hub is written before there is a score."""
    options = f"--push_to_hub True --hub_model_id alice/reviews --output_dir {tmp_path}/out"
    run(*data, *TINY.split(), *options.split())
    assert f"{results_of(tmp_path / 'out')['score']['test']:.4g}" in hub.card("alice/reviews")


def test_loss_is_the_mean_of_the_update():
    """Red if the loss of an update is the sum of its micro-batches' means."""
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 1, 0, 2])
    whole = torch.nn.functional.cross_entropy(logits, labels)
    parts = [
        classification_loss({"logits": logits[part]}, labels[part], 6)
        for part in (slice(0, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)
    smooth = classification_loss({"logits": logits}, labels, smoothing=0.3)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(smooth, expected)
    numbers = torch.tensor([1.0, 3.0])
    found = classification_loss({"logits": torch.tensor([[1.5], [1.0]])}, numbers)
    assert found.item() == (0.25 + 4) / 2
