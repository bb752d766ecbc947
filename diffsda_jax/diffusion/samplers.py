"""Samplers of the probability-flow ODE and, with noise added on the way, of its SDE.

Each call is one ``lax.scan`` over the steps; the caller puts it inside one ``jax.jit``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from diffsda_jax.diffusion import consistency, multistep

Denoise = Callable[[Array, Array], Array]  # (x_noisy, sigma []) -> x_denoised

SOLVERS = ("heun", *multistep.METHODS)
CONSISTENCY = "consistency"  # for distilled models only
_ANCESTRAL = tuple(name for name, method in multistep.METHODS.items() if method.ancestral)


@dataclasses.dataclass(frozen=True)
class SamplerSpec:
    """How to get from noise to data; plain values.

    Attributes:
      solver: one of ``SOLVERS``, or ``"consistency"`` for a distilled model.
      num_steps: N, at least 2.
      eta: share of the ancestral noise, 0 (deterministic) to 1.
      sigma_min: last level above zero; None = the model's, like the next two.
      sigma_max: first level.
      rho: how strongly the levels crowd at low noise.
    """

    solver: str = "heun"
    num_steps: int = 32
    eta: float = 0.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None

    def __post_init__(self):
        """Checks values.

        Raises:
          ValueError: one that is not allowed, with the field and what is.
        """
        check_solver(self.solver, self.eta)
        if self.num_steps < 2:
            raise ValueError(f"num_steps is {self.num_steps}; a sampler needs at least 2 steps.")
        for name in ("sigma_min", "sigma_max", "rho"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(
                    f"{name} is {value}; allowed: above 0, or None for the model's own."
                )

    @property
    def evaluations(self) -> int:
        """How often the network runs for one sample."""
        other = {"heun": 2 * self.num_steps - 1, CONSISTENCY: self.num_steps - 1}
        return other.get(self.solver, self.num_steps)

    def levels(self, sigma_min: float, sigma_max: float, rho: float) -> dict[str, float]:
        """The noise levels for ``schedules.sigma_grid``: the sampler's own, else the model's."""
        own = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
        model = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
        return {name: model[name] if given is None else given for name, given in own.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SamplerSpec":
        """Inverse of ``to_dict``.

        Raises:
          ValueError: a field is unknown, or has a value that is not allowed.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"sampler.{unknown[0]} is unknown; known fields: {', '.join(known)}.")
        return cls(**values)


def can_add_noise(solver: str) -> bool:
    """Whether a solver takes an ``eta`` above 0."""
    return solver in _ANCESTRAL


def check_solver(solver: str, eta: float = 0.0) -> None:
    """Refuses an unknown solver, and noise that a solver cannot add.

    Raises:
      ValueError: names the option, its value and what is allowed.
    """
    allowed = (*SOLVERS, CONSISTENCY)
    if solver not in allowed:
        raise ValueError(f"solver is {solver!r}; allowed: {', '.join(map(repr, allowed))}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; allowed: 0 (deterministic) to 1 (ancestral).")
    if eta and not can_add_noise(solver):
        raise ValueError(
            f"eta is {eta} with solver {solver!r}, which cannot add noise; set eta to 0, or choose "
            f"one of {', '.join(map(repr, _ANCESTRAL))}."
        )


def integrate(
    solver: str,
    denoise: Denoise,
    x_start: Float[Array, "*shape"],
    sigmas: Float[np.ndarray, "N1"],
    *,
    eta: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*shape"]:
    """Solves ``dx/dsigma = (x - D(x; sigma)) / sigma`` along a grid of noise levels.

    Args:
      solver: one of ``SOLVERS``. ``heun``: two evaluations a step. One a step: ``euler`` (DDIM),
        ``dpmpp_2m`` and ``dpmpp_3m`` (exponential, of order 2 and 3), ``unipc`` (of order 2,
        each step corrected by the next evaluation), ``ab2`` to ``ab4`` (Adams-Bashforth in sigma).
        ``consistency``, of distilled models: one a step but for the last, see ``consistency``.
      denoise: D at one scalar noise level shared by all items and steps.
      x_start: state at ``sigmas[0]``; for sampling ``sigmas[0]`` times unit-normal noise.
      sigmas: ``[N + 1]`` levels, falling to zero or rising; all but the last above zero.
      eta: share of the ancestral noise, 0 to 1; only on a falling grid.
      key: of that noise, and of what ``consistency`` adds.

    Returns:
      The state at ``sigmas[-1]``.

    Raises:
      ValueError: as ``check_solver``; noise without a key.
    """
    check_solver(solver, eta)
    if solver == CONSISTENCY:
        return consistency.solve(denoise, x_start, sigmas, key)
    if solver == "heun":
        return heun(denoise, x_start, sigmas)
    return multistep.solve(multistep.METHODS[solver], denoise, x_start, sigmas, eta, key)


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
