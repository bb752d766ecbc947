"""Speaker verification: the equal error rate of the static and of the dynamic factor.

Each factor is used as if it were a voice print: the cosine similarity of two utterances says
whether they share the speaker. A good static factor errs rarely, a good dynamic factor cannot
tell (50 %); since one that holds nothing at all cannot either, probes of speaker and content too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer, Num

from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.context import FORMS
from diffsda_jax.evals.interface import Lengths, mean_over_steps, valid_steps
from diffsda_jax.evals.probes import ProbeResult, linear_probe

_SIMILARITY_DECIMALS = 10  # equal embeddings must tie, whatever order a matrix product sums in
_SCALE = 10**_SIMILARITY_DECIMALS
# A similarity is an integer from 0 to 2e10 < 2^35: its upper 17 and its lower 18 bits.
_COARSE_BITS, _FINE_BITS = 17, 18
_BLOCK_PAIRS = 2**18


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
    _check_kinds("equal_error_rate", num_same, is_same.size - num_same)
    if not np.isfinite(scores).all():
        raise ValueError(
            f"equal_error_rate: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are "
            f"not finite; check the factors that the model gives."
        )
    order = np.argsort(scores)[::-1]
    sorted_scores = scores[order]
    block_end = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))
    accepted_same = np.append(0, np.cumsum(is_same[order])[block_end])
    accepted = np.append(0, block_end + 1)
    thresholds = np.append(sorted_scores[0], sorted_scores[block_end])
    rate, after, weight = _crossing(accepted_same, accepted - accepted_same)
    before = after - 1
    threshold = thresholds[before] + weight * (thresholds[after] - thresholds[before])
    return rate, float(threshold)


def cosine_similarity_pairs(embedding: Float[np.ndarray, "N E"]) -> Float[np.ndarray, " P"]:
    """Cosine similarity of all pairs i < j, row by row of the upper triangle.

    A zero vector has similarity 0 with everything. Rounded to 10 decimals. Memory is 8 bytes a
    pair; `pairwise_eer` needs no such list.
    """
    blocks = [similarity[keep] for _, similarity, keep in _similarity_blocks(embedding)]
    return np.round(np.concatenate(blocks), _SIMILARITY_DECIMALS)


def pairwise_eer(embedding: Float[np.ndarray, "N E"], speakers: Integer[np.ndarray, " N"]) -> float:
    """`equal_error_rate` of the cosine similarities of all pairs i < j, without a list of them.

    The same number as `equal_error_rate` on `cosine_similarity_pairs`: similarities are counted by
    their upper bits, then those in the interval with the crossing by all of their bits. Memory is
    tens of MB whatever N, time is two matrix products.

    Args:
      embedding: one vector for each utterance.
      speakers: label of each utterance.

    Returns:
      The rate, a share in [0, 1].

    Raises:
      ValueError: there are no pairs of one kind, or a vector is not finite.
    """
    counts = np.unique(speakers, return_counts=True)[1].astype(np.int64)
    num_same = int((counts * (counts - 1)).sum()) // 2
    _check_kinds("pairwise_eer", num_same, len(speakers) * (len(speakers) - 1) // 2 - num_same)
    broken = int((~np.isfinite(embedding).all(1)).sum())
    if broken:
        raise ValueError(
            f"pairwise_eer: {broken} of {len(embedding)} vectors are not finite; check the factors "
            f"that the model gives."
        )
    coarse = _accepted(_count_pairs(embedding, speakers))
    _, after, _ = _crossing(*coarse)
    interval = 2**_COARSE_BITS - after  # the first of the accepted intervals is the highest
    fine = _accepted(_count_pairs(embedding, speakers, interval))
    inside = coarse[:, after - 1 : after] + fine
    return _crossing(*np.concatenate([inside, coarse[:, -1:]], axis=1))[0]


def utterance_factors(
    static: Float[np.ndarray, "N S"],
    dynamic: Float[np.ndarray, "N V D"],
    group: Integer[np.ndarray, " N"],
    length: Lengths | None = None,
) -> tuple[Float[np.ndarray, "U S"], Float[np.ndarray, "U D"], Integer[np.ndarray, " U"]]:
    """Factors of utterances from those of the chunks they were cut into.

    Args:
      static: static factor of each chunk.
      dynamic: dynamic factors of each chunk.
      group: which utterance each chunk is of, any integers.
      length: number of real steps of each chunk; None means all V.

    Returns:
      ``(static, dynamic, first)``, utterances in the order of their ``group``: mean of ``s`` over
      the chunks, each with the weight of its real steps; mean of ``d`` over all real steps of all
      chunks; and the place of the first chunk.
    """
    _, first, utterance = np.unique(group, return_index=True, return_inverse=True)
    num_steps = np.maximum(valid_steps(dynamic.shape, length).sum(1), 1)  # no mean is 0 / 0
    total = np.bincount(utterance, weights=num_steps)

    def mean(values: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "U E"]:
        sums = np.zeros((len(first), values.shape[1]))
        np.add.at(sums, utterance, values * num_steps[:, None])
        return sums / total[:, None]

    return mean(static), mean(mean_over_steps(dynamic, length)), first


def speaker_eer(
    static: Float[np.ndarray, "N S"],
    dynamic: Float[np.ndarray, "N V D"],
    speakers: Integer[np.ndarray, " N"],
    length: Lengths | None = None,
    group: Integer[np.ndarray, " N"] | None = None,
    *,
    form: str = "corrected",
) -> dict[str, float]:
    """Equal error rates in percent of ``s`` and of the mean of ``d`` over the real steps.

    In both forms all pairs of utterances are compared, and the threshold is the equal-error one of
    the test pairs themselves. They differ in what fills up chunks only: `corrected` leaves it out
    of both means, so that a chunk weighs as much as it has real steps; `reference` knows none.

    Args:
      static: one static factor for each utterance, or chunk of one.
      dynamic: dynamic factors of each.
      speakers: label of each.
      length: number of real steps; None means all V.
      group: which utterance each chunk is of; None: each is an utterance.
      form: ``corrected`` or ``reference``.

    Returns:
      ``static_eer`` (low is good), ``dynamic_eer`` (50 is good) and ``gap``, their difference.

    Raises:
      ValueError: an unknown form, an utterance of two speakers, or no pairs of one kind.

    References:
      DiffSDA (arXiv 2510.05717), speech experiments: static EER, dynamic EER and gap.
    """
    check_choice("form", form, FORMS)
    static, dynamic, speakers = _utterances(
        static, dynamic, length if form == "corrected" else None, group, speakers=speakers
    )
    rates = [100.0 * pairwise_eer(embedding, speakers) for embedding in (static, dynamic)]
    return {"static_eer": rates[0], "dynamic_eer": rates[1], "gap": rates[1] - rates[0]}


@dataclass(frozen=True)
class GroupedProbeResult(ProbeResult):
    """Accuracy of linear probes, each trained on all folds but the one it reads.

    Attributes:
      num_scored: items that were read by a probe.
      num_left_out: items whose label occurs in their own fold only, so that no probe can know it;
        they are not in the accuracy.
    """

    num_scored: int
    num_left_out: int


def grouped_probe(
    features: Float[np.ndarray, "U E"],
    label: Integer[np.ndarray, " U"],
    fold_of: Integer[np.ndarray, " U"],
) -> GroupedProbeResult:
    """`linear_probe` trained and scored within one split, cross-validated over given folds.

    For test speakers that the training split does not have: with folds by sentence a probe is
    scored on sentences that it never saw.

    Args:
      features: what the probe reads.
      label: what it should find.
      fold_of: fold of each item, any integers.

    Returns:
      Accuracy and chance over all scored items.

    Raises:
      ValueError: there are fewer than two folds, or no label occurs in two of them.
    """
    folds = np.unique(fold_of)
    results, weights = [], []
    for fold in folds:
        train = fold_of != fold
        test = ~train & np.isin(label, label[train])
        if test.any():
            results.append(linear_probe(features[train], label[train], features[test], label[test]))
            weights.append(int(test.sum()))
    if not results:
        raise ValueError(
            f"grouped_probe: {len(folds)} folds of {len(label)} items, and no label occurs in two "
            f"of them; at least one must; give another fold_of."
        )
    return GroupedProbeResult(
        accuracy_percent=float(np.average([r.accuracy_percent for r in results], weights=weights)),
        chance_percent=float(np.average([r.chance_percent for r in results], weights=weights)),
        converged=all(r.converged for r in results),
        num_scored=sum(weights),
        num_left_out=len(label) - sum(weights),
    )


def speaker_probe_on(
    static: Float[np.ndarray, "N S"],
    dynamic: Float[np.ndarray, "N V D"],
    speakers: Integer[np.ndarray, " N"],
    fold_of: Integer[np.ndarray, " N"],
    length: Lengths | None = None,
    group: Integer[np.ndarray, " N"] | None = None,
) -> dict[str, GroupedProbeResult]:
    """`grouped_probe` of the speaker on both factors of utterances of one split.

    Args:
      static: this and all but ``fold_of`` are as for `speaker_eer`.
      dynamic: see there.
      speakers: see there.
      fold_of: fold of each, the same for all chunks of an utterance.
      length: see there.
      group: see there.

    Returns:
      The results by what is read: ``s`` (high is good) and ``d_mean`` (chance is good).

    Raises:
      ValueError: chunks of an utterance differ in speaker or fold, or as for `grouped_probe`.
    """
    static, dynamic, speakers, fold_of = _utterances(
        static, dynamic, length, group, speakers=speakers, fold_of=fold_of
    )
    readings = (("s", static), ("d_mean", dynamic))
    return {name: grouped_probe(features, speakers, fold_of) for name, features in readings}


def content_features(
    dynamic: Float[np.ndarray, "N V D"],
    group: Integer[np.ndarray, " N"],
    order: Integer[np.ndarray, " N"],
    num_steps: int = 64,
    length: Lengths | None = None,
) -> Float[np.ndarray, "U E"]:
    """What an utterance says, as one vector of a fixed size, for a probe of the sentence.

    Args:
      dynamic: dynamic factors of each chunk.
      group: which utterance each chunk is of, any integers.
      order: place of each chunk in its utterance, any increasing integers.
      num_steps: steps that an utterance is resampled to, first on first and last on last.
      length: number of real steps of each chunk; None means all V.

    Returns:
      ``d`` of the chunks one after the other, linearly resampled to ``num_steps``; one row
      ``[num_steps * D]`` for each utterance in the order of their ``group``.

    Raises:
      ValueError: two chunks of an utterance have the same order, or one has no real step at all.
    """
    valid = valid_steps(dynamic.shape, length)
    rows = []
    for utterance in np.unique(group):
        chunks = np.flatnonzero(group == utterance)
        places, repeats = np.unique(order[chunks], return_counts=True)
        parts = [dynamic[chunk][valid[chunk]] for chunk in chunks[np.argsort(order[chunks])]]
        steps = np.concatenate(parts)
        if repeats.max() > 1 or not len(steps):
            raise ValueError(
                f"content_features: utterance {utterance} has {len(chunks)} chunks at "
                f"{len(places)} places and {len(steps)} real steps; allowed are one chunk a place "
                f"and 1 step or more; check group, order and length."
            )
        position = np.linspace(0, len(steps) - 1, num_steps)
        known = np.arange(len(steps))
        rows.append(np.stack([np.interp(position, known, values) for values in steps.T], axis=-1))
    return np.stack(rows).reshape(len(rows), -1)


def _crossing(
    accepted_same: Integer[np.ndarray, " K"], accepted_other: Integer[np.ndarray, " K"]
) -> tuple[float, int, float]:
    """Where both error rates are equal, from pairs accepted at falling thresholds.

    Args:
      accepted_same: accepted pairs of one identity: 0 first, all of them last.
      accepted_other: accepted pairs of two identities, likewise.

    Returns:
      ``(rate, after, weight)``: the crossing lies between the points ``after - 1`` and ``after``,
      at the share ``weight`` of the way.
    """
    false_reject = 1.0 - accepted_same / accepted_same[-1]
    false_accept = accepted_other / accepted_other[-1]
    # Falls from 1 to -1; the first point at or below 0 ends the segment that holds the crossing.
    difference = false_reject - false_accept
    after = int(np.argmax(difference <= 0))
    before = after - 1
    weight = difference[before] / (difference[before] - difference[after])
    rate = false_accept[before] + weight * (false_accept[after] - false_accept[before])
    return float(rate), after, float(weight)


def _similarity_blocks(embedding: Float[np.ndarray, "N E"]) -> Iterator[tuple]:
    """Some rows against all that follow: first row, similarities ``[R, M]``, pairs i < j."""
    embedding = embedding.astype(np.float64)
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.where(norm > 0, norm, 1.0)
    rows = max(_BLOCK_PAIRS // len(unit), 1)
    for first in range(0, len(unit), rows):
        similarity = unit[first : first + rows] @ unit[first:].T
        yield first, similarity, np.triu(np.ones(similarity.shape, bool), k=1)


def _count_pairs(
    embedding: Float[np.ndarray, "N E"],
    speakers: Integer[np.ndarray, " N"],
    interval: int | None = None,
) -> Integer[np.ndarray, "2 K"]:
    """Pairs of the same and of different speakers, counted by rising similarity.

    By its upper bits; with an ``interval`` only pairs with these upper bits, by the lower ones.
    """
    size = 2 * 2 ** (_COARSE_BITS if interval is None else _FINE_BITS)
    counts = np.zeros(size, np.int64)
    for first, similarity, keep in _similarity_blocks(embedding):
        rows = speakers[first : first + len(similarity)]
        is_other = (rows[:, None] != speakers[None, first:])[keep]
        key = np.rint(similarity[keep] * _SCALE).astype(np.int64) + _SCALE
        if interval is None:
            key >>= _FINE_BITS
        else:
            inside = key >> _FINE_BITS == interval
            key, is_other = key[inside] & (2**_FINE_BITS - 1), is_other[inside]
        counts += np.bincount(2 * key + is_other, minlength=size)
    return counts.reshape(-1, 2).T


def _accepted(counts: Integer[np.ndarray, "2 K"]) -> Integer[np.ndarray, "2 K1"]:
    """Pairs accepted when the threshold falls bin by bin: none first, all last."""
    return np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(counts[:, ::-1], axis=1)], axis=1)


def _check_kinds(name: str, num_same: int, num_other: int) -> None:
    """Raise ValueError unless there are pairs of both kinds."""
    if not (num_same and num_other):
        raise ValueError(
            f"{name}: {num_same} same and {num_other} different pairs; both kinds are needed; give "
            f"clips of at least two speakers and two clips of one of them."
        )


def _utterances(
    static: Float[np.ndarray, "N S"],
    dynamic: Float[np.ndarray, "N V D"],
    length: Lengths | None,
    group: Integer[np.ndarray, " N"] | None,
    **labels: Integer[np.ndarray, " N"],
) -> tuple[np.ndarray, ...]:
    """`utterance_factors`, then each label by utterance; ValueError if its chunks disagree."""
    group = np.arange(len(static)) if group is None else group
    static, dynamic, first = utterance_factors(static, dynamic, group, length)
    utterance = np.unique(group, return_inverse=True)[1]
    for name, values in labels.items():
        differs = np.flatnonzero(values[first][utterance] != values)
        if len(differs):
            raise ValueError(
                f"{name}: chunks of utterance {group[differs[0]]} disagree ({len(differs)} of "
                f"{len(group)} chunks do); one value an utterance is allowed; check group."
            )
    return static, dynamic, *(values[first] for values in labels.values())
