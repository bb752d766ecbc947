"""What a run shows while it works: a progress bar or log lines, and nothing of the libraries."""

import logging
import math
import sys
import time
from collections.abc import Mapping

import jax
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = (0.1, 30.0)  # of a progress bar on a terminal, and in a file


def setup_console(level: int = logging.INFO) -> None:
    """Sends this package's log to standard error, plainly, and keeps Orbax's chatter out.

    Call it once, from a command line; a library must not.

    Args:
      level: lowest level shown, of Python's ``logging``.
    """
    package = logging.getLogger("diffsda_jax")
    package.setLevel(level)
    if not package.handlers:
        package.addHandler(_TqdmHandler())
    package.propagate = False
    for library in ("jax", "matplotlib"):  # no note on each absent backend, or on fonts
        logging.getLogger(library).setLevel(logging.WARNING)
    absl = logging.getLogger("absl")
    absl.setLevel(logging.WARNING)
    if not any(isinstance(known, _NoOrbax) for known in absl.filters):
        absl.addFilter(_NoOrbax())


class _TqdmHandler(logging.Handler):
    """Writes records to standard error without tearing a progress bar apart."""

    def __init__(self):
        """Shows the bare message."""
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record, warnings with their level in front."""
        mark = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(mark + self.format(record), file=sys.stderr)


class _NoOrbax(logging.Filter):
    """Drops Orbax's records below errors; what matters of them this package says itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for records that are not shown."""
        return record.levelno >= logging.ERROR or "orbax" not in record.pathname


def progress_bar(what: str, unit: str, total: int, done: int) -> tqdm:
    """A bar for work that has no metrics; in a file it is a line now and then.

    Args:
      what: is worked on.
      unit: of the counts.
      total: of the whole work.
      done: by earlier starts.
    """
    refresh = _REFRESH_SECONDS[not sys.stderr.isatty()]
    return tqdm(
        desc=what,
        unit=unit,
        total=total,
        initial=done,
        mininterval=refresh,
        maxinterval=refresh,
        dynamic_ncols=True,
    )


class Progress:
    """Progress of a run: a bar on a terminal, else a log line now and then; process 0 only.

    Args:
      first_step: steps done before this start.
      total_steps: steps of the whole run.
      log_every_seconds: least time between two log lines.
    """

    def __init__(self, first_step: int, total_steps: int, log_every_seconds: float = 10.0):
        """Shows the empty bar."""
        self._total_steps = total_steps
        self._every_seconds = log_every_seconds
        self._last_line = -math.inf
        self._rate_step, self._rate_time = first_step, time.perf_counter()
        self._start_step, self._start_time = self._rate_step, self._rate_time
        self._advanced = 0
        self._enabled = jax.process_index() == 0
        self._bar = None
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(
                initial=first_step,
                total=total_steps,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.1,
                file=sys.stderr,
            )

    def advance(self) -> None:
        """Counts one step; the clock starts after the first, which compiles."""
        if self._advanced == 0:
            self._rate_step, self._rate_time = self._rate_step + 1, time.perf_counter()
            self._start_step, self._start_time = self._rate_step, self._rate_time
        self._advanced += 1
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, metrics: Mapping[str, float]) -> float:
        """Shows metrics (``loss``) after a step.

        Returns:
          Steps per second since the report before.
        """
        now = time.perf_counter()
        rate = max(step - self._rate_step, 1) / max(now - self._rate_time, 1e-9)
        self._rate_step, self._rate_time = step, now
        loss = metrics["loss"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        due = now - self._last_line >= self._every_seconds or step >= self._total_steps
        if self._bar is None and self._enabled and due:
            self._last_line = now
            seconds_a_step = (now - self._start_time) / max(step - self._start_step, 1)
            left = (self._total_steps - step) * seconds_a_step
            logger.info(
                "step %d/%d  loss %.4g  %.3g steps/s  %s left",
                *(step, self._total_steps, loss, rate, tqdm.format_interval(left)),
            )
        return rate

    def close(self) -> None:
        """Finishes the bar."""
        if self._bar is not None:
            self._bar.close()
