"""What N:M weights are trained with, as a checkpoint keeps it, and how a resumed run differs from it."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any

from hf_nm.model.weights import SparseWeight
from hf_nm.optim.schedule import Schedule

# Without these a mask or what is kept aside would mean something else.
_FIXED = ("pattern", "method")


def written_options(weights: list[SparseWeight], schedule: Schedule) -> str:
    """Schedule, and pattern, method and decay of each weight, as JSON: one text, whatever a checkpoint's
    format does with what is nested. The decay is None where the method has none."""
    return json.dumps(
        {"schedule": asdict(schedule), "weights": {w.name: options_of(w) for w in weights}}
    )


def compare_options(written: str, weights: list[SparseWeight], schedule: Schedule) -> None:
    """Compare what a checkpoint was trained with and what it is resumed with.

    Args:
        written: by :func:`written_options`.
        weights: that are resumed, the checkpoint's by name.
        schedule: that they are resumed with.

    Warns:
        UserWarning: another decay or schedule, with both values: training goes on with the new one.

    Raises:
        ValueError: another pattern or method, with both values.
    """
    saved = json.loads(written)
    differing: dict[str, list[str]] = {}  # what differs to the weights it differs in
    for w in weights:
        before, now = saved["weights"][w.name], options_of(w)
        for option, value in now.items():
            if before[option] != value:
                said = f"{option} {_said(before[option])}, now {_said(value)}"
                if option in _FIXED:
                    raise ValueError(
                        f"the optimizer checkpoint was saved with {said} ({w.name}); sparsify with the "
                        f"{option} of the run that saved it, or start a new run from its weights"
                    )
                differing.setdefault(said, []).append(w.name)
    texts = [
        f"{text} ({len(names)} weights, first: {names[0]})" for text, names in differing.items()
    ]
    texts += [
        f"{option} {_said(saved['schedule'].get(option))}, now {_said(value)}"
        for option, value in asdict(schedule).items()
        if saved["schedule"].get(option) != value
    ]
    if texts:
        warnings.warn(
            f"the optimizer checkpoint was saved with {'; '.join(texts)}: training goes on with the "
            "new, so it does not continue as the run that saved it would have",
            stacklevel=7,  # the caller of load_state_dict, which torch wraps twice
        )


def options_of(w: SparseWeight) -> dict[str, Any]:
    """Pattern, method and decay of a weight, as plain values."""
    spec = w.state.spec
    decay = spec.decay if spec.method.uses_decay else None
    return {"pattern": str(spec.pattern), "method": spec.method.name, "decay": decay}


def _said(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
