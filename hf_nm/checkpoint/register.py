"""When transformers is imported: its loader learns the packed form then, and not before.

``import hf_nm`` does not import transformers. If it is there already, the loader is told at once; else
the import of the one module that defines its models is followed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from hf_nm.compat import DEFINES_MODELS

REGISTER = DEFINES_MODELS


def follow() -> None:
    """Register the packed form as soon as transformers has its models' base class; once."""
    if REGISTER in sys.modules:
        _tell()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _tell() -> None:
    try:
        from hf_nm.checkpoint import packed_loader as loader

        loader.register()
    except Exception as error:  # transformers itself must stay usable, whatever it has become
        warnings.warn(
            "AutoModel of this transformers cannot be told how to open checkpoints that hf_nm packed "
            f"({error}); use hf_nm.load_packed(folder), or turn them into plain ones with "
            "hf_nm.unpack(folder, destination)",
            stacklevel=2,
        )


class _Finder(MetaPathFinder):
    """Finds the one module as the others would, and lets :class:`_Loader` run it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Runs the module as its own loader does, and registers afterwards."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        _tell()
