"""What the stand-in for the Hub keeps, and what it says to a model card."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from hf_nm.hub.readme import update_readme


@dataclass(frozen=True)
class File:
    """A file of a commit; ``oid`` is its git hash, an LFS file's is that of its pointer."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        size = len(self.data)
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n"
        ).encode()

    @property
    def oid(self) -> str:
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository: the commits of each branch, the newest last."""

    id: str
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def add(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        before = self.branches.setdefault(branch, [])
        parent = before[-1].oid if before else ""
        listing = json.dumps([parent, title, sorted((n, f.oid) for n, f in files.items())])
        before.append(Commit(hashlib.sha1(listing.encode()).hexdigest(), title, dict(files)))
        return before[-1]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in commits if commit.oid == revision), None)


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a card's metadata: the types that the Hub asks for."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, flags=re.DOTALL)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"], []
    if not isinstance(data, dict):
        return ["metadata must be an object"], []
    errors = []
    for key in ("license", "library_name", "pipeline_tag"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "metrics", "base_model", "language"):
        values = data.get(key, [])
        values = [values] if isinstance(values, str) and key not in ("tags",) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be an array of strings')
    for model in data.get("model-index") or []:
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append('"model-index" needs a name and results')
            continue
        for result in model["results"]:
            good = {"type"} <= result.get("task", {}).keys()
            good = good and {"name", "type"} <= result.get("dataset", {}).keys()
            metrics = result.get("metrics") or [{}]
            if not good or not all({"type", "value"} <= metric.keys() for metric in metrics):
                errors.append('"model-index[].results[]" needs a task, a dataset and metrics')
    return errors, []


def update(text: str | None, part: str = "PART", **metadata: Any) -> str:
    """A card with our part in it, and metadata, over a text that was there."""
    return update_readme(text, part, metadata, {}, "model")
