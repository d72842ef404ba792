"""A Trainer run resumed from its checkpoint equals one that was never stopped, bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from trainers import CrashError, StopAt, build, figures, one_layer_bert, sad_file, train_logs
from training import assert_same_state, assert_sparse, state_of
from transformers import Trainer

import hf_nm


def outcome(trainer):
    """Everything that must not depend on whether the run was stopped."""
    return state_of(trainer.model, trainer.optimizer)


def crash_and_resume(make, folder, *, stop, checkpoint):
    """A run that dies before step ``stop`` (from 0), and a new one on its folder."""
    first = make(folder, options={"callbacks": [StopAt(stop)]})
    with pytest.raises(CrashError):
        first.train()
    assert_sparse(first.model)
    resumed = make(folder)
    with hf_nm.dense_weights(resumed.model), torch.no_grad():  # it starts from other weights
        for parameter in resumed.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{checkpoint}"))
    return resumed


CASES = {
    "log and save apart": ({}, {"logging_steps": 3, "save_steps": 5}),
    "log and save together": ({}, {"logging_steps": 4, "save_steps": 4}),
    "never logged before": ({}, {"logging_steps": 10, "save_steps": 5}),
    "accumulation": ({}, {"gradient_accumulation_steps": 2, "save_steps": 5}),
    "over epochs": ({}, {"per_device_train_batch_size": 16, "save_steps": 5}),
    "mask_interval": ({"mask_interval": 3}, {"save_steps": 5}),
    "frozen before": ({"freeze_masks_at": 3}, {"save_steps": 5}),
    "frozen after": ({"freeze_masks_at": 7}, {"save_steps": 5}),
    "both": ({"mask_interval": 2, "freeze_masks_at": 6}, {"logging_steps": 1, "save_steps": 5}),
    "adafactor": ({}, {"optim": "adafactor", "save_steps": 5}),
    "sgd": ({}, {"optim": "sgd", "learning_rate": 0.5, "save_steps": 5}),
    "bf16": ({}, {"bf16": True, "save_steps": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, tmp_path):
    """Red if pruned parts, held masks, marks of the log, or counters are lost on the way through the
    Trainer's files, or if lines of the run that died stay in ``nm_sad.jsonl``."""
    options, changes = CASES[case]

    def make(folder, **more):
        more = {"options": options | more.pop("options", {}), **more}
        return build(folder, save_strategy="steps", **changes, **more)

    whole = make(tmp_path / "whole")
    whole.train()
    save_steps = changes["save_steps"]
    resumed = crash_and_resume(
        make, tmp_path / "stopped", stop=save_steps + 4, checkpoint=save_steps
    )
    assert_same_state(outcome(resumed), outcome(whole))
    assert_sparse(resumed.model)
    expected = [(line["step"], figures(line)) for line in train_logs(whole)]
    assert [(line["step"], figures(line)) for line in train_logs(resumed)] == expected
    assert any(figure["nm/sad"] for _, figure in expected)
    file = (tmp_path / "whole" / "nm_sad.jsonl").read_bytes()
    assert (tmp_path / "stopped" / "nm_sad.jsonl").read_bytes() == file
    for folder in ("whole", "stopped"):
        hf_nm.verify(tmp_path / folder / "checkpoint-12")
    one, two = (
        torch.load(tmp_path / folder / "checkpoint-12" / "optimizer.pt", weights_only=True)
        for folder in ("whole", "stopped")
    )
    for name, entry in one["nm_sparsity"]["weights"].items():
        for key, value in entry.items():
            other = two["nm_sparsity"]["weights"][name][key]
            assert (value is None) == (other is None), (name, key)  # frozen: nothing aside
            if value is not None:
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), (name, key)


@pytest.mark.parametrize("method", ["ste", "fixed"])
def test_other_methods(method, tmp_path):
    def make(folder, **more):
        sparsify = {"method": method, "n": 1}
        return build(folder, sparsify=sparsify, save_strategy="steps", save_steps=5, **more)

    whole = make(tmp_path / "whole")
    whole.train()
    resumed = crash_and_resume(make, tmp_path / "stopped", stop=8, checkpoint=5)
    assert_same_state(outcome(resumed), outcome(whole))
    assert sad_file(tmp_path / "whole") == sad_file(tmp_path / "stopped")
    if method == "fixed":
        assert all(line["nm/sad_init"] == 0 for line in sad_file(tmp_path / "whole"))


def test_a_callback_installed_in_a_plain_trainer(tmp_path):
    def make(folder, **more):
        trainer = build(folder, Trainer, save_strategy="steps", save_steps=5, **more)
        hf_nm.NMCallback(mask_interval=2).install(trainer)
        return trainer

    whole = make(tmp_path / "whole")
    whole.train()
    resumed = crash_and_resume(make, tmp_path / "stopped", stop=8, checkpoint=5)
    assert_same_state(outcome(resumed), outcome(whole))
    assert sad_file(tmp_path / "whole") == sad_file(tmp_path / "stopped")


