"""Every architecture of the zoo: which weights become N:M, a training step, and the checkpoint that
plain transformers opens."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from report_rows import sparse_names
from tolerances import assert_close, assert_same_bits
from torch import Tensor, nn
from training import assert_sparse
from transformers import PreTrainedModel
from zoo import ZOO
from zoo_entry import Entry, loss_of, tensors

import hf_nm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@pytest.fixture(params=list(ZOO))
def entry(request: pytest.FixtureRequest) -> Entry:
    """Each architecture in turn."""
    return ZOO[request.param]


def test_chosen_weights(entry: Entry) -> None:
    """Fails if a head, an embedding or a router is chosen, a weight of the blocks is forgotten, or
    groups run along another dimension than the inputs'."""
    model = hf_nm.sparsify(entry.build())
    chosen = {id(w.weight): w for w in hf_nm.sparse_weights(model)}
    for glob in entry.dense:
        wrong = [name for name, p in named(model, glob) if id(p) in chosen]
        assert not wrong, f"{glob} has to stay dense"
    for glob in entry.sparse:
        forgotten = [name for name, p in named(model, glob) if id(p) not in chosen]
        assert not forgotten, f"{glob} has to become N:M"
    for w in chosen.values():
        usual = 1 - w.weight.ndim if isinstance(w.layer, CONVOLUTIONS) else -1
        dims = [dim for glob, dim in entry.dims.items() if fnmatchcase(w.name, glob)]
        assert w.state.dim == (dims[0] if dims else usual), w.name


# MllamaVisionEncoderLayer is called like this by transformers 5.17 itself
@pytest.mark.filterwarnings("ignore:`hidden_state` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces a better way to train:FutureWarning")
def test_a_step_and_a_plain_checkpoint(entry: Entry, tmp_path: Path) -> None:
    """Fails if a step breaks a pattern or leaves a weight with a gradient as it was, if one changes its
    name or values on the way to the file and back, or if another module is what is loaded."""
    model = hf_nm.sparsify(entry.build())
    before = {w.name: w.weight.detach().clone() for w in hf_nm.sparse_weights(model)}
    train_one_step(model, entry)
    assert_sparse(model)
    hf_nm.verify(model)
    trained = [w for w in hf_nm.sparse_weights(model) if w.weight.grad is not None]
    assert trained
    stuck = [w.name for w in trained if torch.equal(w.weight, before[w.name])]
    assert not stuck

    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not hf_nm.sparse_weights(loaded)
    values = dict(loaded.state_dict())
    for name, tensor in model.state_dict().items():
        assert_same_bits(values[name], tensor, name)
    for actual, expected in zip(outputs(loaded, entry), outputs(model, entry), strict=True):
        assert_close(actual, expected)
    hf_nm.restore(loaded)
    assert sparse_names(loaded) == before.keys()


def test_verify_reads_the_folder(entry: Entry, tmp_path: Path) -> None:
    """Fails if the checkpoint does not show from its weights alone what the model holds."""
    model = hf_nm.sparsify(entry.build())
    model.save_pretrained(tmp_path)
    found = hf_nm.verify(tmp_path).layers
    expected = hf_nm.report(model).layers
    assert {row[:3] for row in found} == {row[:3] for row in expected}  # name, pattern, shape


def named(model: nn.Module, glob: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a glob names, by the new name or the old one; at least one."""
    found = [
        (name, parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if any(fnmatchcase(name, known) for known in glob.split("|"))
    ]
    assert found, f"{glob} names no parameter"
    return found


def train_one_step(model: PreTrainedModel, entry: Entry) -> None:
    """One step of AdamW in training mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hf_nm.attach(optimizer, model)
    model.train()
    loss_of(model(**entry.batch())).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    optimizer.step()
    model.eval()


@torch.no_grad()
def outputs(model: PreTrainedModel, entry: Entry) -> list[Tensor]:
    """What the model computes for its batch."""
    return list(tensors(model(**entry.batch())))
