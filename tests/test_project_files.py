"""Files around the package agree with it: versions, pins, the issue form, the release, the citation."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_nm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
YAML = [
    path
    for pattern in (".github/**/*.yml", ".pre-commit-config.yaml", "CITATION.cff")
    for path in sorted(ROOT.glob(pattern))
]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_loads(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_hooks_have_the_pins_of_the_extra_dev() -> None:
    """Red if one of the two places where a linter's version stands is changed alone."""
    pins = {r for r in PROJECT["optional-dependencies"]["dev"] if "==" in r}
    assert {pin.partition("==")[0] for pin in pins} == {"ruff", "mypy"}
    hooks = {
        hook["id"]: hook
        for repo in read(".pre-commit-config.yaml")["repos"]
        for hook in repo["hooks"]
    }
    assert hooks.keys() == {"ruff-check", "ruff-format", "mypy"}
    for hook in hooks.values():
        needs = hook.get("additional_dependencies", [])
        assert set(needs) <= pins
        # without versions of its own a hook runs what the extra installed
        assert needs or hook["language"] == "system"


def test_a_release_is_built_and_tried_before_it_is_published() -> None:
    """Red if a release could be published that was not built, installed and tried, or the token
    that publishes is within reach of another job."""
    release = read(".github/workflows/release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    jobs = release["jobs"]
    assert (jobs["publish"]["needs"], jobs["install"]["needs"]) == ("install", "build")
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    may_publish = [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})]
    assert may_publish == ["publish"]
    assert "id-token" not in release["permissions"]
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert "twine check --strict" in commands
    for path in re.findall(r"checkout/([\w./]+)", str(jobs["install"])):
        assert (ROOT / path).exists(), path


def test_the_form_asks_for_what_can_be_answered() -> None:
    """Red if the command that the form asks for fails, or the report has another name."""
    form = read(".github/ISSUE_TEMPLATE/bug.yml")
    asked = {part["id"]: part["attributes"] for part in form["body"]}
    assert all(part["validations"]["required"] for part in form["body"])
    assert "print(hf_nm.report(model))" in asked["report"]["label"]
    assert callable(hf_nm.report)
    (command,) = re.findall(r"```\n(.*)\n```", asked["versions"]["description"])
    python, *arguments = shlex.split(command)
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for name in ("'hf_nm'", "'torch'", "'transformers'", "'python'", "'accelerators'"):
        assert name in done.stdout


def test_the_citation_is_of_this_version() -> None:
    """Red if the version was raised in one of the two places, or the paper is another."""
    citation = read("CITATION.cff")
    assert citation["version"] == hf_nm.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Zhou", "Ma"]
    assert paper["year"] == 2021
