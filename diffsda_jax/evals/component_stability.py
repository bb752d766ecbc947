"""Whether components are found again: in other samples of codes, and by other models."""

import itertools

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from diffsda_jax.evals.exploration import (
    Codes,
    Components,
    fit_components,
    random_components,
    random_directions,
)


def matched(similarity: Float[np.ndarray, "K L"]) -> Float[np.ndarray, " K"]:
    """Similarity of each row's partner under the best one-to-one match; 0 for rows without one."""
    row, column = linear_sum_assignment(similarity, maximize=True)
    best = np.zeros(len(similarity))
    best[row] = similarity[row, column]
    return best


def stability_over_samples(
    reference: Components,
    codes: Codes,
    *,
    decomposition: str,
    num_refits: int = 4,
    num_random: int = 20,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " K"], float]:
    """Whether other samples have the same components.

    Each refit takes another part of the sequences, none of which is in two parts. Its components
    are lined up with those of all codes, and then compared with those of other refits.

    Args:
      reference: components of all codes.
      codes: those codes.
      decomposition: that ``reference`` was found by.
      num_refits: number of parts, at least 2.
      num_random: pairs of random orthogonal directions for the level of chance.
      seed: of the parts, the decompositions and the random directions.

    Returns:
      ``|cosine|`` of the two directions that two refits have for each component, mean over pairs,
      and what random orthogonal directions in place of refits get (mean over components and pairs).
    """
    rng = np.random.default_rng(seed)
    part = rng.permutation(codes.sequence.max() + 1)[codes.sequence] % num_refits
    found = []
    for number in range(num_refits):
        refit = fit_components(
            codes.take(part == number),
            reference.factor,
            decomposition=decomposition,
            num_components=len(reference),
            seed=seed + 1 + number,
            like=reference,
        )
        found.append(_lined_up(reference.directions, refit.directions))
    pairs = itertools.combinations(found, 2)
    count, size = reference.directions.shape
    random = [
        [_lined_up(reference.directions, random_directions(count, size, rng)) for _ in range(2)]
        for _ in range(num_random)
    ]
    agreement, chance = (
        np.mean([np.abs(np.sum(one * other, axis=1)) for one, other in side], axis=0)
        for side in (pairs, random)
    )
    return agreement, float(chance.mean())


def _lined_up(
    directions: Float[np.ndarray, "K E"], others: Float[np.ndarray, "L E"]
) -> Float[np.ndarray, "K E"]:
    """The partner of each direction among others; 0 for those without one."""
    row, column = linear_sum_assignment(np.abs(directions @ others.T), maximize=True)
    partner = np.zeros_like(directions)
    partner[row] = others[column]
    return partner


def stability_over_models(
    coordinates: Float[np.ndarray, "P K"],
    other: Components,
    other_values: Float[np.ndarray, "P F"],
    *,
    num_random: int = 20,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " K"], float]:
    """Whether a model trained with another seed has the same components.

    Args:
      coordinates: of the codes of some sequences, by the one model.
      other: components of the other model.
      other_values: codes of the same sequences by the other model, in the same order.
      num_random: draws of random orthogonal directions for the level of chance.
      seed: of those.

    Returns:
      ``|correlation|`` of each component's coordinates with its partner's, and what random
      orthogonal directions of the other model get (mean over components and draws).
    """
    found = matched(np.abs(correlations(coordinates, other.coordinates(other_values))))
    random = []
    for draw in range(num_random):
        directions = random_components(other, other_values, len(other), seed + draw)
        read = directions.coordinates(other_values)
        random.append(matched(np.abs(correlations(coordinates, read))).mean())
    return found, float(np.mean(random))


def correlations(
    first: Float[np.ndarray, "P K"], second: Float[np.ndarray, "P L"]
) -> Float[np.ndarray, "K L"]:
    """Pearson's r of all columns with all columns; 0 where one is constant."""
    first, second = (_standardised(np.asarray(side, np.float64)) for side in (first, second))
    return first.T @ second / len(first)


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    spread = centred.std(0)
    return np.where(spread > 1e-12, centred / np.where(spread > 1e-12, spread, 1.0), 0.0)
