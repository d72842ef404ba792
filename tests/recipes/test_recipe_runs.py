"""The translation recipe run whole: in one and two processes, resumed, offline."""

import json
import math
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from launching import launch_two, run_python
from recipe_loading import TRANSLATION, checkpoint_after, importing, run
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

import hf_nm

with importing("translation"):
    from corpus import embedded_corpus


@pytest.fixture(scope="module")
def toy_files(tmp_path_factory):
    """48 training, 6 validation, 5 test pairs as text files."""
    folder = tmp_path_factory.mktemp("toy")
    options = []
    for split, count in {"train": 48, "validation": 6, "test": 5}.items():
        pairs = embedded_corpus().splits[split][:count]
        for side, language in enumerate(("en", "de")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(text, "utf-8")
        options += [f"--{split}_files", f"{folder}/{split}.en", f"{folder}/{split}.de"]
    return options


TINY = "--d_model 16 --ffn_dim 32 --layers 1 --heads 2 --vocab_size 400 --dropout 0 --num_beams 2"
TINY += " --max_tokens 256 --max_steps 6 --logging_steps 1 --eval_steps 3 --warmup_steps 3"
TINY += " --decay 0.01 --save_strategy steps --save_steps 5"
EMBEDDED = TRANSLATION / "configs" / "embedded.yaml"


run_here = partial(run, "translation")


@pytest.fixture(scope="module")
def two_runs(toy_files, tmp_path_factory):
    """The same sparse run in one process with accumulation 2, and launched in two processes."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    options = [EMBEDDED, *toy_files, *TINY.split()]
    run_here(*options, "--output_dir", one, "--gradient_accumulation_steps", "2")
    found = launch_two(TRANSLATION / "train.py", *options, "--output_dir", two)
    assert "Warning" not in found.stderr, found.stderr[-4000:]
    return one, two


def _history(folder: Path) -> list[dict]:
    state = json.loads((folder / "trainer_state.json").read_text())
    dropped = ("runtime", "per_second", "flos")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in dropped)}
        for row in state["log_history"]
    ]


def test_two_processes_equal_one(two_runs):
    """Red if the loss or gradient is scaled by the processes, or the batches are dealt out wrongly.

    Bit for bit: the sum of two micro-batches' gradients is the same number in both.
    """
    one, two = two_runs
    assert json.loads((two / "results.json").read_text())["hardware"]["processes"] == 2
    history = _history(one)
    assert len([row for row in history if "loss" in row]) == 6
    assert history == _history(two)
    # an untrained model guesses among all tokens; twice that would be a sum over micro-batches
    assert history[0]["loss"] == pytest.approx(math.log(400), abs=0.5)
    weights = load_file(one / "model.safetensors")
    others = load_file(two / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
    results = [json.loads((folder / "results.json").read_text()) for folder in two_runs]
    assert results[0]["score"] == results[1]["score"]
    assert results[0]["samples"] == results[1]["samples"]


def test_saved_checkpoint_and_results(two_runs):
    """Red if the folder is not an ordinary, sparse, complete checkpoint."""
    one, _ = two_runs
    results = json.loads((one / "results.json").read_text())
    assert results["reloaded_logits_equal"] is True
    assert results["score"]["signature"].startswith("nrefs:1|case:mixed")
    assert (results["steps"], results["sad"]["intervals"]) == (6, 6)
    model = AutoModelForSeq2SeqLM.from_pretrained(one)
    rows = {row["name"]: row for row in results["sparsity"]}
    # 1 encoder layer: 4 + 2 matrices; 1 decoder layer: 8 + 2
    assert len(rows) == 16
    for name, row in rows.items():
        weight = model.get_parameter(name)
        assert (row["shape"], row["pattern"]) == (list(weight.shape), "2:4")
        assert row["kept"] == weight.numel() // 2
        assert ((weight.view(-1, 4) != 0).sum(1) <= 2).all()
    assert hf_nm.verify(one)
    assert {"sad.png", "results.md", "nm_sad.jsonl", "tokenizer.json"} <= set(os.listdir(one))
    assert results["score"]["signature"].replace("|", "\\|") in (one / "results.md").read_text()


def test_resume_skips_what_was_seen(toy_files, two_runs, tmp_path):
    """Red if a resumed run trains on other batches than the uninterrupted one, here in epoch 2, or
    counts the time of its last stretch only."""
    one, _ = two_runs
    checkpoint = checkpoint_after(1000, one / "checkpoint-5", tmp_path / "before")
    run_here(
        *[EMBEDDED, *toy_files, *TINY.split(), "--output_dir", tmp_path],
        *["--gradient_accumulation_steps", "2"],
        *["--resume_from_checkpoint", checkpoint],
    )
    time = json.loads((tmp_path / "results.json").read_text())["time"]
    assert (time["train_s"] > 1000, time["steps"]) == (True, 6)
    last = [[row for row in _history(f) if "loss" in row] for f in (tmp_path, one)]
    assert last[0][-1]["step"] == 6
    assert last[0][-1]["epoch"] > 1
    assert last[0] == last[1]
    weights = load_file(tmp_path / "model.safetensors")
    others = load_file(one / "model.safetensors")
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


def test_resumed_by_another_number_of_processes(toy_files, two_runs, tmp_path):
    """Red if what two processes began, in the middle of an epoch, another number goes on with
    otherwise."""
    one, two = two_runs
    checkpoint = checkpoint_after(1000, two / "checkpoint-5", tmp_path / "before")
    shutil.copy(two / "options.json", tmp_path / "before")  # which are compared
    # Of dropout, which is off here; each process has its own.
    with pytest.warns(UserWarning, match="saved by another number of processes"):
        run_here(
            *[EMBEDDED, *toy_files, *TINY.split(), "--output_dir", tmp_path],
            *["--gradient_accumulation_steps", "2", "--resume_from_checkpoint", checkpoint],
        )
    last = [[row for row in _history(f) if "loss" in row][-1] for f in (tmp_path, one)]
    assert last[0] == last[1]
    weights = load_file(tmp_path / "model.safetensors")
    others = load_file(one / "model.safetensors")
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


def test_another_direction_by_options_alone(toy_files, tmp_path):
    """Red if German to English needs more than the names of the columns, or is scored as German."""
    turned = [option.replace(".en", ".x").replace(".de", ".en") for option in toy_files]
    turned = [option.replace(".x", ".de") for option in turned]
    options = [*TINY.split(), "--source_column", "de", "--target_column", "en", "--max_steps", "2"]
    run_here(EMBEDDED, *turned, *options, "--output_dir", tmp_path, "--num_beams", "1")
    results = json.loads((tmp_path / "results.json").read_text())
    first = embedded_corpus().splits["test"][0]
    assert (results["samples"][0]["source"], results["samples"][0]["reference"]) == first[::-1]
    signatures = {row["metric"]: row["signature"] for row in results["score"]["others"]}
    assert "tok:moses-en" in signatures["tokenised BLEU, compounds split"]
    assert results["dictionary_baseline"] is None


def test_logs_and_scores(two_runs):
    """Red if throughput or padding is not logged, or a score stands in one of the two files only."""
    one, _ = two_runs
    rows = json.loads((one / "trainer_state.json").read_text())["log_history"]
    training = [row for row in rows if "loss" in row]
    assert all(row["tokens_per_second"] > 0 for row in training)
    assert all(0 < row["padding"] < 0.5 for row in training)
    others = json.loads((one / "results.json").read_text())["score"]["others"]
    card = (one / "README.md").read_text()
    assert [row["metric"] for row in others] == ["chrF", "tokenised BLEU, compounds split"]
    for row in others:
        assert row["metric"] in card
        assert row["signature"] in card


@pytest.mark.slow
def test_wmt14_as_written(toy_files, tmp_path):
    """Red if the configuration needs the network, or does not run as it is on one and two processes:
    whole Transformer-base, its updates, averaged checkpoints, beam search."""
    config = TRANSLATION / "configs" / "wmt14_base.yaml"
    given = [config, *toy_files, "--max_steps", "2", "--logging_steps", "1", "--use_cpu"]
    run_python(TRANSLATION / "train.py", *given, "--output_dir", tmp_path / "one")
    launch_two(TRANSLATION / "train.py", *given, "--output_dir", tmp_path / "two")
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    for results in found:
        assert (results["steps"], results["method"]) == (2, "sr-ste")
        assert results["averaged_checkpoints"] == [2]
        assert [2048, 512] in [row["shape"] for row in results["sparsity"]]
        assert len(results["sparsity"]) == 6 * 6 + 6 * 10
        assert (results["score"]["num_beams"], results["score"]["length_penalty"]) == (4, 0.6)
    # the same updates: 48 short sentences are one of 8 micro-batches, over both processes
    assert found[0]["epochs"] == found[1]["epochs"] == 2
    assert [results["hardware"]["processes"] for results in found] == [1, 2]


def test_learns_from_a_teacher(toy_files, two_runs, tmp_path):
    """Red if the options of distillation do not reach the Trainer, or padding counts as a token."""
    one, _ = two_runs
    given = f"--teacher {one} --distillation_weight 1 --temperature 1 --hidden_weight 0.5"
    given += " --max_steps 1 --decay_warmup_steps 2 --save_strategy no"
    run_here(EMBEDDED, *toy_files, *TINY.split(), *given.split(), "--output_dir", tmp_path)
    first = next(row for row in _history(tmp_path) if "loss" in row)
    terms = first["distillation/divergence"], first["distillation/hidden"]
    assert min(terms) > 0
    assert first["loss"] == pytest.approx(terms[0] + 0.5 * terms[1], rel=1e-4)
