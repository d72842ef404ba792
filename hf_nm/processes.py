"""What training processes tell each other without waiting: through the store at which they met.

A collective waits for every process until it times out, also for one that will never come. Here a
process can say that it will not, and those that wait for it raise.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_nm import compat

_ATTACHED = "hf_nm/attached"  # a rank that has attached an optimizer
_WILL_NOT_COME = "hf_nm/will_not_come"  # why a rank will not take the first step; empty when mended
_SAID_AFTER = 60  # seconds
_asking: Any = None  # the hook that asks: one in a process, until it attaches


def several_processes() -> bool:
    """Whether other processes train beside this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def say_attached() -> None:
    """Tell the others that this process trains N:M weights with an attached optimizer."""
    global _asking
    if _asking is not None:
        _asking.remove()
        _asking = None
    if (store := _store()) is not None:
        store.set(_ATTACHED, str(dist.get_rank()))
        store.set(f"{_ATTACHED}/{dist.get_rank()}", "")
        store.set(_WILL_NOT_COME, "")


def ask_at_the_next_step(parameter: Tensor, name: str, is_attached: Callable[[], bool]) -> None:
    """Before an optimizer steps that nothing was attached to, ask whether others attached theirs.

    They would wait for this process at their first step, and it for them in its next forward pass.

    Args:
        parameter: an N:M weight that has a gradient.
        name: its name.
        is_attached: tells whether an optimizer has been attached to it by then.

    Raises:
        RuntimeError: (by the optimizer's ``step``) another process attached its optimizer. Its own first
            step raises too.
    """
    global _asking
    if _asking is not None or not several_processes():
        return

    def ask(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not any(p is parameter for group in optimizer.param_groups for p in group["params"]):
            return
        _asking.remove()
        store = _store()
        if store is None or is_attached() or not store.check([_ATTACHED]):
            return
        if store.check([f"{_ATTACHED}/{dist.get_rank()}"]):
            return  # an optimizer beside the attached one, whose weights the next backward looks at
        said = (
            f"rank {dist.get_rank()} steps an optimizer ({type(optimizer).__name__}) that trains {name} "
            f"but was not attached, while rank {store.get(_ATTACHED).decode()} attached its own: call "
            "hf_nm.attach(optimizer, model) on every rank before the first step"
        )
        store.set(_WILL_NOT_COME, said)
        raise RuntimeError(said)

    _asking = register_optimizer_step_pre_hook(ask)


def meet() -> None:
    """Wait until every process is here, as a collective would; every process must call it.

    Warns:
        UserWarning: some are not here after a minute; they are named.

    Raises:
        RuntimeError: one has said that it will not come, or some did not within the process group's
            timeout; they are named.
    """
    store = _store()
    if store is None:
        return
    mine = f"hf_nm/meetings/{dist.get_rank()}"  # how many this process has come to
    here = f"hf_nm/meeting/{store.add(mine, 1)}"
    store.set(f"{here}/{dist.get_rank()}", "")
    store.add(here, 1)
    try:
        _wait(store, here)
    except BaseException:  # those who come later meet here again
        store.add(mine, -1)
        store.add(here, -1)
        raise


def _wait(store: Any, here: str) -> None:
    """Wait for the others at one meeting."""
    count = dist.get_world_size()
    started, pause, said = time.monotonic(), 0.0005, False

    def missing() -> str:
        ranks = [str(other) for other in range(count) if not store.check([f"{here}/{other}"])]
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}"

    while store.add(here, 0) < count:
        if store.check([_WILL_NOT_COME]) and (reason := store.get(_WILL_NOT_COME).decode()):
            raise RuntimeError(reason)
        waited = time.monotonic() - started
        if waited > store.timeout.total_seconds():
            raise RuntimeError(
                f"{missing()} did not come to the first step of an attached optimizer within "
                f"{waited:.0f} s; call hf_nm.sparsify(model) and hf_nm.attach(optimizer, model) on "
                "every rank"
            )
        if waited > _SAID_AFTER and not said:
            said = True
            warnings.warn(
                f"waiting for {missing()} at the first step of an attached optimizer; it must be "
                "attached on every rank",
                stacklevel=3,
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def _store() -> Any:
    """Where the processes met; None where there is one process, or no store."""
    return compat.process_store() if several_processes() else None
