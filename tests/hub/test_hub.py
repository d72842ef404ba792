"""Pushing sparse models to the Hub and opening them again, over HTTP, with a stand-in for the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import models
import pytest
import torch
from hub_answers import OTHER, READ, WRITE
from hub_client import fresh_environment, opened
from hub_server import HubServer
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from launching import run_python
from safetensors.torch import load_file, save_file
from trainers import logits, one_layer_bert
from transformers import AutoModelForSequenceClassification

import hf_nm
from hf_nm.hub.scores import read_scores

REPO = "alice/sparse-bert"
WEIGHT = "bert.encoder.layer.0.intermediate.dense.weight"
SCORE = hf_nm.Score("BLEU", 27.5, "wmt14", dense=27.3, signature="nrefs:1|case:mixed")

# Run by another Python that has nothing but environment variables, and no hf_nm.
OPEN_PLAIN = """
import sys, torch
from transformers import AutoModelForSequenceClassification
repo, inputs, logits = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(repo).eval()
with torch.no_grad():
    torch.save(model(**torch.load(inputs)).logits, logits)
assert "hf_nm" not in sys.modules
"""


def trained_bert() -> Any:
    """A sparse model after two steps: its pruned part is not zero."""
    model = hf_nm.sparsify(one_layer_bert(), patterns={WEIGHT: "1:4"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hf_nm.attach(optimizer, model)
    for step in range(2):
        model(**models.batch(model, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's output: the model, and what else such a folder holds."""
    path = tmp_path / "run"
    trained_bert().save_pretrained(path)
    rows = [
        {"step": 5, "loss": 2.0, "nm/sad": 40, "nm/flip_rate": 0.1, "nm/sad_init": 40},
        {"step": 10, "loss": 1.0, "nm/sad": 20, "nm/flip_rate": 0.05, "nm/sad_init": 50},
    ]
    (path / "nm_sad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": rows}))
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "_note", "checkpoint-5/x"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"not for others")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same(model: Any, **options: Any) -> None:
    """What was pushed is this model, bit for bit, and its pattern holds."""
    loaded, snapshot = opened(**options)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.nm_sparsity == model.config.nm_sparsity
    assert sorted(hf_nm.verify(snapshot).layers) == sorted(hf_nm.verify(model).layers)


# -- what arrives -----------------------------------------------------------------------------------


def test_plain_push(hub: HubServer) -> None:
    """Red if transformers' own push does not send exact zeros with the manifest."""
    model = trained_bert()
    model.push_to_hub(REPO)
    assert_same(model)


def test_push_with_card(hub: HubServer) -> None:
    """Red if the weights change on the way, or what the Hub reads from the card is not there."""
    model = trained_bert()
    commit = hf_nm.push_to_hub(
        model, REPO, scores=SCORE, license="mit", language="de", datasets="wmt14"
    )
    assert commit.oid == hub.repos[REPO].branches["main"][-1].oid
    assert_same(model)
    card = huggingface_hub.ModelCard.load(REPO)
    data = card.data.to_dict()
    assert {"sparse", "sparsity", "hf-nm", "2:4", "1:4"} == set(data["tags"])
    assert (data["license"], data["language"], data["datasets"]) == ("mit", ["de"], ["wmt14"])
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("bleu", 27.5, "wmt14")
    assert result.metric_args == {"signature": "nrefs:1|case:mixed"}
    assert "| 1:4 | 1 | 2,048 | 512 | 25.00% |" in card.text
    assert "| 2:4 | 5 | 6,144 | 3,072 | 50.00% |" in card.text
    assert "| BLEU | wmt14, test | 27.5 | 27.3 | +0.2 | 100.7% |" in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.equal(logits(names["model"]), logits(model))


def test_plain_push_keeps_our_card(hub: HubServer) -> None:
    hf_nm.push_to_hub(trained_bert(), REPO)
    before = hub.card(REPO)
    model = trained_bert()
    model.push_to_hub(REPO)
    assert hub.card(REPO) == before
    assert_same(model)


