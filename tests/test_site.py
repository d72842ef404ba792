"""The site: its pages' blocks and the notebook run, every public name has an entry, and it builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import assert_saved_sparse, python_blocks, surroundings

import hf_nm

DOCS = Path(__file__).parents[1] / "docs"
PAGES = DOCS / "pages"
# Run in tests/test_other_tools.py and tests/test_run_fast.py.
ELSEWHERE = {"other_tools", "run_fast"}
RUN = sorted(
    page.stem
    for page in PAGES.glob("*.md")
    if python_blocks(page.read_text("utf-8")) and page.stem not in ELSEWHERE
)


@pytest.mark.parametrize("page", RUN)
def test_blocks_run_from_top_to_bottom(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Red if a block raises, or saves a checkpoint that is not sparse."""
    text = (PAGES / f"{page}.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    if "push_to_hub(" in text:
        request.getfixturevalue("hub")
    names: dict[str, Any] = surroundings()
    for number, block in enumerate(python_blocks(text), 1):
        exec(compile(block, f"{page}.md, block {number}", "exec"), names)
    assert_saved_sparse()


def test_every_public_name_has_its_entry() -> None:
    """Red if a name is exported and has no entry under API, or an entry has no such name."""
    entries = re.findall(r"^::: (\S+)$", (PAGES / "api.md").read_text("utf-8"), flags=re.MULTILINE)
    public = {name for name in hf_nm.__all__ if name != "__version__"}
    assert {entry.rpartition(".")[2] for entry in entries} == public
    for entry in entries:
        module, _, name = entry.rpartition(".")
        assert getattr(hf_nm, name).__module__ == module or name in vars(sys.modules[module])


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    for page in PAGES.glob("*.md"):
        assert f": {page.name}\n" in navigation + "\n"


def test_pictures_are_as_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a committed diagram is not what ``docs/draw.py`` draws."""
    monkeypatch.syspath_prepend(str(DOCS))
    draw = __import__("draw")
    for name, picture in (("group", draw.group_picture()), ("step", draw.step_picture())):
        assert (PAGES / "figures" / f"{name}.svg").read_text("utf-8") == picture
    # S + R = W, and two of four are kept
    kept = draw.keep(draw.ROW)
    assert [sum(kept[start : start + 4]) for start in (0, 4)] == [2, 2]


def test_builds_without_a_warning(tmp_path: Path) -> None:
    """Red if a link leads nowhere, an anchor is missing, or a page is in no menu."""
    pytest.importorskip("mkdocstrings", reason='needs pip install -e ".[docs]"')
    built = subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict", "-q"),
            *("-f", DOCS / "mkdocs.yml", "-d", tmp_path / "site"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stdout + built.stderr
    api = (tmp_path / "site" / "api.html").read_text("utf-8")
    assert all(f"{name}</code>" in api or f">{name}<" in api for name in ("sparsify", "NMTrainer"))


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a cell raises, or the sparse model does not learn the task."""
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient and ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads of so small a model wait for each other
    notebook = nbformat.read(DOCS / "quickstart.ipynb", 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=where).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    scores = dict(re.findall(r"^(dense|2:4): (\d+\.\d)%$", printed, flags=re.MULTILINE))
    assert float(scores["2:4"]) > 80  # half of the answers are "larger"
    for cell in notebook.cells:
        assert not [o for o in cell.get("outputs", ()) if o["output_type"] == "error"]
