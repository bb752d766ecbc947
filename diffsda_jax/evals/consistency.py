"""Whether the same thing always has the same code: within labels, within clips, and decoded again.

Distances are ratios: 0 is the same code, 1 is what any two clips have.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffsda_jax.evals.interface import Clips, Labels, Lengths, valid_steps
from diffsda_jax.factors import Factors

_MAX_ITEMS = 1000  # of which all pairs are compared
_LEAST_STEPS = 2  # of half a clip


def same_label_ratio(
    features: Float[np.ndarray, "N Q"], label: Labels, other: Labels | None = None, seed: int = 0
) -> float | None:
    """Mean squared distance of clips with the same label over that of any two clips.

    Args:
      features: codes of N clips; each is scaled to unit variance first. 1,000 clips at most are
        compared, drawn from all of them.
      label: what the two clips share.
      other: what they must differ in, such as the label of the other factor; None: nothing.
      seed: of the clips that are drawn.

    Returns:
      0 where the label decides the code, 1 where it says nothing; None without such a pair, or
      where all codes are the same.
    """
    some = _choose(len(features), seed)
    features, label = features[some], label[some]
    different = ~np.eye(len(label), dtype=bool)
    chosen = (label[:, None] == label) & different
    if other is not None:
        other = other[some]
        chosen &= other[:, None] != other
    distance = _squared_distances(features)
    overall = distance[different].mean() if len(label) > 1 else 0.0
    return float(distance[chosen].mean() / overall) if chosen.any() and overall > 0 else None


def windows_ratio(
    first: Float[np.ndarray, "N S"], second: Float[np.ndarray, "N S"], seed: int = 0
) -> float | None:
    """Mean squared distance of the codes of two windows of one clip over that of different clips.

    Args:
      first: ``s`` of one window of each clip.
      second: ``s`` of another window of it.
      seed: of the clips that are drawn, 1,000 at most.

    Returns:
      0 where any window of a clip has the same ``s``, 1 where it has that of any clip's; None where
      all are the same.
    """
    some = _choose(len(first), seed)
    count = len(some)
    distance = _squared_distances(np.concatenate([first[some], second[some]]))
    between = distance[:count, count:]
    own = np.eye(count, dtype=bool)
    others = between[~own].mean() if count > 1 else 0.0
    return float(between[own].mean() / others) if others > 0 else None


def _choose(count: int, seed: int) -> Integer[np.ndarray, " _"]:
    """Places of the clips that are compared; the first ones would be of few classes, if sorted."""
    return np.random.default_rng(seed).permutation(count)[:_MAX_ITEMS]


def half_clips(
    x: Clips, length: Lengths | None = None, mask: Bool[np.ndarray, "B V *maskdims"] | None = None
) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray | None]], Integer[np.ndarray, " _"]]:
    """The first and the second half of each clip, in arrays of the full number of steps.

    Args:
      x: clips of V steps.
      length: number of real steps; None is all V.
      mask: True = observed.

    Returns:
      ``(halves, index)``: ``(x, length, mask)`` of either half, in the shapes of the arguments and
      padded with 0, and the places of the clips, those of 4 steps or more.
    """
    num_clips, num_steps = x.shape[:2]
    real = np.full(num_clips, num_steps) if length is None else np.asarray(length)
    index = np.flatnonzero(real // 2 >= _LEAST_STEPS)
    half = real[index] // 2
    halves: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    for begin in (np.zeros_like(half), real[index] - half):
        step = np.minimum(begin[:, None] + np.arange(num_steps), num_steps - 1)
        inside = valid_steps((len(index), num_steps), half)
        cut_mask = None if mask is None else _cut(mask, index, step, inside)
        halves.append((_cut(x, index, step, inside), half.astype(np.int32), cut_mask))
    return halves, index


def _cut(
    values: np.ndarray,
    index: Integer[np.ndarray, " C"],
    step: Integer[np.ndarray, "C V"],
    inside: Bool[np.ndarray, "C V"],
) -> np.ndarray:
    """Some clips with the steps that are named, 0 where these are not inside."""
    moved = values[index[:, None], step]
    shape = (*inside.shape, *(1,) * (moved.ndim - 2))
    return np.where(inside.reshape(shape), moved, np.zeros((), moved.dtype))


def cycle_errors(
    found: Factors, wanted: Factors, length: Lengths | None = None
) -> dict[str, float]:
    """Distance of the factors of decoded clips from those they were decoded from.

    Args:
      found: encoded from decoded clips.
      wanted: what was decoded.
      length: number of real steps of the decoded clips.

    Returns:
      ``static_nmse`` and ``dynamic_nmse``, squared errors over the variance of what was wanted: 0
      is perfect, ``..._chance`` 1 the mean code.
    """
    valid = valid_steps(wanted.dynamic.shape, length)
    errors = {}
    for name in ("static", "dynamic"):
        sides = [np.asarray(getattr(factors, name)) for factors in (found, wanted)]
        errors[f"{name}_nmse"] = _nmse(*(x[valid] if x.ndim == 3 else x for x in sides))
        errors[f"{name}_nmse_chance"] = 1.0
    return errors


def _nmse(found: Float[np.ndarray, "N E"], wanted: Float[np.ndarray, "N E"]) -> float:
    """Squared error over the variance of what was wanted."""
    spread = np.var(wanted, axis=0, dtype=np.float64).sum()
    error = np.square(found - wanted, dtype=np.float64).sum(1).mean()
    return float(error / max(spread, np.finfo(np.float32).tiny))


def _squared_distances(features: Float[np.ndarray, "N Q"]) -> Float[np.ndarray, "N N"]:
    """Of all pairs, each feature scaled to unit variance; one that is constant counts nothing."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    spread = centred.std(0)
    scaled = centred[:, spread > 1e-12] / spread[spread > 1e-12]
    square = (scaled**2).sum(1)
    return np.maximum(square[:, None] + square - 2 * scaled @ scaled.T, 0.0)


def distinct_pairs(labels: list[Integer[np.ndarray, " N"]]) -> Labels | None:
    """One class for each combination of labels; None without labels."""
    if not labels:
        return None
    return np.unique(np.stack(labels, 1), axis=0, return_inverse=True)[1].ravel()
