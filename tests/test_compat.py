"""What of torch, accelerate and transformers is not documented API stands in one file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hf_nm import compat

PACKAGE = Path(compat.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Documented places of transformers to import from, beside the package itself.
DOCUMENTED = {
    "transformers",
    "transformers.trainer_utils",
    "transformers.utils",
    "transformers.utils.logging",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined() -> set[str]:
    """Every underscore name that the package defines: functions, classes, variables, attributes."""
    names = {"_asdict", "_replace"}  # of every named tuple, documented
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if is_private(name)}


def touched(path: Path) -> set[str]:
    """The underscore names that a file reads as attributes, by dot or by ``getattr`` and its like."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr", "delattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            found.add(node.args[1].value)
    return {name for name in found if is_private(name)}


def test_private_names_stand_in_one_file() -> None:
    """Red if a file touches an underscore name of somebody else's that compat.py does not list, or
    lists but is not the only one to touch."""
    own = defined() - set(compat.PRIVATE)
    for path in FILES:
        others = touched(path) - own - set(compat.OF_NN_MODULE)
        if path.name == "compat.py":
            assert others == set(compat.PRIVATE)
        else:
            assert not others, f"{path.name} touches {others}"


def test_overridden_methods_are_listed() -> None:
    """Red if a class of hf_nm defines a private method of the class it is made from unlisted."""
    from hf_nm.model import layers

    for kind, names in compat.OVERRIDDEN.items():
        found = getattr(layers, kind)
        bases = found.__mro__[1:]
        overridden = {
            name
            for name in vars(found)
            if is_private(name) and any(hasattr(base, name) for base in bases)
        }
        assert overridden == set(names)


def test_how_the_trainer_loads() -> None:
    """Red if transformers' Trainer loads checkpoints by other methods than those that are wrapped."""
    from transformers import Trainer

    assert all(callable(getattr(Trainer, name, None)) for name in compat.LOADING)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_modules_that_are_not_documented(path: Path) -> None:
    """Red if a file imports from inside transformers other than through compat.py."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules.add(node.module)
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    inside = {name for name in modules if name.partition(".")[0] == "transformers"} - DOCUMENTED
    known = {known for known in compat.MODULES if any(known.startswith(name) for name in inside)}
    assert not inside or path.name == "compat.py", f"{path.name} imports {inside}"
    if path.name == "compat.py":
        assert known | {compat.DEFINES_MODELS} == set(compat.MODULES)


def test_where_a_table_or_a_name_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a transformers without one of these names raises instead of going the other way."""
    from torch import nn
    from transformers import BertConfig
    from transformers.loss import loss_utils

    assert compat.class_names("MODEL_FOR_NOTHING_AT_ALL") == {}
    assert compat.class_for(BertConfig(), ("AutoModelForNothing",)) is None
    monkeypatch.delattr(loss_utils, "LOSS_MAPPING")
    assert not compat.predicts_next_token(nn.Linear(2, 2))
    assert not compat.is_offloaded(nn.Linear(2, 2))
    assert compat.compiled_inner(nn.Linear(2, 2)) is None
