"""The figures of the Trainers, computed again from recorded masks."""

from __future__ import annotations

import pytest
from trainers import (
    NM_KEYS,
    Recorder,
    build,
    figures,
    sad_file,
    train_logs,
)
from transformers import (
    Trainer,
)

import hf_nm


def installed(folder, recorder, options, **changes):
    trainer = build(folder, Trainer, options={"callbacks": [recorder]}, **changes)
    hf_nm.NMCallback(**options).install(trainer)
    return trainer


def passed(folder, recorder, options, **changes):
    callbacks = [hf_nm.NMCallback(**options), recorder]
    return build(folder, Trainer, options={"callbacks": callbacks}, **changes)


def nm_trainer(folder, recorder, options, **changes):
    return build(folder, options={"callbacks": [recorder], **options}, **changes)


@pytest.mark.parametrize("make", [nm_trainer, installed, passed])
@pytest.mark.parametrize(
    ("options", "changes", "log_steps"),
    [
        ({}, {}, [3, 6, 9, 12]),
        ({}, {"logging_steps": 5, "gradient_accumulation_steps": 2}, [5, 10]),
        (
            {"mask_interval": 2, "freeze_masks_at": 7},
            {"logging_first_step": True},
            [1, 3, 6, 9, 12],
        ),
    ],
    ids=["plain", "accumulation", "schedule"],
)
def test_logged_figures(make, options, changes, log_steps, tmp_path):
    """Red if a figure refers to other steps than it says, counts micro-steps, or misses a swap: all
    are computed again from recorded masks."""
    recorder = Recorder()
    trainer = make(tmp_path, recorder, options, **changes)
    trainer.train()
    expected = recorder.expected(log_steps)
    assert [line["step"] for line in train_logs(trainer)] == log_steps
    assert [figures(line) for line in train_logs(trainer)] == expected
    assert [figures(line) for line in recorder.logs if "loss" in line] == expected
    assert expected[0]["nm/sad"] > 0 or options
    assert expected[-1]["nm/sad_init"] > 0
    assert not any(figures(line) for line in trainer.state.log_history if "loss" not in line)

    file = sad_file(tmp_path)
    assert [line["step"] for line in file] == [line["optimizer_step"] for line in file] == log_steps
    assert [line["since_optimizer_step"] for line in file] == [0, *log_steps[:-1]]
    entries = sum(row.weight.numel() for row in hf_nm.sparse_weights(trainer.model))
    for line, figure in zip(file, expected, strict=True):
        assert figures(line) == figure
        layers = line["layers"].values()
        assert set(line["layers"]) == {row.name for row in hf_nm.report(trainer.model).layers}
        assert sum(layer["sad"] for layer in layers) == figure["nm/sad"]
        assert sum(layer["sad_init"] for layer in layers) == figure["nm/sad_init"]
        steps = line["optimizer_step"] - line["since_optimizer_step"]
        flips = sum(layer["flips"] for layer in layers)
        assert flips / (entries * steps) == figure["nm/flip_rate"]


def test_reporters_see_the_figures(tmp_path, monkeypatch):
    """Red if NMCallback comes after the reporters, which take each log as it passes."""
    made = []

    class Reporter(Recorder):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(
        "transformers.trainer.get_reporting_integration_callbacks", lambda _: [Reporter]
    )
    trainer = build(tmp_path)
    assert type(trainer.callback_handler.callbacks[0]) is hf_nm.NMCallback
    trainer.train()
    seen = [line for line in made[0].logs if "loss" in line]
    assert [set(figures(line)) for line in seen] == [set(NM_KEYS)] * 4
    assert [figures(line) for line in seen] == [figures(line) for line in train_logs(trainer)]


def test_an_automatic_decay_is_logged(tmp_path):
    """Red if it is not the one in force at an interval's last step, or not the mean over weights."""
    options = {"decay_warmup_steps": 24}
    trainer = build(tmp_path, sparsify={"decay": "auto"}, options=options)
    trainer.train()
    logged = [figures(line)["nm/decay"] for line in train_logs(trainer)]
    decays = trainer.nm_callback.attachment.meter.decays()
    assert logged[-1] == pytest.approx(0.5 * sum(decays.values()) / len(decays))
    for line, decay in zip(sad_file(tmp_path), logged, strict=True):
        of_layers = [layer["decay"] for layer in line["layers"].values()]
        assert sum(of_layers) / len(of_layers) == pytest.approx(decay) == line["nm/decay"]
        assert len(set(of_layers)) == len(of_layers)