def test_push_of_a_folder(hub: HubServer, folder: Path) -> None:
    """Red if pickles and optimizer states are published, or a local file is touched."""
    before = contents(folder)
    hf_nm.push_to_hub(str(folder), REPO)
    assert contents(folder) == before
    model = {"config.json", "model.safetensors", "README.md", ".gitattributes"}
    run = {"nm_sad.jsonl", "trainer_state.json", "sad.png"}
    assert hub.files(REPO) == model | run
    assert hub.file(REPO, "model.safetensors") == before["model.safetensors"]
    assert hub.file(REPO, "sad.png").startswith(b"\x89PNG")
    card = hub.card(REPO)
    assert "![SAD and training loss by step](sad.png)" in card
    assert "60 summed over 2 logging intervals up to step 10, 50 between" in card
    assert "| steps | 10 |" in card


def test_scores_of_a_recipe(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Red if a recipe's score, or that of its dense run, does not get onto the card."""
    score = {"metric": "BLEU", "test": 18.0, "signature": "a|b"}
    run = {
        "method": "sr-ste",
        "data": "multi30k",
        "score": score,
        "time": {"train_s": 9.0},
        "steps": 10,
    }
    run |= {"command": "python train.py", "versions": {"torch": "2.13", "system": "Linux"}}
    (folder / "results.json").write_text(json.dumps(run))
    dense = tmp_path / "dense"
    dense.mkdir()
    other = run | {"method": "dense", "score": score | {"test": 20.0}}
    (dense / "results.json").write_text(json.dumps(other))
    hf_nm.push_to_hub(folder, REPO, dense_run=dense)
    card = hub.card(REPO)
    assert "| BLEU | multi30k, test | 18 | 20 | -2 | 90.0% |" in card
    assert "BLEU: `a|b`" in card
    assert "| command | `python train.py` |" in card
    assert f"| versions | hf_nm {hf_nm.__version__}, torch 2.13 |" in card
    other["score"] = score | {"signature": "another"}
    (dense / "results.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="dense one scored as"):
        hf_nm.push_to_hub(folder, REPO, dense_run=dense)
    with pytest.raises(ValueError, match="dense_run belongs to results"):
        hf_nm.push_to_hub(folder, REPO, dense_run=dense, scores=SCORE)


@pytest.mark.parametrize("text", ["[]", "{}", "x"])
def test_results_of_something_else(text: str, tmp_path: Path) -> None:
    """Red if a results.json that no recipe wrote stops a push."""
    (tmp_path / "results.json").write_text(text)
    assert read_scores(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("method",), 1),
        (("score",), [1]),
        (("score", "metric"), None),
        (("score", "test"), "18"),
        (("score", "test"), True),
        (("score", "signature"), {}),
        (("time",), None),
        (("time", "train_s"), "long"),
        (("steps",), 1.5),
        (("data",), ["x"]),
        (("command",), ["x"]),
        (("versions",), "x"),
        (("sad",), 3),
        (("sad", "total"), "x"),
    ],
)
def test_a_damaged_result(place: tuple[str, ...], value: Any, folder: Path) -> None:
    """Red if a recipe's result with a value of another kind raises what does not name the file, or is
    left out without a word."""
    score = {"metric": "BLEU", "test": 18.0, "signature": "a|b"}
    time, sad = {"train_s": 1.0}, {"total": 4, "from_start": 2, "mean_flip_rate": 0.1}
    run: Any = {"method": "sr-ste", "score": score, "time": time, "steps": 10, "sad": sad}
    inner = run
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / "results.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match=rf"results\.json: {'.'.join(place)} is "):
        hf_nm.push_to_hub(folder, REPO)


