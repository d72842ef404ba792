"""The manifest: what ``config.json`` says of a sparse checkpoint. It is data, and checked as such.

::

    "nm_sparsity": {"version": 1, "n": 2, "m": 4, "method": "sr-ste", "decay": 0.0002,
                    "modules": {"model.encoder.layers.0.fc1.weight": "2:4", ...}, "hf_nm": "0.1.0"}

``modules`` names parameters, as in the model's ``state_dict()``. Where the input dimension of some is
not the last one (``Conv1D``, some experts, convolutions), ``"dims": {name: -2, ...}`` says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_nm.methods.method import METHOD_NAME, check_decay
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.version import __version__

KEY = "nm_sparsity"
VERSION = 1
_FIELDS = {"version", "n", "m", "method", "decay", "modules", "hf_nm"}
_OPTIONAL = {"dims"}
_LOWEST_DIM = -5  # a 3-D convolution's weight has five dimensions
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,512}")  # torch allows anything in a module's name
_MOST_MODULES = 1_000_000

Claims = dict[str, tuple[NMPattern, int]]  # weight to pattern and input dimension, negative


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint claims.

    Args:
        pattern: the model's default pattern.
        method: name of the method that trained it.
        decay: SR-STE's decay, in gradient units, or ``"auto"``.
        modules: parameter name to pattern, for every N:M weight.
        hf_nm: version of this package that wrote it.
        dims: parameter name to input dimension (negative), for those of them where it is not -1.
    """

    pattern: NMPattern
    method: str
    decay: float | str
    modules: dict[str, NMPattern]
    hf_nm: str = __version__
    dims: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        written: dict[str, Any] = {
            "version": VERSION,
            "n": self.pattern.n,
            "m": self.pattern.m,
            "method": self.method,
            "decay": self.decay,
            "modules": {name: str(pattern) for name, pattern in self.modules.items()},
            "hf_nm": self.hf_nm,
        }
        return written | ({"dims": dict(self.dims)} if self.dims else {})

    @classmethod
    def from_dict(cls, data: Any) -> Manifest:
        """Read the JSON form, accepting only what :meth:`to_dict` can write.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or the version is unknown.
        """
        if not isinstance(data, dict):
            raise ValueError(f"{KEY} must be an object, but is {_show(data)}")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise ValueError(
                f"{KEY} has version {_show(data.get('version'))}, but this hf_nm {__version__} reads "
                f"version {VERSION}; install the hf_nm that wrote the checkpoint ("
                f"{_show(data.get('hf_nm'))})"
            )
        if set(data) - _OPTIONAL != _FIELDS:
            missing = sorted(_FIELDS - set(data))
            unknown = sorted(_show(key) for key in set(data) - _FIELDS - _OPTIONAL)
            raise ValueError(f"{KEY}: missing fields {missing}, unknown fields {unknown}")
        try:
            pattern = NMPattern(data["n"], data["m"])
            decay = check_decay(data["decay"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{KEY}: {error}") from error
        for key in ("method", "hf_nm"):
            if not isinstance(data[key], str) or not METHOD_NAME.fullmatch(data[key]):
                raise ValueError(f"{KEY}.{key} is not a plain name: {_show(data[key])}")
        modules = data["modules"]
        if not isinstance(modules, dict) or not 0 < len(modules) <= _MOST_MODULES:
            raise ValueError(f"{KEY}.modules must be an object with at least one weight in it")
        parsed = {}
        for name, text in modules.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"{KEY}.modules: not a parameter's name: {_show(name)}")
            try:
                parsed[name] = NMPattern.parse(text)
            except ValueError as error:
                raise ValueError(f"{KEY}.modules[{name!r}]: {error}") from error
        dims = data.get("dims", {})
        if not isinstance(dims, dict) or not dims.keys() <= parsed.keys():
            raise ValueError(f"{KEY}.dims must be an object whose keys are in {KEY}.modules")
        for name, dim in dims.items():
            if type(dim) is not int or not _LOWEST_DIM <= dim <= -1:
                raise ValueError(
                    f"{KEY}.dims[{name!r}] must be an integer from {_LOWEST_DIM} to -1, but is "
                    f"{_show(dim)}"
                )
        return cls(pattern, data["method"], decay, parsed, data["hf_nm"], dict(dims))

    @classmethod
    def required(cls, data: Any, source: str | Path) -> Manifest:
        """:meth:`from_dict` where there has to be one.

        Args:
            data: the JSON form, or None where there is none.
            source: what has none, for the message.

        Raises:
            ValueError: there is no manifest, or it is not valid.
        """
        if data is None:
            raise ValueError(
                f"{source} has no {KEY!r}, so nothing claims to be N:M; save a model made by "
                "hf_nm.sparsify"
            )
        return cls.from_dict(data)

    def claims(self, names: Iterable[str]) -> Claims:
        """What it claims of the weights of a model or a file, by the names that they have there.

        Args:
            names: in the model or file.

        Returns:
            Name to pattern and input dimension. A claimed name that is not there stays.
        """
        found = match_names(self.modules, names)
        return {
            found.get(name, name): (pattern, self.dims.get(name, -1))
            for name, pattern in self.modules.items()
        }


def match_names(claimed: Iterable[str], available: Iterable[str]) -> dict[str, str]:
    """Find the manifest's names among a model's or a file's.

    A base model and the same model under a head differ by the first component (``bert.``), so a name
    may gain or lose one, where that leaves no doubt.

    Args:
        claimed: names in the manifest.
        available: names in the model or file.

    Returns:
        Claimed name to available name, for those found.
    """
    exact = set(available)
    tails = Counter(name.partition(".")[2] for name in exact)
    shorter = {tail: name for name in exact if tails[tail := name.partition(".")[2]] == 1}
    found = {}
    for name in claimed:
        stripped = name.partition(".")[2]
        if name in exact:
            found[name] = name
        elif name in shorter:
            found[name] = shorter[name]
        elif stripped in exact:
            found[name] = stripped
    claims = Counter(found.values())
    return {name: there for name, there in found.items() if claims[there] == 1}


def _show(value: Any) -> str:
    """A value from a file, short enough for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
