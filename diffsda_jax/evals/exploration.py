"""Multi-factor exploration: components of sampled codes, and moving a sequence along them."""

import inspect
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning

from diffsda_jax.data.plug_ins import import_callable
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.interface import Lengths, valid_steps, with_one_static
from diffsda_jax.evals.rotation import Varimax
from diffsda_jax.factors import Factors

FACTORS = ("static", "dynamic")
LEVELS = ("step", "sequence")
DECOMPOSITIONS = {"pca": PCA, "ica": FastICA, "varimax": Varimax}
# ICA on a sample hardly moves any more after this; its own defaults stop too early.
_OPTIONS = {"ica": {"whiten": "unit-variance", "max_iter": 2000, "tol": 1e-3}}
_MOST = 0.999  # of a bounded d; its arctanh is 3.8
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Codes:
    """Codes of one factor, one a row.

    Attributes:
      values: ``[P, E]``.
      sequence: the sequence that each is of ``[P]``.
      step: the step of that sequence, or None where a code is of the whole sequence.
      bounded: the factor is the tanh of the values.
    """

    values: Float[np.ndarray, "P E"]
    sequence: Integer[np.ndarray, " P"]
    step: Integer[np.ndarray, " P"] | None = None
    bounded: bool = False

    def take(self, index: np.ndarray) -> "Codes":
        """Some of them, by their places ``[M]`` or by a mask ``[P]``."""
        step = None if self.step is None else self.step[index]
        return Codes(self.values[index], self.sequence[index], step, self.bounded)


def gather_codes(
    factors: Factors,
    factor: str,
    level: str = "step",
    length: Lengths | None = None,
    bounded: bool = False,
) -> Codes:
    """The codes of one factor of some sequences.

    Args:
      factors: of N sequences.
      factor: ``static`` or ``dynamic``.
      level: of dynamic codes: ``step`` takes each ``d^tau`` of a real step (E = D), ``sequence``
        all of ``d^{1:V}`` as one vector (E = V D), for sequences without padding.
      length: number of real steps; None means all V.
      bounded: d was bounded by tanh; its codes are what tanh was taken of, which straight
        directions suit better, and where no move leaves the bounds.

    Raises:
      ValueError: an unknown factor or level, or no sequence without padding.
    """
    check_choice("factor", factor, FACTORS)
    check_choice("explore.dynamic_over", level, LEVELS)
    dynamic = np.asarray(factors.dynamic)
    if factor == "static":
        static = np.asarray(with_one_static(factors, length).static)
        return Codes(static, np.arange(len(static)))
    if bounded:
        dynamic = np.arctanh(np.clip(dynamic, -_MOST, _MOST))
    real = valid_steps(dynamic.shape, length)
    if level == "step":
        sequence, step = np.nonzero(real)
        return Codes(dynamic[sequence, step], sequence, step, bounded)
    whole = np.flatnonzero(real.all(1))
    if len(whole) < 2:
        raise ValueError(
            f"explore.dynamic_over is 'sequence' and {len(whole)} of {len(real)} sequences have "
            f"all {real.shape[1]} steps; 2 or more are needed: use 'step', or a lower data.length."
        )
    if len(whole) < len(real):
        _LOG.info("exploration: %d of %d sequences are whole", len(whole), len(real))
    return Codes(dynamic[whole].reshape(len(whole), -1), whole, bounded=bounded)


