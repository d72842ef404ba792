"""What an optimizer's checkpoint carries so that a resumed run continues bit for bit.

One entry beside torch's own ``state`` and ``param_groups``::

    "nm_sparsity": {"version", "step", "step_at_mark",
                    "weights": {name: {"mask", "pruned", "sparse_weight", <MaskHistory>}}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_nm.manifest import KEY
from hf_nm.mask import count_kept, fingerprint

if TYPE_CHECKING:
    from hf_nm.optim import Attachment
    from hf_nm.weights import SparseWeight

_VERSION = 1


def save_into(state_dict: dict[str, Any], attachment: Attachment) -> None:
    """Add masks, pruned parts and counters to an optimizer's state dict. Tensors are not copied."""
    weights = {}
    for w in attachment.weights():
        weights[w.name] = {
            "mask": w.mask,
            "pruned": w.state.pruned,
            "sparse_weight": fingerprint(w.weight),
            **attachment.history(w).state_dict(),
        }
    state_dict[KEY] = {
        "version": _VERSION,
        "step": attachment.step,
        "step_at_mark": attachment.step_at_mark,
        "weights": weights,
    }
    # Read by an optimizer that is not attached, this mark stays in its groups: attach then says that
    # the state was lost.
    state_dict["param_groups"][0][KEY] = True


def was_lost(param_groups: list[dict[str, Any]]) -> bool:
    """Whether an optimizer that was not attached read a checkpoint with such an entry."""
    return any(group.get(KEY) for group in param_groups)


def take_from(state_dict: dict[str, Any], attachment: Attachment) -> dict[str, Any] | None:
    """Remove the entry from a (shallow copy of a) state dict and check it against the weights.

    Returns:
        The entry for :func:`load`, or None where the checkpoint has none.

    Raises:
        ValueError: the entry is of another version, model, pattern or method.
    """
    saved: dict[str, Any] | None = state_dict.pop(KEY, None)
    state_dict["param_groups"] = [
        {key: value for key, value in group.items() if key != KEY}
        for group in state_dict["param_groups"]
    ]
    if saved is None:
        return None
    if saved.get("version") != _VERSION:
        raise ValueError(
            f"the optimizer checkpoint's {KEY} has version {saved.get('version')}, but this hf_nm "
            f"reads {_VERSION}; resume with the hf_nm that saved it"
        )
    weights = {w.name: w for w in attachment.weights()}
    if weights.keys() != saved["weights"].keys():
        differing = sorted(weights.keys() ^ saved["weights"].keys())
        raise ValueError(
            f"the optimizer checkpoint holds masks of {len(saved['weights'])} N:M weights, this "
            f"optimizer has {len(weights)}; they differ in {len(differing)} (first: {differing[0]}). "
            "Sparsify with the same arguments as in the run that saved it"
        )
    for name, w in weights.items():
        _check_entry(saved["weights"][name], w)
    return saved


def load(saved: dict[str, Any], attachment: Attachment) -> None:
    """Give masks, pruned parts and counters back. The model's weights may be loaded before or after."""
    attachment.step = saved["step"]
    attachment.step_at_mark = saved["step_at_mark"]
    for w in attachment.weights():
        entry, state, device = saved["weights"][w.name], w.state, w.weight.device
        state.mask = entry["mask"].to(device, copy=True)
        if entry["pruned"] is not None:
            state.pruned = entry["pruned"].to(device, w.weight.dtype, copy=True)
        state.restored = entry["sparse_weight"]
        attachment.history(w).load_state_dict(entry)


def _check_entry(entry: dict[str, Any], w: SparseWeight) -> None:
    mask = entry["mask"]
    if mask is None or mask.shape != w.weight.shape:
        got = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"the optimizer checkpoint's mask of {w.name} has shape {got}, the weight "
            f"{tuple(w.weight.shape)}; resume with the model that saved it"
        )
    kept = count_kept(mask, w.pattern, w.state.dim)
    if not bool((kept == w.pattern.n).all()):
        raise ValueError(
            f"the optimizer checkpoint's mask of {w.name} is not {w.pattern}; sparsify with the "
            "pattern of the run that saved it"
        )
    if (entry["pruned"] is None) == w.state.method.moves_masks:
        raise ValueError(
            f"the optimizer checkpoint of {w.name} was saved with another method than "
            f"{w.state.method.name!r}; sparsify with the method of the run that saved it"
        )
