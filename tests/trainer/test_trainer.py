"""NMTrainer, NMSeq2SeqTrainer and NMCallback: training, files, and what is refused."""

from __future__ import annotations

import models
import pytest
import torch
from torch import nn
from trainers import (
    Recorder,
    arguments,
    build,
    figures,
    logits,
    one_layer_bert,
    rows,
    sad_file,
    train_logs,
)
from training import assert_same_state, assert_sparse, state_of
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    Trainer,
)

import hf_nm

# -- training ---------------------------------------------------------------------------------------


def test_equals_the_plain_loop(tmp_path):
    """Red if the Trainer's way round (clipping, scheduler, accelerate) changes what a step does."""
    trainer = build(tmp_path, max_grad_norm=0.5, lr_scheduler_type="linear", max_steps=6)
    order = []
    trainer.training_step, original = (
        lambda model, inputs, *rest: order.append(inputs) or original(model, inputs, *rest),
        trainer.training_step,
    )
    trainer.train()

    model = hf_nm.sparsify(one_layer_bert()).train()
    groups = Trainer(model=model, args=arguments(tmp_path)).create_optimizer().param_groups
    optimizer = torch.optim.AdamW(groups, lr=0.01, fused=True)
    hf_nm.attach(optimizer, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 6)
    for inputs in order:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    assert len(order) == 6
    assert_same_state(state_of(trainer.model), state_of(model))


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_optimizers(optim, tmp_path):
    """Red if an optimizer's way of writing weights escapes the projection."""
    learning_rate = 0.5 if optim == "sgd" else 0.01
    trainer = build(tmp_path, optim=optim, learning_rate=learning_rate)
    trainer.train()
    assert_sparse(trainer.model)
    assert train_logs(trainer)[-1]["nm/sad_init"] > 0
    trainer.save_model()
    hf_nm.verify(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {models.RECOMPUTE: True},
        {"gradient_accumulation_steps": 3, "num_train_epochs": 2, "max_steps": -1},
        {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 3},
        {"max_grad_norm": 0.0, "weight_decay": 0.1},
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 1.0},
        {"auto_find_batch_size": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_ways_of_training(changes, tmp_path):
    trainer = build(tmp_path, **changes)
    trainer.train()
    assert trainer.nm_callback.attachment.step == trainer.state.global_step > 0
    assert_sparse(trainer.model)
    assert train_logs(trainer)[-1]["nm/sad_init"] > 0


def test_callers_own_optimizer_and_scheduler(tmp_path):
    model = hf_nm.sparsify(one_layer_bert())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    trainer = build(tmp_path, model=model, options={"optimizers": (optimizer, schedule)})
    trainer.train()
    assert trainer.nm_callback.attachment.optimizer is optimizer
    assert trainer.nm_callback.attachment.step == 12
    assert_sparse(model)


def test_evaluation_in_between_changes_nothing(tmp_path):
    """Red if evaluate or predict see dense weights, or training goes on differently after them."""
    states = []
    for folder, strategy in (("plain", "no"), ("evaluated", "steps")):
        trainer = build(tmp_path / folder, eval_strategy=strategy, eval_steps=2)
        trainer.train()
        states.append(state_of(trainer.model, trainer.optimizer))
        file = (tmp_path / folder / "nm_sad.jsonl").read_text()
        states.append({"file": torch.tensor(list(file.encode()))})
    assert_same_state(states[2], states[0])
    assert_same_state(states[3], states[1])
    metrics = trainer.evaluate()
    predicted = trainer.predict(rows(trainer.model)[:8])
    assert not figures(metrics)
    assert predicted.metrics["test_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)
    plain = one_layer_bert()
    plain.load_state_dict(trainer.model.state_dict())
    inputs = {k: v for k, v in models.batch(plain, 48, seed=3).items() if k != "labels"}
    with torch.no_grad():
        expected = plain.eval()(**inputs).logits[:8]
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), expected)


