"""What a model card can say of a folder and a run, found out from their files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_nm.checkpoint.model_class import needs_own_code, opened_by
from hf_nm.checkpoint.verify import verify
from hf_nm.formats.manifest import KEY, Manifest
from hf_nm.formats.packed_config import is_packed_config
from hf_nm.hub.card import CardFacts, code, patterns_of, plain
from hf_nm.hub.figures import plot_sad
from hf_nm.hub.scores import read_run, read_scores
from hf_nm.model.report import Report
from hf_nm.optim.sad_log import read_history, read_state, sad_curve, sad_summary

PLOT = "sad.png"

_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def facts_of(folder: Path, repo_id: str, **known: Any) -> CardFacts:
    """What there is to say of a saved model: verified, and read from the files beside it.

    Args:
        folder: written by ``save_pretrained`` or a Trainer.
        repo_id: where it will be.
        **known: other fields of :class:`~hf_nm.hub.card.CardFacts`; None is found out here.

    Raises:
        BrokenPatternError: a group keeps more than n.
        ValueError: the files do not hold what the config claims.
        FileNotFoundError: there is no model in the folder.
    """
    config = _read_config(folder)
    found: dict[str, Any] = {}
    if config.get(KEY) is not None or not config:  # without a config verify says what is wrong
        found["report"] = verify(folder)
        found["manifest"] = Manifest.from_dict(config[KEY])
    found["packed"] = is_packed_config(config)
    found["loads_with"], found["task"] = opened_by(config)
    found["own_code"] = needs_own_code(config)
    found["processor"] = _processor(folder, config)
    found["sad"] = sad_summary(read_history(folder))
    found["recipe"] = _recipe_of_run(folder, config)
    known = {name: value for name, value in known.items() if value is not None}
    return CardFacts(repo_id, **found | known)


def base_of(model: Any, repo_id: str) -> str | None:
    """Which model of the Hub this one was loaded from, if from another."""
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    if not isinstance(name, str) or not _REPO_ID.fullmatch(name):
        return None
    return None if name == repo_id or Path(name).exists() else name


def draw_sad(history: Sequence[dict], path: Path, report: Report | None) -> bool:
    """Draw SAD beside the loss, if it was logged and matplotlib is there; whether it was drawn."""
    if not sad_curve(history):
        return False
    try:
        plot_sad(history, path, " ".join(patterns_of(report)))
    except ModuleNotFoundError:
        return False
    return True


def holds_sparse_weights(folder: Path) -> bool:
    """Whether there are weights in a folder, and a config that claims something of them."""
    return KEY in _read_config(folder) and any(folder.glob("*.safetensors"))


def said_versions(versions: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """The libraries that trained a model, in a line; the system is nobody's business."""
    claimed = config.get(KEY) or {}
    known = {"hf_nm": claimed["hf_nm"]} if "hf_nm" in claimed else {}
    known |= {name: number for name, number in versions.items() if name != "system"}
    return plain(", ".join(f"{name} {number}" for name, number in known.items()))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _processor(folder: Path, config: Mapping[str, Any]) -> str | None:
    kinds = {
        "tokenizer_config.json": "AutoTokenizer",
        "processor_config.json": "AutoProcessor",
        "preprocessor_config.json": "AutoImageProcessor"
        if "image_size" in config
        else "AutoProcessor",
    }
    return next((kind for file, kind in kinds.items() if (folder / file).is_file()), None)


def _recipe_of_run(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a folder that no Trainer is there for: what recipes and Trainers wrote beside the model."""
    recipe: dict[str, Any] = {}
    results, state = folder / "results.json", folder / "trainer_state.json"
    if results.is_file() and read_scores(folder):
        run = read_run(results)
        recipe = {name: run.get(name) for name in ("steps", "epochs", "seed")}
        recipe["versions"] = said_versions(run.get("versions") or {}, config)
        recipe["command"] = code(run["command"]) if run.get("command") else None
        return recipe
    if state.is_file():
        recipe["steps"] = read_state(state).get("global_step")
    if config.get(KEY) is not None and "transformers_version" in config:
        saved = f"transformers {config['transformers_version']}, hf_nm {config[KEY]['hf_nm']}"
        recipe["saved with"] = plain(saved)
    return recipe
