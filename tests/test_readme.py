"""The README is executed: its Python snippets here, its two commands by ``.ci/run``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import assert_saved_sparse, python_blocks, surroundings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = python_blocks(README)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return surroundings()


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number: int, names: dict[str, Any]) -> None:
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), names)
    assert_saved_sparse()


def test_it_fits_a_screen() -> None:
    """Under 600 words, under 100 of them in tables."""
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert len(README.split()) < 600
    assert len(" ".join(rows).replace("|", " ").split()) < 100


def test_quick_start_is_two_commands_and_ci_runs_them() -> None:
    commands = re.findall(
        r"<!-- quick start: (.*?) -->\n```bash\n(.*?)```", README, flags=re.DOTALL
    )
    assert [name for name, _ in commands] == ["main job", "tests"]
    assert all(command.count("\n") == 1 for _, command in commands)
    assert README.count("```bash") == 2
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for name, _ in commands:
        assert f'readme_command "{name}"' in ci


PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/pages/*.md", "recipes/**/*.md")
    for path in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page: str) -> None:
    """Red if a table was never filled in."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.search(r"^[A-Z0-9_]+$|\| [A-Z]+_[A-Z]+ \||TODO|TBD", text, flags=re.MULTILINE)
