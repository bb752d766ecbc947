"""One command after the other or several at once, each on its own device or share of the cores."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

THREAD_OPTIONS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")  # of XLA
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Slot(NamedTuple):
    """A place where one command at a time runs.

    Attributes:
      environment: variables that it gets.
      cores: CPU cores that it may use; empty = all.
    """

    environment: Mapping[str, str]
    cores: frozenset[int] = frozenset()


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      status: 0 is well; below 0, the signal that ended it.
      seconds: it took.
      cpu_seconds: of all cores together.
    """

    status: int
    seconds: float
    cpu_seconds: float


def make_slots(jobs: int = 1, devices: Sequence[str] = ()) -> list[Slot]:
    """Places for commands.

    Args:
      jobs: how many run at once on the CPU, each with its share of the cores, or wherever one is
        free if there are more jobs than cores; 1 leaves devices and cores as they are.
      devices: numbers of GPUs or TPU chips; one command at a time runs on each.

    Raises:
      ValueError: fewer than one job, or both jobs and devices.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; it must be 1 or more.")
    if devices and jobs > 1:
        raise ValueError(
            f"--jobs={jobs} and --devices={','.join(devices)}: --jobs divides the CPU, --devices "
            "gives one run to each accelerator; give one of the two."
        )
    if devices:
        return [Slot(_only_device(device)) for device in devices]
    if jobs == 1:
        return [Slot({})]
    environment = {"JAX_PLATFORMS": "cpu"}
    # Not there on systems such as macOS.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < jobs:  # the system divides them, so that none is idle while jobs are left
        return [Slot(environment | dict.fromkeys(THREAD_OPTIONS, "1"))] * jobs
    slots = []
    for job in range(jobs):
        share = cores[job::jobs]
        threads = dict.fromkeys(THREAD_OPTIONS, str(len(share)))
        slots.append(Slot(environment | threads, frozenset(share)))
    return slots


def _only_device(device: str) -> dict[str, str]:
    """Variables that leave one GPU (NVIDIA, AMD) or TPU chip to be seen."""
    return {
        "CUDA_VISIBLE_DEVICES": device,
        "ROCR_VISIBLE_DEVICES": device,
        "TPU_VISIBLE_CHIPS": device,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


class Launcher:
    """Runs commands; a call returns when its command has ended.

    Calls may come from several threads. ``stop`` ends all commands, which save what they have and
    return, and those that are called afterwards do not start.
    """

    def __init__(self):
        """Nothing runs yet."""
        self.stopped = False
        self._lock = threading.RLock()  # a signal may call stop while stop runs
        self._running: set[subprocess.Popen] = set()
        self._told: set[subprocess.Popen] = set()  # to end: a second signal may cut their saving

    def __call__(self, command: Sequence[str], log: Path, slot: Slot) -> Ended:
        """Runs one command.

        Args:
          command: program and arguments.
          log: file that its output is added to.
          slot: where.

        Raises:
          KeyboardInterrupt: ``stop`` was called before.
        """
        began = time.perf_counter()
        with log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            with self._lock:
                if self.stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | slot.environment,
                    start_new_session=True,  # Ctrl-C reaches it through stop, once
                )
                self._running.add(process)
            if slot.cores:  # before it makes its threads, which are as many as cores
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(process.pid, slot.cores)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:  # its number stays taken until here, where stop cannot send to it
            _, status, usage = os.wait4(process.pid, 0)
            self._running.discard(process)
            process.returncode = os.waitstatus_to_exitcode(status)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        return Ended(process.returncode, time.perf_counter() - began, cpu_seconds)

    def stop(self) -> None:
        """Asks all commands to save and end."""
        with self._lock:
            self.stopped = True
            for process in self._running - self._told:
                os.kill(process.pid, signal.SIGTERM)
                self._told.add(process)

    @contextlib.contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM call ``stop`` and raise KeyboardInterrupt, as long as this is open.

        Python drops an exception that a signal raises while an object is being collected; the
        commands are stopped even then, and say so to who waits for them. Only the main thread can
        watch signals; elsewhere nothing is changed, and ignored ones (Ctrl-C, of a job in the
        background of a script) stay so.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop()
            raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        watched = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handle) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():  # None: it was not installed from Python
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
