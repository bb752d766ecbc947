import numpy as np
import pytest
from oracles import digit_arrays

from diffsda_jax.data.sources.digits import load_scans, render
from diffsda_jax.evals import metrics as measure
from diffsda_jax.evals.swap import make_pairs


def test_masked_mse_counts_observed_values_only():
    x = np.zeros((2, 3, 4), np.float32)
    other = np.full_like(x, 5.0)
    mask = np.zeros(x.shape, bool)
    mask[0, :2] = True
    other[mask] = 2.0
    assert measure.masked_mse(x, other, mask) == pytest.approx(4.0)
    assert measure.masked_mse(x, other) > 4.0
    assert measure.psnr(x, other, mask, data_range=2.0) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="False everywhere"):
        measure.masked_mse(x, other, np.zeros_like(mask))


def test_video_mask_is_per_frame():
    x = np.zeros((1, 2, 4, 4, 3), np.float32)
    other = x.copy()
    other[:, 1] = 1.0
    assert measure.masked_mse(x, other, np.array([[True, False]])) == 0.0
    assert measure.masked_mse(x, other, np.array([[True, True]])) == pytest.approx(0.5)


def test_the_mean_has_normalized_mse_one():
    x = np.random.default_rng(0).standard_normal((50, 4, 3)) + 7
    mean = np.broadcast_to(x.mean((0, 1)), x.shape)
    assert measure.normalized_mse(x, mean) == pytest.approx(1.0)
    assert measure.normalized_mse(x, x) == 0.0


@pytest.mark.parametrize("value", [0.0, 0.3, 1000.1])
def test_normalized_mse_of_constant_data_is_finite(value):
    x = np.full((4, 3, 2), value, np.float32)
    assert measure.normalized_mse(x, x) == 0.0
    off = measure.normalized_mse(x, x + np.float32(0.5))
    assert np.isfinite(off) and off > 1e10
    mask = np.zeros(x.shape, bool)
    mask[0] = True
    assert measure.normalized_mse(x, x, mask) == 0.0


def test_ssim_of_equal_constant_and_unlike_frames():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 3, 16, 16, 1)).astype(np.float32)
    assert measure.ssim(x, x) == pytest.approx(1.0)
    assert abs(measure.ssim(x, rng.permutation(x.ravel()).reshape(x.shape))) < 0.15
    # Two constants: the structure term is 1 and only the luminance term is left.
    a, b, c1 = np.full((1, 1, 12, 12, 1), -0.6), np.full((1, 1, 12, 12, 1), 0.2), 0.01**2
    expected = (2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1)
    assert measure.ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_ssim_leaves_masked_frames_out():
    x = np.random.default_rng(0).uniform(-1, 1, (1, 2, 8, 8, 3))
    other = x.copy()
    other[:, 1] = -other[:, 1]
    assert measure.ssim(x, other, np.array([[True, False]])) == pytest.approx(1.0)
    assert measure.ssim(x, other) < 0.6


def test_centre_of_mass_of_a_square():
    x = np.full((1, 2, 16, 16, 1), -1.0)
    x[0, 0, 3:6, 10:13] = 1.0
    x += 0.1  # faint ground
    place = measure.centre_of_mass(x)
    np.testing.assert_allclose(place[0, 0], [4, 11])
    assert np.isnan(place[0, 1]).all()


@pytest.fixture(scope="module")
def swaps():
    data = digit_arrays("test", 200)
    pairs = make_pairs(200, 150, labels=[data["static_label"], data["dynamic_label"]])
    scans = load_scans()[0][data["static_id"]]
    return data, *pairs, render(scans[pairs[0]], data["position"][pairs[1]], 16)


def test_the_ideal_swap_follows_the_trajectory_and_others_do_not(swaps):
    data, static_index, dynamic_index, ideal = swaps
    x_static, position = data["x"][static_index], data["position"]
    error, untracked = measure.trajectory_error(
        ideal, position[dynamic_index], x_static, position[static_index]
    )
    assert error < 0.3
    assert untracked == 0.0
    other, _ = measure.trajectory_error(
        ideal, position[np.roll(dynamic_index, 1)], x_static, position[static_index]
    )
    assert other > 2.0


def test_a_shift_is_measured_in_pixels(swaps):
    data, static_index, dynamic_index, ideal = swaps
    scans = load_scans()[0][data["static_id"][static_index]]
    position = data["position"][dynamic_index].clip(5, 10)
    shifted = render(scans, position + np.array([0, 1.0], np.float32), 16)
    args = (data["x"][static_index], data["position"][static_index])
    assert measure.trajectory_error(shifted, position, *args)[0] == pytest.approx(1.0, abs=0.15)


def test_blank_frames_are_left_out_and_counted(swaps):
    data, static_index, dynamic_index, ideal = swaps
    blank = ideal.copy()
    blank[:, ::2] = -1.0
    position = data["position"]
    args = position[dynamic_index], data["x"][static_index], position[static_index]
    error, untracked = measure.trajectory_error(blank, *args)
    assert untracked == pytest.approx(50.0)
    assert error < 0.3
    error, untracked = measure.trajectory_error(np.full_like(ideal, -1.0), *args)
    assert np.isnan(error) and untracked == 100.0
    # Frames past the end are neither tracked nor missed.
    length = np.full(len(ideal), 3, np.int32)
    blank = ideal.copy()
    blank[:, 3:] = -1.0
    assert measure.trajectory_error(blank, *args, length)[1] == 0.0


def test_kept_labels():
    judged = {"static": np.array([1, 2, 3, 4]), "dynamic": np.array([0, 0, 1, 1])}
    kept = measure.kept_percent(judged, np.array([1, 2, 3, 0]), np.array([0, 1, 1, 0]))
    assert kept == {
        "static_kept_percent": 75.0,
        "dynamic_kept_percent": 50.0,
        "both_kept_percent": 50.0,
    }
    assert measure.kept_percent(judged, np.array([1, 2, 3, 0]), None) == {
        "static_kept_percent": 75.0
    }
