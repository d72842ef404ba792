"""Resuming a run that has taken all its steps trains nothing.

transformers' own Trainer (5.0 to 5.24) looks whether the last step was taken only after a step: resumed
from the last checkpoint of a run of 60 steps that ends inside an epoch, it takes a 61st.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Trainer

from hf_nm.replaced import Replaced


def train_nothing_when_finished(trainer: Trainer) -> None:
    """Let a Trainer that resumes with ``global_step >= max_steps`` take no step, and neither evaluate
    nor save again what its checkpoint has already."""
    begun_at = -1

    def nothing_is_left() -> bool:
        return 0 < trainer.state.max_steps <= trainer.state.global_step

    def no_batches(get: Callable[..., Any]) -> Callable[..., Any]:
        def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
            return ([], None) if nothing_is_left() else get(*args, **kwargs)

        return get_batch_samples

    def no_epoch(end: Callable[..., Any]) -> Callable[..., Any]:
        def on_epoch_end(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control = end(args, state, control, **kwargs)
            if state.global_step == begun_at and nothing_is_left():
                control.should_log = control.should_evaluate = control.should_save = False
            return control

        return on_epoch_end

    def beginning(begin: Callable[..., Any]) -> Callable[..., Any]:
        def on_train_begin(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            nonlocal begun_at
            begun_at = state.global_step
            return begin(args, state, control, **kwargs)

        return on_train_begin

    Replaced(trainer, "get_batch_samples", no_batches)
    Replaced(trainer.callback_handler, "on_train_begin", beginning)
    Replaced(trainer.callback_handler, "on_epoch_end", no_epoch)
