import numpy as np
import pytest

from diffsda_jax.evals.sample_measures import (
    label_distance,
    label_scores,
    largest_jump,
    memorising_ratio,
    nearest_distance,
    spherical_path,
    straight_path,
)


def test_sure_and_varied_labels_score_best():
    perfect = label_scores(np.eye(5)[np.arange(50) % 5])
    assert perfect["inception_score"] == pytest.approx(5.0)
    assert perfect["entropy_y_given_x_nats"] == pytest.approx(0.0)
    assert perfect["entropy_y_nats"] == pytest.approx(np.log(5))


def test_one_class_only_and_no_idea_are_at_chance():
    collapsed = label_scores(np.eye(5)[np.zeros(50, int)])
    assert collapsed["inception_score"] == pytest.approx(1.0)
    assert collapsed["entropy_y_nats"] == pytest.approx(0.0)
    unsure = label_scores(np.full((50, 5), 0.2))
    assert unsure["inception_score"] == pytest.approx(1.0)
    assert unsure["entropy_y_given_x_nats"] == pytest.approx(np.log(5))


def test_inception_score_is_the_exponent_of_the_mean_divergence():
    p = np.random.default_rng(0).dirichlet(np.ones(4), 30)
    divergence = (p * np.log(p / p.mean(0))).sum(1).mean()
    assert label_scores(p)["inception_score"] == pytest.approx(np.exp(divergence))


def test_label_distance_counts_shares_and_their_dependence():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 4000)
    one_hot = np.eye(2)[label]
    same = {"static": one_hot, "dynamic": one_hot}
    assert label_distance(same, same) == pytest.approx(0.0)
    # Both labels are right alone, but no longer go together.
    apart = {"static": one_hot, "dynamic": np.eye(2)[rng.integers(0, 2, 4000)]}
    assert label_distance(apart, same) == pytest.approx(0.5, abs=0.05)
    assert label_distance({"static": apart["dynamic"]}, {"static": one_hot}) < 0.05
    assert label_distance({"static": np.eye(2)[[0, 0]]}, {"static": np.eye(2)[[1]]}) == 1.0


def test_nearest_distances_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    items, others = rng.standard_normal((300, 3)), rng.standard_normal((40, 3))
    plain = [np.linalg.norm(others - item, axis=1).min() for item in items]
    np.testing.assert_allclose(nearest_distance(items, others), plain, rtol=1e-5)


def test_copies_have_ratio_0_and_fresh_items_ratio_1():
    rng = np.random.default_rng(0)
    train, test, fresh = (rng.standard_normal((n, 6)) + 100 for n in (500, 400, 400))
    assert memorising_ratio(fresh, train, test) == pytest.approx(1.0, abs=0.05)
    assert memorising_ratio(train[:200], train, test) == 0.0
    near = train[:200] + 0.05 * rng.standard_normal((200, 6))
    assert memorising_ratio(near, train, test) < 0.2
    noise = 100 + 5 * rng.standard_normal((200, 6))
    assert memorising_ratio(noise, train, test) > 2.0


def test_even_paths_have_the_smallest_jump_and_switches_the_largest():
    rng = np.random.default_rng(0)
    begin, end = rng.standard_normal((2, 3, 5))
    even = straight_path(begin, end, 6).transpose(1, 0, 2)
    assert largest_jump(even) == pytest.approx(1 / 5, rel=1e-5)
    switched = np.where(np.arange(6)[None, :, None] < 2, begin[:, None], end[:, None])
    assert largest_jump(switched) == pytest.approx(1.0)
    assert np.isnan(largest_jump(np.ones((2, 4, 3))))


def test_spherical_paths_keep_angle_and_radius_even():
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(4)
    begin, end = rng.standard_normal((2, 3, 4))
    path = spherical_path(begin, end, centre, 5)
    np.testing.assert_allclose(path[0], begin, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path[-1], end, rtol=1e-4, atol=1e-5)
    radius = np.linalg.norm(path - centre, axis=-1)
    np.testing.assert_allclose(np.diff(radius, 2, axis=0), 0, atol=1e-4)
    unit = (path - centre) / radius[..., None]
    angle = np.arccos(np.clip((unit[1:] * unit[:-1]).sum(-1), -1, 1))
    np.testing.assert_allclose(angle, np.broadcast_to(angle[:1], angle.shape), rtol=1e-2)
    opposite = spherical_path(begin, 2 * centre - begin, centre, 3)
    np.testing.assert_allclose(opposite[1], np.broadcast_to(centre, (3, 4)), atol=1e-4)
