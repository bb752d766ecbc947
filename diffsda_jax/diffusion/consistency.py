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
    key: PRNGKeyArray | None,
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
      ValueError: the levels do not fall to zero, as such a function cannot be run backwards; or
        there is no key.

    References:
      Song, Dhariwal, Chen, Sutskever: Consistency Models, ICML 2023, algorithm 1.
    """
    grid = np.asarray(sigmas, np.float64)
    if grid[-1] != 0 or len(grid) < 3:
        raise ValueError(
            "solver 'consistency' only goes from noise to data: a distilled model cannot invert; "
            "use the model that it was distilled from, or sample from random noise."
        )
    if key is None:
        raise ValueError("solver 'consistency' adds noise and key is None; give key= for it.")
    # Noise of the level that comes next, less what the data of a consistency function still hold.
    spread = np.sqrt(grid[1:-1] ** 2 - grid[-2] ** 2)

    def turn(carry, inputs):
        x, _ = carry
        place, sigma, spread = inputs
        x_denoised = denoise(x, sigma)
        noise = jax.random.normal(stream(key, "renoise", place), x.shape, x.dtype)
        return (x_denoised + spread * noise, x_denoised), None

    turns = (jnp.arange(len(spread)), *(jnp.asarray(v, jnp.float32) for v in (grid[:-2], spread)))
    (_, x_end), _ = jax.lax.scan(turn, (x_start, jnp.zeros_like(x_start)), turns)
    return x_end
