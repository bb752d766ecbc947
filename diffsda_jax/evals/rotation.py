"""Varimax: a rotation of the first principal components after which each reads few coordinates."""

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA

_STARTS = 8
_MAX_ROUNDS = 500
_TOLERANCE = 1e-10


class Varimax:
    """The first principal components, rotated; of the form of scikit-learn's decompositions.

    Components of equal variance are a random rotation of one another; this picks the one whose
    loadings have the largest variance of squares.

    Attributes:
      mixing_: loadings ``[E, K]``: codes are ``mixing_`` times scores of variance 1.
      components_: what reads those scores ``[K, E]``.

    References:
      Kaiser, The varimax criterion for analytic rotation in factor analysis, Psychometrika 1958.
    """

    def __init__(self, n_components: int):
        """Takes the number K of components that are kept and rotated."""
        self.n_components = n_components

    def fit(self, x: Float[np.ndarray, "P E"]) -> "Varimax":
        """Finds the components of the rows of ``x``."""
        pca = PCA(self.n_components).fit(x)
        scale = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))[:, None]
        loadings = (scale * pca.components_).T
        rotation = varimax_rotation(loadings)
        self.mean_ = pca.mean_
        self.mixing_ = loadings @ rotation
        self.components_ = rotation.T @ (pca.components_ / scale)
        return self

    def transform(self, x: Float[np.ndarray, "P E"]) -> Float[np.ndarray, "P K"]:
        """Scores of rows, uncorrelated and of variance 1."""
        return (x - self.mean_) @ self.components_.T


def varimax_rotation(loadings: Float[np.ndarray, "E K"]) -> Float[np.ndarray, "K K"]:
    """The rotation R for which ``loadings @ R`` has the largest variance of squares in its columns.

    Args:
      loadings: of E coordinates on K components.

    Returns:
      An orthogonal matrix: the best that is reached from several random ones. One start would not
      do: loadings that are all of one size, the worst there are, stand still.
    """
    rng, size = np.random.default_rng(0), loadings.shape[1]
    starts = [np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(_STARTS)]
    reached = [_climb(loadings, start) for start in starts]
    return max(reached, key=lambda rotation: np.var((loadings @ rotation) ** 2, axis=0).sum())


def _climb(
    loadings: Float[np.ndarray, "E K"], rotation: Float[np.ndarray, "K K"]
) -> Float[np.ndarray, "K K"]:
    """Raises the criterion step by step from one rotation."""
    reached = 0.0
    for _ in range(_MAX_ROUNDS):
        rotated = loadings @ rotation
        target = rotated**3 - rotated * np.mean(rotated**2, axis=0)
        left, gain, right = np.linalg.svd(loadings.T @ target)
        rotation = left @ right
        if gain.sum() <= reached * (1 + _TOLERANCE):
            break
        reached = gain.sum()
    return rotation
