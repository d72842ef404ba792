"""The package's shape: imports go one way, heavy packages stay where they belong, files stay short."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from launching import run_python

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_nm"

# What a folder may import of the package, beside itself, compat, environment and version; and which
# packages that a plain training loop does without. A new folder gets its line here.
HUGGING_FACE = {"transformers", "huggingface_hub", "accelerate"}
DATA = {"datasets", "evaluate", "sacrebleu"}
SCIENCE = {"numpy", "pandas", "scipy", "sklearn"}
TERMINAL = {"typer", "rich"}
FOLDERS = {
    "sparsity": (
        set(),
        {"triton"},
    ),  # which torch's builds for GPUs bring; its kernels alone need it
    "methods": ({"sparsity"}, set()),
    "targets": ({"sparsity"}, set()),
    "formats": ({"sparsity", "methods"}, {"filelock"}),  # which torch itself needs
    "model": ({"sparsity", "methods", "targets", "formats"}, set()),
    "grouping": ({"sparsity", "methods", "model"}, set()),
    "inference": ({"sparsity", "targets", "formats", "model"}, {"triton"}),
    "optim": ({"sparsity", "methods", "formats", "model", "grouping"}, set()),
    "checkpoint": (
        {"sparsity", "methods", "targets", "formats", "model", "inference"},
        HUGGING_FACE,
    ),
    "hub": (
        {"sparsity", "formats", "model", "optim", "checkpoint"},
        HUGGING_FACE | {"matplotlib", "yaml"},
    ),
    "trainer": (
        {"sparsity", "formats", "model", "optim", "checkpoint", "hub"},
        HUGGING_FACE,
    ),
    "cli": (
        {"sparsity", "targets", "formats", "model", "inference", "optim", "checkpoint", "hub"},
        TERMINAL,
    ),
    "experiments": (
        {
            "sparsity",
            "methods",
            "targets",
            "formats",
            "model",
            "optim",
            "checkpoint",
            "hub",
            "trainer",
        },
        HUGGING_FACE | DATA | SCIENCE | {"yaml", "matplotlib", "filelock", "tqdm"},
    ),
}
BOTTOM = {
    "compat",
    "environment",
    "interrupts",
    "processes",
    "replaced",
    "version",
}  # files that every folder may import
ON_TOP = {"cli", "experiments"}  # folders that no other imports
LONGEST = 400  # lines
MOST = 10  # modules in a folder, beside its __init__


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, *, typing_too: bool = True) -> set[str]:
    """Full names of the modules that a file imports anywhere in it; ``package.name`` for a name
    imported from a package."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if not typing_too and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; write hf_nm.name"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def folder_of(path: Path) -> str:
    """The folder of the package that a file stands in, or the name of a file beside them."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_folder_has_its_line() -> None:
    assert {folder_of(path) for path in files()} == {*FOLDERS, *BOTTOM, "__init__"}
    for folder in FOLDERS:
        inside = [path for path in files() if folder_of(path) == folder]
        for parent in {path.parent for path in inside}:  # a folder's folders count by themselves
            modules = [path for path in inside if path.parent == parent]
            assert len(modules) - 1 <= MOST, f"{parent} holds {len(modules) - 1} modules"


def test_folders_make_no_circle() -> None:
    """Red if what one folder may import may import it."""
    order = list(FOLDERS)
    for folder, (below, _) in FOLDERS.items():
        assert below <= set(order[: order.index(folder)]), f"{folder} imports upward"
        assert not below & ON_TOP


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    """Red if a file imports from a folder above its own, or a package that does not belong there."""
    folder = folder_of(path)
    below, packages = FOLDERS.get(folder, (set(), HUGGING_FACE if folder == "compat" else set()))
    allowed = sys.stdlib_module_names | {"torch", "safetensors", "hf_nm"} | packages
    for module in imports(path):
        package, _, rest = module.partition(".")
        assert package in allowed, f"imports {module}"
        if package == "hf_nm" and folder != "__init__":
            other = rest.split(".")[0]
            on_top = {""} if folder in ON_TOP else set()  # the public names
            assert other in below | BOTTOM | {folder} | on_top, f"imports {module}"


def test_no_file_imports_in_a_circle() -> None:
    """Red if two files of a folder need each other (what only a type checker reads apart)."""
    dotted = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files()}
    needs: dict[str, set[str]] = {}
    for path, name in dotted.items():
        found = [f"{module}." for module in imports(path, typing_too=False)]
        needs[name] = {
            other for other in dotted.values() if any(f.startswith(f"{other}.") for f in found)
        }
    while ready := {name for name, need in needs.items() if not need - {name}}:
        needs = {name: need - ready for name, need in needs.items() if name not in ready}
    assert not needs, f"a circle among {sorted(needs)}"


def test_transformers_waits_inside_compat() -> None:
    """Red if compat, which a plain loop imports, needs transformers at once."""
    tree = ast.parse((PACKAGE / "compat.py").read_text(encoding="utf-8"))
    outer = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("transformers" in ast.unparse(node) for node in outer)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), (
        "a file says in its first line which question it answers"
    )


def test_names() -> None:
    vague = {"utils", "helpers", "common", "misc"}
    paths = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "recipes").rglob("*.py"),
    ]
    assert not vague & {path.stem for path in paths}


def test_import_is_light() -> None:
    """Red if ``import hf_nm`` and a training step load transformers or a recipe's package."""
    run_python(
        "-c",
        "import sys, torch, hf_nm\n"
        "model = torch.nn.Sequential(torch.nn.Linear(8, 8))\n"
        "hf_nm.sparsify(model, targets='*')\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "hf_nm.attach(optimizer, model)\n"
        "model(torch.ones(1, 8)).sum().backward()\n"
        "optimizer.step()\n"
        "hf_nm.verify(model)\n"
        "heavy = 'transformers huggingface_hub accelerate datasets evaluate sacrebleu matplotlib'\n"
        "heavy += ' scipy sklearn pandas tabulate'\n"
        "loaded = set(heavy.split()) & set(sys.modules)\n"
        "assert not loaded, loaded\n",
    )


def test_trainers_load_on_demand() -> None:
    run_python(
        "-c",
        "import sys, hf_nm\n"
        "assert {'NMTrainer', 'NMSeq2SeqTrainer', 'NMCallback'} <= set(dir(hf_nm))\n"
        "assert 'transformers' not in sys.modules\n"
        "hf_nm.NMTrainer\n"
        "import transformers\n"
        "assert issubclass(hf_nm.NMSeq2SeqTrainer, transformers.Seq2SeqTrainer)\n",
    )


def test_public_names() -> None:
    import hf_nm

    assert sorted(hf_nm.__all__) == hf_nm.__all__
    assert all(getattr(hf_nm, name) is not None for name in hf_nm.__all__)
    assert all(getattr(hf_nm, name).__doc__ for name in hf_nm.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'sparsifi'"):
        hf_nm.sparsifi  # noqa: B018
