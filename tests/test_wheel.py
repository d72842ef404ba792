"""What is published is whole: sdist and wheel are built, and the wheel runs without its checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_nm"


class Built(NamedTuple):
    """The files that a release uploads."""

    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; fails with it if the command does."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(kind: str, source: Path, into: Path) -> Path:
    """Build as ``python -m build --no-isolation`` does: by pyproject.toml's backend, in ``source``.

    Args:
        kind: "sdist" or "wheel".
        source: a folder with pyproject.toml; the backend leaves files of its own in it.
        into: the folder for what is built.
    """
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(into)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (built,) = into.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


def build_both(source: Path, into: Path) -> Built:
    """The sdist of ``source``, and the wheel of the sdist."""
    sdist = build("sdist", source, into)
    with tarfile.open(sdist) as archive:
        archive.extractall(into / "unpacked", filter="data")
    (unpacked,) = (into / "unpacked").iterdir()
    return Built(sdist, build("wheel", unpacked, into))


def copy_checkout(into: Path) -> Path:
    """What a clean clone has of the files that are packaged, or could be by mistake."""
    caches = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("hf_nm", "tests", "recipes"):
        shutil.copytree(ROOT / folder, into / folder, ignore=caches)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, into / name)
    return into


def package_files() -> set[str]:
    """Every file of the source tree's package, its data files too."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }


def install(wheel: Path, environment: Path) -> Path:
    """The Python of a new environment that holds the wheel, and sees this one's other packages."""
    venv.EnvBuilder(symlinks=True).create(environment)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=environment)
    # Folders named in a .pth file are searched after the wheel's, and their own .pth files, by which
    # an editable hf_nm would be found, are not read.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    found = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(found), encoding="utf-8")
    return python


def judge(python: Path, *options: str, cwd: Path) -> str:
    """What ``.ci/installed.py`` prints, run by ``python`` without a path to the checkout."""
    return run(python, "-I", ROOT / ".ci" / "installed.py", PACKAGE, *options, cwd=cwd)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = copy_checkout(tmp_path_factory.mktemp("checkout"))
    return build_both(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def python(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel."""
    return install(built.wheel, tmp_path_factory.mktemp("environment"))


def test_wheel_holds_the_package(built: Built) -> None:
    """Red if a folder or a data file (py.typed) is left out of the wheel, or another package gets in."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()


def test_sdist_holds_the_package_and_no_half_of_the_tests(built: Built) -> None:
    """Red if a wheel could not be built from the sdist, or setuptools takes some of the tests."""
    with tarfile.open(built.sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert package_files() | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.startswith(("tests/", "recipes/"))]


def test_installed_wheel_needs_no_checkout(python: Path, tmp_path: Path) -> None:
    """Red if a module does not import from the wheel alone, ``hf-nm --help`` fails, or a sparse
    training step does."""
    printed = judge(python, cwd=tmp_path)
    modules = [name for name in package_files() if name.endswith(".py")]
    assert f"whole: {len(modules)} modules" in printed
    assert "verify" in printed  # a command that --help lists
    assert python.with_name("hf-nm").is_file()


def test_wheel_without_a_folder_is_found_out(python: Path, tmp_path: Path) -> None:
    """Red if the judge would find a folder that the wheel lacks in the checkout."""
    (folder,) = python.parents[1].glob("lib/python*/site-packages/hf_nm/inference")
    away = folder.rename(tmp_path / "inference")
    slow_to_import = ("checkpoint", "hub", "trainer", "cli", "experiments")
    try:
        with pytest.raises(AssertionError, match=r"lacks hf_nm\.inference, hf_nm\.inference\."):
            judge(python, "--without", *slow_to_import, cwd=tmp_path)
    finally:
        away.rename(folder)
