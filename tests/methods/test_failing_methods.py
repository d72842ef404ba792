"""A method's own code raises: its error comes through, and the weights are sparse ones afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training import example, masks, sparse_mlp
from wide import saliency

import hf_nm
from hf_nm.methods.method import Aside


class OnceWrong:
    """Raises at one of its calls."""

    def __init__(self, wrong_at: int) -> None:
        self.calls, self.wrong_at = 0, wrong_at

    def __call__(self, dense: torch.Tensor, *others: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.wrong_at:
            raise KeyError("mine")
        return dense.clone()


def method_of(part: str, failing: OnceWrong, aside: Aside) -> hf_nm.Method:
    own: dict[str, Any] = {part: failing, "extras": saliency}
    return hf_nm.Method("failing", uses_decay=False, aside=aside, **own)


@pytest.mark.parametrize(
    ("part", "aside"),
    [("score", Aside.PRUNED), ("score", Aside.DENSE), ("project", Aside.DENSE)],
)
def test_weights_are_sparse_after_an_error(part: str, aside: Aside) -> None:
    """Red if a weight is left dense after the error, the next one is, the error is another one, or the
    dense weights are lost with it."""
    failing = OnceWrong(3)  # both weights are projected when they are made sparse
    model = sparse_mlp(dtype=torch.float64, method=method_of(part, failing, aside))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    failing.calls, failing.wrong_at = 0, 1
    before = masks(model)
    dense = [w.dense_weight() for w in hf_nm.sparse_weights(model)]
    inputs, targets = example(0, dtype=torch.float64)
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    gradients = [w.weight.grad.clone() for w in hf_nm.sparse_weights(model)]
    with pytest.raises(KeyError, match="mine"):
        optimizer.step()
    hf_nm.verify(model)
    first = hf_nm.sparse_weights(model)[0]
    if part == "score":
        assert torch.equal(first.mask, before[first.name])
    for w, was, gradient in zip(hf_nm.sparse_weights(model), dense, gradients, strict=True):
        assert torch.allclose(w.dense_weight(), was - 0.1 * gradient, atol=1e-12)
    assert model.state_dict()
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    hf_nm.verify(model)


def test_attached_again_after_frozen_masks() -> None:
    """Red if what a method keeps aside is missing in a checkpoint that is saved before the next step."""
    model = sparse_mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = hf_nm.attach(optimizer, model, freeze_masks_at=1)
    inputs, targets = example(0, dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    handle.remove()
    hf_nm.attach(optimizer, model)
    saved = optimizer.state_dict()
    other = sparse_mlp(dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    resumed = torch.optim.SGD(other.parameters(), lr=0.1)
    hf_nm.attach(resumed, other)
    resumed.load_state_dict(saved)


def test_extras_follow_a_cast() -> None:
    """Red if extras stay behind in the dtype that the weight had, or change one of their own."""

    def extras(dense: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"same": torch.ones_like(dense), "wider": dense.double()}

    method = hf_nm.Method("averaging", uses_decay=False, extras=extras)
    model = sparse_mlp(dtype=torch.float32, method=method)
    for w in hf_nm.sparse_weights(model):
        w.weight.data = w.weight.data.bfloat16()  # no hook tells of it
        w.state.match_placement(w.weight)
        assert w.state.parts.extras["same"].dtype == torch.bfloat16
        assert w.state.parts.extras["wider"].dtype == torch.float64
