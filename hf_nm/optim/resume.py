"""What an optimizer's checkpoint carries so that a resumed run continues bit for bit.

One entry beside torch's own ``state`` and ``param_groups``::

    "nm_sparsity": {"version", "step", "step_at_mark", "trained_with",
                    "weights": {name: {"mask", "pruned", "sparse_weight", <MaskHistory>}}}

``pruned`` is what the method keeps aside: the pruned part, the whole dense weight, or None. A method
with named tensors of its own adds ``extras``, of which an automatic decay is one; one whose pattern
tightens the mask's present ``pattern``. ``trained_with`` is the text of
:func:`hf_nm.optim.options.written_options`, which older checkpoints do not have.

Where weights are sharded it lies in the first of the ``param_groups`` instead: torch's distributed
checkpoints carry nothing else. Its tensors are then DTensors sharded as the weights are, so that another
number of processes can resume.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hf_nm.formats.manifest import KEY
from hf_nm.methods.auto_decay import DECAY
from hf_nm.methods.method import Aside
from hf_nm.model.parts import Parts
from hf_nm.model.sharding import (
    is_first_holder,
    is_sharded,
    like_weight,
    local,
    part_of,
    placement_of,
    sum_over_shards,
)
from hf_nm.model.state import BY_MASK
from hf_nm.model.weights import SparseWeight
from hf_nm.optim.meter import MaskMeter
from hf_nm.optim.options import compare_options, written_options
from hf_nm.optim.schedule import Schedule
from hf_nm.sparsity.bits import fingerprint, pack_bits, unpack_bits
from hf_nm.sparsity.divergence import MaskHistory
from hf_nm.sparsity.mask import count_kept
from hf_nm.sparsity.pattern import NMPattern

_VERSION = 1


def save_into(state_dict: dict[str, Any], meter: MaskMeter, schedule: Schedule) -> None:
    """Add masks, pruned parts and counters to an optimizer's state dict. Tensors are not copied.

    Where weights are sharded every rank must save.
    """
    weights = meter.weights()
    entries = {w.name: _entry(w, meter.history(w)) for w in weights}
    for flips in ("flips", "flips_at_mark"):
        counts = [int(entries[w.name][flips]) for w in weights]
        for w, total in zip(
            weights, sum_over_shards(counts, [w.weight for w in weights]), strict=True
        ):
            entries[w.name][flips] = torch.tensor(total)
    saved = {
        "version": _VERSION,
        "step": meter.step,
        "step_at_mark": meter.step_at_mark,
        "trained_with": written_options(weights, schedule),
        "weights": entries,
    }
    # Read by an optimizer that is not attached, this stays in its groups: attach then says that the
    # state was lost.
    if any(is_sharded(w.weight) for w in weights):
        state_dict["param_groups"][0][KEY] = saved
    else:
        state_dict[KEY] = saved
        state_dict["param_groups"][0][KEY] = True


def _entry(w: SparseWeight, history: MaskHistory) -> dict[str, Any]:
    parts = w.state.parts
    assert parts is not None
    mask, aside = parts.mask, parts.aside
    entry: dict[str, Any] = {
        "mask": like_weight(mask, w.weight),
        "pruned": None if aside is None else like_weight(aside, w.weight),
        "sparse_weight": BY_MASK if is_sharded(w.weight) else fingerprint(w.weight),
        **history.state_dict(),
    }
    if w.state.spec.method.pattern_at is not None:
        entry["pattern"] = str(parts.pattern)
    if parts.extras:
        entry["extras"] = {
            name: like_weight(tensor, w.weight) if tensor.ndim else tensor
            for name, tensor in parts.extras.items()
        }
    if is_sharded(w.weight):
        for reference in ("start", "mark"):
            bits = unpack_bits(entry[reference], mask.shape)
            entry[reference] = like_weight(bits, w.weight)
    return entry


def was_lost(param_groups: list[dict[str, Any]]) -> bool:
    """Whether an optimizer that was not attached read a checkpoint with such an entry."""
    return any(group.get(KEY) for group in param_groups)


def take_from(
    state_dict: dict[str, Any], meter: MaskMeter, schedule: Schedule
) -> dict[str, Any] | None:
    """Remove the entry from a (shallow copy of a) state dict and check it against the weights.

    Returns:
        The entry for :func:`load`, or None where the checkpoint has none.

    Raises:
        ValueError: the entry is damaged, or of another version, model, pattern or method.

    Warns:
        UserWarning: it is of another decay or schedule.
    """
    saved: Any = state_dict.pop(KEY, None)
    for group in state_dict["param_groups"]:
        if isinstance(group.get(KEY), dict):
            saved = group[KEY]
    state_dict["param_groups"] = [
        {key: value for key, value in group.items() if key != KEY}
        for group in state_dict["param_groups"]
    ]
    if saved is None:
        return None
    if not isinstance(saved, dict):
        raise _damaged("itself", "an object", saved)
    if saved.get("version") != _VERSION:
        raise ValueError(
            f"the optimizer checkpoint's {KEY} has version {saved.get('version')}, but this hf_nm "
            f"reads {_VERSION}; resume with the hf_nm that saved it"
        )
    for name in ("step", "step_at_mark"):
        if type(saved.get(name)) is not int or saved[name] < 0:
            raise _damaged(name, "a whole number", saved.get(name))
    if not isinstance(saved.get("weights"), dict):
        raise _damaged("weights", "an object", saved.get("weights"))
    weights = {w.name: w for w in meter.weights()}
    if weights.keys() != saved["weights"].keys():
        differing = sorted(weights.keys() ^ saved["weights"].keys())
        raise ValueError(
            f"the optimizer checkpoint holds masks of {len(saved['weights'])} N:M weights, this "
            f"optimizer has {len(weights)}; they differ in {len(differing)} (first: {differing[0]}). "
            "Sparsify with the same arguments as in the run that saved it"
        )
    if "trained_with" in saved:
        compare_options(saved["trained_with"], list(weights.values()), schedule)
    frozen = schedule.freezes_masks_after(saved["step"])
    entries = {name: _checked(saved["weights"][name], w, frozen) for name, w in weights.items()}
    return saved | {"weights": entries}


def load(saved: dict[str, Any], meter: MaskMeter) -> None:
    """Give masks, pruned parts and counters back. The model's weights may be loaded before or after."""
    meter.step = saved["step"]
    meter.step_at_mark = saved["step_at_mark"]
    for w in meter.weights():
        entry, device = saved["weights"][w.name], local(w.weight).device
        aside = entry["pruned"]
        parts = Parts(
            entry["mask"].to(device, copy=True),
            entry["pattern"],
            None if aside is None else aside.to(device, w.weight.dtype, copy=True),
            {name: t.to(device, copy=True) for name, t in entry["extras"].items()},
            placement_of(w.weight),
            agreed=True,
        )
        was_cast = aside is not None and aside.dtype != w.weight.dtype
        w.state.install(parts, restored=BY_MASK if was_cast else entry["sparse_weight"])
        meter.history(w).load_state_dict(entry)


