import time
import tracemalloc

import numpy as np
import pytest

from diffsda_jax.evals.verification import (
    content_features,
    cosine_similarity_pairs,
    equal_error_rate,
    grouped_probe,
    pairwise_eer,
    speaker_eer,
    speaker_probe_on,
    utterance_factors,
)


def brute_force_eer(scores, is_same):
    """Twin: the smallest of max(FAR, FRR) over all thresholds bounds the crossing."""
    gaps = []
    for threshold in np.unique(scores):
        accepted = scores >= threshold
        gaps.append((np.mean(accepted[~is_same]), np.mean(~accepted[is_same])))
    accept, reject = min(gaps, key=lambda pair: abs(pair[0] - pair[1]))
    return (accept + reject) / 2


def test_separated_scores_have_no_error():
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    rate, threshold = equal_error_rate(scores, np.array([False, False, True, True]))
    assert rate == 0.0
    assert 0.2 < threshold <= 0.9


def test_reversed_scores_are_always_wrong():
    rate, _ = equal_error_rate(np.array([0.9, 0.8, 0.2, 0.1]), np.array([0, 0, 1, 1], bool))
    assert rate == 1.0


def test_constant_score_is_chance():
    rate, threshold = equal_error_rate(np.ones(10), np.arange(10) < 3)
    assert rate == pytest.approx(0.5)
    assert threshold == 1.0


def test_ties_are_taken_together():
    # One block of ties in the middle: same 1 above, 2 in it; other 2 in it, 1 below.
    scores = np.array([3, 2, 2, 2, 2, 1])
    is_same = np.array([1, 1, 1, 0, 0, 0], bool)
    # Segment from (accept 0, reject 2/3) to (accept 2/3, reject 0) crosses at 1/3.
    assert equal_error_rate(scores, is_same)[0] == pytest.approx(1 / 3)
    order = np.array([4, 1, 5, 3, 0, 2])
    assert equal_error_rate(scores[order], is_same[order])[0] == pytest.approx(1 / 3)


def test_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    is_same = rng.random(2000) < 0.3
    scores = rng.standard_normal(2000) + 1.2 * is_same
    assert equal_error_rate(scores, is_same)[0] == pytest.approx(
        brute_force_eer(scores, is_same), abs=2e-3
    )


def test_gaussian_closed_form():
    # Equal-variance normals at distance 2: the error rate is Phi(-1).
    rng = np.random.default_rng(1)
    is_same = np.arange(400_000) < 200_000
    scores = rng.standard_normal(400_000) + 2.0 * is_same
    assert equal_error_rate(scores, is_same)[0] == pytest.approx(0.158655, abs=2e-3)


def test_refuses_one_kind_of_pair_and_broken_scores():
    with pytest.raises(ValueError, match="3 same and 0 different"):
        equal_error_rate(np.ones(3), np.ones(3, bool))
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        equal_error_rate(np.array([np.nan, 1.0]), np.array([True, False]))


def test_pairs_are_the_upper_triangle():
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((5, 3))
    expected = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for i, a in enumerate(embedding)
        for b in embedding[i + 1 :]
    ]
    np.testing.assert_allclose(cosine_similarity_pairs(embedding), expected, atol=1e-9)


def test_oracle_and_noise():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(10), 30)
    static = np.eye(10)[speakers] + 0.01 * rng.standard_normal((300, 10))
    dynamic = rng.standard_normal((300, 6, 4))
    rates = speaker_eer(static, dynamic, speakers)
    assert rates["static_eer"] == 0.0
    assert rates["dynamic_eer"] == pytest.approx(50.0, abs=2.0)
    assert rates["gap"] == pytest.approx(rates["dynamic_eer"] - rates["static_eer"])


def test_constant_embedding_is_chance_in_float32():
    speakers = np.repeat(np.arange(4), 25)
    static = np.full((100, 7), 0.3, np.float32)
    dynamic = np.zeros((100, 5, 2), np.float32)
    rates = speaker_eer(static, dynamic, speakers)
    assert rates["static_eer"] == pytest.approx(50.0)
    assert rates["dynamic_eer"] == pytest.approx(50.0)


