"""How far two sets of clips lie apart, by the mean and covariance of their features."""

from typing import cast

import numpy as np
from jaxtyping import Float

from diffsda_jax.evals.interface import Lengths, valid_steps

Features = Float[np.ndarray, "_ _"]


def frechet_distance(features_a: Features, features_b: Features) -> float:
    """Squared Frechet distance between normal distributions fitted to two sets of features.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})`` with sample means and covariances. With
    ``C = R^T R``, the trace of the root is the sum of the singular values of ``R_a R_b^T``; R comes
    from a QR decomposition of the centred features. So no covariance is formed or inverted, and
    singular ones, such as those of fewer items than features, do no harm to the arithmetic.

    With few items the distance is biased upwards, the more the fewer (see `few_items_note`):
    compare distances of sets of one size only.

    Args:
      features_a: of N items, N at least 2.
      features_b: of M items, M at least 2.

    Raises:
      ValueError: fewer than two items in a set, or another number of features.

    References:
      Heusel et al., GANs Trained by a Two Time-Scale Update Rule, NeurIPS 2017, equation 6; for
      clips: Unterthiner et al., Towards Accurate Generative Models of Video, arXiv 1812.01717.
    """
    sizes = features_a.shape, features_b.shape
    if min(sizes[0][0], sizes[1][0]) < 2 or sizes[0][1] != sizes[1][1]:
        raise ValueError(
            f"frechet_distance: features have shapes {sizes[0]} and {sizes[1]}; allowed are two or "
            "more rows in each and the same number of columns; give more clips of one kind."
        )
    mean_a, root_a = _moments(features_a)
    mean_b, root_b = _moments(features_b)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * shared
    return float(max(np.square(mean_a - mean_b).sum() + spread, 0.0))


def few_items_note(num_items: int, num_features: int) -> str | None:
    """What is to be said of distances between so few items, or None."""
    if num_items > num_features:
        return None
    return (
        f"Frechet distances of {num_items} clips in {num_features} features are biased upwards "
        "(compare them with their controls, which have as many clips; raise num_samples and "
        "num_clips for less bias)"
    )


def pool_over_time(
    values: Float[np.ndarray, "N V E"], length: Lengths | None = None
) -> Float[np.ndarray, "N E2"]:
    """Mean and standard deviation over the real steps of what was seen of each frame.

    Args:
      values: embeddings; NaN in frames where nothing was found, which are left out. A clip without
        any other is all zeros.
      length: real steps of each clip.
    """
    use = valid_steps(values.shape, length) & np.isfinite(values).all(-1)
    mean, spread = _mean_and_std(values, use[..., None])
    return np.concatenate([mean, spread], axis=-1)


def series_statistics(
    x: Float[np.ndarray, "N V F"], length: Lengths | None = None
) -> Float[np.ndarray, "N F6"]:
    """Plain features of series: where they are in each quarter, their spread, and how they change.

    Six numbers of each of the F features: means over the four quarters of the real steps, standard
    deviation over all of them, and root mean square of the differences of neighbouring steps. A
    quarter without a step, of fewer than four, has the mean of all.
    """
    valid = valid_steps(x.shape, length)
    mean, spread = _mean_and_std(x, valid[..., None])
    quarter = 4 * np.arange(x.shape[1]) // np.maximum(valid.sum(1, keepdims=True), 1)
    means = []
    for number in range(4):
        use = (valid & (quarter == number))[..., None]
        means.append(np.where(use.any(1), _mean_and_std(x, use)[0], mean))
    both = valid[:, 1:, None]
    change = np.where(both, np.diff(x, axis=1), 0.0)
    roughness = np.sqrt(np.square(change).sum(1) / np.maximum(both.sum(1), 1))
    return np.concatenate([*means, spread, roughness], axis=-1)


def _moments(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and R with ``R^T R`` the covariance."""
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    # NumPy's own types give this mode the result of the others.
    root = cast(np.ndarray, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r"))
    return mean, root


def _mean_and_std(values: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the steps, axis 1, that are used."""
    count = np.maximum(use.sum(1), 1)
    mean = np.where(use, values, 0.0).sum(1) / count
    square = np.where(use, np.square(values - mean[:, None]), 0.0).sum(1) / count
    return mean, np.sqrt(square)
