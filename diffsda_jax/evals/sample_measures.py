"""What tells good samples from bad ones: sharp and varied labels, nothing copied, no jumps."""

import numpy as np
from jaxtyping import Float

Probabilities = Float[np.ndarray, "N C"]
Items = Float[np.ndarray, "_ E"]

_SMALLEST_DISTANCE = 1e-12  # keeps ratios to it finite
_BLOCK = 256  # items whose distances to all others are in memory at once


def label_scores(probabilities: Probabilities) -> dict[str, float]:
    """Entropies and inception score of what a judge sees in some clips.

    Args:
      probabilities: of the C classes ``p(y | x)`` for each of N clips; rows add up to 1.

    Returns:
      ``entropy_y_given_x_nats``: mean entropy for a clip, low for clips that are clearly of one
      class; ``entropy_y_nats``: entropy of the mean, high for varied clips, at most ``ln C``;
      ``inception_score``: e to their difference, from 1 to C, high is good.

    References:
      Salimans et al., Improved Techniques for Training GANs, NeurIPS 2016, section 4; as used for
      expressions of MUG by S3VAE (CVPR 2020) and its successors.
    """
    probabilities = np.asarray(probabilities, np.float64)
    given_x = float(_entropy(probabilities).mean())
    marginal = float(_entropy(probabilities.mean(0, keepdims=True))[0])
    return {
        "inception_score": float(np.exp(marginal - given_x)),
        "entropy_y_given_x_nats": given_x,
        "entropy_y_nats": marginal,
    }


def label_distance(
    probabilities: dict[str, Float[np.ndarray, "_ _"]],
    other: dict[str, Float[np.ndarray, "_ _"]],
) -> float:
    """Total variation between the labels that a judge sees in two sets of clips, from 0 to 1.

    Of the joint distribution of all labels, so that a wrong dependence between them counts too.

    Args:
      probabilities: of the classes in the clips of one set, by kind of label.
      other: the same of the other set.
    """
    return float(0.5 * np.abs(_joint(probabilities) - _joint(other)).sum())


def nearest_distance(items: Items, others: Items) -> Float[np.ndarray, " _"]:
    """Euclidean distance of each item to the nearest of the others."""
    items, others = np.asarray(items, np.float32), np.asarray(others, np.float32)
    squares = np.square(others).sum(1)
    nearest = []
    for first in range(0, len(items), _BLOCK):
        block = items[first : first + _BLOCK]
        place = np.argmin(squares - 2 * block @ others.T, axis=1)
        # Not from the expanded square, whose rounding hides small distances.
        nearest.append(np.linalg.norm(block - others[place], axis=1))
    return np.concatenate(nearest)


def memorising_ratio(samples: Items, train: Items, test: Items) -> float:
    """How near samples lie to training clips, relative to how near test clips lie to them.

    The mean distance to the nearest training clip, of samples over that of test clips: near 1 is
    right, near 0 says that training clips were copied, far above 1 that the samples are unlike
    any.

    Args:
      samples: items that were made.
      train: items that the model was trained on.
      test: items that it was not trained on.
    """
    fresh = nearest_distance(test, train).mean()
    return float(nearest_distance(samples, train).mean() / max(fresh, _SMALLEST_DISTANCE))


def largest_jump(paths: Float[np.ndarray, "P K E"]) -> float:
    """The largest step between neighbours on a path over the distance of its ends, mean of P paths.

    ``1 / (K - 1)`` for a straight, even path of K points, about 1 where all changes at once, and
    more where the path leaves the ends behind. Paths whose ends are the same do not count; NaN if
    none is left.
    """
    steps = np.linalg.norm(np.diff(paths, axis=1), axis=-1).max(1)
    ends = np.linalg.norm(paths[:, -1] - paths[:, 0], axis=-1)
    apart = ends > _SMALLEST_DISTANCE
    return float((steps[apart] / ends[apart]).mean()) if apart.any() else float("nan")


def straight_path(
    begin: Float[np.ndarray, "*shape"], end: Float[np.ndarray, "*shape"], count: int
) -> Float[np.ndarray, "K *shape"]:
    """Evenly spaced points on the line between two, both among them."""
    share = np.linspace(0.0, 1.0, count, dtype=np.float32).reshape(-1, *(1,) * begin.ndim)
    return (1 - share) * begin + share * end


def spherical_path(
    begin: Float[np.ndarray, "P S"],
    end: Float[np.ndarray, "P S"],
    centre: Float[np.ndarray, " S"],
    count: int,
) -> Float[np.ndarray, "K P S"]:
    """Points on the arc about a centre: the angle grows evenly, and so does the radius.

    Where begin and end lie on one line through the centre there is no one arc: the path is
    straight.

    References:
      Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985 (slerp).
    """
    share = np.linspace(0.0, 1.0, count, dtype=np.float32)[:, None, None]
    radius_a, radius_b = (
        np.maximum(np.linalg.norm(point - centre, axis=-1, keepdims=True), _SMALLEST_DISTANCE)
        for point in (begin, end)
    )
    unit_a, unit_b = (begin - centre) / radius_a, (end - centre) / radius_b
    angle = np.arccos(np.clip((unit_a * unit_b).sum(-1, keepdims=True), -1.0, 1.0))
    sine = np.sin(angle)
    turned = np.sin((1 - share) * angle) * unit_a + np.sin(share * angle) * unit_b
    radius = (1 - share) * radius_a + share * radius_b
    arc = centre + radius * turned / np.where(sine > 1e-4, sine, 1.0)
    path = np.where(sine > 1e-4, arc, straight_path(begin, end, count))
    return path.astype(np.float32)


def _joint(probabilities: dict[str, Float[np.ndarray, "N _"]]) -> Float[np.ndarray, "*classes"]:
    """Share of each combination of classes, an axis for each kind of label."""
    product = np.ones(len(next(iter(probabilities.values()))))
    for values in probabilities.values():
        product = product[..., None] * values.reshape(len(values), *(1,) * (product.ndim - 1), -1)
    return product.mean(0)


def _entropy(probabilities: Probabilities) -> Float[np.ndarray, " N"]:
    """In nats, of each row."""
    logarithm = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return -(probabilities * logarithm).sum(-1)
