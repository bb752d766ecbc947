"""Deterministic samplers of the probability-flow ODE: Heun downwards and upwards.

Each call is one ``lax.scan`` over the steps; the caller puts it inside one ``jax.jit``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

Denoise = Callable[[Array, Array], Array]  # (x_noisy, sigma []) -> x_denoised


def heun(
    denoise: Denoise,
    x_start: Float[Array, "*shape"],
    sigmas: Float[np.ndarray, "N1"],
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Integrates ``dx/dsigma = (x - D(x; sigma)) / sigma`` along a grid of noise levels.

    Heun's second-order step everywhere but on the last interval, which is an Euler step: on a
    falling grid because its end is sigma = 0, on a rising grid (stochastic encoding) as in the
    released code. N steps cost ``2 N - 1`` evaluations. No churn.

    Args:
      denoise: D at one scalar noise level shared by all items and steps.
      x_start: state at ``sigmas[0]``; for sampling ``sigmas[0]`` times unit-normal noise.
      sigmas: ``[N + 1]`` levels, falling to zero or rising; all but the last above zero.
      trajectory: also keep the state after every step.

    Returns:
      The state at ``sigmas[-1]``, shaped like ``x_start``; with ``trajectory`` the states after
      each of the N steps, ``[N, *shape]``, the last of which is the result.

    References:
      Karras et al. 2022, algorithm 1; DiffSDA (arXiv 2510.05717), section 3 (stochastic encoding).
    """
    levels = jnp.asarray(sigmas, jnp.float32)
    # Differences of the float64 grid: those of the rounded levels lose digits at low noise.
    steps = jnp.asarray(np.diff(np.asarray(sigmas, np.float64)), jnp.float32)

    def slope(x, sigma):
        return (x - denoise(x, sigma)) / sigma

    def heun_step(x, levels_and_step):
        sigma, sigma_next, step = levels_and_step
        first = slope(x, sigma)
        second = slope(x + step * first, sigma_next)
        x_next = x + step * (first + second) / 2
        return x_next, x_next if trajectory else None

    x_last, states = jax.lax.scan(heun_step, x_start, (levels[:-2], levels[1:-1], steps[:-1]))
    x_end = x_last + steps[-1] * slope(x_last, levels[-2])
    return jnp.concatenate([states, x_end[None]]) if trajectory else x_end
