"""Learning from a dense teacher: the terms, their share of an update, what is refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import models
import pytest
import torch
from torch import Tensor, nn
from trainers import build, one_layer_bert, rows, train_logs
from training import assert_sparse
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

import hf_nm
from hf_nm.trainer.distillation import counted_positions, hidden_difference, logit_divergence
from hf_nm.trainer.trainers import _shifts_labels


def teacher_of(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """A dense model like this one, with other weights."""
    teacher = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return teacher


def tiny_gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=models.VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )


def slow_divergence(student: list[float], teacher: list[float], temperature: float) -> float:
    """``T**2 * sum(p * log(p / q))`` of one pair of logits, term by term."""

    def softmax(logits: list[float]) -> list[float]:
        powers = [math.exp(logit / temperature) for logit in logits]
        return [power / sum(powers) for power in powers]

    p, q = softmax(teacher), softmax(student)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_equals_the_formula(temperature):
    """Red if teacher and student are swapped, T is missing in one, or T**2 is."""
    student, teacher = [0.3, -1.2, 2.0], [1.5, 0.1, -0.4]
    found = logit_divergence(
        torch.tensor([student, teacher]), torch.tensor([teacher, teacher]), temperature
    )
    expected = (
        slow_divergence(student, teacher, temperature) / 2
    )  # the second row differs by nothing
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_divergence_of_a_regression_is_the_squared_difference():
    """Red if one logit goes through a softmax, which is 1 whatever it is."""
    found = logit_divergence(torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [3.0]]), 2.0)
    assert found.item() == 2.5


def test_only_counted_positions_count():
    """Red if padding is compared, or the mean is taken over it."""
    student, teacher = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    teacher[0, 0] = torch.tensor([1.0, 2.0, 3.0])
    teacher[1, 1] = float("nan")  # as padding may hold
    counted = torch.tensor([[True, True], [True, False]])
    expected = slow_divergence([0, 0, 0], [1.0, 2.0, 3.0], 2.0) / 3
    found = logit_divergence(student, teacher, 2.0, counted)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_positions_of_causal_labels_are_shifted():
    """Red if a causal model's logits are compared one position late."""
    labels = torch.tensor([[-100, 5, 6], [-100, -100, 7]])
    logits = torch.zeros(2, 3, 11)
    plain = counted_positions(logits, {}, labels, shifted=False)
    assert plain.tolist() == [[False, True, True], [False, False, True]]
    shifted = counted_positions(logits, {}, labels, shifted=True)
    assert shifted.tolist() == [[True, True, False], [False, True, False]]
    before = counted_positions(logits, {"shift_labels": labels}, labels, shifted=True)
    assert before.tolist() == plain.tolist()
    assert counted_positions(torch.zeros(2, 3), {}, torch.zeros(2), shifted=False) is None
    with pytest.raises(ValueError, match=r"labels of shape \(2, 3\).*got None"):
        counted_positions(logits, {}, None, shifted=False)


def test_hidden_difference_by_hand():
    """Red if the embeddings are compared, padding counts, or a layer weighs more than another."""
    embeddings, ours = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    theirs = torch.tensor([[[1.0, 3.0], [100.0, 100.0]]])  # the second token is padding
    student = {"hidden_states": (embeddings, ours, ours)}
    teacher = {"hidden_states": (embeddings + 50, theirs, 2 * theirs)}
    inputs = {"attention_mask": torch.tensor([[1, 0]])}
    assert hidden_difference(student, teacher, inputs).item() == (5 + 20) / 2
    with pytest.raises(ValueError, match="same layers and width"):
        hidden_difference(student, {"hidden_states": (embeddings, theirs)}, inputs)
    with pytest.raises(ValueError, match="output_hidden_states"):
        hidden_difference({}, {}, inputs)


