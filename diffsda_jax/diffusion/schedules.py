"""Grids of noise levels for the samplers."""

import numpy as np
from jaxtyping import Float


def sigma_grid(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[np.ndarray, "N1"]:
    """Falling noise levels for ``num_steps`` steps, and a final zero.

    ``sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho``.

    Args:
      num_steps: N, at least 2.
      sigma_min: the last level above zero.
      sigma_max: the first level.
      rho: how strongly steps crowd at low noise.

    Returns:
      Noise levels ``[N + 1]``, float64, from ``sigma_max`` to 0.

    Raises:
      ValueError: fewer than two steps, or levels out of order.

    References:
      Karras et al. 2022, equation 5.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; a sampler needs at least 2 steps.")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min is {sigma_min}, sigma_max {sigma_max}; needed: 0 < sigma_min < sigma_max."
        )
    ramp = np.arange(num_steps, dtype=np.float64) / (num_steps - 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.append((high + ramp * (low - high)) ** rho, 0.0)


def inversion_grid(
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_start: float = 1e-5,
) -> Float[np.ndarray, "N1"]:
    """Rising noise levels for stochastic encoding: the sampling grid flipped, its zero replaced.

    Args:
      num_steps: N, at least 2.
      sigma_min: the lowest level of the sampling grid.
      sigma_max: the last level.
      rho: as in ``sigma_grid``.
      sigma_start: level that stands for zero, where the ODE's slope is not defined.

    Returns:
      ``[N + 1]`` float64, from ``sigma_start`` to ``sigma_max``.

    Raises:
      ValueError: as ``sigma_grid``.
    """
    grid = sigma_grid(num_steps, sigma_min, sigma_max, rho)[::-1].copy()
    grid[0] = sigma_start
    return grid
