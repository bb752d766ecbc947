import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.diffusion import samplers, schedules

STD = 0.5  # of the Gaussian data whose optimal denoiser and ODE solution are known


def gaussian_denoiser(x, sigma):
    return x * STD**2 / (STD**2 + sigma**2)


def exact(x, sigma_from, sigma_to):
    """Solution of dx/dsigma = x sigma / (sigma^2 + std^2)."""
    return x * np.sqrt((sigma_to**2 + STD**2) / (sigma_from**2 + STD**2))


def heun_by_hand(denoise, x, sigmas):
    """Plain-loop twin in float64, after algorithm 1 of Karras et al. 2022."""
    states = []
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (following - sigma) * slope
        if i < len(sigmas) - 2:
            second = (x_next - denoise(x_next, following)) / following
            x_next = x + (following - sigma) * (slope + second) / 2
        x = x_next
        states.append(x)
    return np.stack(states)


def test_grid_ends_and_order():
    grid = schedules.sigma_grid(32)
    assert grid.shape == (33,) and grid[0] == pytest.approx(80) and grid[-1] == 0
    assert grid[-2] == pytest.approx(0.002) and (np.diff(grid) < 0).all()
    middle = (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7
    assert schedules.sigma_grid(3)[1] == pytest.approx(middle)


def test_inversion_grid_is_the_sampling_grid_flipped():
    grid = schedules.inversion_grid(8)
    np.testing.assert_array_equal(grid[1:], schedules.sigma_grid(8)[-2::-1])
    assert grid[0] == 1e-5


@pytest.mark.parametrize(("args", "match"), [((1,), "at least 2"), ((4, 2.0, 1.0), "sigma_min")])
def test_impossible_grids_are_refused(args, match):
    with pytest.raises(ValueError, match=match):
        schedules.sigma_grid(*args)


@pytest.mark.parametrize("make", [schedules.sigma_grid, schedules.inversion_grid])
def test_scan_equals_its_plain_loop_twin(make):
    sigmas = make(6)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32) * sigmas[0]
    x = x.astype(np.float32)
    denoise = lambda x, sigma: np.tanh(x) * STD / (1 + sigma)  # noqa: E731
    expected = heun_by_hand(denoise, x.astype(np.float64), sigmas)

    def traced(x, sigma):
        return jnp.tanh(x) * STD / (1 + sigma)

    states = samplers.heun(traced, jnp.asarray(x), sigmas, trajectory=True)
    np.testing.assert_allclose(states, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(samplers.heun(traced, jnp.asarray(x), sigmas), states[-1])


def test_heun_error_falls_four_times_when_steps_double():
    # In float64 and from a moderate noise level, so that neither rounding nor the first steps from
    # sigma = 80 hide the order; the final Euler step from 0.002 is far below both.
    errors = []
    for num_steps in (32, 64):
        with jax.enable_x64(True):
            sigmas = schedules.sigma_grid(num_steps, 1e-6, 2.0)
            end = heun_by_hand(gaussian_denoiser, np.float64(2.0), sigmas)[-1]
        errors.append(abs(float(end) - exact(2.0, 2.0, 0.0)))
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_sampling_gaussian_data_gives_its_standard_deviation():
    noise = jax.random.normal(jax.random.key(0), (20_000,)) * 80.0
    sample = jax.jit(lambda x: samplers.heun(gaussian_denoiser, x, schedules.sigma_grid(128)))(
        noise
    )
    assert np.std(sample) == pytest.approx(STD, rel=0.01)
    np.testing.assert_allclose(sample, exact(noise, 80.0, 0.0), rtol=5e-3, atol=1e-4)


def test_inversion_undoes_sampling():
    x = jax.random.normal(jax.random.key(1), (100,)) * STD
    up = samplers.heun(gaussian_denoiser, x, schedules.inversion_grid(64))
    np.testing.assert_allclose(up, exact(x, 0.0, 80.0), rtol=5e-3)
    down = samplers.heun(gaussian_denoiser, up, schedules.sigma_grid(64))
    np.testing.assert_allclose(down, x, rtol=5e-3, atol=1e-4)


def test_the_network_is_traced_once_and_evaluated_2n_minus_1_times():
    traced, evaluated = [], []

    def denoise(x, sigma):
        traced.append(1)
        jax.debug.callback(lambda: evaluated.append(1))
        return gaussian_denoiser(x, sigma)

    jax.block_until_ready(samplers.heun(denoise, jnp.ones(3), schedules.sigma_grid(50)))
    jax.effects_barrier()
    assert len(traced) == 1 and len(evaluated) == 2 * 50 - 1
