"""A Trainer run resumed from its checkpoint equals one that was never stopped, bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from trainers import CrashError, StopAt, build, figures, one_layer_bert, sad_file, train_logs
from training import assert_same_state, assert_sparse, state_of
from transformers import Trainer

import hf_nm
from hf_nm.optim import sad_log


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
    "compact": ({"compact_state": True, "mask_interval": 2}, {"save_steps": 5}),
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
            if value is None:  # frozen masks keep nothing aside
                assert other is None
                continue
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
    """Red if half a line stops the resumed run, stays, or goes unsaid."""

    def make(folder, **more):
        return build(folder, save_strategy="steps", save_steps=5, logging_steps=1, **more)

    whole = make(tmp_path / "whole")
    whole.train()
    folder = tmp_path / "stopped"
    with pytest.raises(CrashError):
        make(folder, options={"callbacks": [StopAt(8)]}).train()
    text = (folder / "nm_sad.jsonl").read_text()
    (folder / "nm_sad.jsonl").write_text(text[:-40])
    with pytest.warns(UserWarning, match=r"nm_sad.jsonl: 1 damaged lines .* \(first: line 8\)"):
        make(folder).train(resume_from_checkpoint=True)
    assert sad_file(folder) == sad_file(tmp_path / "whole")


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"\0" * 99, b"[1]", b"null", b"{}", b'{"step": "two"}', b"[" * 100_000],
    ids=["not UTF-8", "zeros", "list", "null", "no step", "a step that is none", "too deep"],
)
def test_a_damaged_line(line, tmp_path):
    """Red if a line that says nothing ends training, takes others with it, or goes unsaid."""
    whole = build(tmp_path, save_strategy="steps", save_steps=6)
    whole.train()
    lines = (tmp_path / "nm_sad.jsonl").read_bytes().splitlines()
    (tmp_path / "nm_sad.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[1:], b""]))
    with pytest.warns(UserWarning, match=r"1 damaged lines were left out \(first: line 2\)"):
        build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert (tmp_path / "nm_sad.jsonl").read_bytes().splitlines() == lines


def test_a_log_that_cannot_be_written(tmp_path):
    """Red if that alone ends training, changes its outcome, or goes unsaid: ``/dev/full`` answers each
    write as a full disk does."""
    whole = build(tmp_path / "whole")
    whole.train()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "nm_sad.jsonl").symlink_to("/dev/full")
    full = build(tmp_path / "full")
    with pytest.warns(UserWarning, match=r"step \d+ was not written to .*No space left.*goes on"):
        full.train()
    assert_same_state(outcome(full), outcome(whole))
    assert [figures(line) for line in train_logs(full)] == [
        figures(line) for line in train_logs(whole)
    ]
    (tmp_path / "folder" / "nm_sad.jsonl").mkdir(parents=True)
    other = build(tmp_path / "folder")
    with pytest.warns(UserWarning, match=r"not written to .*Is a directory"):
        other.train()
    assert_same_state(outcome(other), outcome(whole))


def test_a_line_after_half_a_line(tmp_path):
    """Red if a line that was cut by a full disk takes the next one with it."""
    measured = {"nm/sad": 1, "nm/flip_rate": 0.5, "nm/sad_init": 2}
    (tmp_path / "nm_sad.jsonl").write_text('{"step": 1, "nm/s')
    sad_log.append(tmp_path, 2, measured)
    sad_log.append(tmp_path, 3, measured)
    with pytest.warns(UserWarning, match="1 damaged"):
        assert [row["step"] for row in sad_log.read_history(tmp_path)] == [2, 3]


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
        ({"n": 1}, r"with pattern 2:4, now 1:4 \(bert"),
        ({"method": "fixed"}, r"with method sr-ste, now fixed \(bert"),
        ({"method": "ste"}, r"with method sr-ste, now ste \(bert"),
        ({"exclude": "*.attention.*"}, "they differ in"),
    ):
        other = build(tmp_path / "other", sparsify=sparsify)
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=True)


def kept_logs(trainer):
    """What was logged, without the summary of each call of ``train``."""
    return [line for line in trainer.state.log_history if "train_runtime" not in line]


@pytest.mark.parametrize("kind", [hf_nm.NMTrainer, hf_nm.NMSeq2SeqTrainer, Trainer])
@pytest.mark.parametrize("save", ["steps", "epoch"])
def test_a_finished_run_takes_no_step_more(kind, save, tmp_path):
    """Red if a run whose ten steps are taken takes an eleventh when it is resumed, as transformers' own
    Trainer does inside an epoch, evaluates or saves again, or ends with other weights, logs or files."""
    accumulated = {"gradient_accumulation_steps": 2} if save == "steps" else {}

    def make():
        strategies = {
            "save_strategy": save,
            "eval_strategy": save,
            "save_steps": 5,
            "eval_steps": 5,
        }
        trainer = build(tmp_path, kind, max_steps=10, **strategies, **accumulated)
        if kind is Trainer:
            hf_nm.NMCallback().install(trainer)
        return trainer

    first = make()
    first.train()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = make()
    result = again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert result.global_step == again.state.global_step == 10
    assert_same_state(outcome(again), outcome(first))
    assert kept_logs(again) == kept_logs(first)
    times.pop(tmp_path / "nm_sad.jsonl")  # cut back to step 10, where it ends
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert [line["step"] for line in sad_file(tmp_path)] == [3, 6, 9]


def test_a_run_resumed_with_fewer_steps_than_it_has_taken(tmp_path):
    """Red if it takes a step, or stops a run that has steps left after one that had none."""
    build(tmp_path, max_steps=10, save_strategy="steps", save_steps=5).train()
    shorter = build(tmp_path, max_steps=7)
    shorter.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert shorter.state.global_step == 10
    shorter.args.max_steps = 12
    shorter.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert shorter.state.global_step == 12


@pytest.mark.parametrize(
    "sort", ["decay", "mask_interval", "freeze_masks_at", "decay_warmup_steps"]
)
def test_another_decay_or_schedule_is_said(sort, tmp_path):
    """Red if a run that goes on otherwise than the one that saved says nothing, or leaves out one of the
    two values."""
    build(tmp_path, save_strategy="steps", save_steps=6).train()
    sparsify, options, said = {
        "decay": ({"decay": 0.01}, {}, r"decay 0.0002, now 0.01 \(6 weights, first: bert"),
        "mask_interval": ({}, {"mask_interval": 3}, "mask_interval 1, now 3"),
        "freeze_masks_at": ({}, {"freeze_masks_at": 9}, "freeze_masks_at None, now 9"),
        "decay_warmup_steps": ({}, {"decay_warmup_steps": 8}, "decay_warmup_steps 0, now 8"),
    }[sort]
    again = build(tmp_path, sparsify=sparsify, options=options)
    with pytest.warns(UserWarning, match=f"saved with {said}.*goes on with the new"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert again.state.global_step == 12
    assert_sparse(again.model)