def terms_of(model: nn.Module, teacher: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three means of a whole batch, computed apart."""
    ours = model(**batch, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**batch, output_hidden_states=True)
    return {
        "task": ours.loss,
        "divergence": logit_divergence(ours.logits, theirs.logits, 3.0),
        "hidden": hidden_difference(ours, theirs, batch),
    }


@pytest.mark.parametrize("counted", [True, False], ids=["divided by items", "by the Trainer"])
def test_the_update_is_that_of_the_whole_batch(tmp_path, counted):
    """Red if the terms are not divided as the task's loss is: by accumulation, or by the items."""

    def loss(outputs, labels, num_items_in_batch=None):
        total = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
        return total / num_items_in_batch

    model = hf_nm.sparsify(one_layer_bert())
    teacher = teacher_of(one_layer_bert())
    distillation = hf_nm.Distillation(teacher, weight=0.25, temperature=3.0, hidden_weight=0.1)
    options = {"distillation": distillation} | ({"compute_loss_func": loss} if counted else {})
    trainer = build(
        tmp_path,
        model=model,
        options=options,
        gradient_accumulation_steps=3,
        max_steps=1,
        logging_steps=1,
        max_grad_norm=0.0,
    )
    # transformers 5.0 has no train_sampling_strategy
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    trainer.model_accepts_loss_kwargs = False  # BERT says so, and then divides by nothing
    data = rows(model)[:12]
    whole = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    terms = terms_of(model, teacher.eval(), whole)
    expected = 0.75 * terms["task"] + 0.25 * terms["divergence"] + 0.1 * terms["hidden"]
    weight = hf_nm.sparse_weights(model)[0].weight
    (gradient,) = torch.autograd.grad(expected, weight)
    seen = []
    hook = weight.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.clone()))
    trainer.train()
    hook.remove()
    torch.testing.assert_close(seen[2], gradient, rtol=1e-4, atol=1e-6)
    (log,) = train_logs(trainer)
    assert log["loss"] == pytest.approx(expected.item(), rel=1e-3)
    assert log["distillation/divergence"] == pytest.approx(terms["divergence"].item(), rel=1e-3)
    assert log["distillation/hidden"] == pytest.approx(terms["hidden"].item(), rel=1e-3)


def test_evaluation_is_the_task_alone(tmp_path):
    """Red if eval_loss holds the teacher's terms, which a dense run's does not."""
    model = hf_nm.sparsify(one_layer_bert())
    teacher = teacher_of(one_layer_bert())
    with_teacher = build(
        tmp_path, model=model, options={"distillation": hf_nm.Distillation(teacher, weight=1.0)}
    )
    without = build(tmp_path, model=model)
    assert with_teacher.evaluate()["eval_loss"] == without.evaluate()["eval_loss"]


@pytest.mark.parametrize("kind", ["bert", "marian", "llama"])
def test_a_student_comes_nearer_its_teacher(tmp_path, kind):
    """Red if the gradient does not reach the student, points away, or the teacher trains too."""
    model = models.MODELS[kind]()
    teacher = teacher_of(model, scale=0.05).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = build(
        tmp_path,
        hf_nm.NMSeq2SeqTrainer if kind == "marian" else hf_nm.NMTrainer,
        model=hf_nm.sparsify(model, 3, 4),
        options={"distillation": hf_nm.Distillation(teacher, weight=1.0, hidden_weight=1.0)},
        learning_rate=0.002,
        max_steps=40,
        logging_steps=10,
    )
    trainer.train()
    logs = train_logs(trainer)
    for name in ("distillation/divergence", "distillation/hidden"):
        assert logs[-1][name] < 0.8 * logs[0][name]
    assert_sparse(model)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    trainer.save_model(tmp_path / "saved")
    hf_nm.verify(tmp_path / "saved")


