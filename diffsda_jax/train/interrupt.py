"""SIGTERM and Ctrl-C as a request to save and leave, instead of a sudden end."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

EXIT_INTERRUPTED = 3
_GRACE_SECONDS = 4.0


class _Abandoned(BaseException):
    """Raised by the signal handler to leave work that can be dropped."""


class Interrupt:
    """Context manager that turns SIGTERM and SIGINT into a flag, and puts the old handlers back.

    The second SIGINT ends the process at once. With several processes JAX's preemption service
    watches SIGTERM, so that all leave at the same step, and no handler is installed; neither is one
    outside the main thread.

    Python runs a handler only between two of its own instructions, so a signal that comes during a
    compilation or a long sampling call would be seen when that ends, minutes later. A thread is
    therefore woken by the signal itself, and ends the process when the work under way holds nothing
    that is not saved (`droppable`, or before the first `requested`).

    Args:
      before_exit: called by that thread first, such as to wait for a checkpoint under way.
    """

    def __init__(self, before_exit: Callable[[], None] = lambda: None):
        """Nothing is installed yet."""
        self._before_exit = before_exit
        self._left = threading.Event()
        self._nothing_to_lose = True
        self._signal: signal.Signals | None = None
        self._old: dict[signal.Signals, object] = {}
        self._droppable = False

    def __enter__(self) -> "Interrupt":
        """Installs the handlers."""
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._old_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def _watch(self, reader: int) -> None:
        """Waits for a signal, then for the work under way, and ends the process if it holds on."""
        received = os.read(reader, 1)
        os.close(reader)
        if not received or received[0] not in tuple(self._old):
            return
        if self._left.wait(_GRACE_SECONDS) or not self._nothing_to_lose:
            return
        self._before_exit()
        if self._nothing_to_lose and not self._left.is_set():
            name = signal.Signals(received[0]).name
            print(
                f"stopped by {name}; all steps done are saved; run the same command again to go on",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_INTERRUPTED)

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
            raise _Abandoned

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

    @contextlib.contextmanager
    def droppable(self, saved: bool) -> Iterator[None]:
        """Marks work (an evaluation) that a signal leaves at once instead of waiting for its end.

        The work must leave nothing half-changed that is used afterwards.

        Args:
          saved: all steps done are saved, so that even the process may end.
        """
        self._droppable, self._nothing_to_lose = True, saved
        try:
            yield
        except _Abandoned:
            pass
        finally:
            self._droppable = self._nothing_to_lose = False
