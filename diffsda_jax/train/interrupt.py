"""SIGTERM and Ctrl-C as a request to save and leave, instead of a sudden end."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_INTERRUPTED = 3  # exit status of a run that was told to stop and saved all steps done
_EXIT_NOT_SAVED = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE_SECONDS = 4.0


class Abandoned(BaseException):
    """Raised by the signal handler to leave work that can be dropped."""


class Interrupt:
    """Context manager that turns SIGTERM and SIGINT into a flag, and puts the old handlers back.

    The second SIGINT ends the process at once. With several processes JAX's preemption service
    watches SIGTERM, so that all leave at the same step, and no handler is installed; neither is one
    outside the main thread.

    Python runs a handler only between two of its own instructions, so a signal that comes during a
    compilation or a long sampling call would be seen when that ends, minutes later. A thread is
    therefore woken by the signal itself, and ends the process when the work under way holds nothing
    that is not saved (``droppable``, or before the first ``requested``).

    Args:
      before_exit: called by that thread first, such as to wait for a checkpoint under way; if it
        raises, the process ends with that error in one line.
    """

    def __init__(self, before_exit: Callable[[], None] = lambda: None):
        """Nothing is installed yet."""
        self._before_exit = before_exit
        self._left = threading.Event()
        self._nothing_to_lose = True
        self._signal: signal.Signals | None = None
        self._old: dict[signal.Signals, Any] = {}
        self._droppable = False

    def __enter__(self) -> "Interrupt":
        """Installs the handlers."""
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._old_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def _watch(self, reader: int) -> None:
        """Acts on the first SIGTERM or SIGINT, and reads on until ``__exit__`` closes the pipe.

        Were it closed earlier, Python would complain about each further signal.
        """
        acted = False
        while received := os.read(reader, 64):
            numbers = [number for number in received if number in _SIGNALS]
            if numbers and not acted:
                acted = True
                self._end_what_holds_on(signal.Signals(numbers[0]).name)
        os.close(reader)

    def _end_what_holds_on(self, name: str) -> None:
        """Waits for the work under way, then ends the process if nothing is lost by it."""
        if self._left.wait(_GRACE_SECONDS) or not self._nothing_to_lose:
            return
        try:
            self._before_exit()
        except Exception as error:  # of any kind: nobody above this thread would report it
            reason = " ".join(str(error).split()) or repr(error)
            text = (
                f"stopped by {name}, but the last checkpoint is not saved ({reason}); mend that "
                "and run the same command again to go on from the one before"
            )
            self._end(text, _EXIT_NOT_SAVED)
            return
        if self._nothing_to_lose and not self._left.is_set():
            text = "all steps done are saved; run the same command again to go on"
            self._end(f"stopped by {name}; {text}", EXIT_INTERRUPTED)

    @staticmethod
    def _end(message: str, status: int) -> None:
        """Ends the process from this thread; the main thread may be deep in compiled code."""
        print(message, file=sys.stderr, flush=True)
        os._exit(status)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Puts the old handlers back."""
        self._left.set()
        if self._old:
            signal.set_wakeup_fd(self._old_writer)
            os.close(self._writer)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Remembers the signal; from now on Ctrl-C kills."""
        self._signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._droppable:
            self._droppable = False  # a further signal must not break into the way out
            raise Abandoned

    @property
    def name(self) -> str:
        """Name of the signal that came, for messages."""
        return "preemption" if self._signal is None else self._signal.name

    @property
    def signalled(self) -> bool:
        """Whether a signal came to this process; always False where there are several."""
        return self._signal is not None

    def requested(self, step: int) -> bool:
        """Whether to save and leave after this step; the same answer on every process.

        Every process asks once a step, with growing steps.
        """
        self._nothing_to_lose = False
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signalled

    def droppable(self) -> "_Droppable":
        """Marks work (an evaluation) that a signal leaves at once instead of waiting for its end.

        All steps done must be saved, as even the process may end; and the work must leave nothing
        half-changed that is used afterwards. ``Abandoned`` may come out of the ``with`` statement
        itself, between two of Python's instructions, or on entering if a signal came before.
        """
        return _Droppable(self)

    def _allow_drop(self, allowed: bool) -> None:
        """Says whether the work under way may be left, and the process ended."""
        self._droppable = allowed
        self._nothing_to_lose = allowed


class _Droppable:
    """Context manager of ``Interrupt.droppable``."""

    def __init__(self, interrupt: Interrupt):
        """Nothing is marked yet."""
        self._interrupt = interrupt

    def __enter__(self) -> None:
        """Marks the work, unless a signal came already: then it must not start."""
        self._interrupt._allow_drop(True)
        if self._interrupt.signalled:
            self._interrupt._allow_drop(False)
            raise Abandoned

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Takes the mark away first of all, so that a signal from now on raises nothing."""
        self._interrupt._allow_drop(False)
        return isinstance(error, Abandoned)