def test_resumed_run_is_the_same(tmp_path):
    """Red if a resumed run hears another teacher, or logs what it heard before."""

    def trainer(folder: Path, **changes: object) -> Trainer:
        distillation = hf_nm.Distillation(teacher_of(one_layer_bert()), hidden_weight=0.5)
        return build(folder, options={"distillation": distillation}, logging_steps=2, **changes)

    whole = trainer(tmp_path / "whole", save_strategy="steps", save_steps=6)
    whole.train()
    second = trainer(tmp_path / "second", save_strategy="no")
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert train_logs(second) == train_logs(whole)
    state = json.loads((tmp_path / "whole" / "checkpoint-6" / "trainer_state.json").read_text())
    assert "distillation/hidden" in state["log_history"][0]


def test_refused():
    """Red if a distillation that cannot work, or does nothing, is taken."""
    teacher, student = one_layer_bert(), one_layer_bert()
    for options, message in [
        ({"weight": 1.5}, "weight must be at least 0 and at most 1"),
        ({"weight": True}, "weight must be a number"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"hidden_weight": -1.0}, "hidden_weight must be at least 0"),
        ({"hidden_weight": math.inf}, "hidden_weight must be at least 0"),
        ({"weight": 0}, "changes nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            hf_nm.Distillation(teacher, **options)
    with pytest.raises(TypeError, match="load it first"):
        hf_nm.Distillation("some/model")
    with pytest.raises(ValueError, match="share parameters"):
        hf_nm.Distillation(student).check(student)
    teacher.config.id2label = {0: "GOOD", 1: "BAD", 2: "OTHER"}
    hf_nm.Distillation(teacher).check(student)  # whose labels have no names
    student.config.id2label = {0: "good", 1: "bad", 2: "other"}
    hf_nm.Distillation(teacher).check(student)
    student.config.id2label = {0: "bad", 1: "good", 2: "other"}
    with pytest.raises(ValueError, match="same names for the same numbers"):
        hf_nm.Distillation(teacher).check(student)
    with pytest.raises(ValueError, match="the teacher has 5 labels"):
        hf_nm.Distillation(models.bert(num_labels=5)).check(student)
    student.config.problem_type = "regression"
    with pytest.raises(ValueError, match="regression with 3 labels"):
        hf_nm.Distillation(one_layer_bert()).check(student)
    student.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="problem_type"):
        hf_nm.Distillation(one_layer_bert()).check(student)


def test_other_widths_are_refused(tmp_path):
    """Red if a teacher of another size is broadcast against the student."""
    distillation = hf_nm.Distillation(models.bert(num_hidden_layers=2), hidden_weight=1.0)
    trainer = build(tmp_path, options={"distillation": distillation})
    with pytest.raises(ValueError, match="same layers and width"):
        trainer.train()
    logits = torch.zeros(4, 3), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"shape \(4, 1\), the model's \(4, 3\)"):
        logit_divergence(*logits, 2.0)
    with pytest.raises(ValueError, match="one distribution"):
        counted_positions(logits[0], {}, torch.zeros(4, 3), shifted=False)


def test_a_loss_that_is_not_divided_is_refused(tmp_path):
    """Red if the teacher counts for less than its weight beside BERT's own loss, which transformers
    adds up over the accumulated micro-batches."""
    distillation = hf_nm.Distillation(teacher_of(one_layer_bert()))
    trainer = build(tmp_path, options={"distillation": distillation}, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="BertForSequenceClassification's loss ignores"):
        trainer.train()
    build(tmp_path, options={"distillation": distillation}, max_steps=2).train()


@pytest.mark.parametrize(
    ("kind", "shifted"), [("llama", True), ("gpt2", True), ("bert", False), ("marian", False)]
)
def test_who_shifts_labels(tmp_path, kind, shifted):
    """Red if a causal model without a loss_type, as GPT-2, is compared one position late."""
    model = tiny_gpt2() if kind == "gpt2" else models.MODELS[kind]()
    trainer = build(tmp_path, model=hf_nm.sparsify(model))
    assert _shifts_labels(trainer, trainer.model) == shifted
