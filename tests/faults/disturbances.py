"""What goes wrong in a child process; each is called there before the command begins."""

import os
import random
import resource
import signal
import sys
import time

_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir"}


def count_changes(folder: str, log: str) -> None:
    """Appends to a file what happens to files of a folder, one character for each event."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _at_changes(folder, lambda _: os.write(descriptor, b"."))


def kill_at_change(folder: str, number: int) -> None:
    """SIGKILL just before the event of this number, from 1 on, that concerns files of a folder."""

    def die(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _at_changes(folder, die)


def _at_changes(folder: str, act) -> None:
    """Calls ``act`` with the number of every event that the interpreter reports."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in _CHANGES and str(arguments[0]).startswith(folder):
            count += 1
            act(count)

    sys.addaudithook(hook)


def limit_file_size(num_bytes: int) -> None:
    """No file can grow beyond this: writing fails as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def jump_clock(seed: int) -> None:
    """The time of day goes back and forth by up to days at every look."""
    true_time, generator = time.time, random.Random(seed)
    time.time = lambda: true_time() + generator.uniform(-3e5, 3e5)
    time.time_ns = lambda: int(time.time() * 1e9)


def give_up_root() -> None:
    """Only the rights of nobody, for whom a folder can be read-only."""
    if os.geteuid() == 0:
        os.environ["HOME"] = "/nonexistent"
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
