"""What goes wrong in a child process; each is called there before the command begins."""

import os
import random
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


def jump_clock(seed: int) -> None:
    """The time of day goes back and forth by up to days, and stays there for a second each time.

    Not at every look: Orbax measures by this clock how long a save takes, and gives up after some
    minutes of it; a save during which the clock is set forward fails, and is repeated by the next
    start.
    """
    true_time = time.time

    def jumping() -> float:
        now = true_time()
        return now + random.Random(f"{seed} {now // 1:.0f}").uniform(-3e5, 3e5)

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)
