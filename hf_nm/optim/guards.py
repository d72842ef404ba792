"""What has to happen around an optimizer's own methods: a failing step, loading, mode switches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hf_nm.model.weights import SparseWeight, open_weights
from hf_nm.replaced import Replaced
from hf_nm.sparsity.check import broken_weight

Optimizer = torch.optim.Optimizer
_MODES = ("train", "eval")


def guard_step(owner: Optimizer, after_failure: Callable[[], None]) -> Replaced:
    """Have a failing ``owner.step`` call ``after_failure`` before its exception goes on.

    Args:
        owner: a torch optimizer, or accelerate's wrapper of one.
        after_failure: called without arguments.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except BaseException:
                after_failure()
                raise

        return step

    return Replaced(owner, "step", wrap)


def guard_loading(
    optimizer: Optimizer,
    before: Callable[[Optimizer, dict[str, Any]], None],
    after: Callable[[Optimizer], None],
) -> list[Any]:
    """Call ``before`` and ``after`` around ``optimizer.load_state_dict``, whoever wrote that.

    Args:
        optimizer: a torch optimizer. (That of bitsandbytes calls none of the hooks that torch's calls.)
        before: given the optimizer and a shallow copy of the state dict, which it may change.
        after: given the optimizer when the copy was loaded.

    Returns:
        Handles with a ``remove()``.
    """
    if type(optimizer).load_state_dict is Optimizer.load_state_dict:
        return [
            optimizer.register_load_state_dict_pre_hook(before),
            optimizer.register_load_state_dict_post_hook(after),
        ]

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def load_state_dict(state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            copy = dict(state_dict)
            before(optimizer, copy)
            original(copy, *args, **kwargs)
            after(optimizer)

        return load_state_dict

    return [Replaced(optimizer, "load_state_dict", wrap)]


def guard_modes(optimizer: Optimizer, weights: Callable[[], list[SparseWeight]]) -> list[Replaced]:
    """Let the mode switches of an optimizer (schedule-free's ``train()`` and ``eval()``) see dense
    weights, which are projected afterwards: they write the parameters outside of a step.

    Args:
        optimizer: a torch optimizer.
        weights: tells the N:M weights that it holds at the moment of the call.
    """
    return [
        Replaced(optimizer, name, partial(_switch, optimizer, name, weights))
        for name in _MODES
        if callable(getattr(optimizer, name, None))
    ]


def _switch(
    optimizer: Optimizer,
    name: str,
    weights: Callable[[], list[SparseWeight]],
    original: Callable[..., Any],
) -> Callable[..., Any]:
    def switch(*args: Any, **kwargs: Any) -> Any:
        # The Trainer asks for the mode at every batch. And a switch writes no weight before its first
        # step, when there is nothing to switch to (and, under DDP, ranks need not agree on its mask).
        is_in = all(g.get("train_mode") is (name == "train") for g in optimizer.param_groups)
        written = [] if is_in else [w for w in weights() if optimizer.state.get(w.weight)]
        for w in written:
            if w.state.breaks(w.weight):
                raise broken_weight(
                    w.name,
                    f"other code wrote it after the last step, before optimizer.{name}()",
                )
        with open_weights(written):
            return original(*args, **kwargs)

    return switch
