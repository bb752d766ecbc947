import time

import numpy as np
import pytest

from diffsda_jax.evals.verification import cosine_similarity_pairs, equal_error_rate, speaker_eer


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


def test_librispeech_sized_set_takes_seconds():
    rng = np.random.default_rng(0)
    speakers = rng.integers(40, size=2620)
    static = rng.standard_normal((2620, 32), np.float32)
    dynamic = rng.standard_normal((2620, 10, 2), np.float32)
    began = time.process_time()
    speaker_eer(static, dynamic, speakers)
    assert time.process_time() - began < 5.0
