"""SIGKILL at random instants; the same command again ends with the bits of an undisturbed run."""

import functools
import random
import shutil

import pytest
import tiny_jobs
from commands import Command
from disturbances import count_changes, kill_at_change
from tiny_jobs import Job

pytestmark = pytest.mark.slow
MODES = ("train", "latents", "prior")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The three jobs, each with what a run leaves that nothing disturbs."""
    root = tmp_path_factory.mktemp("jobs")
    tiny_jobs.make_clips(root)
    latents_words = functools.partial(tiny_jobs.latents_words, root=root)
    prior_words = functools.partial(tiny_jobs.series_words, mode="prior")
    found = {
        "train": Job(tiny_jobs.series_words, "", tiny_jobs.training_result),
        "latents": Job(latents_words, "", tiny_jobs.latents_result),
        "prior": Job(prior_words, "prior", tiny_jobs.training_result, root / "train_whole"),
    }
    for name, job in found.items():
        workdir, count = root / f"{name}_whole", root / f"{name}.changes"
        job.prepare(workdir)
        job.run(workdir).check_success()  # compiles; the next one is timed
        job.expected = job.result(workdir / job.place)
        again = root / f"{name}_again"
        job.prepare(again)
        count_here = functools.partial(count_changes, str(again), str(count))
        outcome = job.run(again, disturb=count_here)
        outcome.check_success()
        job.check(again)
        job.seconds, job.changes = outcome.seconds, count.stat().st_size
    return found


def kill_once(job, workdir, number, generator):
    """Starts the command and kills it, at a change of its files or after a time."""
    share = generator.random()
    while True:
        log = workdir.with_suffix(f".killed{number}.log")
        if number % 2:
            at = max(1, round(share * job.changes))
            disturb = functools.partial(kill_at_change, str(workdir), at)
            outcome = Command(job.words(workdir), log, disturb=disturb).wait()
            if outcome.status == -9:
                return
        else:
            command = Command(job.words(workdir), log)
            command.process.join(share * job.seconds)
            if command.process.is_alive():
                command.kill()
                return
            outcome = command.wait()
        outcome.check_success()  # it was faster than the undisturbed run: again, and earlier
        shutil.rmtree(workdir)
        job.prepare(workdir)
        share /= 2


def steps_saved(folder):
    """Numbers of the finished steps."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return [int(name) for name in names if name.isdecimal()]


def test_killed_at_a_random_instant(jobs, kill, tmp_path):
    job, workdir = jobs[MODES[kill % len(MODES)]], tmp_path / "run"
    job.prepare(workdir)
    kill_once(job, workdir, kill // len(MODES), random.Random(kill))
    place = workdir / job.place
    saved = max(steps_saved(place), default=0)
    finished = {path: path.stat().st_mtime_ns for path in tiny_jobs.shards(place)}
    outcome = job.run(workdir)
    outcome.check_success()
    job.check(workdir)
    assert not saved or f"resuming after step {saved} " in outcome.text, outcome.text
    for path, written in finished.items():
        assert path.stat().st_mtime_ns == written, f"{path} was made twice"
