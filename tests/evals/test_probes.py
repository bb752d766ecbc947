import numpy as np
import pytest

from diffsda_jax.evals.probes import chance_level, linear_probe, probe_factors, regression_probe
from diffsda_jax.factors import Factors


def make_data(num_clips, seed):
    """s holds the static label, d holds the dynamic label and the place; nothing leaks."""
    rng = np.random.default_rng(seed)
    data = {
        "static_label": rng.integers(5, size=num_clips),
        "dynamic_label": rng.integers(2, size=num_clips),
    }
    step = np.arange(6)[None, :, None]
    sign = 2 * data["dynamic_label"][:, None, None] - 1
    data["position"] = (sign * step + rng.standard_normal((num_clips, 1, 2))).astype(np.float32)
    static = np.eye(5)[data["static_label"]] + 0.1 * rng.standard_normal((num_clips, 5))
    return data, Factors(static=static.astype(np.float32), dynamic=data["position"])


@pytest.fixture(scope="module")
def oracle():
    return make_data(400, 0), make_data(300, 1)


def test_oracle_factors_hold_their_own_label_only(oracle):
    (train, train_factors), (test, test_factors) = oracle
    metrics, notes = probe_factors(train_factors, test_factors, train, test)
    assert notes == []
    assert metrics["s_to_static_percent"] == 100.0
    assert metrics["d_flat_to_dynamic_percent"] > 95.0
    for leak in ("s_to_dynamic", "d_mean_to_static", "d_flat_to_static"):
        assert abs(metrics[f"{leak}_over_chance_points"]) < 10.0, leak
    assert metrics["d_to_position_r2"] == pytest.approx(1.0, abs=1e-3)
    assert abs(metrics["s_to_position_r2"]) < 0.1


def test_shuffled_labels_are_chance(oracle):
    (train, train_factors), (test, test_factors) = oracle
    rng = np.random.default_rng(0)
    shuffled = {name: rng.permutation(values) for name, values in test.items()}
    metrics, _ = probe_factors(train_factors, test_factors, train, shuffled)
    for name in ("s_to_static", "d_flat_to_dynamic"):
        assert abs(metrics[f"{name}_over_chance_points"]) < 12.0, name
    assert metrics["d_to_position_r2"] < 0.1


def test_without_labels_everything_is_skipped_with_a_reason(oracle):
    (train, train_factors), (test, test_factors) = oracle
    metrics, notes = probe_factors(train_factors, test_factors, {}, test)
    assert metrics == {}
    assert notes == [
        "probes to static_label skipped: the data have no static_label",
        "probes to dynamic_label skipped: the data have no dynamic_label",
    ]
    single = {**train, "static_label": np.zeros(400, int)}
    _, notes = probe_factors(train_factors, test_factors, single, test)
    assert notes == [
        "probes to static_label skipped: all training clips have the same static_label"
    ]


def test_padding_does_not_count(oracle):
    (train, train_factors), (test, test_factors) = oracle
    train, test = (
        {**data, "length": np.full(len(data["position"]), 4, np.int32)} for data in (train, test)
    )
    polluted = []
    for seed, factors in enumerate((train_factors, test_factors)):
        dynamic = factors.dynamic.copy()
        noise = np.random.default_rng(seed).standard_normal(dynamic[:, 4:].shape)
        dynamic[:, 4:] = 1e3 * noise
        polluted.append(Factors(static=factors.static, dynamic=dynamic))
    assert probe_factors(*polluted, train, test) == probe_factors(
        train_factors, test_factors, train, test
    )


def test_chance_is_what_a_blind_reader_gets():
    balanced = np.repeat(np.arange(4), 5)
    skewed = np.array([0] * 8 + [1, 2])
    assert chance_level(balanced, np.array([0] * 9 + [1])) == pytest.approx(25.0)
    assert chance_level(skewed, np.array([0] * 7 + [1] * 3)) == pytest.approx(70.0)
    # A reader who bets on a class that is rare in the test set is no better than guessing.
    assert chance_level(skewed, np.array([1] * 10)) == pytest.approx(100 / 3)


def test_regression_of_the_mean_is_zero():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((500, 2))
    assert regression_probe(np.ones((500, 3)), target, np.ones((500, 3)), target) == (
        pytest.approx(0.0, abs=1e-6)
    )


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="all 4 training labels are 7"):
        linear_probe(np.eye(4), np.full(4, 7), np.eye(4), np.full(4, 7))
