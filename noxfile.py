"""The versions that the tests run with: one session each, `nox -s oldest`, `nox -s newest`, ...

Which versions a session has stands in `.ci/constraints-*.txt`; `.ci/run` reads the same files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import nox

nox.options.sessions = ["oldest", "gpu_image", "newest"]
nox.options.reuse_existing_virtualenvs = True

# The URL of an index of CPU builds, which saves several GB of CUDA.
TORCH_INDEX = os.environ.get("TORCH_INDEX_URL")
# Such as 2.11.0; without it the newest.
TORCH = os.environ.get("TORCH_VERSION")


def run_tests(
    session: nox.Session,
    constraints: str | None,
    *extra: str,
    pytest: Sequence[str] = (),
) -> None:
    """Install torch, then the package under its constraints, and run the tests.

    Args:
        session: of nox; what follows ``--`` on its command line goes to pytest.
        constraints: a file's name without ``.ci/constraints-`` and ``.txt``; None for the newest.
        extra: requirements that replace released packages.
        pytest: options of the session's own.
    """
    index = ["--index-url", TORCH_INDEX] if TORCH_INDEX else []
    session.install(f"torch=={TORCH}" if TORCH else "torch", *index)
    bounds = ["-c", f".ci/constraints-{constraints}.txt"] if constraints else []
    session.install(*bounds, "-e", ".[test]")
    if extra:
        session.install(*extra)
    session.run("python", "-m", "pip", "list", silent=False)
    session.run(
        "python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", *pytest, *session.posargs
    )


@nox.session
def oldest(session: nox.Session) -> None:
    """The lower bounds of pyproject.toml, all at once; without the slow tests."""
    run_tests(session, "oldest", pytest=["-m", "not slow"])


@nox.session
def gpu_image(session: nox.Session) -> None:
    """What images of machines with GPUs come with."""
    run_tests(session, "gpu-image")


@nox.session
def newest(session: nox.Session) -> None:
    """The newest release of everything."""
    run_tests(session, None)


@nox.session
def main(session: nox.Session) -> None:
    """The newest releases, and transformers as it is in its repository."""
    run_tests(session, None, "transformers @ git+https://github.com/huggingface/transformers")
