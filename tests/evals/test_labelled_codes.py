import dataclasses

import levels
import numpy as np
import pytest
from oracles import CANVAS, DigitOracle, digit_arrays

from diffsda_jax.evals import consistency
from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.labelled_codes import disentanglement
from diffsda_jax.evals.labels import collect_labels, read_labels
from diffsda_jax.factors import Factors


@pytest.fixture(scope="module")
def oracle():
    return disentanglement(levels.make_context(levels.Oracle()))


def test_true_codes_are_perfect(oracle):
    metrics, notes = oracle
    assert notes == []
    for name in ("mig", "sap", "modularity", "disentanglement", "completeness", "informativeness"):
        for items in ("clips", "steps"):
            value, chance = (metrics[f"{items}_{name}{suffix}"] for suffix in ("", "_chance"))
            # A linear reader sees the middle one of three levels badly.
            assert value > (0.75 if name == "informativeness" else 0.85), (items, name)
            assert name in ("modularity", "disentanglement", "completeness") or chance < 0.1
    assert metrics["clips_explicitness_auc"] == 1.0
    assert abs(metrics["clips_explicitness_auc_chance"] - 0.5) < 0.1
    assert metrics["clips_static_on_s_percent"] > 95 < metrics["clips_dynamic_on_d_percent"]


def test_true_codes_are_steady(oracle):
    metrics, _ = oracle
    # One of two static codes is fixed by each static label, and the other is free.
    for name in ("static", "height"):
        assert metrics[f"s_same_{name}_distance_ratio"] == pytest.approx(0.5, abs=0.05)
        assert metrics[f"d_same_{name}_distance_ratio"] > 1.5  # other courses, as asked
    assert metrics["d_same_dynamic_distance_ratio"] < 0.01
    assert metrics["s_of_halves_distance_ratio"] < 0.01


def test_noise_is_at_chance():
    context = levels.make_context(levels.Clueless(levels.arrays(300, 1)["x"]))
    metrics, _ = disentanglement(context)
    for name in ("clips_mig", "clips_sap", "clips_informativeness", "steps_mig"):
        assert metrics[name] < 0.1, name
    assert abs(metrics["clips_explicitness_auc"] - 0.5) < 0.1
    for name, value in metrics.items():
        if "ratio" in name:
            assert value == pytest.approx(1.0, abs=0.1), name


def test_turned_codes_are_less_modular_and_as_steady(oracle):
    metrics, _ = disentanglement(levels.make_context(levels.Rotated()))
    assert metrics["clips_mig"] < oracle[0]["clips_mig"] - 0.2
    assert metrics["clips_sap"] < oracle[0]["clips_sap"] - 0.2
    assert metrics["clips_modularity"] < oracle[0]["clips_modularity"] - 0.05
    assert metrics["clips_static_on_s_percent"] > 95
    assert metrics["s_of_halves_distance_ratio"] < 0.01


def test_labels_that_are_missing_are_named():
    context = levels.make_context(levels.Oracle())
    bare = [{"x": data["x"]} for data in (context.train, context.test)]
    plain = dataclasses.replace(context, train=bare[0], test=bare[1], readers=bare[0])
    metrics, notes = disentanglement(plain)
    assert set(metrics) == {"s_of_halves_distance_ratio", "s_of_halves_distance_ratio_chance"}
    assert notes == ["disentanglement of clips skipped: the clips have no labels that vary"]
    same = dict(context.test, dynamic_label=np.zeros_like(context.test["dynamic_label"]))
    labels, notes = collect_labels(dataclasses.replace(context, test=same))
    assert [label.name for label in labels] == ["static", "height"]
    assert notes == ["label dynamic left out: all clips of a split have the same dynamic_label"]


def test_ids_count_where_they_add_something():
    context = levels.make_context(levels.Oracle())
    rng = np.random.default_rng(0)
    for sides, expected in (
        ([data["static_label"] * 2 for data in (context.train, context.test)], False),
        ([rng.integers(5, size=len(data["x"])) for data in (context.train, context.test)], True),
        ([np.arange(len(data["x"])) for data in (context.train, context.test)], False),
    ):
        train, test = (
            dict(data, static_id=ids)
            for data, ids in zip((context.train, context.test), sides, strict=True)
        )
        replaced = dataclasses.replace(context, train=train, test=test, readers=train)
        assert ("id" in [label.name for label in collect_labels(replaced)[0]]) is expected


