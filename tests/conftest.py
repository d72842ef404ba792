"""What every test gets: no network, a home of its own, one thread, a fixed seed, a device."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile

# Of this worker alone: it sees neither another one's files nor the user's token.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_nm-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# The stand-in for the Hub answers when the machine finds time for it; by default ten seconds are given.
os.environ["HF_HUB_ETAG_TIMEOUT"] = os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] = "600"
# Also for the processes that a test starts (launching.py): the tensors are tiny, others share the
# machine, and a sum's last bit depends on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_client import connect
from hub_server import HubServer
from huggingface_hub import close_session
from models import MODELS
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
torch.set_num_threads(1)  # whoever imported torch before this file

ROOT = Path(__file__).parents[1]

DEVICES: list[Any] = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


def pytest_collection_finish() -> None:
    """What the imports left, a million objects, is looked through no more by the garbage collector.

    accelerate calls ``gc.collect()`` in every ``Trainer.train()``, which took half of these tests' time;
    and Python puts off a full collection until a quarter more objects have come, which would let the
    models of hundreds of tests lie in their cycles.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(params=list(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the six test models in turn."""
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def single_process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in for the Hub that this process talks to, with a cache of its own."""
    with HubServer() as server:
        connect(server, monkeypatch, tmp_path / "hf-home")
        yield server
        close_session()


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dense run of the classification recipe: a teacher, and where ASP starts."""
    from classification import TINY, run, toy_files

    folder = tmp_path_factory.mktemp("dense")
    data = toy_files(tmp_path_factory.mktemp("reviews"))
    run(*data, *TINY.split(), "--method", "dense", "--output_dir", folder)
    return folder
