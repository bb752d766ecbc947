import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad_vec
from scipy.interpolate import KroghInterpolator

from diffsda_jax.diffusion import multistep, samplers, schedules
from diffsda_jax.diffusion.samplers import SamplerSpec

STD = 0.5  # of the Gaussian data whose optimal denoiser and ODE solution are known
MULTISTEP = tuple(multistep.METHODS)


def gaussian_denoiser(x, sigma):
    return x * STD**2 / (STD**2 + sigma**2)


def curved_denoiser(x, sigma, xp=jnp):
    return xp.tanh(x) * STD / (1 + sigma)


def by_hand(method, denoise, x, sigmas, noises=None):
    """Plain-loop twin in float64: interpolates the answers and integrates them by quadrature."""
    seen, answers, before = [], [], x
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x_denoised = denoise(x, sigma)
        seen.append(-np.log(sigma) if method.exponential else sigma)
        answers.append(x_denoised if method.exponential else (x - x_denoised) / sigma)
        if method.corrects and i and sigmas[0] > sigmas[-1]:
            x = advance(method, before, sigmas[i - 1], sigma, seen, answers, method.order + 1)
        before = x
        if following == 0:
            return x_denoised
        up = 0.0 if noises is None else following * np.sqrt(1 - (following / sigma) ** 2)
        down = np.sqrt(following**2 - up**2)
        x = advance(method, x, sigma, down, seen, answers, method.order, following)
        x = x + up * (0.0 if noises is None else noises[i])
    return x


def advance(method, x, sigma, end, seen, answers, order, following=None):
    """One step of the twin from ``sigma`` to ``end``."""
    seen, answers = seen[-order:], answers[-order:]
    if method.midpoint and len(seen) == 2:  # algorithm 2 of Lu et al. 2022b
        ratio = (seen[1] - seen[0]) / (np.log(sigma) - np.log(following))
        guess = (1 + 1 / (2 * ratio)) * answers[1] - answers[0] / (2 * ratio)
        return end / sigma * x + (1 - end / sigma) * guess
    curve = KroghInterpolator(seen, np.stack(answers))
    if method.exponential:
        moved = quad_vec(lambda u: np.exp(u) * end * curve(u), -np.log(sigma), -np.log(end))[0]
        return end / sigma * x + moved
    return x + quad_vec(curve, sigma, end)[0]


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("make", [schedules.sigma_grid, schedules.inversion_grid])
def test_scan_equals_its_plain_loop_twin(solver, make):
    sigmas = make(6, 0.02, 10.0)
    x = np.array([0.3, -1.1]) * sigmas[0]
    expected = by_hand(
        multistep.METHODS[solver], functools.partial(curved_denoiser, xp=np), x, sigmas
    )
    found = samplers.integrate(solver, curved_denoiser, jnp.asarray(x, jnp.float32), sigmas)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_ancestral_scan_equals_its_plain_loop_twin(solver, monkeypatch):
    sigmas, noises = schedules.sigma_grid(5, 0.02, 10.0), np.array([0.3, -1.2, 0.8, 0.1, 2.0])
    monkeypatch.setattr(multistep, "stream", lambda key, name, step: step)
    monkeypatch.setattr(
        jax.random, "normal", lambda step, shape, _: jnp.full(shape, jnp.asarray(noises)[step])
    )
    x = np.array([3.0, -11.0])
    expected = by_hand(
        multistep.METHODS[solver], functools.partial(curved_denoiser, xp=np), x, sigmas, noises
    )
    found = samplers.integrate(
        solver, curved_denoiser, jnp.asarray(x, jnp.float32), sigmas, eta=1.0, key=jax.random.key(0)
    )
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("solver", "order"),
    [("heun", 2), ("euler", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3), ("ab2", 2), ("ab3", 3)],
)
def test_the_error_on_gaussian_data_falls_by_the_order(solver, order):
    # To a level above zero, so that the last step is like the others, and with first steps, which
    # are of lower order, that are as short as the square of the others; in float64.
    with jax.enable_x64(True):
        errors = []
        for num_steps in (64, 128):
            sigmas = 2.0 - 1.5 * np.linspace(0, 1, num_steps + 1) ** 2
            end = samplers.integrate(solver, gaussian_denoiser, jnp.float64(2.0), sigmas)
            exact = 2.0 * np.sqrt((0.5**2 + STD**2) / (2.0**2 + STD**2))
            errors.append(abs(float(end) - exact))
    assert order - 0.2 < np.log2(errors[0] / errors[1]) < order + 0.8