def test_places_of_digits_are_tracked():
    train, test = digit_arrays("train", 300), digit_arrays("test", 100)
    model = DigitOracle(train, test)
    context = Context(
        model=model,
        kind="video",
        train=train,
        test=test,
        train_factors=model.encode(train["x"]),
        test_factors=model.encode(test["x"]),
        judge=None,
        settings=EvalSettings(),
        readers=train,
        trial=np.arange(100),
    )
    labels = {label.name: label for label in collect_labels(context)[0]}
    assert list(labels) == ["static", "dynamic", "row", "column"]
    assert [label.whole for label in labels.values()] == [True, False, True, True]
    places = [labels["row"], labels["column"]]
    seen = read_labels(context, places, {}, test["x"])
    for label in places:
        assert np.mean(seen[label.name] == label.test) > 0.7
        turned = read_labels(context, places, {}, np.full_like(test["x"], -1.0))
        assert (turned[label.name] == 0).all()  # nothing to see
    assert test["x"].shape[2] == CANVAS


def test_distance_ratios_by_hand():
    features = np.array([[0.0], [0.0], [1.0], [1.0]])
    label = np.array([0, 0, 1, 1])
    assert consistency.same_label_ratio(features, label) == 0.0
    # The two of a label differ always: 1 over the mean of four pairs of six.
    assert consistency.same_label_ratio(features, label[[0, 2, 1, 3]]) == pytest.approx(1.5)
    assert consistency.same_label_ratio(features, label, label) is None
    assert consistency.same_label_ratio(np.ones((4, 1)), label) is None
    assert consistency.windows_ratio(features, features) == 0.0
    assert consistency.windows_ratio(features, features[::-1]) == pytest.approx(3.0)
    assert consistency.windows_ratio(features[:1], features[:1]) is None


def test_halves_are_of_real_steps():
    x = np.arange(1, 13, dtype=np.float32).reshape(2, 6, 1)
    mask = x > 2
    halves, index = consistency.half_clips(x, np.array([6, 4]), mask)
    assert index.tolist() == [0, 1]
    (first, length, seen), (second, again, _) = halves
    assert length.tolist() == again.tolist() == [3, 2]
    np.testing.assert_array_equal(first[..., 0], [[1, 2, 3, 0, 0, 0], [7, 8, 0, 0, 0, 0]])
    np.testing.assert_array_equal(second[..., 0], [[4, 5, 6, 0, 0, 0], [9, 10, 0, 0, 0, 0]])
    assert seen[0, :, 0].tolist() == [False, False, True, False, False, False]
    assert consistency.half_clips(x, np.array([6, 3]))[1].tolist() == [0]


def test_cycle_errors_by_hand():
    rng = np.random.default_rng(0)
    static, dynamic = rng.normal(size=(500, 3)), rng.normal(size=(500, 4, 2))
    wanted = Factors(static=static, dynamic=dynamic)
    padded = wanted.replace(dynamic=np.where(np.arange(4)[:, None] < 3, dynamic, 1e6))
    errors = consistency.cycle_errors(padded, wanted, np.full(500, 3))
    assert errors["static_nmse"] == errors["dynamic_nmse"] == 0.0
    others = Factors(static=static[::-1], dynamic=dynamic[::-1])
    errors = consistency.cycle_errors(others, wanted)
    for name in ("static", "dynamic"):
        assert errors[f"{name}_nmse"] == pytest.approx(2.0, abs=0.2)
    steps = Factors(static=np.repeat(static[:, None], 4, 1), dynamic=dynamic)
    zero = steps.replace(static=np.zeros_like(steps.static))
    assert consistency.cycle_errors(zero, steps)["static_nmse"] == pytest.approx(1.0, abs=0.1)


def test_distances_of_many_clips_are_of_all_classes():
    """Of sorted clips the first 1,000 are of one class."""
    label = np.repeat([0, 1], 1200)
    features = label[:, None] * np.ones((1, 2))
    assert consistency.same_label_ratio(features, label) == 0.0
    first = consistency.same_label_ratio(features, label, seed=1)
    assert first == consistency.same_label_ratio(features, label, seed=1)
    # Each window of a clip is of the other class, as is that of every second other clip.
    assert consistency.windows_ratio(features, features[::-1]) == pytest.approx(2.0, rel=0.05)
