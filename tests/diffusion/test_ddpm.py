import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.diffusion import ddpm

STEPS, COUNT = 200, 4000
ALPHA_BARS = ddpm.make_alpha_bars(STEPS, 1e-4, 0.06)
STD = 0.6  # of Gaussian data, whose best prediction of the noise is known
RANDOM = np.random.default_rng(0).standard_normal((STEPS + 1, COUNT)).astype(np.float32)


def share(alpha_bars):
    """Expected noise in x over x: ``sqrt(1 - a) / (a std^2 + 1 - a)``."""
    return (np.sqrt(1 - alpha_bars) / (alpha_bars * STD**2 + 1 - alpha_bars)).astype(np.float32)


def run(chain, shares, noise=RANDOM[1:], start=RANDOM[0]):
    def sample(x):
        return ddpm.run_chain(
            chain,
            lambda x, index: jnp.asarray(shares)[index] * x,
            x,
            lambda index: jnp.asarray(noise)[index],
            trajectory=True,
        )

    return np.asarray(jax.jit(sample)(start))


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "ddim_reverse"])
def test_scan_is_the_loop(kind):
    chain, x, states = getattr(ddpm, f"{kind}_chain")(ALPHA_BARS), RANDOM[0], []
    for index, of_x, of_prediction, of_noise in zip(*chain, strict=True):
        predicted = share(ALPHA_BARS)[index] * x
        x = of_x * x + of_prediction * predicted + of_noise * RANDOM[1 + index]
        states.append(x)
    np.testing.assert_allclose(run(chain, share(ALPHA_BARS)), np.stack(states), atol=1e-4)


def test_ancestral_sampling_gives_the_distribution_of_the_data():
    chain = ddpm.ddpm_chain(ALPHA_BARS)
    found = run(chain, share(ALPHA_BARS))[-1]
    assert found.std() == pytest.approx(STD, rel=0.05) and abs(found.mean()) < 0.05
    # Control: without its noise the same chain falls short.
    assert run(chain, share(ALPHA_BARS), 0 * RANDOM[1:])[-1].std() < 0.5 * STD


def test_ddim_is_shifted_and_its_last_step_does_nothing():
    chain = ddpm.ddim_chain(ALPHA_BARS, eta=0.0)
    assert chain.indices.tolist() == list(range(STEPS))[::-1]
    assert (chain.of_x[-1], chain.of_prediction[-1], chain.of_noise[-1]) == (1, 0, 0)
    assert chain.of_x[0] == pytest.approx(np.sqrt(ALPHA_BARS[-3] / ALPHA_BARS[-2]))
    noisy = ddpm.ddim_chain(ALPHA_BARS)
    assert noisy.of_noise[:-2].min() > 0 and noisy.of_noise[-2:].tolist() == [0, 0]


def test_reverse_chain_undoes_the_forward_one():
    shares = share(np.append(1.0, ALPHA_BARS[:-1]))  # of a network that knows of the shift
    start = STD * RANDOM[0]
    noise = run(ddpm.ddim_reverse_chain(ALPHA_BARS), shares, start=start)[-1]
    assert noise.std() > 1.5 * start.std()
    back = run(ddpm.ddim_chain(ALPHA_BARS, eta=0.0), shares, start=noise)[-1]
    np.testing.assert_allclose(back, start, rtol=0.05, atol=1e-3)


def test_add_noise_keeps_unit_variance():
    x, noise = RANDOM[:4], RANDOM[4:8]
    levels = jnp.asarray([0.9, 0.5, 0.1, 0.01])
    noisy = np.asarray(ddpm.add_noise(jnp.asarray(x), jnp.asarray(noise), levels))
    np.testing.assert_allclose(noisy.std(1), 1.0, atol=0.05)
    assert np.corrcoef(noisy[3], noise[3])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("arguments", "match"), [((1,), "at least 2"), ((10, 0.5, 0.1), "beta_start is 0.5")]
)
def test_impossible_tables_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        ddpm.make_alpha_bars(*arguments)