def test_a_callback_passed_alone_refuses_to_resume(tmp_path):
    """Red if it trains on with the pruned parts lost: the Trainer loads before a callback can attach."""
    trainer = build(tmp_path, save_strategy="steps", save_steps=5)
    trainer.train()
    again = build(tmp_path, Trainer, options={"callbacks": [hf_nm.NMCallback()]})
    with pytest.raises(ValueError, match=r"NMCallback\(\.\.\.\)\.install\(trainer\)"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_resumed_with_the_callers_own_optimizer(tmp_path):
    def make(folder, **more):
        model = hf_nm.sparsify(one_layer_bert())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        options = {"optimizers": (optimizer, schedule), **more.pop("options", {})}
        return build(
            folder, model=model, options=options, save_strategy="steps", save_steps=5, **more
        )

    whole = make(tmp_path / "whole")
    whole.train()
    resumed = crash_and_resume(make, tmp_path / "stopped", stop=8, checkpoint=5)
    assert_same_state(outcome(resumed), outcome(whole))


def test_resumed_by_the_same_trainer(tmp_path):
    """Red if steps taken after the checkpoint leave something behind in the same process."""
    trainer = build(tmp_path, save_strategy="steps", save_steps=5)
    trainer.train()
    expected, file = outcome(trainer), sad_file(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same_state(outcome(trainer), expected)
    assert sad_file(tmp_path) == file


def test_resumed_twice(tmp_path):
    def make(folder, **more):
        return build(folder, save_strategy="steps", save_steps=3, logging_steps=2, **more)

    whole = make(tmp_path / "whole")
    whole.train()
    folder = tmp_path / "stopped"
    for stop in (4, 8):
        trainer = make(folder, options={"callbacks": [StopAt(stop)]})
        with pytest.raises(CrashError):
            trainer.train(resume_from_checkpoint=folder.exists() and any(folder.glob("check*")))
    last = make(folder)
    last.train(resume_from_checkpoint=True)
    assert_same_state(outcome(last), outcome(whole))
    assert sad_file(folder) == sad_file(tmp_path / "whole")


def test_a_line_cut_in_half_by_the_crash(tmp_path):
    """Red if half a line stops the resumed run, or stays."""

    def make(folder, **more):
        return build(folder, save_strategy="steps", save_steps=5, logging_steps=1, **more)

    whole = make(tmp_path / "whole")
    whole.train()
    folder = tmp_path / "stopped"
    with pytest.raises(CrashError):
        make(folder, options={"callbacks": [StopAt(8)]}).train()
    text = (folder / "nm_sad.jsonl").read_text()
    (folder / "nm_sad.jsonl").write_text(text[:-40])
    make(folder).train(resume_from_checkpoint=True)
    assert sad_file(folder) == sad_file(tmp_path / "whole")


def test_a_file_that_was_deleted(tmp_path):
    trainer = build(tmp_path, save_strategy="steps", save_steps=6)
    trainer.train()
    file = sad_file(tmp_path)
    (tmp_path / "nm_sad.jsonl").unlink()
    build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert sad_file(tmp_path) == file[2:]


def test_a_new_run_in_an_old_folder_starts_its_file_anew(tmp_path):
    build(tmp_path, max_steps=9).train()
    build(tmp_path, max_steps=6).train()
    assert [line["step"] for line in sad_file(tmp_path)] == [3, 6]


def test_load_best_model_at_end_after_a_resume(tmp_path):
    def make(folder, **more):
        return build(
            folder,
            save_strategy="steps",
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            load_best_model_at_end=True,
            greater_is_better=True,
            metric_for_best_model="loss",
            **more,
        )

    whole = make(tmp_path / "whole")
    whole.train()
    resumed = crash_and_resume(make, tmp_path / "stopped", stop=7, checkpoint=6)
    assert_same_state(state_of(resumed.model), state_of(whole.model))
    assert_sparse(resumed.model)


def test_checkpoints_of_a_dense_run(tmp_path):
    """Going on sparse from a dense Trainer's checkpoint: its weights and moments, with a warning."""
    dense = build(tmp_path, Trainer, model=one_layer_bert(), save_strategy="steps", save_steps=6)
    dense.train()
    trainer = build(tmp_path, max_steps=15)
    with (
        pytest.warns(UserWarning, match="saved without hf_nm"),
        pytest.warns(UserWarning, match="goes on from step 12 without masks"),
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert_sparse(trainer.model)
    assert trainer.nm_callback.attachment.step == 3
    assert trainer.state.global_step == 15


def test_checkpoints_without_the_optimizer(tmp_path):
    """Red if a run that cannot continue exactly says nothing."""
    build(tmp_path, save_strategy="steps", save_steps=6, save_only_model=True).train()
    trainer = build(tmp_path, max_steps=15)
    with pytest.warns(UserWarning, match="goes on from step 12 without masks"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert_sparse(trainer.model)


def test_checkpoints_of_other_options_are_refused(tmp_path):
    trainer = build(tmp_path, save_strategy="steps", save_steps=6)
    trainer.train()
    shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "other" / "checkpoint-6")
    for sparsify, message in (
        ({"n": 1}, "is not 1:4"),
        ({"method": "fixed"}, "another method"),
        ({"exclude": "*.attention.*"}, "they differ in"),
    ):
        other = build(tmp_path / "other", sparsify=sparsify)
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=True)
