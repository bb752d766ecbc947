"""Paths from one clip to another through one of the factors, the other kept."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips
from diffsda_jax.evals.sample_measures import largest_jump, spherical_path, straight_path
from diffsda_jax.evals.swap import make_pairs
from diffsda_jax.evals.views import View, look_at
from diffsda_jax.factors import Factors

NUM_PAIRS, NUM_POINTS = 8, 8
FACTORS = ("s", "d")
_LABELS = {"s": "static", "d": "dynamic"}


@dataclass(frozen=True)
class Path:
    """Clips on the way from clip ``begin`` towards clip ``end`` of the test split.

    Attributes:
      x: clips, K points for each of P pairs, ``[P, K, V, ...]``; all of a pair have one start
        noise, so that nothing but the factor changes.
      begin: places of the clips that also give the other factor, ``[P]``.
      end: places of the clips whose factor is reached, ``[P]``.
    """

    x: Clips
    begin: Integer[np.ndarray, " P"]
    end: Integer[np.ndarray, " P"]


def interpolate(
    context: Context, factor: str, num_pairs: int = NUM_PAIRS, num_points: int = NUM_POINTS
) -> Path:
    """Decode evenly spaced points between pairs of test clips that differ in what labels there are.

    d goes straight at each step; s straight or about the mean of the training clips, as
    ``interpolation`` of the settings says.

    Args:
      context: of the evaluation, with two test clips or more.
      factor: ``s`` or ``d``.
      num_pairs: P.
      num_points: K, both ends among them.
    """
    labels = [label[context.trial] for label in _labels(context, factor)]
    pairs = make_pairs(len(context.trial), num_pairs, seed=context.settings.seed, labels=labels)
    begin, end = (context.trial[place] for place in pairs)
    first, last = context.test_factors[begin], context.test_factors[end]
    static, dynamic = (
        np.broadcast_to(values, (num_points, *values.shape))
        for values in (np.asarray(first.static), np.asarray(first.dynamic))
    )
    if factor == "d":
        dynamic = straight_path(np.asarray(first.dynamic), np.asarray(last.dynamic), num_points)
    elif context.settings.interpolation == "linear":
        static = straight_path(np.asarray(first.static), np.asarray(last.static), num_points)
    else:
        centre = np.asarray(context.train_factors.static).mean(0)
        ends = np.asarray(first.static), np.asarray(last.static)
        static = spherical_path(*ends, centre, num_points)
    flat = Factors(
        *(values.swapaxes(0, 1).reshape(-1, *values.shape[2:]) for values in (static, dynamic))
    )
    shape = (num_pairs, *context.test["x"].shape[1:])
    noise = np.random.default_rng(context.settings.seed).standard_normal(shape, dtype=np.float32)
    x = context.decode_from_noise(flat, np.repeat(noise, num_points, axis=0))
    return Path(x.reshape(num_pairs, num_points, *x.shape[1:]), begin, end)


def interpolation_scores(context: Context) -> dict[str, float]:
    """How smooth the paths are and what the judge sees on them, by ``between_s`` and ``between_d``.

    ``largest_jump``: see `sample_measures.largest_jump`, in features of the clips where there are
    any; 1/7 for an even path of 8 points, 1 for a switch. ``ends_kept_percent``: share of ends
    with the label of the clip whose factor they have; ``other_kept_percent``: share of all points
    with the label of the clip that gives the other factor.
    """
    scores = {}
    for factor in FACTORS:
        path = interpolate(context, factor)
        points = path.x.shape[1]
        length = _common_length(context, path, factor)
        flat = path.x.reshape(-1, *path.x.shape[2:])
        view = look_at(context, flat, None if length is None else np.repeat(length, points))
        features = view.main_features()
        name = f"between_{factor}"
        scores[f"{name}/largest_jump"] = largest_jump(
            features.reshape(-1, points, features.shape[1])
        )
        scores[f"{name}/largest_jump_chance"] = 1.0
        scores |= {
            f"{name}/{key}": value for key, value in _kept(context, view, path, factor).items()
        }
    return scores


def _kept(context: Context, view: View, path: Path, factor: str) -> dict[str, float]:
    """Shares of labels that are where they should be, in percent."""
    scores = {}
    judged = {
        head: values.argmax(1).reshape(len(path.begin), -1)
        for head, values in view.probabilities.items()
    }
    moved, other = _LABELS[factor], _LABELS["d" if factor == "s" else "s"]
    if moved in judged and f"{moved}_label" in context.test:
        ends = np.stack(
            [context.pick(f"{moved}_label", place) for place in (path.begin, path.end)], 1
        )
        right = judged[moved][:, [0, -1]] == ends
        scores["ends_kept_percent"] = 100.0 * float(right.mean())
    if other in judged and f"{other}_label" in context.test:
        right = judged[other] == context.pick(f"{other}_label", path.begin)[:, None]
        scores["other_kept_percent"] = 100.0 * float(right.mean())
    return scores


def _labels(context: Context, factor: str) -> list[np.ndarray]:
    """Labels in which the two ends should differ: that of the factor that moves."""
    name = f"{_LABELS[factor]}_label"
    return [context.test[name]] if name in context.test else []


def _common_length(context: Context, path: Path, factor: str) -> np.ndarray | None:
    """Real steps of the points of each path: those both ends have where d moves."""
    length = context.pick("length", path.begin)
    if length is None or factor == "s":
        return length
    return np.minimum(length, context.pick("length", path.end))
