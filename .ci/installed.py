"""Whether an installed hf_nm is whole: its modules import, its command answers, a sparse step trains.

    cd / && python -I CHECKOUT/.ci/installed.py CHECKOUT/hf_nm [--without FOLDER ...]

Which modules there are is read from the checkout; none of them may be imported from there. Folders named
after ``--without`` need an extra that is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path


def modules(package: Path, without: list[str]) -> list[str]:
    """Dotted names of all modules in the folder ``package``, but those of the folders ``without``."""
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if len(parts) < 2 or parts[1] not in without:
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


def import_all(package: Path, without: list[str]) -> None:
    """Import every module; each has to lie where the installed package does, outside the checkout."""
    import hf_nm

    assert hf_nm.__file__ is not None
    installed = Path(hf_nm.__file__).resolve().parent
    assert installed != package.resolve(), f"hf_nm was imported from the checkout, {package}"
    missing = []
    for name in modules(package, without):
        try:
            file = importlib.import_module(name).__file__
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("hf_nm"):
                raise  # of a dependency, not of ours
            file = None
        if file is None or installed not in Path(file).resolve().parents:
            missing.append(name)
    assert not missing, f"{installed} lacks {', '.join(missing)}"


def ask_for_help() -> None:
    """Print what ``hf-nm --help`` prints; raises ``SystemExit`` if it fails."""
    (script,) = entry_points(group="console_scripts", name="hf-nm")
    assert script.value == "hf_nm.cli:main"
    sys.argv = ["hf-nm", "--help"]
    try:
        script.load()()
    except SystemExit as done:
        if done.code:
            raise


def train_a_step() -> None:
    """A 2:4 weight has moved and still is 2:4 after one step."""
    import torch

    import hf_nm

    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 8)
    model = torch.nn.Sequential(layer)
    hf_nm.sparsify(model, n=2, m=4, targets="*")
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    model(torch.randn(4, 16)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)
    hf_nm.verify(model)


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the installed hf_nm.")
    parser.add_argument("package", type=Path, help="the checkout's folder hf_nm")
    parser.add_argument("--without", nargs="*", default=[], help="folders that are not imported")
    arguments = parser.parse_args()
    train_a_step()  # first: nothing else has been imported that it could lean on
    import_all(arguments.package, arguments.without)
    ask_for_help()
    print(f"whole: {len(modules(arguments.package, arguments.without))} modules")


if __name__ == "__main__":
    main()