def test_padding_does_not_count():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(4), 5)
    static, dynamic = rng.standard_normal((20, 3)), rng.standard_normal((20, 8, 2))
    length = rng.integers(2, 8, 20)
    polluted = dynamic.copy()
    polluted[np.arange(8)[None] >= length[:, None]] = 1e6
    assert speaker_eer(static, dynamic, speakers, length) == speaker_eer(
        static, polluted, speakers, length
    )
    assert speaker_eer(static, dynamic, speakers) != speaker_eer(static, polluted, speakers)


def embeddings():
    """Vectors whose similarities are spread, crowded, few and all the same."""
    rng = np.random.default_rng(0)
    speakers = rng.integers(7, size=150)
    spread = rng.standard_normal((150, 6)) + rng.standard_normal((7, 6))[speakers]
    crowded = 1.0 + 1e-6 * spread
    few = np.sign(spread)[:, :2]
    return speakers, {"spread": spread, "crowded": crowded, "few": few, "one": np.ones((150, 3))}


@pytest.mark.parametrize("kind", ["spread", "crowded", "few", "one"])
def test_counting_agrees_with_sorting_all_pairs(kind):
    speakers, vectors = embeddings()
    upper = np.triu_indices(150, k=1)
    is_same = speakers[upper[0]] == speakers[upper[1]]
    scores = cosine_similarity_pairs(vectors[kind])
    assert pairwise_eer(vectors[kind], speakers) == equal_error_rate(scores, is_same)[0]