def test_large_file_in_parts(hub: HubServer) -> None:
    """Red if the stand-in, or a push, gets the order of an upload's parts wrong."""
    hub.part_size = 10_000
    model = trained_bert()
    hf_nm.push_to_hub(model, REPO)
    assert sum(line.startswith("PUT /part/") for line in hub.requests) > 3
    assert_same(model)


# -- the card of somebody else ----------------------------------------------------------------------


def test_own_text_survives(hub: HubServer) -> None:
    """Red if a push writes over what somebody wrote on the Hub."""
    model = trained_bert()
    hf_nm.push_to_hub(model, REPO, scores=SCORE)
    hub.edit(
        REPO,
        "README.md",
        lambda text: (
            text.replace("# sparse-bert", "# My model\n\nIt is mine.")
            .replace("library_name: transformers", "license: mit # mine\nlanguage: no")
            .replace("- sparse\n", "- sparse\n- my-tag\n")
            + "\n## Thanks\n\nTo my mother.\n"
        ),
    )
    with hf_nm.dense_weights(model), torch.no_grad():
        model.get_parameter(WEIGHT)[0].zero_()
    for _ in range(2):
        hf_nm.push_to_hub(model, REPO, license=None)
        card = huggingface_hub.ModelCard.load(REPO)
        assert "# My model\n\nIt is mine.\n" in card.text
        assert card.text.endswith("## Thanks\n\nTo my mother.\n")
        assert card.text.count("## N:M sparsity") == 1
        assert "| 1:4 | 1 | 2,048 | 504 | 24.61% |" in card.text
        assert {"my-tag", "sparse", "2:4"} <= set(card.data.tags)
        assert "license: mit" in hub.card(REPO)
        assert "language: 'no'" in hub.card(REPO)
        assert card.data.eval_results[0].metric_value == 27.5


def test_local_card_and_the_one_on_the_hub(hub: HubServer, folder: Path) -> None:
    """Red if a change on one side is lost, where the other side did not change."""
    (folder / "README.md").write_bytes(b"# Here\r\n\r\nFirst.\r\n")
    hf_nm.push_to_hub(folder, REPO)
    assert hub.card(REPO).startswith("---\r\nlibrary_name: transformers\r\n")
    (folder / "README.md").write_text("# Here\n\nSecond.\n")
    hf_nm.push_to_hub(folder, REPO)
    assert "Second." in hub.card(REPO)
    hub.edit(REPO, "README.md", lambda text: text.replace("Second.", "Third."))
    hf_nm.push_to_hub(folder, REPO)
    assert "Third." in hub.card(REPO)


