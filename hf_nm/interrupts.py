"""Interrupts that come while a weight is half dense and half sparse: they wait until it is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Those that programs give handlers which raise: Ctrl-C, a cluster's warning, a timer.
_SIGNALS = [
    number
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if (number := getattr(signal, name, None)) is not None
]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals whose handlers are Python functions wait for the end of the block.

    For milliseconds: where parameters pass from dense to sparse weights or back. What waited is handled
    in the order in which it came. In other threads than the main one no signal is handled anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    waiting: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))

    try:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, wait)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in waiting:
            handlers[number](number, frame)