def test_seq2seq_with_generation(tmp_path):
    model = hf_nm.sparsify(models.marian())
    trainer = build(
        tmp_path,
        hf_nm.NMSeq2SeqTrainer,
        model=model,
        options={"mask_interval": 2},
        predict_with_generate=True,
        generation_max_length=6,
        eval_strategy="steps",
        eval_steps=6,
    )
    trainer.train()
    assert trainer.nm_callback.attachment.schedule.mask_interval == 2
    assert train_logs(trainer)[-1]["nm/sad_init"] > 0
    trainer.save_model()
    hf_nm.verify(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_train_called_twice(tmp_path):
    """Red if the second run attaches a second time, or leaves lines of the first one in the file."""
    recorder = Recorder()
    trainer = build(tmp_path, options={"callbacks": [recorder]}, max_steps=6)
    trainer.train()
    handle = trainer.nm_callback.attachment
    first, start = recorder.masks, recorder.masks[0]
    trainer.train()
    assert trainer.nm_callback.attachment is handle
    assert handle.step == 12
    assert_sparse(trainer.model)
    assert [line["step"] for line in sad_file(tmp_path)] == [3, 6]
    recorder.masks = [start, *first[1:], *recorder.masks[1:]]
    assert [figures(line) for line in train_logs(trainer)] == recorder.expected([3, 6, 9, 12])[2:]


def test_model_init(tmp_path):
    """Red if the handle stays with the model that a new call of ``model_init`` replaced."""
    made = []

    def model_init():
        made.append(hf_nm.sparsify(one_layer_bert()))
        return made[-1]

    trainer = hf_nm.NMTrainer(
        model_init=model_init, args=arguments(tmp_path), train_dataset=rows(one_layer_bert())
    )
    states = []
    for _ in range(2):
        trainer.train()
        assert trainer.nm_callback.attachment.model is made[-1] is trainer.model
        assert trainer.nm_callback.attachment.step == 12
        assert_sparse(trainer.model)
        states.append(state_of(trainer.model))
    assert len(made) == 3
    assert_same_state(*states)


# -- files ------------------------------------------------------------------------------------------


def test_checkpoints_are_sparse_and_open_plainly(tmp_path):
    """Red if a checkpoint holds dense values, or needs this package to be opened."""
    trainer = build(tmp_path, save_strategy="steps", save_steps=4, save_total_limit=2)
    trainer.train()
    trainer.save_model()
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["checkpoint-12", "checkpoint-8"]
    for folder in (tmp_path / "checkpoint-8", tmp_path / "checkpoint-12", tmp_path):
        report = hf_nm.verify(folder)
        assert len(report.layers) == 6
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        assert not hf_nm.sparse_weights(plain)
        assert plain.config.nm_sparsity["n"] == 2
    torch.testing.assert_close(logits(plain), logits(trainer.model), rtol=0, atol=0)


def test_load_best_model_at_end(tmp_path):
    """Red if the best weights arrive beside the last masks and pruned parts."""
    trainer = build(
        tmp_path,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that an early one is the best
        save_total_limit=1,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert_sparse(trainer.model)
    plain = AutoModelForSequenceClassification.from_pretrained(best)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name
    for w in hf_nm.sparse_weights(trainer.model):
        assert torch.equal(w.dense_weight(), w.weight)
    trainer.save_model(tmp_path / "best")
    hf_nm.verify(tmp_path / "best")
    trainer.train()  # and on from there
    assert_sparse(trainer.model)


def test_a_finished_model_trains_on_in_another_trainer(tmp_path):
    trainer = build(tmp_path / "first")
    trainer.train()
    other = build(tmp_path / "second", model=trainer.model)
    other.train()
    assert other.nm_callback.attachment is not trainer.nm_callback.attachment
    assert other.nm_callback.attachment.step == 12
    assert_sparse(trainer.model)


# -- what is refused --------------------------------------------------------------------------------


def test_a_model_with_nothing_sparse_is_refused(tmp_path):
    for make in (
        lambda: build(tmp_path, model=one_layer_bert()),
        lambda: hf_nm.NMCallback().install(build(tmp_path, Trainer, model=one_layer_bert())),
        lambda: build(
            tmp_path, Trainer, model=one_layer_bert(), options={"callbacks": [hf_nm.NMCallback()]}
        ).train(),
    ):
        with pytest.raises(ValueError, match=r"hf_nm\.sparsify\(model\)"):
            make()


def test_two_callbacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="already has an NMCallback"):
        build(tmp_path, options={"callbacks": [hf_nm.NMCallback()]})
    trainer = build(tmp_path)
    with pytest.raises(ValueError, match="already has an NMCallback"):
        hf_nm.NMCallback().install(trainer)


def test_installing_twice_is_once(tmp_path):
    recorder = Recorder()
    trainer = build(tmp_path, Trainer, options={"callbacks": [recorder]})
    callback = hf_nm.NMCallback()
    assert callback.install(trainer) is callback.install(trainer) is callback
    trainer.train()
    assert len(sad_file(tmp_path)) == 4
    assert [figures(line) for line in train_logs(trainer)] == recorder.expected([3, 6, 9, 12])


@pytest.mark.parametrize("what", ["deepspeed", "fsdp"])
def test_deepspeed_and_fsdp1_are_refused(what, tmp_path):
    trainer = build(tmp_path, Trainer)
    setattr(trainer, f"is_{what}_enabled", True)
    trainer.accelerator.state.fsdp_plugin = None
    with pytest.raises(TypeError, match="FSDP2"):
        hf_nm.NMCallback().install(trainer)


def test_options_are_checked(tmp_path):
    for options in ({"mask_interval": 0}, {"freeze_masks_at": 1.5}):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            build(tmp_path, options=options)


def test_a_trainer_that_gets_its_model_later(tmp_path):
    """Red if install needs a model that a trainer makes when training starts, or holds on to another one
    than that it then has; a dense one is still refused."""
    first, second = (hf_nm.sparsify(one_layer_bert()) for _ in range(2))
    trainer = Trainer(model=first, args=arguments(tmp_path, max_steps=2), train_dataset=rows(first))
    trainer.model = None
    callback = hf_nm.NMCallback().install(trainer)
    trainer.model = trainer.model_wrapped = second
    trainer.train()
    assert callback.attachment.model is second
    assert callback.attachment.step == 2

    trainer = Trainer(model=first, args=arguments(tmp_path, max_steps=2), train_dataset=rows(first))
    hf_nm.NMCallback().install(trainer)
    trainer.model = trainer.model_wrapped = one_layer_bert()
    with pytest.raises(ValueError, match="holds none of the model's"):
        trainer.train()


def test_callbacks_that_are_given_another_object(tmp_path):
    """setfit's trainer does it: the object that holds body and head. Red if the callback takes what is
    given for the model, and not what install had."""
    model = hf_nm.sparsify(one_layer_bert())
    trainer = Trainer(model=model, args=arguments(tmp_path, max_steps=2), train_dataset=rows(model))
    handler, call_event = trainer.callback_handler, trainer.callback_handler.call_event

    def with_another(event, args, state, control, **kwargs):
        handler.model = object()
        return call_event(event, args, state, control, **kwargs)

    handler.call_event = with_another
    callback = hf_nm.NMCallback().install(trainer)
    trainer.train()
    assert callback.attachment.model is model
    assert callback.attachment.step == 2