def _check_form(entry: Any, w: SparseWeight) -> None:
    """Raise ``ValueError`` unless a weight's entry holds what :func:`_entry` writes, as far as kinds and
    shapes go: nothing is loaded before all of it is known to fit."""

    def require(name: str, is_right: bool, wanted: str) -> None:
        if not is_right:
            found = entry.get(name) if isinstance(entry, dict) else entry
            raise _damaged(f"weights[{w.name!r}][{name!r}]", wanted, found)

    require("mask", isinstance(entry, dict), "in an object")
    mask, shape = entry.get("mask"), w.weight.shape
    require(
        "mask",
        mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool),
        "a tensor of truth values",
    )
    if mask is None or mask.shape != w.weight.shape:
        got = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"the optimizer checkpoint's mask of {w.name} has shape {got}, the weight "
            f"{tuple(w.weight.shape)}; resume with the model that saved it"
        )
    pruned = entry.get("pruned", 0)
    fits = isinstance(pruned, Tensor) and pruned.is_floating_point() and pruned.shape == shape
    require("pruned", pruned is None or fits, f"a tensor {list(shape)} of floats, or None")
    require("sparse_weight", type(entry.get("sparse_weight")) is int, "a whole number")
    packed = (math.prod(shape) + 7) // 8
    for name in ("start", "mark"):
        bits = entry.get(name)
        right = isinstance(bits, Tensor) and (
            bits.shape == (packed,) if bits.dtype == torch.uint8 else bits.shape == shape
        )
        require(name, right, f"{packed:,} bytes, or a tensor {list(shape)}")
    for name in ("flips", "flips_at_mark"):
        count = entry.get(name)
        whole = isinstance(count, Tensor) and count.numel() == 1 and not count.is_floating_point()
        require(name, whole, "a tensor of one whole number")
    extras = entry.get("extras", {})
    named = isinstance(extras, dict) and all(isinstance(t, Tensor) for t in extras.values())
    require("extras", named, "named tensors")


