"""Interrupts at any moment of a step: masks, sparse and pruned parts are those before or after it."""

from __future__ import annotations

import signal
import sys
import threading

import pytest
import torch
from tolerances import assert_same_bits
from training import assert_sparse, loss_of, sparse_mlp

import hf_nm
from hf_nm.interrupts import uninterrupted


def start():
    model = sparse_mlp(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    loss_of(model, 0).backward()
    return model, optimizer


def dense(model):
    return {w.name: w.dense_weight() for w in hf_nm.sparse_weights(model)}


def interrupted_after(events: int, job) -> int | None:
    """Run ``job`` with a Ctrl-C at the given line or call event of hf_nm's code; the number of events
    where it came to its end before that."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if "hf_nm" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        seen += 1
        if seen == events:
            signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        job()
    except KeyboardInterrupt:
        return None
    finally:
        sys.settrace(None)
    return seen


@pytest.fixture(autouse=True)
def _ctrl_c():
    """What a shell starts with `&` ignores SIGINT, and so would the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_at_every_line_of_a_step():
    """Red if an interrupt inside the split or merge loses what is pruned, or leaves a dense weight."""
    model, optimizer = start()
    before = dense(model)
    optimizer.step()
    after = dense(model)
    count = interrupted_after(-1, start()[1].step)
    assert count is not None
    assert count > 100
    for event in range(1, count + 1, 3):
        model, optimizer = start()
        interrupted_after(event, optimizer.step)
        assert_sparse(model)
        for w in hf_nm.sparse_weights(model):
            assert not w.state.is_dense
            found, mask = w.dense_weight(), w.mask
            either = any(torch.equal(found, side[w.name]) for side in (before, after))
            assert either, f"event {event}: neither the dense weight before the step nor after it"
            assert_same_bits(w.weight.detach(), torch.where(mask, found, 0))
        # and it trains on
        optimizer.zero_grad()
        loss_of(model, 1).backward()
        optimizer.step()
        assert_sparse(model)


def test_an_interrupt_waits_and_is_not_lost():
    """Red if an interrupt is dropped, or comes while it should wait."""
    reached = []

    def interrupted() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_step_too():
    """Red if a step in another thread, where no handler can be set, raises."""
    errors = []

    def run() -> None:
        try:
            start()[1].step()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
