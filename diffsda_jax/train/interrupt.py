"""SIGTERM and Ctrl-C as a request to save and leave, instead of a sudden end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class _Abandoned(BaseException):
    """Raised by the signal handler to leave work that can be dropped."""


class Interrupt:
    """Context manager that turns SIGTERM and SIGINT into a flag, and puts the old handlers back.

    The second SIGINT ends the process at once. With several processes JAX's preemption service
    watches SIGTERM, so that all leave at the same step, and no handler is installed; neither is one
    outside the main thread.
    """

    def __init__(self):
        """Nothing is installed yet."""
        self._signal: signal.Signals | None = None
        self._old: dict[signal.Signals, object] = {}
        self._droppable = False

    def __enter__(self) -> "Interrupt":
        """Installs the handlers."""
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Puts the old handlers back."""
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
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signalled

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """Marks work (an evaluation) that a signal leaves at once instead of waiting for its end.

        The work must leave nothing half-changed that is used afterwards.
        """
        self._droppable = True
        try:
            yield
        except _Abandoned:
            pass
        finally:
            self._droppable = False
