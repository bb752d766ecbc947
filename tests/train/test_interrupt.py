"""What a signal does to a run, and what the watching thread does if the run holds on."""

import os
import signal
import sys
import threading
import time

import pytest

from diffsda_jax.train import interrupt
from diffsda_jax.train.interrupt import EXIT_INTERRUPTED, Abandoned, Interrupt


@pytest.fixture
def ended(monkeypatch):
    """Messages and exit statuses with which the process would have ended."""
    ends = []
    monkeypatch.setattr(interrupt, "_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(Interrupt, "_end", staticmethod(lambda *args: ends.append(args)))
    return ends


def kill(number):
    os.kill(os.getpid(), number)


def wait_for(condition):
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_other_signals_do_not_disarm_and_further_ones_are_quiet(ended, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    threads = threading.active_count()
    try:
        with Interrupt():
            kill(signal.SIGUSR1)
            time.sleep(0.2)
            assert not ended
            kill(signal.SIGTERM)
            wait_for(lambda: ended)
            for _ in range(3):
                kill(signal.SIGTERM)
                time.sleep(0.05)
    finally:
        signal.signal(signal.SIGUSR1, old)
    wait_for(lambda: threading.active_count() == threads)
    message = "stopped by SIGTERM; all steps done are saved; run the same command again to go on"
    assert ended == [(message, EXIT_INTERRUPTED)] and not unraisable


def test_unsaved_steps_are_waited_for(ended):
    with Interrupt() as stop:
        assert not stop.requested(1)
        kill(signal.SIGTERM)
        time.sleep(0.3)
        assert stop.requested(2) and stop.name == "SIGTERM"
    assert not ended


def test_failed_save_ends_in_one_line_and_another_status(ended):
    def fail():
        raise OSError("disk\nfull")

    with Interrupt(before_exit=fail):
        kill(signal.SIGTERM)
        wait_for(lambda: ended)
    ((message, status),) = ended
    assert "the last checkpoint is not saved (disk full)" in message and "\n" not in message
    assert status not in (0, EXIT_INTERRUPTED)


def test_after_a_signal_droppable_work_does_not_start():
    with Interrupt() as stop:
        kill(signal.SIGTERM)
        with pytest.raises(Abandoned):
            with stop.droppable():
                pytest.fail("started")


def test_signal_at_any_instruction_of_droppable_work_is_contained():
    """As the loop does it; the signal comes at the first, the second, ... instruction."""
    outcomes = []
    while not outcomes or outcomes[-1] != "not reached":
        outcomes.append(drop_at(len(outcomes)))
    assert {"dropped", "done"} < set(outcomes) and len(outcomes) > 30


def drop_at(place):
    """Runs droppable work with a signal at one instruction of it or of the code around it."""
    count, finished = 0, False
    files = (interrupt.__file__, __file__)

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in files or frame.f_code.co_name == "_handle":
            return None
        if not frame.f_trace_opcodes:
            frame.f_trace_opcodes = True
            sys.settrace(trace)  # Python 3.12 heeds the line above only from here on
        if event == "opcode":
            count += 1
            if count == place + 1:
                kill(signal.SIGTERM)
        return trace

    def work():
        nonlocal finished
        try:
            with stop.droppable():
                finished = sum([1, 2]) == 3
        except Abandoned:
            pass

    with Interrupt() as stop:
        old = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(old)
        assert not stop._droppable
        signalled = stop.signalled
    return "not reached" if not signalled else "done" if finished else "dropped"
