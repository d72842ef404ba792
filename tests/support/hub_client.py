"""Pointing huggingface_hub and transformers, which other tests keep offline, at the stand-in."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers
from hub_answers import WRITE
from hub_server import HubServer
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification


def connect(server: HubServer, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Set in this process what :func:`environment` sets before a new one starts."""
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    # older versions have none
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(home / "agents.json"), raising=False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    # The Trainer turns them on, and huggingface_hub warns where the environment has turned them off.
    bars = sys.modules["huggingface_hub.utils.tqdm"]  # a class has the same name
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    bars.disable_progress_bars()
    for name, value in environment(server, home).items():
        monkeypatch.setenv(name, value)
    # Waits between retries are huggingface_hub's business: the tests have no time for them.
    waited = huggingface_hub.utils._http.time
    monkeypatch.setattr(waited, "sleep", lambda seconds, sleep=time.sleep: sleep(seconds / 1000))
    huggingface_hub.close_session()


def environment(server: HubServer, home: Path, token: str | None = WRITE) -> dict[str, str]:
    """What somebody sets to work with another Hub than huggingface.co."""
    values: dict[str, Any] = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_ETAG_TIMEOUT": "600",  # the machine may be busy
        "HF_HUB_DOWNLOAD_TIMEOUT": "600",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return values | ({"HF_TOKEN": token} if token else {})


def fresh_environment(server: HubServer, home: Path, token: str | None = WRITE) -> dict[str, str]:
    """The environment of a new process that has only that."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | environment(server, home, token)


def opened(repo: str = "alice/sparse-bert", **options: Any) -> tuple[Any, Path]:
    """What somebody else gets: the plain model, and the folder of a snapshot."""
    model = AutoModelForSequenceClassification.from_pretrained(repo, **options)
    return model, Path(huggingface_hub.snapshot_download(repo, **options))
