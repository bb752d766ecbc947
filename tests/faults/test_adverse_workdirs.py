"""A workdir under adverse conditions: a full disk, no right to write, two runs, and odd clocks."""

import functools
import os
import re
import subprocess
import time

import pytest
import tiny_jobs
from commands import Command, run
from disturbances import jump_clock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_jobs.series_words(workdir), workdir.with_suffix(".log")).check_success()
    return tiny_jobs.training_result(workdir)


def mount(options, place, size="16m"):
    """Mounts a file system in memory, or changes it; False without the right to."""
    words = ["mount", "-t", "tmpfs", "-o", f"{options},size={size}", "tmpfs", str(place)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of few bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or not mount("rw", place):
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def check_same(workdir, whole):
    job = tiny_jobs.Job(tiny_jobs.series_words, "", tiny_jobs.training_result, expected=whole)
    job.check(workdir)


@pytest.mark.parametrize("size", ["64k", "1m", "9m"])  # nothing, logs, and one checkpoint fit
def test_full_disk(tmp_path, small_disk, whole, size):
    words, log = tiny_jobs.series_words(small_disk / "run"), tmp_path / "log"
    mount("remount", small_disk, size=size)
    error = run(words, log).error()
    assert "the disk is full" in error and "run the same command again" in error
    mount("remount", small_disk, size="200m")
    run(words, log).check_success()
    check_same(small_disk / "run", whole)


@pytest.mark.parametrize("mode", ["train", "latents"])
def test_read_only_workdir(tmp_path, small_disk, mode):
    tiny_jobs.make_clips(tmp_path)
    workdir = small_disk / "run"
    words = {
        "train": tiny_jobs.series_words(workdir),
        "latents": tiny_jobs.latents_words(workdir, tmp_path),
    }
    (small_disk / "old").mkdir()
    mount("remount,ro", small_disk)
    error = run(words[mode], tmp_path / "log").error()
    assert f"workdir {workdir} cannot be written to (Read-only file system)" in error


def test_a_second_run_is_refused_and_a_killed_one_does_not_hold(tmp_path, whole):
    workdir = tmp_path / "run"
    words = tiny_jobs.series_words(workdir)
    first = Command(words, tmp_path / "first")
    lock, limit = workdir / ".lock", time.monotonic() + 200
    while not (lock.exists() and lock.read_text()) and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(first.process.pid, 19)  # SIGSTOP: it lives, and holds the workdir, but does nothing
    error = run(words, tmp_path / "second").error()
    assert f"in use by another run (pid {first.process.pid} on " in error
    first.kill()
    run(words, tmp_path / "third").check_success()
    check_same(workdir, whole)


def test_clock_that_jumps(tmp_path, whole):
    """A save that the clock jumps over may fail, as Orbax reads the time of day; no other thing."""
    words, log = tiny_jobs.series_words(tmp_path / "run"), tmp_path / "log"
    rates = []
    for start in range(20):
        outcome = run(words, log, disturb=functools.partial(jump_clock, start))
        rates += re.findall(r"([\d.e+-]+) steps/s", outcome.text)
        if outcome.status == 0:
            break
        assert outcome.status == 2 and "or the clock was set forward" in outcome.text
    outcome.check_success()
    assert rates and all(0 < float(rate) < 1e5 for rate in rates), rates
    check_same(tmp_path / "run", whole)
