"""The command line in processes of its own that can be disturbed, without a start of seconds each.

A server imports the package once and forks; each child then parses a command line and runs it, as
``python -m diffsda_jax.main`` would, with its output in a file.
"""

import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PRELOAD = ("main", "infer", "runs", "latents", "prior_runs", "plan", "train.checkpoint")
_LIBRARIES = ("clu.parameter_overview", "tensorboardX", "av", "soundfile", "sklearn.metrics")
ERROR = "diffsda_jax: error: "


@functools.cache
def server():
    """The forking server; it starts with the first process."""
    context = multiprocessing.get_context("forkserver")
    names = [f"diffsda_jax.{name}" for name in _PRELOAD]
    context.set_forkserver_preload(["commands", *names, *_LIBRARIES])
    return context


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
      status: of the exit; negative for a signal, None for one that had to be ended by the limit.
      text: standard output and error.
      seconds: that it took.
    """

    status: int | None
    text: str
    seconds: float

    def error(self) -> str:
        """The one sentence that a refused command says; anything else fails the test."""
        assert self.status is not None, f"hangs, after {self.seconds:.0f} s: {self.text[-2000:]}"
        assert "Traceback" not in self.text, self.text[-3000:]
        assert self.status == 2, f"status {self.status}: {self.text[-2000:]}"
        found = [line for line in self.text.splitlines() if line.startswith(ERROR)]
        assert len(found) == 1, self.text[-2000:]
        return found[0].removeprefix(ERROR)

    def check_success(self) -> None:
        """Fails the test where the command failed."""
        assert self.status == 0, f"status {self.status}: {self.text[-3000:]}"


class Command:
    """A command under way."""

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        disturb: Callable[[], None] | None = None,
        module: str = "main",
    ):
        """Starts it.

        Args:
          words: of the command line, after ``python -m diffsda_jax.<module>``.
          log: file for its output.
          disturb: is called in the new process before the command begins.
          module: of the package.
        """
        self._log, self._began = log, time.monotonic()
        cache = os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(Path(".cache/xla-tests").absolute())
        )
        arguments = (module, list(words), str(log), cache, disturb)
        self.process = server().Process(target=_child, args=arguments, daemon=True)
        self.process.start()

    def wait(self, limit_seconds: float = 300.0) -> Outcome:
        """Waits for the end, and ends it itself after the limit."""
        self.process.join(limit_seconds)
        hangs = self.process.is_alive()
        if hangs:
            self.kill()
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        status = None if hangs else self.process.exitcode
        return Outcome(status, text, time.monotonic() - self._began)

    def kill(self) -> None:
        """SIGKILL, which a process can neither see nor delay."""
        self.process.kill()
        self.process.join()


def run(words: Sequence[str], log: Path, **options) -> Outcome:
    """Runs a command to its end; for the options see `Command`."""
    return Command(words, log, **options).wait()


def _child(
    module: str, words: list[str], log: str, cache: str, disturb: Callable[[], None] | None
) -> None:
    """The life of a child: one CPU device, kept programs, and the command."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", cache)
    program = importlib.import_module(f"diffsda_jax.{module}")
    sys.argv = [str(program.__file__), *words]
    if disturb is not None:
        disturb()
    with contextlib.closing(_Flushed()):
        if module == "main":
            from absl import app

            app.run(program.main, flags_parser=program.parse_flags)
        else:
            sys.exit(program.main(words))


class _Flushed:
    """Writes out what is buffered; a child ends without the interpreter's own closing."""

    def close(self) -> None:
        """At the end of the command."""
        sys.stdout.flush()
        sys.stderr.flush()
