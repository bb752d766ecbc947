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
    grid = np.asarray(sigmas, np.float64)
    # One evaluation a turn, so that the network stands once in the compiled program: at the start
    # of an interval (Euler, which predicts its end), and at that end (which corrects it).
    evaluations = np.repeat(np.arange(len(grid) - 1), 2)[:-1]  # interval of each evaluation
    corrects = np.arange(len(evaluations)) % 2 == 1
    turns = (
        jnp.asarray(grid[evaluations + corrects], jnp.float32),
        # Differences of the float64 grid: those of rounded levels lose digits at low noise.
        jnp.asarray(np.diff(grid)[evaluations], jnp.float32),
        jnp.asarray(corrects),
    )

    def turn(carry, inputs):
        x, x_seen, slope_before = carry
        sigma, step, correct = inputs
        slope = (x_seen - denoise(x_seen, sigma)) / sigma
        x_next = x + step * jnp.where(correct, (slope_before + slope) / 2, slope)
        return (jnp.where(correct, x_next, x), x_next, slope), x_next if trajectory else None

    (_, x_end, _), states = jax.lax.scan(turn, (x_start, x_start, jnp.zeros_like(x_start)), turns)
    if not trajectory:
        return x_end
    return states[np.append(np.flatnonzero(corrects), len(evaluations) - 1)]
