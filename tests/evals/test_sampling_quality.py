import numpy as np
import pytest

from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.evals import sampling_quality as quality
from diffsda_jax.evals.sampling_quality import Trial

HEUN = Trial(
    SamplerSpec("heun", 32),
    {
        "random_nmse": 0.2,
        "inverted_nmse": 1e-6,
        "static_kept_percent": 90.0,
        "trajectory_error_pixels": 5.0,
        "untracked_percent": 0.0,
        "distance_nmse": 0.0,
        "seconds_per_clip": 0.1,
    },
)


def trial(num_steps=8, solver="dpmpp_2m", eta=0.0, **metrics):
    return Trial(SamplerSpec(solver, num_steps, eta), {**HEUN.metrics, **metrics})


@pytest.mark.parametrize(
    ("metrics", "lost"),
    [
        ({}, []),
        ({"random_nmse": 0.2039}, []),  # 2 % of 0.2
        ({"random_nmse": 0.2041}, ["random_nmse"]),
        ({"random_nmse": 0.1, "static_kept_percent": 99.0}, []),  # better is fine
        ({"inverted_nmse": 0.0019}, []),  # the floor of an error near 0
        ({"inverted_nmse": 0.0021}, ["inverted_nmse"]),
        ({"static_kept_percent": 88.3}, []),  # 2 % of 90
        ({"static_kept_percent": 88.1}, ["static_kept_percent"]),
        ({"untracked_percent": 0.5}, []),  # one clip of 200
        ({"untracked_percent": 0.6}, ["untracked_percent"]),
        ({"distance_nmse": 0.019}, []),
        ({"distance_nmse": 0.021}, ["distance_nmse"]),
        ({"random_nmse": np.nan}, ["random_nmse"]),
    ],
)
def test_a_loss_counts_beyond_the_tolerance_and_the_floor(metrics, lost):
    assert quality.losses(trial(**metrics), HEUN, 200, 2.0) == lost


def test_with_few_clips_one_clip_is_the_floor():
    worse = trial(static_kept_percent=80.0, untracked_percent=10.0)
    assert quality.losses(worse, HEUN, 10, 2.0) == []


def test_what_is_tolerated_by_its_floor_only_is_named():
    worse = trial(random_nmse=0.2039, inverted_nmse=0.0019, static_kept_percent=99.0)
    assert quality.losses(worse, HEUN, 200, 2.0) == []
    assert quality.by_floor(worse, HEUN, 2.0) == ["inverted_nmse"]
    assert quality.by_floor(trial(), HEUN, 2.0) == []
    assert quality.by_floor(trial(distance_nmse=0.019), HEUN, 2.0) == []


def test_what_is_not_a_number_in_the_reference_is_not_compared():
    unknown = Trial(HEUN.sampler, {**HEUN.metrics, "trajectory_error_pixels": np.nan})
    assert quality.not_compared(unknown) == ["trajectory_error_pixels"]
    assert quality.not_compared(HEUN) == []
    assert quality.losses(trial(), unknown, 200, 2.0) == []
    assert quality.losses(trial(random_nmse=0.3), unknown, 200, 2.0) == ["random_nmse"]


def test_the_cheapest_within_comes_first_and_the_nearest_of_equals():
    near, far = trial(8, distance_nmse=0.001), trial(8, "unipc", distance_nmse=0.01)
    bad, dear = trial(6, random_nmse=0.3), trial(12)
    noisy = trial(5, eta=1.0)
    trials = [dear, far, noisy, bad, near]
    assert quality.candidates(trials, HEUN, 200, 2.0) == [near, far, dear]
    assert quality.candidates([bad, noisy], HEUN, 200, 2.0) == []
    assert quality.candidates([trial(80)], HEUN, 200, 2.0) == []


def test_table_and_plot_show_all_that_was_tried():
    bad, good = trial(6, random_nmse=0.3), trial(8)
    table = quality.format_trials([bad, good], HEUN, good, 200, 2.0)
    lines = table.splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert "0.3*" in lines[3] and "*" not in lines[4] and "<-" in lines[4]
    assert "heun" in lines[2] and "63" in lines[2] and "d kept" not in lines[0]
    picture = quality.draw_trials([bad, good], HEUN, good)
    assert picture.ndim == 3 and picture.std() > 5
