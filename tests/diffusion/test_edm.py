import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.diffusion import edm

SIGMAS = jnp.array([0.002, 0.5, 1.0, 80.0])


def test_preconditioning_keeps_input_and_target_at_unit_variance():
    # For data of std sigma_data and noise of std sigma: Var(c_in (x + n)) = 1 and
    # Var((x - c_skip (x + n)) / c_out) = 1 (Karras et al. 2022, appendix B.6).
    for sigma_data in (0.5, 1.3):
        c_skip, c_out, c_in, c_noise = edm.preconditioning(SIGMAS, sigma_data)
        np.testing.assert_allclose(c_in**2 * (SIGMAS**2 + sigma_data**2), 1, rtol=1e-5)
        target = (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * SIGMAS**2
        np.testing.assert_allclose(target / c_out**2, 1, rtol=1e-4)
        np.testing.assert_allclose(c_noise, np.log(SIGMAS) / 4, rtol=1e-6)


def test_loss_weight_is_the_inverse_square_of_c_out():
    weight = edm.loss_weight(SIGMAS)
    np.testing.assert_allclose(weight * edm.preconditioning(SIGMAS).c_out ** 2, 1, rtol=1e-5)


def test_uniform_weight_is_the_plain_squared_error():
    np.testing.assert_array_equal(edm.loss_weight(SIGMAS, 0.5, "uniform"), 1)


def test_min_snr_weight_is_that_of_the_noise_until_the_limit():
    # Error in units of the data's variance times min(snr, 5), snr = (sigma_data / sigma)^2.
    for sigma_data in (0.5, 1.3):
        snr = (sigma_data / np.asarray(SIGMAS)) ** 2
        weight = edm.loss_weight(SIGMAS, sigma_data, "min_snr") * sigma_data**2
        np.testing.assert_allclose(weight, np.minimum(snr, 5), rtol=1e-5)
        unlimited = edm.loss_weight(SIGMAS, sigma_data, "min_snr", snr_limit=1e9)
        np.testing.assert_allclose(unlimited * SIGMAS**2, 1, rtol=1e-5)  # that of the noise


def test_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="loss.weighting is 'snr'.*'min_snr'"):
        edm.loss_weight(SIGMAS, 0.5, "snr")


def test_net_out_zero_is_the_optimal_denoiser_of_gaussian_data():
    # Posterior mean of N(0, sigma_data^2) given x: x sigma_data^2 / (sigma_data^2 + sigma^2).
    x = jnp.array([3.0, -1.0, 0.5, 20.0])
    c_skip = edm.preconditioning(SIGMAS).c_skip
    np.testing.assert_allclose(c_skip * x, x * 0.25 / (0.25 + SIGMAS**2), rtol=1e-6)


def test_log_normal_levels_have_the_asked_moments():
    logs = np.log(edm.sample_sigma(jax.random.key(0), (200, 500), p_mean=-1.2, p_std=1.2))
    assert abs(logs.mean() + 1.2) < 0.02 and abs(logs.std() - 1.2) < 0.02


def test_uniform_levels_fill_the_range():
    sigma = edm.sample_sigma(jax.random.key(0), (50_000,), "uniform", sigma_min=1.0, sigma_max=9.0)
    assert 1.0 <= sigma.min() < 1.01 and 8.99 < sigma.max() <= 9.0
    assert abs(sigma.mean() - 5.0) < 0.05


def test_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="'triangular'.*'log_normal'"):
        edm.sample_sigma(jax.random.key(0), (2,), "triangular")


def test_loss_counts_missing_elements_as_zero_in_the_whole_mean():
    clean = jnp.zeros((1, 2, 3))
    denoised = jnp.ones((1, 2, 3))
    weight = jnp.array([[1.0, 10.0]])
    assert edm.denoising_loss(denoised, clean, weight) == pytest.approx((3 * 1 + 3 * 10) / 6)
    mask = jnp.array([[[True, True, False], [True, False, False]]])
    masked = edm.denoising_loss(denoised, clean, weight, mask)
    assert masked == pytest.approx((2 * 1 + 1 * 10) / 6)


def test_loss_takes_a_mask_of_steps_for_video():
    clean = jnp.zeros((1, 2, 4, 4, 3))
    mask = jnp.array([[True, False]])
    loss = edm.denoising_loss(jnp.ones_like(clean), clean, jnp.array([[2.0, 7.0]]), mask)
    assert loss == pytest.approx(1.0)


def test_masked_nan_does_not_reach_loss_or_gradient():
    clean = jnp.array([[[1.0, jnp.nan]]])
    mask = jnp.array([[[True, False]]])

    def loss(denoised):
        return edm.denoising_loss(denoised, jnp.where(mask, clean, 0.0), jnp.ones((1, 1)), mask)

    assert np.isfinite(jax.grad(loss)(jnp.zeros((1, 1, 2)))).all()
