"""CONTRIBUTING.md holds: its map is the package's, its example runs, what it points to is there."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest
from test_layout import BOTTOM, FOLDERS, HUGGING_FACE, ON_TOP, PACKAGE, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SHIPPED_ONE_DAY = {"hf_nm/methods/l1.py", "tests/methods/test_l1.py"}  # the example's


def folders(top: Path) -> list[Path]:
    """The package's folders, in the order of ``FOLDERS``; folders inside one follow it."""
    order = list(FOLDERS)
    inside = {path.parent for path in top.rglob("*.py")} - {top}

    def place(folder: Path) -> tuple[int, str]:
        parts = folder.relative_to(top).parts
        return order.index(parts[0]), str(folder)

    return [top, *sorted(inside, key=place)]


def tree(top: Path) -> str:
    """The map as CONTRIBUTING.md has it."""
    lines = []
    for folder in folders(top):
        says = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert says, f"{folder}/__init__.py says what the folder answers"
        name = f"{folder.relative_to(top.parent).as_posix()}/"
        lines.append(f"{name:<20}  {says.splitlines()[0]}")
        names = sorted(path.name for path in folder.glob("*.py"))
        if folder != top:
            names.remove("__init__.py")
        lines += textwrap.wrap(
            "  ".join(names), 100, initial_indent=" " * 4, subsequent_indent=" " * 4
        )
    return "\n".join(lines) + "\n"


def test_the_map_is_the_package() -> None:
    """Red if a file or folder is added, removed or renamed, or a folder's question is."""
    (written,) = re.findall(r"<!-- tree -->\n```text\n(.*?)```", TEXT, flags=re.DOTALL)
    assert written == tree(PACKAGE), f"CONTRIBUTING.md's tree has to be\n\n{tree(PACKAGE)}"


def test_the_map_notices(tmp_path: Path) -> None:
    """Red if the tree would not show a new file, or a folder inside a folder."""
    for name in ("", "sparsity", "sparsity/kernels", "model"):
        folder = tmp_path / "hf_nm" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f'"""Answers {name or "all"}."""\n', encoding="utf-8")
    (tmp_path / "hf_nm" / "sparsity" / "kernels" / "new.py").touch()
    assert tree(tmp_path / "hf_nm").splitlines() == [
        "hf_nm/                Answers all.",
        "    __init__.py",
        "hf_nm/sparsity/       Answers sparsity.",
        "hf_nm/sparsity/kernels/  Answers sparsity/kernels.",
        "    new.py",
        "hf_nm/model/          Answers model.",
    ]


def test_imports_go_up_the_map() -> None:
    """Red if what the text says of imports is not what ``test_layout`` holds."""
    shown = re.findall(r"^hf_nm/(\w+)/ ", TEXT, flags=re.MULTILINE)
    assert [folder for folder in shown if folder in FOLDERS] == list(FOLDERS)
    for folder, (below, packages) in FOLDERS.items():
        assert below <= set(shown[: shown.index(folder)])
        if shown.index(folder) < shown.index("checkpoint"):
            assert not packages & HUGGING_FACE, f"{folder} is above `checkpoint`"
    assert all(f"`{name}`" in TEXT for name in BOTTOM | ON_TOP)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number: int) -> None:
    """Red if the example's method does not shrink the pruned part, or its form is no longer one."""
    exec(compile(SNIPPETS[number], f"CONTRIBUTING.md, snippet {number + 1}", "exec"), {})


def test_the_example_judges_its_method() -> None:
    """Red if the example's own assertion would hold for a method that leaves the pruned part alone."""
    (example,) = [snippet for snippet in SNIPPETS if "method=l1" in snippet]
    with pytest.raises(AssertionError):
        exec(example.replace("method=l1", 'method="ste"'), {})


def test_what_it_points_to_is_there() -> None:
    """Red if a file that the text sends people to was moved, or a name in it."""
    paths = set(re.findall(r"`((?:hf_nm|tests|recipes)/[\w/.]*|[A-Z]+\.md)`", TEXT))
    assert len(paths) > 10
    assert {path for path in paths if not (ROOT / path).exists()} == SHIPPED_ONE_DAY
    for path, names in {
        "hf_nm/targets/kinds.py": ("BARE_MATRICES", "input_dims"),
        "tests/targets/test_kinds.py": ("READS_INPUT",),
        "tests/test_layout.py": ("FOLDERS",),
    }.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert all(name in text and f"`{name}`" in TEXT for name in names)
