import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.diffusion import consistency, edm, multistep, schedules
from diffsda_jax.rngs import stream

STD, SIGMA_MIN = 0.5, 0.002


def gaussian_consistency(x, sigma):
    """Where the ODE of Gaussian data leads from (x, sigma) to at SIGMA_MIN."""
    return x * jnp.sqrt((STD**2 + SIGMA_MIN**2) / (STD**2 + sigma**2))


@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_scan_equals_its_plain_loop_twin(num_steps):
    sigmas, key = schedules.sigma_grid(num_steps), jax.random.key(3)
    x = jax.random.normal(jax.random.key(0), (2, 3, 4)) * sigmas[0]
    traced, evaluated = [], []

    def counted(x, sigma):
        traced.append(1)
        jax.debug.callback(lambda: evaluated.append(1))
        return jnp.tanh(x) * STD / (1 + sigma)

    sample = jax.jit(lambda x: consistency.solve(counted, x, sigmas, key))(x)
    jax.block_until_ready(sample)
    jax.effects_barrier()
    assert len(traced) == 1 and len(evaluated) == num_steps - 1
    for place, sigma in enumerate(sigmas[:-2]):
        if place:
            noise = jax.random.normal(stream(key, "renoise", place - 1), x.shape)
            x = x + np.sqrt(sigma**2 - SIGMA_MIN**2) * noise
        x = jnp.tanh(x) * STD / (1 + sigma)
    np.testing.assert_allclose(sample, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_gaussian_data_are_sampled_with_their_spread(num_steps):
    sigmas = schedules.sigma_grid(num_steps)
    start = jax.random.normal(jax.random.key(0), (20_000,)) * sigmas[0]
    sample = consistency.solve(gaussian_consistency, start, sigmas, jax.random.key(1))
    assert np.std(sample) == pytest.approx(STD, rel=0.02)


def test_noise_depends_on_the_key():
    sigmas, x = schedules.sigma_grid(3), jnp.full(4, 80.0)
    first, again, other = (
        consistency.solve(gaussian_consistency, x, sigmas, jax.random.key(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0


def test_it_cannot_invert():
    with pytest.raises(ValueError, match="a distilled model cannot invert"):
        consistency.solve(
            gaussian_consistency, jnp.ones(3), schedules.inversion_grid(4), jax.random.key(0)
        )


def test_preconditioning_is_the_identity_at_its_level():
    at = edm.preconditioning(jnp.float32(SIGMA_MIN), STD, SIGMA_MIN)
    assert (float(at.c_skip), float(at.c_out)) == (1.0, 0.0)
    sigma = jnp.geomspace(0.01, 80.0, 9)
    np.testing.assert_array_equal(edm.preconditioning(sigma, STD, 0.0), edm.preconditioning(sigma))
    far = edm.preconditioning(sigma[4:], STD, SIGMA_MIN)
    np.testing.assert_allclose(far, edm.preconditioning(sigma[4:]), rtol=0.01)


def test_states_of_a_path_are_those_of_shorter_paths():
    """What distillation learns from: the teacher's states at every level."""
    grid = schedules.sigma_grid(5)[:-1]
    x = jax.random.normal(jax.random.key(0), (2, 3)) * grid[0]

    def denoise(x, sigma):
        return jnp.tanh(x) * STD / (1 + sigma)

    states = multistep.solve(multistep.METHODS["dpmpp_2m"], denoise, x, grid, trajectory=True)
    for steps in range(1, len(grid)):
        end = multistep.solve(multistep.METHODS["dpmpp_2m"], denoise, x, grid[: steps + 1])
        np.testing.assert_allclose(states[steps - 1], end, rtol=1e-5)
