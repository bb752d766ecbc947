"""Sampling with a consistency function: each evaluation goes to the data at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from diffsda_jax.rngs import stream


def solve(
    denoise: Callable[[Array, Array], Array],
    x_start: Float[Array, "*shape"],
    sigmas: Float[np.ndarray, "N1"],
    key: PRNGKeyArray,
) -> Float[Array, "*shape"]:
    """Multistep consistency sampling: to the data, with fresh noise to the next level, and again.

    One evaluation at each level but the last above zero, where the function is the identity: a grid
    of N steps costs ``N - 1``.

    Args:
      denoise: the consistency function at one scalar level shared by all items and steps.
      x_start: state at ``sigmas[0]``.
      sigmas: ``[N + 1]`` levels falling to zero, N at least 2.
      key: of the fresh noise.

    Returns:
      What the last evaluation gives.

    Raises:
      ValueError: the levels do not fall to zero; such a function cannot be run backwards.

    References:
      Song, Dhariwal, Chen, Sutskever: Consistency Models, ICML 2023, algorithm 1.
    """
    grid = np.asarray(sigmas, np.float64)
    if grid[-1] != 0 or len(grid) < 3:
        raise ValueError(
            "solver 'consistency' only goes from noise to data: a distilled model cannot invert; "
            "use the model that it was distilled from, or sample from random noise."
        )
    # Noise of the level that is reached, less what the data of a consistency function still hold.
    spread = np.sqrt(grid[1:-2] ** 2 - grid[-2] ** 2)

    def turn(x_denoised, inputs):
        place, sigma, spread = inputs
        noise = jax.random.normal(stream(key, "renoise", place), x_start.shape, x_start.dtype)
        return denoise(x_denoised + spread * noise, sigma), None

    levels = jnp.asarray(grid[:-2], jnp.float32)
    turns = (jnp.arange(len(spread)), levels[1:], jnp.asarray(spread, jnp.float32))
    return jax.lax.scan(turn, denoise(x_start, levels[0]), turns)[0]