@dataclass(frozen=True)
class Components:
    """Directions in which codes vary, found in codes of mean 0 and variance 1.

    Attributes:
      factor: ``static`` or ``dynamic``.
      level: what a code is of: ``step``, or ``sequence`` (static ones always are).
      mean: ``mu`` of the codes ``[E]``.
      std: of each coordinate ``[E]``; 1 where a coordinate is constant.
      directions: unit vectors ``v_i`` ``[K, E]``, those that explain most first.
      spread: standard deviation of the codes along each ``[K]``.
      share: of the variance of all coordinates that each explains ``[K]``.
      read: coordinates ``[P, K]`` of standardised codes, such that moving a code by a distance
        along ``v_i`` raises coordinate i by it.
      bounded: the factor is the tanh of the codes.

    References:
      DiffSDA (arXiv 2510.05717): multi-factor exploration,
      ``s' = ((s - mu) / std + alpha v_i sqrt(h)) std + mu`` with h = E.
    """

    factor: str
    level: str
    mean: Float[np.ndarray, " E"]
    std: Float[np.ndarray, " E"]
    directions: Float[np.ndarray, "K E"]
    spread: Float[np.ndarray, " K"]
    share: Float[np.ndarray, " K"]
    read: Callable[[np.ndarray], np.ndarray]
    bounded: bool = False

    def __len__(self) -> int:
        """Number of components K."""
        return len(self.directions)

    def coordinates(self, values: Float[np.ndarray, "P E"]) -> Float[np.ndarray, "P K"]:
        """Where codes, as ``gather_codes`` gives them, lie along the components."""
        return self.read((values - self.mean) / self.std)

    def alphas(self, deviations: float) -> Float[np.ndarray, " K"]:
        """The alpha of each component that moves by so many of its standard deviations."""
        return deviations * self.spread / np.sqrt(len(self.mean))

    def move(
        self, values: Float[np.ndarray, "P E"], component: int, alpha: float
    ) -> Float[np.ndarray, "P E"]:
        """Values of the factor moved along one component.

        The published formula, multiplied out to ``s + alpha v_i sqrt(h) std``: so alpha = 0 gives
        the values back without a rounding error. Bounded ones move as their codes do,
        ``tanh(a + b) = (tanh a + tanh b) / (1 + tanh a tanh b)``; those on or beyond the bounds,
        as a prior may draw them, from just inside.
        """
        shift = alpha * np.sqrt(len(self.mean)) * self.directions[component] * self.std
        if not self.bounded:
            return values + shift.astype(values.dtype)
        change, inside = np.tanh(shift), np.clip(values, -_MOST, _MOST)
        moved = (inside + change) / (1 + inside * change)
        return np.where(change == 0, values, moved).astype(values.dtype)

    def move_factors(self, factors: Factors, component: int, alpha: float) -> Factors:
        """Factors of some sequences moved along one component; one of a step moves all steps of d.

        Args:
          factors: of B sequences.
          component: its place.
          alpha: how far, in units of ``sqrt(E)`` standard deviations of a coordinate.

        Raises:
          ValueError: components of whole sequences of another number of steps.
        """
        static, dynamic = np.asarray(factors.static), np.asarray(factors.dynamic)
        if self.factor == "static":
            return Factors(static=self.move(static, component, alpha), dynamic=dynamic)
        size = len(self.mean)
        if self.level == "sequence" and dynamic[0].size != size:
            raise ValueError(
                f"components of whole sequences are for {size // dynamic.shape[2]} steps, these "
                f"have {dynamic.shape[1]}; set explore.dynamic_over to 'step'."
            )
        moved = self.move(dynamic.reshape(-1, size), component, alpha)
        return Factors(static=static, dynamic=moved.reshape(dynamic.shape))


