"""The package's shape: imports go one way, heavy packages stay where they belong, files stay short."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from launching import run_python

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_nm"

# A file imports only files above it. A new file gets its line here.
ORDER = [
    "version",
    "pattern",
    "mask",
    "method",
    "agreement",
    "bootstrap",
    "divergence",
    "sharding",
    "state",
    "check",
    "layers",
    "manifest",
    "kinds",
    "blocks",
    "targets",
    "wrapping",
    "weights",
    "meter",
    "report",
    "surgery",
    "tensorfile",
    "folder",
    "packing",
    "packedfile",
    "stored",
    "conversion",
    "snapshot",
    "checkpoint",
    "packed",
    "loader",
    "arrival",
    "semi_structured",
    "inspection",
    "oneshot",
    "ranks",
    "readiness",
    "guard",
    "modes",
    "resume",
    "schedule",
    "optim",
    "results",
    "predictions",
    "comparison",
    "layer_timing",
    "readme",
    "card",
    "hub",
    "run_card",
    "distillation",
    "trainer",
    "metrics",
    "text_rows",
    "recipe_options",
    "__init__",
    "terminal",
    "cli",
]
LONGEST = 400
TRANSFORMERS = {"transformers", "huggingface_hub", "accelerate"}
DATA = {"datasets", "evaluate", "sacrebleu"}
ALLOWED = {
    "trainer": TRANSFORMERS,
    "conversion": TRANSFORMERS,
    "snapshot": TRANSFORMERS,
    "loader": TRANSFORMERS,
    "hub": TRANSFORMERS,
    "inspection": TRANSFORMERS,
    "oneshot": TRANSFORMERS,
    "recipe_options": TRANSFORMERS,
    "metrics": DATA,
}


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


def test_every_file_has_its_place() -> None:
    assert {path.stem for path in files()} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))
    assert [path for path in files() if path.parent != PACKAGE] == [], "the package is flat"


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name: str) -> None:
    """Red if a file imports one below it (what only a type checker reads apart)."""
    above = set(ORDER[: ORDER.index(name)])
    for module in imports(PACKAGE / f"{name}.py", typing_too=False):
        package, _, rest = module.partition(".")
        if package == "hf_nm":
            file = rest.split(".")[0]
            assert (file if file in ORDER else "__init__") in above, f"imports {module}"


@pytest.mark.parametrize("name", ORDER)
def test_packages_stay_where_they_belong(name: str) -> None:
    """Red if a plain training loop would need transformers, or a library file a recipe's package."""
    outside = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
    assert outside & (TRANSFORMERS | DATA) <= ALLOWED.get(name, set())
    allowed = sys.stdlib_module_names | {"torch", "safetensors", "hf_nm", "matplotlib", "yaml"}
    terminal = {"typer", "rich"} if name in ("cli", "terminal") else set()
    assert outside - TRANSFORMERS - DATA <= allowed | terminal
    if name in ("pattern", "text_rows"):
        assert outside <= sys.stdlib_module_names, f"{name} needs the standard library only"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
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
