import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.evals.frames import frame_errors, mean_errors


@pytest.fixture(scope="module")
def waves():
    """Two clips by formula; the numbers below belong to the first."""
    clip, v, h, w, c = np.meshgrid(*(np.arange(n) for n in (2, 3, 20, 24, 3)), indexing="ij")
    x = np.sin(0.5 * h + 0.3 * v + clip) * np.cos(0.4 * w + c)
    return x, np.clip(x + 0.3 * np.sin(1.7 * h * w + v), -1, 1)


def test_errors_are_those_of_scikit_image(waves):
    """Computed once by scikit-image 0.26.0, skimage.metrics, with data_range 2 for PSNR.

    SSIM of ((x + 1) / 2) with gaussian_weights=True, sigma=1.5, use_sample_covariance=False and
    data_range=1; the same numbers come out of (x + 1) * 127.5 with data_range=255.
    """
    errors = frame_errors(*waves)
    assert errors["mse"].shape == errors["psnr_db"].shape == errors["ssim"].shape == (2, 3)
    expected = {
        "mse": [0.04057697218107081, 0.044352081343966336, 0.043264434194611574],
        "psnr_db": [19.93780354104088, 19.551459862134347, 19.65928962873925],
        "ssim": [0.8654783716560485, 0.8746810448398947, 0.8843479328649648],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(errors[name][0], values, rtol=1e-7)


def test_means_leave_out_padding_and_what_is_missing(waves):
    x, other = waves
    broken = other.copy()
    broken[0, 2] = 1.0
    broken[1, 0] = -1.0
    errors, whole = frame_errors(x, broken), frame_errors(x, other)
    mask = np.ones((2, 3), bool)
    mask[1, 0] = False
    means = mean_errors(errors, length=jnp.array([2, 3]), mask=mask)
    kept = [(0, 0), (0, 1), (1, 1), (1, 2)]
    for name, value in means.items():
        assert value == pytest.approx(np.mean([whole[name][place] for place in kept]))
    assert mean_errors(errors)["mse"] > means["mse"]
    with pytest.raises(ValueError, match="leave no frame"):
        mean_errors(errors, mask=np.zeros((2, 3), bool))


def test_equal_frames_and_jax_arrays(waves):
    x = jnp.asarray(waves[0][:1], jnp.float32)
    means = mean_errors(frame_errors(x, x))
    assert means == {"mse": 0.0, "psnr_db": pytest.approx(126.02, abs=0.01), "ssim": 1.0}
