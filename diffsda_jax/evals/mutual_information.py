"""MIG, SAP, modularity and explicitness of codes that are numbers or whole courses of numbers.

A static code is a number for each clip. A dynamic code is one number a step; where a factor belongs
to the whole clip it is read from the course of the code, which is kept as a few means.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer, Num
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from diffsda_jax.evals.disentanglement import score_guess
from diffsda_jax.evals.interface import Lengths

_MAX_BINS = 20
_ITEMS_A_BIN = 25
_SHRINKAGE = 1e-3
_CLUSTER_ROUNDS = 20


@dataclass(frozen=True)
class Codes:
    """Codes of N items.

    Attributes:
      values: what the codes are made of ``[N, Q]``.
      owner: code that each column belongs to, ``[Q]``, from 0 to E - 1.
    """

    values: Float[np.ndarray, "N Q"]
    owner: Integer[np.ndarray, " Q"]

    @property
    def count(self) -> int:
        """Number of codes E."""
        return int(self.owner.max()) + 1

    def of(self, code: int) -> Float[np.ndarray, "N P"]:
        """The columns of one code."""
        return self.values[:, self.owner == code]


@dataclass(frozen=True)
class FactorTable:
    """Known factors of N items.

    Attributes:
      values: ``[N, K]``.
      is_class: which of them are classes ``[K]``, the others are numbers.
    """

    values: Num[np.ndarray, "N K"]
    is_class: Bool[np.ndarray, " K"]


def segment_means(
    dynamic: Float[np.ndarray, "N V D"], length: Lengths | None = None, num_segments: int = 8
) -> Float[np.ndarray, "N P D"]:
    """Means over parts of each sequence, equal shares of its real steps.

    Args:
      dynamic: one vector a step.
      length: number of real steps, at least 1; None is all V.
      num_segments: parts P at most; a sequence of fewer steps repeats some.
    """
    num_clips, num_steps = dynamic.shape[:2]
    real = np.full(num_clips, num_steps) if length is None else np.asarray(length)
    num_segments = min(num_segments, num_steps)
    borders = np.arange(num_segments + 1) * real[:, None] / num_segments
    first = np.floor(borders[:, :-1]).astype(int)
    last = np.maximum(np.floor(borders[:, 1:]).astype(int), first + 1)
    total = np.concatenate([np.zeros_like(dynamic[:, :1]), dynamic.cumsum(1)], axis=1)
    clip = np.arange(num_clips)[:, None]
    return (total[clip, last] - total[clip, first]) / (last - first)[..., None]


def bin_codes(codes: Codes, seed: int = 0) -> Integer[np.ndarray, "N E"]:
    """Each code as a class: equal counts for numbers, clusters (k-means) for courses.

    The number of bins is 20, or fewer where there are fewer than 25 items for each.
    """
    bins = [_bin(codes.of(code), seed) for code in range(codes.count)]
    return np.stack(bins, axis=1)


def bin_factors(table: FactorTable) -> Integer[np.ndarray, "N K"]:
    """Each factor as a class: what it is, or for numbers bins of equal counts."""
    columns = [
        np.unique(column, return_inverse=True)[1] if is_class else _bin(column[:, None], 0)
        for column, is_class in zip(table.values.T, table.is_class, strict=True)
    ]
    return np.stack(columns, axis=1)


def mutual_information(
    codes: Integer[np.ndarray, "N E"], factors: Integer[np.ndarray, "N K"]
) -> tuple[Float[np.ndarray, "E K"], Float[np.ndarray, " K"]]:
    """Mutual information of every code and factor, and the entropy of every factor, in nats.

    Both are corrected for the size of the sample (Miller and Madow), without which codes that tell
    nothing seem to tell something; information is not below 0.
    """
    entropies = [_entropy(column) for column in factors.T]
    information = np.zeros((codes.shape[1], factors.shape[1]))
    for row, code in enumerate(codes.T):
        own = _entropy(code)
        for column, factor in enumerate(factors.T):
            joint = _entropy(code * (factor.max() + 1) + factor)
            information[row, column] = own + entropies[column] - joint
    return np.maximum(information, 0.0), np.array(entropies)


def mutual_information_gap(
    information: Float[np.ndarray, "E K"], entropy: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """For each factor how much more its best code tells than the second best, as a share.

    1: one code tells all of the factor and no other code anything of it.

    Args:
      information: of `mutual_information`, of two codes or more.
      entropy: of the factors.

    References:
      Chen, Li, Grosse, Duvenaud, Isolating Sources of Disentanglement in Variational Autoencoders,
      NeurIPS 2018, equation 6.
    """
    ordered = np.sort(information, axis=0)
    return np.clip((ordered[-1] - ordered[-2]) / np.maximum(entropy, np.finfo(float).tiny), 0, 1)


def modularity(information: Float[np.ndarray, "E K"]) -> float:
    """How far each code tells of one factor only; mean over the codes that tell anything.

    1: every code is silent on all factors but one. 0: every code tells equally much of all, or
    nothing of any.

    Args:
      information: of each code on each of two factors or more, not negative.

    References:
      Ridgeway and Mozer, Learning Deep Disentangled Embeddings With the F-Statistic Loss, NeurIPS
      2018, section 2.
    """
    top = information.max(1)
    told = information[top > 0] / top[top > 0, None]
    if not len(told):
        return 0.0
    deviation = ((told**2).sum(1) - 1.0) / (information.shape[1] - 1)
    return float(np.mean(1.0 - deviation))


def single_code_scores(
    codes: Codes, table: FactorTable, test_codes: Codes, test_table: FactorTable
) -> Float[np.ndarray, "E K"]:
    """How well each factor is read on the test items from each code alone by a linear reader.

    Classes: accuracy of the nearest class mean (linear discriminants with equal priors), from
    chance 0 to 1. Numbers: R^2 of least squares, not below 0.
    """
    scores = np.zeros((codes.count, len(table.is_class)))
    for place, is_class in enumerate(table.is_class):
        known, truth = table.values[:, place], test_table.values[:, place]
        for code in range(codes.count):
            seen, test_seen = codes.of(code), test_codes.of(code)
            if is_class:
                guess = _nearest_class(seen, known, test_seen)
            else:
                guess = LinearRegression().fit(seen, known).predict(test_seen)
            scores[code, place] = score_guess(known, truth, guess, bool(is_class))
    return scores


def separated_predictability(scores: Float[np.ndarray, "E K"]) -> Float[np.ndarray, " K"]:
    """SAP: for each factor how much better its best code reads it than the second best.

    Args:
      scores: of `single_code_scores`, of two codes or more.

    References:
      Kumar, Sattigeri, Balakrishnan, Variational Inference of Disentangled Latent Concepts from
      Unlabeled Observations, ICLR 2018, section 3; accuracies there start at 0, here at chance.
    """
    ordered = np.sort(scores, axis=0)
    return ordered[-1] - ordered[-2]


def explicitness(
    codes: Codes, table: FactorTable, test_codes: Codes, test_table: FactorTable
) -> float | None:
    """How well classes are read from all codes together: area under the ROC curve.

    A logistic regression for each factor, the probability of one class against the rest, mean over
    the classes that the test items hold and then over factors. 1 is perfect, 0.5 chance. None
    without classes.

    References:
      Ridgeway and Mozer, 2018, section 2, there of the training items.
    """
    areas = []
    scaler = StandardScaler().fit(codes.values)
    inputs, test_inputs = (scaler.transform(side.values) for side in (codes, test_codes))
    for place in np.flatnonzero(table.is_class):
        truth = test_table.values[:, place]
        reader = LogisticRegression(max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for an order
            reader.fit(inputs, table.values[:, place])
        told = reader.predict_proba(test_inputs)
        own = [
            roc_auc_score(truth == name, told[:, column])
            for column, name in enumerate(reader.classes_)
            if 0 < np.mean(truth == name) < 1
        ]
        if own:
            areas.append(np.mean(own))
    return float(np.mean(areas)) if areas else None


def _bin(values: Float[np.ndarray, "N P"], seed: int) -> Integer[np.ndarray, " N"]:
    """Classes of one code or factor."""
    count = int(np.clip(len(values) // _ITEMS_A_BIN, 2, _MAX_BINS))
    distinct = np.unique(values, axis=0, return_inverse=True)[1].ravel()
    if distinct.max() < count:
        return distinct
    if values.shape[1] > 1:
        return _clusters(values, count, seed)
    borders = np.quantile(values[:, 0], np.arange(1, count) / count)
    return np.searchsorted(np.unique(borders), values[:, 0], side="right")


def _clusters(values: Float[np.ndarray, "N P"], count: int, seed: int) -> Integer[np.ndarray, " N"]:
    """Clusters of k-means from random items; one that loses all its items stays where it was."""
    centres = np.random.default_rng(seed).permutation(np.unique(values, axis=0))[:count]
    for _ in range(_CLUSTER_ROUNDS):
        nearest = np.square(values[:, None] - centres).sum(-1).argmin(1)
        sizes = np.bincount(nearest, minlength=count)[:, None]
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, values)
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres)
    return nearest


def _nearest_class(
    values: Float[np.ndarray, "N P"], known: Num[np.ndarray, " N"], test: Float[np.ndarray, "M P"]
) -> Num[np.ndarray, " M"]:
    """Linear discriminants: the class whose mean is nearest by the spread within classes."""
    classes, index = np.unique(known, return_inverse=True)
    means = np.stack([values[index == place].mean(0) for place in range(len(classes))])
    within = np.atleast_2d(np.cov(values - means[index], rowvar=False, bias=True))
    # What is constant within the classes would have no inverse.
    ridge = _SHRINKAGE * values.var(0).mean() + np.finfo(float).tiny
    inverse = np.linalg.inv(within + ridge * np.eye(len(within)))
    offset = test[:, None] - means
    distance = np.einsum("mcp,pq,mcq->mc", offset, inverse, offset)
    return classes[distance.argmin(1)]


def _entropy(classes: Integer[np.ndarray, " N"]) -> float:
    """Entropy of a sample of classes in nats, corrected for its size."""
    counts = np.unique(classes, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum() + (len(counts) - 1) / (2 * counts.sum()))
