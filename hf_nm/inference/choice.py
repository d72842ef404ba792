"""Which way to a product is the fastest at its shape: timed once, remembered on disk by device.

The file is ``hf_nm/ways.json`` in the folder that ``HF_HOME`` names (by default
``~/.cache/huggingface``); it may be deleted at any time. What stands in it is a name, never code.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_nm.version import __version__

_ROUNDS = 9
_LARGEST = 1 << 20  # bytes of the file that are read
_chosen: dict[str, dict[str, str]] = {}  # device to shape to way; of this process


def key(rows: int, out: int, inputs: int, pattern: str, dtype: torch.dtype) -> str:
    """A shape's name; rows count as the next power of two."""
    return f"{pattern} {str(dtype).removeprefix('torch.')} {out}x{inputs} rows {_power(rows)}"


def fastest(name: str, ways: Mapping[str, Callable[[], Any]], device: torch.device) -> str:
    """The fastest of several ways, as it was measured here or in an earlier process.

    While a CUDA graph is recorded nothing can be timed: then the first one is taken.

    Args:
        name: of the shape (:func:`key`).
        ways: name to a call that does it; the first needs no measuring to be right.
        device: what they run on.
    """
    machine = device_name(device)
    if machine not in _chosen:
        _chosen[machine] = dict(_read().get(machine, {}))
    known = _chosen[machine]
    if known.get(name) in ways:
        return known[name]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return next(iter(ways))
    times = time_ways(ways, device)
    known[name] = min(times, key=lambda way: times[way])
    _write(machine, name, known[name])
    return known[name]


def time_ways(
    ways: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int = _ROUNDS
) -> dict[str, float]:
    """Median milliseconds of each way, interleaved. One that fails is left out, with a warning.

    Args:
        ways: name to a call that does it.
        device: what they run on.
        rounds: of timing, after two of warm-up.

    Raises:
        RuntimeError: all of them fail.
    """
    working = dict(ways)
    errors = {}
    for way in ways:
        try:
            working[way]()
            _wait(device)
        except Exception as error:  # whatever a compiler or a driver makes of this shape
            errors[way] = f"{type(error).__name__}: {error}"
            del working[way]
    if errors:
        text = "; ".join(f"{way} ({error.splitlines()[0][:300]})" for way, error in errors.items())
        if not working:
            raise RuntimeError(f"every way to this product fails: {text}")
        warnings.warn(f"a way to multiply fails here and is not used: {text}", stacklevel=2)
    return {
        way: statistics.median(values)
        for way, values in interleaved(working, device, rounds).items()
    }


def interleaved(
    variants: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each variant in every round, after two rounds of warm-up; one after the other in
    each round, so that a busy machine disturbs all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for index in range(rounds + 2):
            for name, run in variants.items():
                _wait(device)
                start = time.perf_counter()
                run()
                _wait(device)
                if index >= 2:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return times


def device_name(device: torch.device) -> str:
    """The device by the name that its maker gave it, with the versions that a time depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, torch {torch.__version__}, hf_nm {__version__}"


def remembered() -> dict[str, dict[str, str]]:
    """What earlier processes measured: device to shape to way."""
    return _read()


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _power(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _file() -> Path:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(home) / "hf_nm" / "ways.json"


def _read() -> dict[str, dict[str, str]]:
    """What the file says; nothing where there is none, or it is damaged."""
    try:
        with _file().open("rb") as file:
            data = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError, RuntimeError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {
        machine: {
            name: way
            for name, way in shapes.items()
            if isinstance(name, str) and isinstance(way, str)
        }
        for machine, shapes in data.items()
        if isinstance(shapes, dict)
    }


def _write(machine: str, name: str, way: str) -> None:
    """Add a line to the file. A cache that cannot be written is measured anew next time."""
    data = _read()
    data.setdefault(machine, {})[name] = way
    with contextlib.suppress(OSError, RuntimeError):
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, delete=False, encoding="utf-8"
        ) as file:
            json.dump(data, file, indent=1, sort_keys=True)
        os.replace(file.name, path)
