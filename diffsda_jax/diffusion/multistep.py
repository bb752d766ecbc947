"""Samplers that evaluate the network once a step and reuse what it said at the steps before.

Each is a table of numbers, computed from the grid in float64: the next state is a sum of the state,
of the network's last answers and, for the ancestral ones, of fresh noise. One ``lax.scan`` runs
through any of the tables.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from diffsda_jax.rngs import stream

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(40)


class Method(NamedTuple):
    """What makes up a multistep solver.

    Attributes:
      order: how many answers of the network it extrapolates from.
      exponential: D is extrapolated, in ``lambda = -ln sigma``, and the linear part of the ODE is
        solved exactly; otherwise the slope ``(x - D) / sigma`` is, in sigma.
      midpoint: order 2 by the formula of DPM-Solver++ instead of the integral of the line.
      corrects: the answer at a step's end also corrects that step, at no further evaluation; on a
        falling grid only, since the first step upwards is too long for it.
      ancestral: can add noise.
    """

    order: int
    exponential: bool = True
    midpoint: bool = False
    corrects: bool = False
    ancestral: bool = False


METHODS = {
    "euler": Method(1, ancestral=True),
    "dpmpp_2m": Method(2, midpoint=True, ancestral=True),
    "dpmpp_3m": Method(3),
    "unipc": Method(2, corrects=True),
    "ab2": Method(2, exponential=False),
    "ab3": Method(3, exponential=False),
    "ab4": Method(4, exponential=False),
}


class Table(NamedTuple):
    """Coefficients of N steps, each ``x <- keep x + sum_j weights_j h_j + noise n``.

    ``h_0`` is the newest of the last K answers and n unit-normal.
    """

    keep: Float[np.ndarray, "N"]
    weights: Float[np.ndarray, "N K"]
    noise: Float[np.ndarray, "N"]


def predictor(method: Method, sigmas: Float[np.ndarray, "N1"], eta: float = 0.0) -> Table:
    """Coefficients of the steps of a solver; the first ones and that to zero have lower order.

    Args:
      method: of ``METHODS``.
      sigmas: levels, falling to zero or rising; all but the last above zero.
      eta: share of the ancestral noise.

    Returns:
      Float64 coefficients; step i is from ``sigmas[i]`` to ``sigmas[i + 1]``.

    References:
      Song et al. 2021 (DDIM and its eta); Lu et al. 2022b (DPM-Solver++; eta = 1 is its SDE form);
      Zhang and Chen 2023 (DEIS: Adams-Bashforth for the slope).
    """
    grid, steps = np.asarray(sigmas, np.float64), len(sigmas) - 1
    table = Table(np.ones(steps), np.zeros((steps, method.order)), np.zeros(steps))
    for i in range(steps):
        sigma, following = grid[i], grid[i + 1]
        order = method.order if following else 1  # extrapolating to zero gains nothing
        points = grid[max(0, i + 1 - order) : i + 1][::-1]
        noise = eta * following * np.sqrt(max(0.0, 1 - (following / sigma) ** 2))
        end = np.sqrt(following**2 - noise**2)  # where the ODE goes, below the level with noise
        if method.midpoint and len(points) == 2:
            ratio = np.log(points[1] / sigma) / np.log(sigma / following)
            row = (1 - end / sigma) * np.array([1 + 0.5 / ratio, -0.5 / ratio])
        else:
            row = _integrals(method, sigma, end, points)
        table.keep[i] = end / sigma if method.exponential else 1.0
        table.weights[i, : len(row)], table.noise[i] = row, noise
    return table


def corrector(method: Method, sigmas: Float[np.ndarray, "N1"]) -> Table:
    """Coefficients that do the step up to each evaluation again, with the answer at its end.

    Args:
      method: one that ``corrects``.
      sigmas: as in ``predictor``.

    Returns:
      Float64 coefficients with K one above the order; row i is the step from ``sigmas[i - 1]`` to
      ``sigmas[i]``, and row 0, before which nothing is, leaves the state.

    References:
      Zhao et al. 2023 (UniPC).
    """
    grid, steps = np.asarray(sigmas, np.float64), len(sigmas) - 1
    table = Table(np.ones(steps), np.zeros((steps, method.order + 1)), np.zeros(steps))
    for i in range(1, steps):
        points = grid[max(0, i - method.order) : i + 1][::-1]
        table.keep[i] = grid[i] / grid[i - 1]
        table.weights[i, : len(points)] = _integrals(method, grid[i - 1], grid[i], points)
    return table


def _integrals(
    method: Method, sigma: float, end: float, points: Float[np.ndarray, "P"]
) -> Float[np.ndarray, "P"]:
    """What each answer adds to a step: the integral of its Lagrange polynomial over the step.

    With ``lambda = -ln sigma`` the ODE is ``d(x / sigma) / dlambda = D / sigma``, hence the factor
    ``exp(lambda - lambda_end)`` there; with the slope it is ``dx / dsigma`` itself.
    """
    if len(points) == 1:
        return np.array([1 - end / sigma if method.exponential else end - sigma])
    first, last = (-np.log(sigma), -np.log(end)) if method.exponential else (sigma, end)
    places = -np.log(points) if method.exponential else points
    at = first + (last - first) * (1 + _NODES) / 2
    density = np.exp(at - last) if method.exponential else np.ones_like(at)
    row = []
    for j, place in enumerate(places):
        others = np.delete(places, j)
        lagrange = np.prod((at[:, None] - others) / (place - others), axis=1)
        row.append((last - first) / 2 * np.sum(_NODE_WEIGHTS * density * lagrange))
    return np.array(row)


def solve(
    method: Method,
    denoise: Callable[[Array, Array], Array],
    x_start: Float[Array, "*shape"],
    sigmas: Float[np.ndarray, "N1"],
    eta: float = 0.0,
    key: PRNGKeyArray | None = None,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Runs through the tables of a solver; one evaluation for each of the N steps.

    Args:
      method: of ``METHODS``.
      denoise: D at one scalar noise level.
      x_start: state at ``sigmas[0]``.
      sigmas: as in ``predictor``.
      eta: share of the ancestral noise.
      key: of that noise; not read where eta is 0.
      trajectory: also keep the state after every step.

    Returns:
      The state at ``sigmas[-1]``; with ``trajectory`` the states after each of the N steps,
      ``[N, *shape]``.

    Raises:
      ValueError: noise without a key.
    """
    if eta and key is None:
        raise ValueError(f"eta is {eta} and key is None; give key= for the noise, or set eta to 0.")
    noise_key = key if eta else None
    predict = predictor(method, sigmas, eta)
    corrects = method.corrects and sigmas[0] > sigmas[-1]
    correct = corrector(method, sigmas) if corrects else None
    tables = jax.tree.map(lambda values: jnp.asarray(values, jnp.float32), (predict, correct))
    levels = jnp.asarray(sigmas[:-1], jnp.float32)

    def turn(carry, inputs):
        x_seen, x_before, answers = carry
        place, sigma, (predict, correct) = inputs
        x_denoised = denoise(x_seen, sigma)
        answer = x_denoised if method.exponential else (x_seen - x_denoised) / sigma
        answers = (answer, *answers[:-1])
        x = x_seen if correct is None else _step(correct, x_before, answers)
        x_next = _step(predict, x, answers)
        if noise_key is not None:
            noise = jax.random.normal(stream(noise_key, "ancestral", place), x.shape, x.dtype)
            x_next += predict.noise * noise
        return (x_next, x, answers), x_next if trajectory else None

    answers = (jnp.zeros_like(x_start),) * (method.order + corrects)
    inputs = (jnp.arange(len(levels)), levels, tables)
    (x_end, _, _), states = jax.lax.scan(turn, (x_start, x_start, answers), inputs)
    return states if trajectory else x_end


def _step(row: Table, x: Array, answers: tuple[Array, ...]) -> Array:
    """One step but for its noise; elementwise, so that no accelerator rounds it to bfloat16."""
    x = x * row.keep
    for j in range(row.weights.shape[0]):
        x += row.weights[j] * answers[j]
    return x
