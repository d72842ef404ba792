"""Files that an old hf_nm wrote (``fixtures/old``, with a README) open as they were, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tolerances import assert_close, assert_same_bits
from torch import Tensor, nn
from training import assert_same_state, assert_sparse, masks, state_of
from transformers import AutoModel, AutoModelForCausalLM, TrainerCallback, TrainingArguments

import hf_nm

OLD = Path(__file__).parent / "fixtures" / "old"
CHECKPOINTS = ["gpt2", "llama", "mixtral"]
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM"}
LOOPS = ["sr-ste", "ste", "fixed", "mask-interval", "frozen", "decay-warmup"]

# Runs whose masks are frozen for good keep nothing aside; old checkpoints of such runs have it still,
# and it is dropped (R = 0).
FROZEN_KEEPS_PRUNED_PART = False

State = dict[str, Tensor]


# -- checkpoints and packed folders ------------------------------------------------------------------


def stored(name: str) -> tuple[State, State]:
    """Every parameter of a checkpoint, and the masks of its N:M weights."""
    everything = load_file(OLD / "checkpoints" / name / "expected.safetensors")
    found = {key.removesuffix("/mask"): everything[key] for key in everything if "/" in key}
    return {key: value for key, value in everything.items() if "/" not in key}, found


def assert_parameters(model: nn.Module, expected: State) -> None:
    """Every parameter has the stored bits."""
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(found[name], tensor, name)


def assert_verified(report: hf_nm.Report, name: str) -> None:
    """The report has the stored N:M weights, each with its pattern, shape and entries kept."""
    parameters, masks = stored(name)
    config = json.loads((OLD / "checkpoints" / name / "plain" / "config.json").read_text())
    patterns = config["nm_sparsity"]["modules"]
    assert patterns.keys() == masks.keys()
    rows = {row.name: (str(row.pattern), row.shape, row.kept) for row in report.layers}
    assert rows == {
        key: (pattern, tuple(masks[key].shape), int(parameters[key].count_nonzero()))
        for key, pattern in patterns.items()
    }


def without_head(parameters: State) -> State:
    """The names in the base model: one component less."""
    return {name.partition(".")[2]: tensor for name, tensor in parameters.items()}


@pytest.mark.parametrize("form", ["plain", "packed"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_verifies(name: str, form: str) -> None:
    """Red if the manifest of an old config, or the layout of an old packed file, is not read any more,
    or gives other weights, patterns or counts."""
    assert_verified(hf_nm.verify(OLD / "checkpoints" / name / form), name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_opens(name: str) -> None:
    """Red if ``import hf_nm`` changes what transformers reads from an old plain checkpoint, with its
    head and without."""
    folder, (parameters, _) = OLD / "checkpoints" / name / "plain", stored(name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == CLASSES[name]
    assert_parameters(model, parameters)
    assert_parameters(AutoModel.from_pretrained(folder), without_head(parameters))


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_restored(name: str, kind: Any, tmp_path: Path) -> None:
    """Red if restoring an old checkpoint changes a weight, a mask, a pattern, the method or the decay,
    or makes other weights sparse, or if what is saved of it does not hold the same."""
    parameters, expected = stored(name)
    prefix = len(next(iter(parameters)).partition(".")[0]) + 1 if kind is AutoModel else 0
    model = kind.from_pretrained(OLD / "checkpoints" / name / "plain")
    written = dict(model.config.nm_sparsity)
    hf_nm.restore(model)
    model.save_pretrained(tmp_path)
    for opened in (model, hf_nm.restore(kind.from_pretrained(tmp_path))):
        rows = {w.name: w for w in hf_nm.sparse_weights(opened)}
        assert rows.keys() == {key[prefix:] for key in expected}
        for key, mask in expected.items():
            w = rows[key[prefix:]]
            assert_same_bits(w.mask, mask, key)
            assert_same_bits(w.weight, parameters[key], key)
            assert_same_bits(w.dense_weight(), parameters[key], key)  # R = 0
            assert str(w.pattern) == written["modules"][key], key
        manifest = opened.config.nm_sparsity
        for field in ("n", "m", "method", "decay"):
            assert manifest[field] == written[field], field
        everything = without_head(parameters) if kind is AutoModel else parameters
        assert_parameters(opened, everything)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_packed_folder_is_unpacked(name: str, tmp_path: Path) -> None:
    """Red if unpacking an old packed folder does not give the plain one's bytes, weights and config."""
    folder = OLD / "checkpoints" / name
    hf_nm.unpack(folder / "packed", tmp_path / "plain")
    names = {path.name for path in (folder / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "plain").iterdir()} == names
    weights = (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert weights == (folder / "plain" / "model.safetensors").read_bytes()
    configs = [
        json.loads((path / "config.json").read_text())
        for path in (folder / "plain", tmp_path / "plain")
    ]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_packed_folder_is_loaded(name: str) -> None:
    """Red if ``load_packed`` gives another class, weight or config than the plain checkpoint of then, or
    if what it gives cannot be restored with the same masks."""
    parameters, expected = stored(name)
    model = hf_nm.load_packed(OLD / "checkpoints" / name / "packed")
    assert type(model).__name__ == CLASSES[name]
    assert_parameters(model, parameters)
    hf_nm.restore(model)
    for w in hf_nm.sparse_weights(model):
        assert_same_bits(w.mask, expected.pop(w.name), w.name)
    assert not expected


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_packed_folder_opens(name: str) -> None:
    """Red if transformers, with hf_nm there, does not open an old packed folder as it does the plain
    one, with its head and without."""
    folder, (parameters, _) = OLD / "checkpoints" / name / "packed", stored(name)
    assert_parameters(AutoModelForCausalLM.from_pretrained(folder), parameters)
    assert_parameters(AutoModel.from_pretrained(folder), without_head(parameters))


# -- plain loops -------------------------------------------------------------------------------------


class Loop:
    """A model, its optimizer and the handle, opened from a folder that a plain loop wrote."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, weights_first: bool) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        whole = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        hf_nm.restore(self.model)
        self.optimizer = torch.optim.AdamW(
            [self.model.get_parameter(name) for name in settings["trained"]], lr=settings["lr"]
        )
        if not weights_first:  # another model's values, until they are loaded
            with hf_nm.dense_weights(self.model), torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(torch.randn_like(parameter))
        self.handle = hf_nm.attach(self.optimizer, self.model, **settings["attach"])
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
        if not weights_first:
            self.model.load_state_dict(whole)

    def save(self, folder: Path) -> None:
        """In today's form."""
        self.model.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def backward(self, step: int) -> None:
        """The gradients of one step's batch."""
        self.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(1000 + step)
        tokens = torch.randint(self.model.config.vocab_size, (4, 8), generator=generator)
        self.model(input_ids=tokens, labels=tokens).loss.backward()

    def step(self, step: int) -> None:
        """One step of training."""
        self.backward(step)
        self.optimizer.step()

    def outcome(self) -> State:
        """Everything that training depends on, and all that was measured."""
        measured = measured_by(self.handle)
        return state_of(self.model, self.optimizer) | {
            name: torch.tensor(value) for name, value in measured.items()
        }


def open_loop(case: str, *, weights_first: bool = True) -> Loop:
    """A stored loop, by today's code."""
    return Loop(OLD / "loops" / case, settings_of(case), weights_first=weights_first)


def settings_of(case: str) -> dict[str, Any]:
    """What the stored loop was run with."""
    return json.loads((OLD / "loops" / case / "settings.json").read_text())


def measured_by(handle: hf_nm.Attachment) -> dict[str, int]:
    """Steps, SAD and flips, each by what it is called."""
    found = {"step": handle.step, "step_at_mark": handle.step_at_mark}
    for since in ("start", "mark"):
        sad, flips = handle.sad_per_layer(since), handle.flips_per_layer(since)
        assert handle.sad(since) == sum(sad.values())
        found |= {f"{name}/sad since {since}": entries for name, entries in sad.items()}
        found |= {f"{name}/flips since {since}": entries for name, entries in flips.items()}
    return found


def sad_from(expected: State, model: nn.Module) -> dict[str, int]:
    """SAD of the model's masks against the stored ones of the start and of the mark."""
    return {
        f"{name}/sad since {since}": int((mask != expected[f"{name}/mask_at_{since}"]).sum())
        for name, mask in masks(model).items()
        for since in ("start", "mark")
    }


def assert_stored(
    model: nn.Module, handle: hf_nm.Attachment, expected: State, *, keeps_pruned: bool = True
) -> None:
    """E, S and R of every N:M weight, and all that the handle measures, are the stored ones."""
    weights = hf_nm.sparse_weights(model)
    assert {w.name for w in weights} == {name.split("/")[0] for name in expected if "/" in name}
    steps = {"step": int(expected["step"]), "step_at_mark": int(expected["step_at_mark"])}
    flips = {}
    for w in weights:
        pruned = expected[f"{w.name}/pruned"]
        if not keeps_pruned:
            pruned = torch.zeros_like(pruned)
        found = torch.where(w.mask, torch.zeros_like(pruned), w.dense_weight())
        assert_same_bits(w.mask, expected[f"{w.name}/mask"], w.name)
        assert_same_bits(w.weight, expected[f"{w.name}/weight"], w.name)
        assert_same_bits(found, pruned, w.name)
        start, mark = int(expected[f"{w.name}/flips"]), int(expected[f"{w.name}/flips_at_mark"])
        flips[f"{w.name}/flips since start"] = start
        flips[f"{w.name}/flips since mark"] = start - mark
    assert measured_by(handle) == steps | flips | sad_from(expected, model)


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("weights_first", [True, False], ids=["weights first", "optimizer first"])
@pytest.mark.parametrize("case", LOOPS)
def test_an_optimizer_state_is_loaded(case: str, weights_first: bool) -> None:
    """Red if a mask, a weight, a pruned part, a moment, a step counter, SAD or a flip count is not what
    was saved; in the order ``optimizer first`` also if the weights that arrive are not known to belong
    to the masks, so that the pruned parts are lost."""
    loop = open_loop(case, weights_first=weights_first)
    expected = load_file(OLD / "loops" / case / "expected.safetensors")
    keeps = FROZEN_KEEPS_PRUNED_PART or case != "frozen"
    assert_stored(loop.model, loop.handle, expected, keeps_pruned=keeps)
    moments = torch.load(OLD / "loops" / case / "optimizer.pt")["state"]
    for index, parameter in enumerate(loop.optimizer.param_groups[0]["params"]):
        for name, tensor in moments[index].items():
            assert_same_bits(loop.optimizer.state[parameter][name], tensor, f"{index} {name}")


@pytest.mark.filterwarnings("ignore:.*without fp32 copies")
@pytest.mark.parametrize("case", LOOPS)
def test_two_more_steps(case: str, tmp_path: Path) -> None:
    """Red if something that training or SAD depends on is loaded from the old form otherwise than from
    today's; or if, after two steps, SAD is counted from other masks than the stored ones."""
    old = open_loop(case)
    old.save(tmp_path)
    new = Loop(tmp_path, settings_of(case), weights_first=True)
    assert_same_state(new.outcome(), old.outcome())
    before, expected = state_of(old.model), load_file(OLD / "loops" / case / "expected.safetensors")
    for step in range(2):
        old.step(step)
        new.step(step)
        assert_same_state(new.outcome(), old.outcome())
        assert_sparse(old.model)
        assert measured_by(old.handle).items() >= sad_from(expected, old.model).items()
    assert old.handle.step == int(expected["step"]) + 2
    after = state_of(old.model)
    assert all((after[name] != before[name]).any() for name in settings_of(case)["trained"])


def test_masks_held_between_updates_are_held_on() -> None:
    """Red if the step counter of an old run is lost: with an interval of 3, masks saved after step 4
    stay at step 5 and move at step 6."""
    loop = open_loop("mask-interval")
    saved = masks(loop.model)
    loop.step(0)
    assert_same_state(masks(loop.model), saved)
    loop.step(1)
    assert any((mask != saved[name]).any() for name, mask in masks(loop.model).items())


def test_frozen_masks_stay_frozen() -> None:
    """Red if a run whose masks were frozen before it was saved computes masks again."""
    loop = open_loop("frozen")
    saved = masks(loop.model)
    for step in range(2):
        loop.step(step)
    assert_same_state(masks(loop.model), saved)


def test_the_decay_goes_on_rising() -> None:
    """Red if the third of four steps of warm-up adds anything but three quarters of ``decay * R`` to the
    gradient: if the step counter, the decay of the config or a pruned part is lost."""
    loop = open_loop("decay-warmup")
    expected = load_file(OLD / "loops" / "decay-warmup" / "expected.safetensors")
    loop.backward(0)
    before = {w.name: w.weight.grad.clone() for w in hf_nm.sparse_weights(loop.model)}
    loop.optimizer.step()
    for w in hf_nm.sparse_weights(loop.model):
        decay = 0.5 * 3 / 4 * expected[f"{w.name}/pruned"]
        assert decay.count_nonzero()
        assert_close(w.weight.grad, before[w.name] + decay, w.name)


# -- the Trainer -------------------------------------------------------------------------------------


class AtBeginning(TrainerCallback):
    """Compares what a resumed Trainer holds before its first step."""

    def __init__(self, expected: State | None) -> None:
        self.expected, self.compared = expected, False
        self.trainer: hf_nm.NMTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.expected is not None:
            assert state.global_step == int(self.expected["step"])
            assert_stored(kwargs["model"], self.trainer.nm_callback.attachment, self.expected)
            self.compared = True


def resumed(folder: Path, checkpoint: str, expected: State | None = None) -> hf_nm.NMTrainer:
    """A Trainer of another model with the stored run's arguments, two steps longer, that has resumed
    from a checkpoint in ``folder``."""
    settings = json.loads((OLD / "trainer" / "settings.json").read_text())
    tokens = load_file(OLD / "trainer" / "tokens.safetensors")["tokens"]
    model = hf_nm.restore(AutoModelForCausalLM.from_pretrained(folder / checkpoint))
    with hf_nm.dense_weights(model), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    begin = AtBeginning(expected)
    trainer = begin.trainer = hf_nm.NMTrainer(
        model=model,
        args=TrainingArguments(str(folder), **settings | {"max_steps": 6}),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[begin],
    )
    trainer.train(resume_from_checkpoint=str(folder / checkpoint))
    assert begin.compared == (expected is not None)
    return trainer


def test_a_trainers_checkpoint_is_resumed(tmp_path: Path) -> None:
    """Red if a Trainer that resumes from an old checkpoint holds other masks, weights, pruned parts or
    counters than were saved, drops or changes the lines of ``nm_sad.jsonl`` up to there, keeps the line
    of the run that died, or goes on otherwise than from a checkpoint that it has saved itself."""
    shutil.copytree(OLD / "trainer", tmp_path / "old")
    expected = load_file(OLD / "trainer" / "expected.safetensors")
    old = resumed(tmp_path / "old", "checkpoint-2", expected)
    assert_sparse(old.model)
    lines = (tmp_path / "old" / "nm_sad.jsonl").read_bytes().splitlines()
    written = (OLD / "trainer" / "nm_sad.jsonl").read_bytes().splitlines()
    assert len(written) == 3
    assert lines[:2] == written[:2]
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    since_start = sum(
        entries for name, entries in sad_from(expected, old.model).items() if "start" in name
    )
    assert json.loads(lines[5])["nm/sad_init"] == since_start > 0

    shutil.copytree(tmp_path / "old" / "checkpoint-4", tmp_path / "new" / "checkpoint-4")
    shutil.copy(tmp_path / "old" / "nm_sad.jsonl", tmp_path / "new")
    new = resumed(tmp_path / "new", "checkpoint-4")
    assert_same_state(state_of(new.model, new.optimizer), state_of(old.model, old.optimizer))
    assert (tmp_path / "new" / "nm_sad.jsonl").read_bytes().splitlines() == lines
    for folder in ("old", "new"):
        hf_nm.verify(tmp_path / folder / "checkpoint-6")


def test_a_trainers_checkpoint_verifies() -> None:
    """Red if the checkpoint folder of an old Trainer is not read as the sparse checkpoint that it is."""
    expected = load_file(OLD / "trainer" / "expected.safetensors")
    kept = {row.name: row.kept for row in hf_nm.verify(OLD / "trainer" / "checkpoint-2").layers}
    names = {name.split("/")[0] for name in expected if "/" in name}
    assert kept == {name: int(expected[f"{name}/weight"].count_nonzero()) for name in names}