def test_memory_does_not_grow_with_the_pairs():
    rng = np.random.default_rng(0)
    pairwise_eer(rng.standard_normal((40, 4)), rng.integers(4, size=40))
    tracemalloc.start()
    pairwise_eer(rng.standard_normal((3000, 4)), rng.integers(40, size=3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 36e6  # a list of the 4.5 M pairs alone takes that much


def test_pairs_of_one_kind_and_broken_vectors_are_refused():
    with pytest.raises(ValueError, match="3 same and 0 different"):
        pairwise_eer(np.eye(3), np.zeros(3, int))
    with pytest.raises(ValueError, match="1 of 3 vectors are not finite"):
        pairwise_eer(np.diag([1.0, np.inf, 1.0]), np.array([0, 0, 1]))


def chunks():
    """Utterances of different numbers of chunks, in any order, with padding in some."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([30, 10, 20, 50], [3, 1, 2, 4]))
    static, dynamic = rng.standard_normal((10, 3)), rng.standard_normal((10, 6, 2))
    return group, static, dynamic, rng.integers(2, 7, 10)


def test_utterances_are_means_over_their_chunks_and_steps():
    group, static, dynamic, length = chunks()
    s, d, first = utterance_factors(static, dynamic, group, length)
    for row, utterance in enumerate([10, 20, 30, 50]):
        places = np.flatnonzero(group == utterance)
        steps = np.concatenate([dynamic[place, : length[place]] for place in places])
        assert first[row] == places[0]
        voice = np.repeat(static[places], length[places], axis=0)  # once for every real step
        np.testing.assert_allclose(s[row], voice.mean(0), atol=1e-12)
        np.testing.assert_allclose(d[row], steps.mean(0), atol=1e-12)


def test_rates_of_chunks_are_those_of_their_utterances():
    rng = np.random.default_rng(1)
    group = rng.permutation(np.repeat(np.arange(60), 3))
    speakers = group // 6
    static = np.eye(10)[speakers] + rng.standard_normal((180, 10))
    dynamic = rng.standard_normal((180, 5, 2))
    grouped = speaker_eer(static, dynamic, speakers, group=group)
    s, d, first = utterance_factors(static, dynamic, group)
    assert grouped == pytest.approx(speaker_eer(s, d[:, None], speakers[first]))
    assert grouped["static_eer"] < speaker_eer(static, dynamic, speakers)["static_eer"] - 5.0
    with pytest.raises(ValueError, match="speakers: chunks of utterance 0 disagree"):
        speaker_eer(static, dynamic, np.where(np.arange(180) == 0, 99, speakers), group=group * 0)


def test_reference_form_counts_padding():
    rng = np.random.default_rng(0)
    speakers, length = np.repeat(np.arange(4), 5), rng.integers(2, 8, 20)
    static, dynamic = rng.standard_normal((20, 3)), rng.standard_normal((20, 8, 2))
    reference = speaker_eer(static, dynamic, speakers, length, form="reference")
    assert reference == speaker_eer(static, dynamic, speakers)
    assert reference != speaker_eer(static, dynamic, speakers, length)
    with pytest.raises(ValueError, match="form: unknown value 'paper'"):
        speaker_eer(static, dynamic, speakers, form="paper")


def test_grouped_probe_reads_new_speakers_on_unseen_folds():
    rng = np.random.default_rng(0)
    label, fold_of = np.repeat(np.arange(5), 20), np.tile(np.arange(4), 25)
    features = np.eye(5)[label] + 0.1 * rng.standard_normal((100, 5))
    result = grouped_probe(features, label, fold_of)
    assert (result.accuracy_percent, result.num_scored, result.num_left_out) == (100.0, 100, 0)
    assert result.chance_percent == pytest.approx(20.0)
    noise = grouped_probe(rng.standard_normal((100, 5)), label, fold_of)
    assert abs(noise.over_chance_points) < 15.0
    # What marks a fold does not help on the others.
    by_fold = np.eye(4)[fold_of] * (1 + label[:, None])
    shifted = np.roll(by_fold, 1, axis=1)
    assert grouped_probe(shifted, label, fold_of).accuracy_percent < 60.0


def test_grouped_probe_counts_what_it_leaves_out():
    label, fold_of = np.array([0, 1, 0, 1, 2]), np.array([0, 0, 1, 1, 1])
    result = grouped_probe(np.eye(3)[label], label, fold_of)
    assert (result.num_scored, result.num_left_out) == (4, 1)
    with pytest.raises(ValueError, match="2 folds of 4 items"):
        grouped_probe(np.eye(4), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))


def test_speaker_probe_reads_both_factors_of_utterances():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(80), 2)
    speakers, fold_of = group % 8, group // 8 % 5
    static = np.eye(8)[speakers] + 0.1 * rng.standard_normal((160, 8))
    dynamic = rng.standard_normal((160, 5, 2))
    results = speaker_probe_on(static, dynamic, speakers, fold_of, group=group)
    assert results["s"].accuracy_percent == 100.0 and results["s"].num_scored == 80
    assert abs(results["d_mean"].over_chance_points) < 12.0
    with pytest.raises(ValueError, match="fold_of: chunks of utterance 0 disagree"):
        speaker_probe_on(static, dynamic, speakers, np.arange(160), group=group)


def test_content_is_the_course_of_the_utterance():
    """A straight line, cut into chunks, stays that line at any number of steps."""
    group = np.array([4, 9, 4, 9, 9])
    order = np.array([7, 1, 2, 5, 3])
    length = np.array([3, 4, 4, 1, 4])
    dynamic = np.full((5, 4, 2), 1e6)
    for chunk, start in enumerate([4, 0, 0, 8, 4]):
        line = np.arange(start, start + length[chunk])
        dynamic[chunk, : length[chunk]] = np.stack([line, -2.0 * line], axis=-1)
    features = content_features(dynamic, group, order, 5, length).reshape(2, 5, 2)
    for row, last in enumerate([6, 8]):
        line = np.linspace(0, last, 5)
        np.testing.assert_allclose(features[row], np.stack([line, -2 * line], axis=-1))
    assert content_features(dynamic, group, order).shape == (2, 128)
    with pytest.raises(ValueError, match="utterance 4 has 2 chunks at 1 places"):
        content_features(dynamic, group, np.zeros(5, int))
    with pytest.raises(ValueError, match="0 real steps"):
        content_features(dynamic, group, order, length=np.zeros(5, int))


def test_librispeech_sized_set_takes_seconds():
    rng = np.random.default_rng(0)
    speakers = rng.integers(40, size=2620)
    static = rng.standard_normal((2620, 32), np.float32)
    dynamic = rng.standard_normal((2620, 10, 2), np.float32)
    began = time.process_time()
    speaker_eer(static, dynamic, speakers)
    assert time.process_time() - began < 5.0
