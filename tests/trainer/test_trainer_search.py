"""Runs that the Trainer starts, ends or chooses by itself: early stopping, hyper-parameter search."""

from __future__ import annotations

from functools import partial

import pytest
from trainers import arguments, build, one_layer_bert, rows, train_logs
from training import assert_same_state, assert_sparse, state_of
from transformers import EarlyStoppingCallback
from transformers.hyperparameter_search import (
    ALL_HYPERPARAMETER_SEARCH_BACKENDS,
    HyperParamSearchBackendBase,
)
from transformers.trainer_utils import BestRun, HPSearchBackend

import hf_nm


def test_early_stopping(tmp_path):
    """Red if a run that was stopped leaves a checkpoint from which it cannot go on exactly."""
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    whole = build(tmp_path / "whole", **saving)
    whole.train()
    stopped = build(
        tmp_path / "stopped",
        options={"callbacks": [EarlyStoppingCallback(1, early_stopping_threshold=1e9)]},
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        **saving,
    )
    stopped.train()
    assert stopped.state.global_step == stopped.nm_callback.attachment.step == 6
    assert_sparse(stopped.model)
    assert train_logs(stopped)[-1]["nm/sad_init"] > 0
    last = tmp_path / "stopped" / "checkpoint-6"
    hf_nm.verify(last)
    resumed = build(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(last))
    assert_same_state(
        state_of(resumed.model, resumed.optimizer), state_of(whole.model, whole.optimizer)
    )


class Trial:
    """What the Trainer asks of one of Optuna's trials."""

    def __init__(self, number, params):
        self.number = number
        self.params = params


@pytest.fixture
def finished(monkeypatch):
    """Makes the Trainer search as with Optuna, over two settings; the state after each run."""
    found = []

    class Backend(HyperParamSearchBackendBase):
        name = "two settings"

        @staticmethod
        def is_available():
            return True

        def run(self, trainer, n_trials, direction, **kwargs):
            results = []
            for number in range(n_trials):
                trial = Trial(number, {"learning_rate": [0.02, 0.005][number]})
                trainer.train(trial=trial)
                results.append((trainer.compute_objective(trainer.evaluate()), trial))
                found.append(state_of(trainer.model))
                trainer.model = trainer.model_wrapped = None  # as with Optuna, to free memory
            objective, trial = min(results, key=lambda result: result[0])
            return BestRun(str(trial.number), objective, trial.params)

    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, Backend)
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    return found


def test_hyperparameter_search(finished, tmp_path):
    """Red if a trial starts with masks, pruned parts or an optimizer of the trial before."""

    def model_init(trial):
        decay = 2e-4 if trial is None else 0.1 * trial.params["learning_rate"]
        return hf_nm.sparsify(one_layer_bert(), decay=decay)

    def trainer(init, folder, **changes):
        data = rows(one_layer_bert())
        args = arguments(tmp_path / folder, **changes)
        return hf_nm.NMTrainer(
            model_init=init, args=args, train_dataset=data, eval_dataset=data[:8]
        )

    best = trainer(model_init, "search", save_strategy="steps", save_steps=6).hyperparameter_search(
        hp_space=lambda trial: trial.params, n_trials=2, backend="optuna"
    )
    assert best.hyperparameters in ({"learning_rate": 0.02}, {"learning_rate": 0.005})
    for number, rate in enumerate((0.02, 0.005)):
        trial = Trial(number, {"learning_rate": rate})
        alone = trainer(partial(model_init, trial), f"alone-{number}", learning_rate=rate)
        alone.train()
        assert_sparse(alone.model)
        assert train_logs(alone)[-1]["nm/sad_init"] > 0
        assert_same_state(finished[number], state_of(alone.model))
        hf_nm.verify(tmp_path / "search" / f"run-{number}" / "checkpoint-12")
