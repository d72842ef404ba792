"""What happens between two steps leaves training alone: recomputed activations, generation."""

from __future__ import annotations

import models
import pytest
import torch
from training import State, assert_same_state, assert_sparse, state_of

import hf_nm


def run(kind: str, prepare=lambda model: None, between=lambda model: None) -> State:
    """The state after four steps of a sparse model."""
    model = hf_nm.sparsify(models.MODELS[kind](), decay=0.01).train()
    prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = hf_nm.attach(optimizer, model)
    for step in range(4):
        optimizer.zero_grad()
        model(**models.batch(model, seed=step)).loss.backward()
        between(model)
        optimizer.step()
        between(model)
    assert handle.sad() > 0
    assert_sparse(model)
    return state_of(model, optimizer)


@pytest.mark.parametrize(
    ("kind", "options"),
    [  # (re-entrant, Marian's shared embedding sums its gradients in another order)
        ("llama", None),
        ("llama", {"use_reentrant": False}),
        ("llama", {"use_reentrant": True}),
        ("marian", {"use_reentrant": False}),
    ],
)
def test_recomputed_activations(kind, options):
    """Red if the second forward sees other weights than the first, or a weight's hook runs twice."""

    def prepare(model):
        getattr(model, f"{models.RECOMPUTE}_enable")(options)
        assert getattr(model, f"is_{models.RECOMPUTE}")

    assert_same_state(run(kind, prepare), run(kind))


@pytest.mark.parametrize("kind", ["llama", "marian"])
def test_generation_between_steps(kind):
    """Red if generation computes with other weights than the saved ones, or training departs after."""
    plain = models.MODELS[kind]()
    answers = []

    def generate(model):
        prompt = {"input_ids": models.batch(model)["input_ids"]}
        options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
        options |= {"return_dict_in_generate": True, "pad_token_id": 0}
        plain.load_state_dict(model.state_dict())
        model.eval()
        found, expected = (m.generate(**prompt, **options) for m in (model, plain))
        model.train()
        assert torch.equal(found.sequences, expected.sequences)
        for one, other in zip(found.logits, expected.logits, strict=True):
            assert torch.equal(one, other)
        answers.append(found.logits[0])

    assert_same_state(run(kind, between=generate), run(kind))
    assert len(answers) == 8
    assert not torch.equal(answers[0], answers[-1])
