"""Pushing sparse models to the Hub and opening them again, over HTTP, with a stand-in for the Hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import models
import torch
from hub_server import HubServer
from trainers import logits, one_layer_bert
from transformers import AutoModelForSequenceClassification

import hf_nm

REPO = "alice/sparse-bert"


def trained_bert():
    """A sparse model after two steps: its pruned part is not zero."""
    model = hf_nm.sparsify(one_layer_bert())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hf_nm.attach(optimizer, model)
    for step in range(2):
        model(**models.batch(model, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def opened(repo: str, **options):
    """What somebody else gets: the plain model, and the folder of a snapshot."""
    model = AutoModelForSequenceClassification.from_pretrained(repo, **options)
    return model, Path(huggingface_hub.snapshot_download(repo, **options))


def test_plain_push(hub: HubServer) -> None:
    """Red if transformers' own push does not send exact zeros with the manifest."""
    model = trained_bert()
    model.push_to_hub(REPO)
    loaded, folder = opened(REPO)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.nm_sparsity == model.config.nm_sparsity
    assert sorted(hf_nm.verify(folder).layers) == sorted(hf_nm.verify(model).layers)