def test_card_that_is_not_valid(hub: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [\n---\n# x\n")
    with pytest.raises(ValueError, match=r"top of README\.md is not valid YAML"):
        hf_nm.push_to_hub(folder, REPO)
    assert REPO not in hub.repos


# -- what is refused --------------------------------------------------------------------------------


def test_broken_weights_are_not_pushed(hub: HubServer, folder: Path) -> None:
    """Red if a claim that does not hold reaches the Hub."""
    tensors = load_file(folder / "model.safetensors")
    tensors[WEIGHT][7, 12:16] = 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(hf_nm.BrokenPatternError, match=WEIGHT):
        hf_nm.push_to_hub(folder, REPO)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(hf_nm.BrokenPatternError, match=WEIGHT):
        hf_nm.push_to_hub(model, REPO)
    assert hub.requests == []


def test_nothing_claimed(hub: HubServer) -> None:
    """Red if a dense model passes for a sparse one."""
    with pytest.warns(UserWarning, match="nothing claims to be N:M: it is pushed as a dense"):
        hf_nm.push_to_hub(one_layer_bert(), REPO)
    assert "N:M" not in hub.card(REPO)
    assert "sparse\n" not in hub.card(REPO)
    opened()


def test_no_model(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="needs a transformers model or a folder, but got Sequential"
    ):
        hf_nm.push_to_hub(models.mlp(8, 8), REPO)
    with pytest.raises(FileNotFoundError, match="found no folder"):
        hf_nm.push_to_hub(tmp_path / "nowhere", REPO)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        hf_nm.push_to_hub(tmp_path, REPO)
    assert hub.requests == []


# -- as huggingface_hub does it ---------------------------------------------------------------------


def test_private_repository(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a private model is open, or needs more than a token in a new process without hf_nm."""
    model = trained_bert()
    hf_nm.push_to_hub(model, REPO, private=True)
    assert hub.repos[REPO].private
    inputs = models.batch(model)
    torch.save(inputs, tmp_path / "inputs.pt")
    arguments = ["-P", "-c", OPEN_PLAIN, REPO, tmp_path / "inputs.pt", tmp_path / "logits.pt"]
    run_python(*arguments, env=fresh_environment(hub, tmp_path / "new-home", READ))
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model(**inputs).logits)
    monkeypatch.delenv("HF_TOKEN")
    for token in (False, OTHER):
        with pytest.raises(RepositoryNotFoundError):
            huggingface_hub.snapshot_download(REPO, token=token)
        with pytest.raises(HfHubHTTPError):
            hf_nm.push_to_hub(model, REPO, token=token)
    with pytest.raises(HfHubHTTPError, match="rights"):
        hf_nm.push_to_hub(model, REPO, token=READ)
    assert len(hub.repos[REPO].branches["main"]) == 2
    hf_nm.push_to_hub(trained_bert(), REPO, token=WRITE)


def test_revision(hub: HubServer) -> None:
    """Red if a push to a branch changes another."""
    first, second = trained_bert(), hf_nm.sparsify(one_layer_bert())
    hf_nm.push_to_hub(first, REPO)
    for _ in range(2):
        hf_nm.push_to_hub(second, REPO, revision="v2/next")
    assert_same(first)
    assert_same(second, revision="v2/next")
    assert 'from_pretrained("alice/sparse-bert", revision="v2/next")' in hub.card(REPO, "v2/next")
    assert "1:4" in hub.card(REPO)
    assert "1:4" not in hub.card(REPO, "v2/next")
    with pytest.raises(RevisionNotFoundError):
        huggingface_hub.snapshot_download(REPO, revision="v3")


def test_pull_request(hub: HubServer) -> None:
    hf_nm.push_to_hub(hf_nm.sparsify(one_layer_bert()), REPO)
    model = trained_bert()
    commit = hf_nm.push_to_hub(model, REPO, create_pr=True, commit_message="Train on")
    assert commit.pr_num == 1
    assert commit.commit_message == hub.repos[REPO].branches["refs/pr/1"][-1].title == "Train on"
    assert_same(model, revision="refs/pr/1")
    assert "1:4" not in hub.card(REPO)


def test_a_failure_that_stays(hub: HubServer, folder: Path) -> None:
    """Red if a broken upload changes local files, commits half a model, or starts all over again."""
    model = trained_bert()
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    before = contents(folder)
    sizes = sorted(len(data) for name, data in before.items() if name.endswith("safetensors"))
    assert len(sizes) > 2
    hub.fail(f"PUT /upload/.*/{sizes[0]}$", times=100)
    with pytest.raises(RuntimeError, match="Error while uploading") as raised:
        hf_nm.push_to_hub(folder, REPO)
    assert isinstance(raised.value.__cause__, HfHubHTTPError)
    assert contents(folder) == before
    assert hub.files(REPO) == {".gitattributes"}

    hub.faults.clear()
    arrived = len(hub.objects)
    assert arrived > 0
    hub.requests.clear()
    hub.fail("POST .*/commit/main", times=1)
    with pytest.raises(HfHubHTTPError, match="500"):
        hf_nm.push_to_hub(folder, REPO)
    hf_nm.push_to_hub(folder, REPO)
    assert sum(line.startswith("PUT") for line in hub.requests) == len(sizes) - arrived
    assert contents(folder) == before
    assert_same(model)
