import numpy as np
import pytest
from scipy.linalg import sqrtm

from diffsda_jax.evals.frechet import (
    few_items_note,
    frechet_distance,
    pool_over_time,
    series_statistics,
)


def draw(count, seed=0, width=4):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((width, width))
    return rng.standard_normal((count, width)) @ mixing + np.arange(width)


def test_it_is_the_published_formula():
    a, b = draw(200), 2 * draw(150, seed=1) + 1
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(c_a @ c_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c_a + c_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_closed_form_for_scaled_and_moved_features():
    a = draw(5000, width=3)
    # C_b = 4 C_a: the root is 2 C_a, so the trace term is that of C_a; the mean moves as well.
    b = 2 * a + 3
    expected = np.square(a.mean(0) + 3).sum() + np.trace(np.cov(a.T))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_real_against_real_is_near_nothing_and_noise_is_far():
    real, fresh = draw(4000), draw(4000, seed=1)
    floor = frechet_distance(real, fresh)
    assert frechet_distance(real, real) == pytest.approx(0.0, abs=1e-9)
    assert floor < 0.02
    # Each feature is right alone, their dependence is gone.
    rng = np.random.default_rng(2)
    shuffled = np.stack([rng.permutation(column) for column in fresh.T], axis=1)
    assert frechet_distance(real, shuffled) > 20 * floor
    noise = np.random.default_rng(3).standard_normal((4000, 4))
    assert frechet_distance(real, noise) > 100 * floor


def test_singular_covariances_are_harmless_and_named():
    a, b = draw(6, width=40), draw(6, seed=1, width=40)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    few, many = frechet_distance(a, b), frechet_distance(draw(4000, 2, 40), draw(4000, 3, 40))
    assert few > 10 * many  # the bias that the note names
    assert "6 clips in 40 features" in few_items_note(6, 40)
    assert few_items_note(41, 40) is None
    constant = np.ones((5, 3))
    assert frechet_distance(constant, constant + 2) == pytest.approx(12.0)


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="two or more rows"):
        frechet_distance(draw(1), draw(5))
    with pytest.raises(ValueError, match="same number of columns"):
        frechet_distance(draw(5), draw(5, width=3))


def test_pooled_features_leave_out_padding_and_what_was_not_found():
    values = np.random.default_rng(0).standard_normal((2, 5, 3))
    length = np.array([5, 3])
    polluted = values.copy()
    polluted[1, 3:] = 100.0
    polluted[0, 2] = np.nan
    pooled = pool_over_time(polluted, length)
    left = values[0, [0, 1, 3, 4]]
    np.testing.assert_allclose(pooled[0], np.concatenate([left.mean(0), left.std(0)]))
    np.testing.assert_allclose(pooled[1, 3:], values[1, :3].std(0))


def test_statistics_of_series_know_place_spread_and_roughness():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 8, 2))
    length = np.array([8, 4, 2])
    polluted = x.copy()
    polluted[1, 4:], polluted[2, 2:] = 50.0, -50.0
    found = series_statistics(polluted, length)
    for row, steps in enumerate(length):
        part = x[row, :steps]
        if steps == 2:
            quarters = [part[0], part.mean(0), part[1], part.mean(0)]
        else:
            quarters = [quarter.mean(0) for quarter in np.split(part, 4)]
        roughness = np.sqrt(np.square(np.diff(part, axis=0)).mean(0))
        expected = np.concatenate([*quarters, part.std(0), roughness])
        np.testing.assert_allclose(found[row], expected)


def test_statistics_of_series_tell_shuffled_steps():
    x = np.cumsum(np.random.default_rng(0).standard_normal((4000, 12, 1)), axis=1)
    real, fresh = series_statistics(x[:2000]), series_statistics(x[2000:])
    shuffled = series_statistics(np.random.default_rng(1).permuted(x[2000:], axis=1))
    assert frechet_distance(real, shuffled) > 20 * frechet_distance(real, fresh)
