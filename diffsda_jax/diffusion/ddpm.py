"""Diffusion in discrete steps with noise prediction, as the released prior samples and trains.

Each chain is one ``lax.scan``; the caller puts it inside one ``jax.jit``. Every step of every chain
is ``x <- a x + b predict(x, i) + c noise`` with numbers that depend on the step alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

Predict = Callable[[Array, Array], Array]  # (x_noisy, step index []) -> predicted unit noise
DrawNoise = Callable[[Array], Array]  # step index [] -> unit noise shaped like x
ETA = 0.01  # of the released DDIM


class Chain(NamedTuple):
    """Steps of a sampler in the order in which they are done.

    Attributes:
      indices: what the network is told of each step.
      of_x: a of every step.
      of_prediction: b of every step.
      of_noise: c of every step.
    """

    indices: Int[np.ndarray, "N"]
    of_x: Float[np.ndarray, "N"]
    of_prediction: Float[np.ndarray, "N"]
    of_noise: Float[np.ndarray, "N"]


def make_alpha_bars(
    num_steps: int = 1000, beta_start: float = 1e-5, beta_end: float = 1e-2
) -> Float[np.ndarray, "N"]:
    """Share of the data's variance that is left at each step, for a linear schedule.

    Args:
      num_steps: N, at least 2.
      beta_start: variance of the noise that the first step adds.
      beta_end: that of the last step.

    Returns:
      ``prod_{j <= i} (1 - beta_j)``, ``[N]`` float64.

    Raises:
      ValueError: fewer than two steps, or variances out of order.

    References:
      Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, NeurIPS 2020, section 2.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; a diffusion needs at least 2 steps.")
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"beta_start is {beta_start}, beta_end {beta_end}; needed: 0 < beta_start <= beta_end "
            "< 1."
        )
    return np.cumprod(1.0 - np.linspace(beta_start, beta_end, num_steps))


def add_noise(
    x_clean: Float[Array, "B A"], noise: Float[Array, "B A"], alpha_bar: Float[Array, "B"]
) -> Float[Array, "B A"]:
    """``sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise``, one step for each item."""
    return jnp.sqrt(alpha_bar)[:, None] * x_clean + jnp.sqrt(1 - alpha_bar)[:, None] * noise


def ddpm_chain(alpha_bars: Float[np.ndarray, "N"]) -> Chain:
    """Ancestral sampling with the variance of the posterior; the last step adds no noise.

    References:
      Ho et al. 2020, equations 6, 7 and 11.
    """
    before = _shifted(alpha_bars)
    alphas = alpha_bars / before
    deviation = np.sqrt((1 - alphas) * (1 - before) / (1 - alpha_bars))
    of_x = 1 / np.sqrt(alphas)
    of_prediction = -(1 - alphas) / np.sqrt(1 - alpha_bars) * of_x
    falling = np.arange(len(alpha_bars))[::-1]
    return Chain(falling, of_x[falling], of_prediction[falling], deviation[falling])


def ddim_chain(alpha_bars: Float[np.ndarray, "N"], eta: float = ETA) -> Chain:
    """The released DDIM, which is one step ahead of itself.

    Step i goes from ``alpha_bar_{i-1}`` to ``alpha_bar_{i-2}`` where i to i - 1 is meant (1 before
    the first), so that the last step does nothing and the first takes ``x`` for less noisy than it
    is. ``eta`` 0.01 adds a little noise.

    Args:
      alpha_bars: of ``make_alpha_bars``.
      eta: share of the ancestral noise.

    References:
      Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021, equations 12 and 16; the
      shift is the released DiffSDA code's.
    """
    now, following = _shifted(alpha_bars), _shifted(_shifted(alpha_bars))
    # Without noise at "now" there is nothing that could be added: the ratio's 0 / 0 stands for 0.
    share = np.divide(1 - following, 1 - now, out=np.zeros_like(now), where=now < 1)
    deviation = eta * np.sqrt(share * (1 - now / following))
    of_x, of_prediction = _deterministic(now, following, deviation)
    falling = np.arange(len(alpha_bars))[::-1]
    return Chain(falling, of_x[falling], of_prediction[falling], deviation[falling])


def ddim_reverse_chain(alpha_bars: Float[np.ndarray, "N"]) -> Chain:
    """From data to noise along the released DDIM, shifted like it; two steps are never done."""
    rising = np.arange(1, len(alpha_bars) - 1)
    now = _shifted(alpha_bars)
    none = np.zeros(len(rising))
    return Chain(rising, *_deterministic(now[rising], now[rising + 1], none), none)


def _shifted(alpha_bars: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """The value of the step before; 1 before the first."""
    return np.append(1.0, alpha_bars[:-1])


def _deterministic(
    now: Float[np.ndarray, "N"],
    following: Float[np.ndarray, "N"],
    deviation: Float[np.ndarray, "N"],
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Factors a and b of DDIM steps between two levels of ``alpha_bar``."""
    of_x = np.sqrt(following / now)
    return of_x, np.sqrt(1 - following - deviation**2) - of_x * np.sqrt(1 - now)


def run_chain(
    chain: Chain,
    predict: Predict,
    x_start: Float[Array, "*shape"],
    draw_noise: DrawNoise | None = None,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Does all steps of a chain.

    Args:
      chain: of ``ddpm_chain``, ``ddim_chain`` or ``ddim_reverse_chain``.
      predict: the noise in ``x``, at one step index shared by all items.
      x_start: unit-normal noise or, for the reverse chain, data.
      draw_noise: unit noise for a step; None = none is added.
      trajectory: give the states after every step.

    Returns:
      The last state, or all states ``[N, *shape]``.
    """
    steps = jax.tree.map(jnp.asarray, (chain.indices, *(v.astype(np.float32) for v in chain[1:])))

    def step(x: Array, at_step: tuple[Array, ...]) -> tuple[Array, Array | None]:
        index, of_x, of_prediction, of_noise = at_step
        x = of_x * x + of_prediction * predict(x, index)
        if draw_noise is not None:
            x = x + of_noise * draw_noise(index)
        return x, x if trajectory else None

    x_end, states = jax.lax.scan(step, x_start, steps)
    return x_end if states is None else states
