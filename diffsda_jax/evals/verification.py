"""Speaker verification: the equal error rate of the static and of the dynamic factor.

Each factor is used as if it were a voice print: the cosine similarity of two utterances says
whether they share the speaker. A good static factor errs rarely, a good dynamic factor cannot
tell (50 %).
"""

import numpy as np
from jaxtyping import Bool, Float, Integer, Num

from diffsda_jax.evals.interface import Lengths, mean_over_steps

_SIMILARITY_DECIMALS = 10  # equal embeddings must tie, whatever order a matrix product sums in


def equal_error_rate(
    scores: Num[np.ndarray, " P"], is_same: Bool[np.ndarray, " P"]
) -> tuple[float, float]:
    """The error rate where false acceptances and false rejections are equally frequent.

    Thresholds are swept over the distinct scores. Pairs with the same score are accepted
    together, and between two thresholds both error rates are interpolated linearly, so a constant
    score gives 0.5.

    Args:
      scores: similarity of each pair, higher means more alike.
      is_same: whether the pair shares the identity.

    Returns:
      ``(rate, threshold)``: the rate is a share in [0, 1], not a percentage.

    Raises:
      ValueError: there are no pairs of one kind, or a score is not finite.
    """
    num_same = int(is_same.sum())
    num_other = is_same.size - num_same
    if not num_same or not num_other:
        raise ValueError(
            f"equal_error_rate: {num_same} same and {num_other} different pairs; both kinds are "
            f"needed; give clips of at least two speakers and two clips of one of them."
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"equal_error_rate: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are "
            f"not finite; check the factors that the model gives."
        )
    order = np.argsort(scores)[::-1]
    sorted_scores = scores[order]
    accepted_same = np.cumsum(is_same[order])
    block_end = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))
    accepted = accepted_same[block_end]
    false_reject = np.append(1.0, 1.0 - accepted / num_same)
    false_accept = np.append(0.0, (block_end + 1 - accepted) / num_other)
    thresholds = np.append(sorted_scores[0], sorted_scores[block_end])
    # false_reject - false_accept falls from 1 to -1; the first point at or below 0 ends the
    # segment that holds the crossing.
    difference = false_reject - false_accept
    after = int(np.argmax(difference <= 0))
    before = after - 1
    weight = difference[before] / (difference[before] - difference[after])
    rate = false_accept[before] + weight * (false_accept[after] - false_accept[before])
    threshold = thresholds[before] + weight * (thresholds[after] - thresholds[before])
    return float(rate), float(threshold)


def cosine_similarity_pairs(embedding: Float[np.ndarray, "N E"]) -> Float[np.ndarray, " P"]:
    """Cosine similarity of all pairs i < j, row by row of the upper triangle.

    A zero vector has similarity 0 with everything. Memory is 8 bytes times N squared.
    """
    embedding = embedding.astype(np.float64)
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.where(norm > 0, norm, 1.0)
    similarity = unit @ unit.T
    return np.round(similarity[_upper_triangle(len(unit))], _SIMILARITY_DECIMALS)


def speaker_eer(
    static: Float[np.ndarray, "N S"],
    dynamic: Float[np.ndarray, "N V D"],
    speakers: Integer[np.ndarray, " N"],
    length: Lengths | None = None,
) -> dict[str, float]:
    """Equal error rates in percent of ``s`` and of the mean of ``d`` over the real steps.

    The `reference` and the `corrected` form are the same here.

    Args:
      static: one static factor for each utterance.
      dynamic: dynamic factors of each utterance.
      speakers: label of each utterance.
      length: number of real steps; None means all V.

    Returns:
      ``static_eer`` (low is good), ``dynamic_eer`` (50 is good) and ``gap``, their difference.

    References:
      DiffSDA (arXiv 2510.05717), speech experiments: static EER, dynamic EER and gap.
    """
    is_same = (speakers[:, None] == speakers[None, :])[_upper_triangle(len(speakers))]
    rates = [
        100.0 * equal_error_rate(cosine_similarity_pairs(embedding), is_same)[0]
        for embedding in (static, mean_over_steps(dynamic, length))
    ]
    return {"static_eer": rates[0], "dynamic_eer": rates[1], "gap": rates[1] - rates[0]}


def _upper_triangle(size: int) -> Bool[np.ndarray, "N N"]:
    """Mask of the pairs i < j."""
    return np.triu(np.ones((size, size), bool), k=1)