def fit_components(
    codes: Codes,
    factor: str,
    *,
    decomposition: str = "pca",
    num_components: int = 6,
    seed: int = 0,
    like: Components | None = None,
) -> Components:
    """Finds the components of sampled codes.

    Args:
      codes: of at least two samples.
      factor: ``static`` or ``dynamic``.
      decomposition: ``pca``, ``ica`` (FastICA), ``varimax`` (rotates the first components of PCA),
        or ``module:Class`` for another one of the form of scikit-learn: ``n_components=``, ``fit``,
        ``transform`` and ``components_``, or ``mixing_`` where directions differ from what reads.
      num_components: K, at most the size E of a code.
      seed: of the decomposition.
      like: components whose ``mu`` and ``std`` are taken over, to compare directions.

    Raises:
      ValueError, FileNotFoundError: a decomposition that is unknown, of another form, or that
        cannot be fitted.
    """
    values = codes.values.astype(np.float64)
    if len(values) < 2:
        raise ValueError(f"components of {len(values)} codes; 2 or more are needed: sample more.")
    mean = values.mean(0) if like is None else like.mean
    std = values.std(0) if like is None else like.std
    std = np.where(std > 1e-6 * max(std.max(), 1e-12), std, 1.0)
    count = min(num_components, *values.shape)
    z = (values - mean) / std
    model = _fit(decomposition, z, count, seed)
    # Rows that a source is added by: of PCA the same that read it, of ICA not.
    rows = model.mixing_.T if hasattr(model, "mixing_") else model.components_
    rows = np.asarray(rows, np.float64)
    size = np.linalg.norm(rows, axis=1)
    scale = size * np.where(rows[np.arange(len(rows)), np.abs(rows).argmax(1)] < 0, -1.0, 1.0)
    spread = np.std(model.transform(z), axis=0) * size
    order = np.argsort(-spread, kind="stable")
    order = order[size[order] > 0]  # some decompositions leave components empty
    scale = scale[order]
    return Components(
        factor=factor,
        level="sequence" if codes.step is None else "step",
        mean=mean,
        std=std,
        directions=rows[order] / scale[:, None],
        spread=spread[order],
        share=spread[order] ** 2 / max(z.var(0).sum(), 1e-12),
        read=lambda z: model.transform(z)[:, order] * scale,
        bounded=codes.bounded,
    )


def _fit(decomposition: str, z: Float[np.ndarray, "P E"], count: int, seed: int):
    """A fitted decomposition of the form of scikit-learn."""
    if ":" in decomposition:
        make = import_callable(decomposition, "explore.decomposition")
    elif decomposition in DECOMPOSITIONS:
        make = DECOMPOSITIONS[decomposition]
    else:
        raise ValueError(
            f"explore.decomposition is {decomposition!r}; allowed: {', '.join(DECOMPOSITIONS)}, or "
            "module:Class for another, such as 'sklearn.decomposition:FactorAnalysis'."
        )
    options = {"n_components": count} | _OPTIONS.get(decomposition, {})
    try:
        if "random_state" in inspect.signature(make).parameters:
            options["random_state"] = seed
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model = make(**options).fit(z)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"explore.decomposition={decomposition!r} cannot be fitted to {len(z)} codes of mean 0 "
            f"and variance 1 ({error}); use one of {', '.join(DECOMPOSITIONS)}, or another class."
        ) from error
    for warning in caught:
        _LOG.warning("%s: %s", decomposition, warning.message)
    if not hasattr(model, "transform") or not (
        hasattr(model, "components_") or hasattr(model, "mixing_")
    ):
        raise ValueError(
            f"explore.decomposition={decomposition!r} has no transform, or neither components_ nor "
            f"mixing_, after fit; use one of {', '.join(DECOMPOSITIONS)}, or another class."
        )
    return model


def random_directions(
    count: int, size: int, rng: np.random.Generator
) -> Float[np.ndarray, "count size"]:
    """Random unit vectors, orthogonal to one another within blocks of ``size``."""
    blocks = [np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(-(-count // size))]
    return np.concatenate(blocks)[:count]


def random_components(
    like: Components, values: Float[np.ndarray, "P E"], count: int, seed: int = 0
) -> Components:
    """Random directions in place of components: what one that means nothing gets.

    Args:
      like: whose factor, level, ``mu`` and ``std`` are taken over.
      values: codes that tell how far they vary along each direction.
      count: number of directions.
      seed: of the directions.
    """
    directions = random_directions(count, len(like.mean), np.random.default_rng(seed))
    z = (values - like.mean) / like.std
    spread = np.std(z @ directions.T, axis=0)
    return Components(
        factor=like.factor,
        level=like.level,
        mean=like.mean,
        std=like.std,
        directions=directions,
        spread=spread,
        share=spread**2 / max(z.var(0).sum(), 1e-12),
        read=lambda z: z @ directions.T,
        bounded=like.bounded,
    )