def _damaged(place: str, wanted: str, found: Any) -> ValueError:
    is_tensor = isinstance(found, Tensor)
    got = f"a tensor {list(found.shape)} of {found.dtype}" if is_tensor else repr(found)[:80]
    return ValueError(
        f"the optimizer checkpoint's {KEY} is damaged: {place} must be {wanted}, but is {got}; resume "
        "from another checkpoint"
    )


def _checked(entry: dict[str, Any], w: SparseWeight, frozen: bool) -> dict[str, Any]:
    """The entry of one weight, cut to this process's part of it.

    Args:
        entry: as saved.
        w: its weight.
        frozen: whether masks are frozen for good at the step at which it was saved: then nothing is
            kept aside, though older checkpoints have it.
    """
    _check_form(entry, w)
    entry = dict(entry)
    if frozen:
        entry["pruned"] = None
    for name in ("mask", "pruned"):
        if entry[name] is not None:
            entry[name] = part_of(entry[name], w.weight)
    if "extras" in entry:
        entry["extras"] = {
            name: part_of(tensor, w.weight) if tensor.ndim else tensor
            for name, tensor in entry["extras"].items()
        }
    for reference in ("start", "mark"):
        bits = entry[reference]
        if bits.dtype == torch.uint8:  # packed, of a whole weight
            bits = unpack_bits(bits, w.weight.shape)
        entry[reference] = pack_bits(part_of(bits, w.weight))
    if not is_first_holder(w.weight):  # flips are summed over those who hold parts
        entry |= {name: torch.zeros_like(entry[name]) for name in ("flips", "flips_at_mark")}
    tightens = w.state.spec.method.pattern_at is not None
    pattern = entry["pattern"] = (
        NMPattern.parse(entry.get("pattern", w.pattern)) if tightens else w.pattern
    )
    kept = count_kept(entry["mask"], pattern, w.state.dim)
    if not bool((kept == pattern.n).all()):
        raise ValueError(
            f"the optimizer checkpoint's mask of {w.name} is not {pattern}; sparsify with the "
            "pattern of the run that saved it"
        )
    method = w.state.spec.method
    parts, extras = w.state.parts or w.state.waiting, dict(entry.get("extras", {}))
    extras.pop(DECAY, None)
    if w.state.spec.is_automatic:  # saved with a number: it starts at this run's first step
        extras[DECAY] = entry.get("extras", {}).get(DECAY, torch.zeros(()))
    entry["extras"], found = extras, sorted(extras)
    if parts is not None and found != sorted(parts.extras):
        raise ValueError(
            f"the optimizer checkpoint of {w.name} has the extras {found}, but method {method.name!r} "
            f"keeps {sorted(parts.extras)}; sparsify with the method of the run that saved it"
        )
    keeps = method.keeps is not Aside.NOTHING and not frozen
    if (entry["pruned"] is not None) != keeps:
        raise ValueError(
            f"the optimizer checkpoint of {w.name} was saved with another method than "
            f"{method.name!r}"
            + (", or after its masks were frozen (freeze_masks_at)" if keeps else "")
            + "; sparsify with the method and attach with the schedule of the run that saved it"
        )
    return entry
