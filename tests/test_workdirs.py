"""What a training in a workdir traces."""

import logging

import pytest
from ml_collections import ConfigDict

from diffsda_jax import workdirs
from diffsda_jax.train import profiling


def step(*_):
    """A training step."""


def traced_step(*_):
    """What ``trace_steps`` makes of it."""


@pytest.fixture
def asked(monkeypatch):
    """What ``trace_steps`` is asked for."""
    calls = []

    def trace_steps(step_fn, folder, skip, steps):
        calls.append((skip, steps))
        return traced_step

    monkeypatch.setattr(profiling, "trace_steps", trace_steps)
    return calls


@pytest.mark.parametrize(
    ("steps", "left", "traced", "words"),
    [(5, 15, 5, None), (5, 12, 2, "2 of profile.steps=5"), (5, 10, 0, "0 of profile.steps=5")],
)
def test_only_steps_that_are_done_are_traced(asked, caplog, tmp_path, steps, left, traced, words):
    caplog.set_level(logging.WARNING)
    profile = ConfigDict({"steps": steps, "skip": 10})
    step_fn = workdirs._traced(step, profile, left, tmp_path)
    assert step_fn == (traced_step if traced else step)
    assert asked == ([(10, traced)] if traced else [])
    assert bool(caplog.text) == (words is not None) and (words or "") in caplog.text


def test_numbers_that_cannot_be_are_refused_however_long_the_run(tmp_path):
    for values in ({"steps": -1, "skip": 10}, {"steps": 5, "skip": -1}):
        with pytest.raises(ValueError, match="profile.skip is"):
            workdirs._traced(step, ConfigDict(values), 100, tmp_path)