def test_higher_order_and_correcting_pay():
    errors = {}
    for solver in ("unipc", "dpmpp_3m", "dpmpp_2m", "euler"):
        grid = schedules.sigma_grid(32)
        end = samplers.integrate(solver, gaussian_denoiser, jnp.float32(80.0), grid)
        errors[solver] = abs(float(end) - 80.0 * STD / np.sqrt(80.0**2 + STD**2))
    assert errors["dpmpp_2m"] < errors["euler"] / 4
    assert errors["dpmpp_3m"] < errors["dpmpp_2m"] / 2
    assert errors["unipc"] < errors["dpmpp_2m"] / 1.5


@pytest.mark.parametrize(("solver", "eta"), [("euler", 1.0), ("dpmpp_2m", 1.0), ("euler", 0.3)])
def test_ancestral_noise_keeps_the_data_variance_and_changes_the_sample(solver, eta):
    start = jax.random.normal(jax.random.key(0), (20_000,)) * 80.0

    @jax.jit
    def run(key):
        grid = schedules.sigma_grid(200)
        return samplers.integrate(solver, gaussian_denoiser, start, grid, eta=eta, key=key)

    sample = run(jax.random.key(1))
    assert np.std(sample) == pytest.approx(STD, rel=0.05)
    same = np.corrcoef(sample, start)[0, 1]  # 1 without noise
    assert same < 0.2 if eta == 1 else 0.2 < same < 0.99
    assert np.array_equal(run(jax.random.key(1)), sample)
    assert not np.array_equal(run(jax.random.key(2)), sample)


@pytest.mark.parametrize("solver", samplers.SOLVERS)
def test_the_network_is_traced_once_and_evaluated_as_the_description_says(solver):
    traced, evaluated = [], []

    def denoise(x, sigma):
        traced.append(1)
        jax.debug.callback(lambda: evaluated.append(1))
        return gaussian_denoiser(x, sigma)

    spec = SamplerSpec(solver, 7)
    end = samplers.integrate(solver, denoise, jnp.ones(3), schedules.sigma_grid(spec.num_steps))
    jax.block_until_ready(end)
    jax.effects_barrier()
    assert len(traced) == 1 and len(evaluated) == spec.evaluations


def test_description_survives_json():
    spec = SamplerSpec("dpmpp_2m", 12, 0.5)
    assert SamplerSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match="'order'|order is unknown"):
        SamplerSpec.from_dict({"order": 2})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("dpm", 8, 0.0), "solver is 'dpm'; allowed: 'heun'"),
        (("heun", 1, 0.0), "num_steps is 1"),
        (("euler", 8, 1.5), "eta is 1.5; allowed"),
        (("heun", 8, 0.5), "cannot add noise.*'euler', 'dpmpp_2m'"),
    ],
)
def test_bad_descriptions_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        SamplerSpec(*arguments)


def test_noise_needs_a_key():
    x, grid = jnp.ones(2), schedules.sigma_grid(4)
    for solve, solver in (
        (samplers.integrate, "euler"),
        (multistep.solve, multistep.METHODS["euler"]),
    ):
        with pytest.raises(ValueError, match="give key="):
            solve(solver, gaussian_denoiser, x, grid, eta=1.0)
