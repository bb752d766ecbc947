import numpy as np
import pytest
from series_files import elements
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources.known_factors import (
    DYNAMIC_FACTORS,
    FRONTS,
    PROGRAMMES,
    STATIC_FACTORS,
    KnownFactors,
    sample_weather,
)
from diffsda_jax.data.sources.tasks import Task
from diffsda_jax.data.transforms import fit_normalizer


@pytest.fixture(scope="module")
def parts():
    """Stacked elements of 1,000 training and 400 test sequences."""
    stacked = []
    for split, count in (("train", 1000), ("test", 400)):
        made = elements(KnownFactors(split, count))
        stacked.append({key: np.stack([e[key] for e in made]) for key in made[0]})
    return stacked


def test_elements_are_what_they_say():
    source = KnownFactors("train", 20)
    for element in elements(source):
        assert element["x"].shape == (72, 8) and element["x"].dtype == np.float32
        assert element["mask"].shape == (72, 8) and element["mask"].all()
        assert element["factor_static"].shape == (len(STATIC_FACTORS),)
        assert element["factor_dynamic"].shape == (72, len(DYNAMIC_FACTORS))
        station, season = divmod(element["static_id"], 4)
        assert (station, season) == (element["static_label"], element["target_season"])
        np.testing.assert_array_equal(
            element["factor_static"], source.static_factors(station, season)
        )
        peaks = element["factor_dynamic"][:, : len(FRONTS)].argmax(0)
        assert tuple(np.argsort(peaks)) == PROGRAMMES[element["dynamic_label"]]
        clean = source.render(element["factor_static"], element["factor_dynamic"])
        assert 0.03 < (element["x"] - clean).std() < 0.07
    assert source.spec.dynamic_names[0] == "rain, heat, wind" and len(source.lengths()) == 20
    assert set(source.factor_names) < set(element)


def test_everything_follows_from_seed_split_and_index():
    first, again = KnownFactors("train", 20), KnownFactors("train", 30)
    for key, value in first.load(7, np.random.default_rng(0)).items():
        np.testing.assert_array_equal(value, again.load(7, np.random.default_rng(1))[key])
    test, other = KnownFactors("test", 20), KnownFactors("train", 20, seed=1)
    x = [s.load(7, np.random.default_rng(0))["x"] for s in (first, test, other)]
    assert not np.array_equal(x[0], x[1]) and not np.array_equal(x[0], x[2])
    np.testing.assert_array_equal(first.static_factors(3, 1), test.static_factors(3, 1))
    assert not np.array_equal(first.static_factors(3, 1), other.static_factors(3, 1))
    names = {s.fingerprint() for s in (first, again, test, other, KnownFactors("train", noise=0.1))}
    assert len(names) == 5
    with pytest.raises(IndexError, match="sequence 20 of 20"):
        first.load(20, np.random.default_rng(0))


def test_true_swaps_can_be_rendered():
    source = KnownFactors("train", 10, noise=0.0)
    a, b = elements(source)[:2]
    swapped = source.render(a["factor_static"], b["factor_dynamic"])
    batch = source.render(
        np.stack([a["factor_static"], b["factor_static"]]),
        np.stack([b["factor_dynamic"], b["factor_dynamic"]]),
    )
    np.testing.assert_allclose(batch[0], swapped, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch[1], b["x"], rtol=1e-5, atol=1e-6)
    assert np.abs(swapped - a["x"]).mean() > 0.2 and np.abs(swapped - b["x"]).mean() > 0.2


def accuracy(parts, features, key):
    train, test = parts
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return judge.fit(features(train["x"]), train[key]).score(features(test["x"]), test[key])


def slot_means(x):
    """Course of a sequence: means of slots of six steps, without the mean of the sequence."""
    slots = x.reshape(len(x), -1, 6, x.shape[-1]).mean(2) - x.mean(1, keepdims=True)
    return slots.reshape(len(x), -1)


def step_mean(x):
    return x.mean(1)


def test_simple_judges_read_every_class(parts):
    assert accuracy(parts, step_mean, "static_label") >= 0.99
    assert accuracy(parts, step_mean, "target_season") >= 0.99
    assert accuracy(parts, slot_means, "dynamic_label") >= 0.99


def test_classes_of_static_and_dynamic_are_independent(parts):
    table = np.zeros((12, 6))
    np.add.at(table, (parts[0]["static_label"], parts[0]["dynamic_label"]), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert chi_square < 88  # 99.5 % quantile for 55 degrees of freedom


def shares_explained(parts, features):
    """R^2 of the dynamic factors of steps 8 to 63: by factor, and for each that varies enough."""
    train, test = parts
    judge = make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge(10.0))
    truth = [part["factor_dynamic"][:, 8:64] for part in parts]
    judge.fit(features(train), truth[0].reshape(len(truth[0]), -1))
    error = judge.predict(features(test)).reshape(truth[1].shape) - truth[1]
    squares, variance = (error**2).mean(0), truth[1].var(0)
    varies = variance > 0.02
    return 1 - squares.mean(0) / variance.mean(0), 1 - squares[varies] / variance[varies]


def test_the_mean_of_a_sequence_tells_nothing_of_the_weather(parts):
    assert accuracy(parts, step_mean, "dynamic_label") < 0.25  # chance is 1/6
    by_factor, each = shares_explained(parts, lambda part: step_mean(part["x"]))
    assert by_factor.max() < 0.05 and each.max() < 0.2


def test_a_step_and_the_static_factors_tell_the_weather_of_the_step(parts):
    train, test = (
        (
            np.concatenate(
                [p["x"], np.repeat(p["factor_static"][:, None], p["x"].shape[1], axis=1)], -1
            )
            .reshape(-1, 14)
            .astype(float),
            p["factor_dynamic"].reshape(-1, 5).astype(float),
        )
        for p in parts
    )
    judge = make_pipeline(StandardScaler(), PolynomialFeatures(3), Ridge(0.1))
    judge.fit(train[0][::25], train[1][::25])
    error = judge.predict(test[0][::25]) - test[1][::25]
    assert (1 - (error**2).mean(0) / test[1].var(0) > 0.97).all()


def test_neither_factor_rules_the_channels(parts):
    x, place = parts[0]["x"], parts[0]["static_id"]
    means = np.stack([x[place == k].mean((0, 1)) for k in range(48)])
    share = means.var(0).mean() / x.var((0, 1)).mean()
    assert 0.3 < share < 0.8


@pytest.mark.parametrize("length", [24, 48, 96])
def test_weather_of_any_length(length):
    for programme in range(6):
        weather = sample_weather(programme, np.random.default_rng(programme), length)
        assert weather.shape == (length, 5) and (weather[:, :3].max(0) > 0.5).all()
        np.testing.assert_allclose((weather[:, 3:] ** 2).sum(1), 1.0, rtol=1e-5)
        assert (np.count_nonzero(weather[:, :3], axis=1) <= 1).all()  # one front at a time


def test_options_and_pipeline():
    options = {"num_features": 6, "num_stations": 3, "length": 30}
    source = KnownFactors("test", 5, **options)
    arrays = load_arrays(source, length=30, normalizer=fit_normalizer(source))
    assert arrays["x"].shape == (5, 30, 6) and len(source.spec.static_names) == 3
    for bad in ({"num_features": 4}, {"num_stations": 1}, {"length": 23}, {"noise": -1.0}):
        ((name, value),) = bad.items()
        with pytest.raises(ValueError, match=f"{name}={value} of source 'known_factors': use"):
            KnownFactors("train", **bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "class"}, "kind 'class' of task 'season'"),
        ({"factors": "dynamic"}, "factors 'dynamic'"),
        ({"probe": "svm"}, "probe 'svm'"),
        ({"num_classes": None}, "num_classes=None"),
        ({"kind": "regression"}, "num_classes=4"),
        ({"metrics": ("auroc",)}, "metric 'auroc' of task 'season' of kind 'classes'"),
    ],
)
def test_tasks_reject_what_does_not_fit(change, message):
    facts = {f: getattr(KnownFactors.tasks[0], f) for f in KnownFactors.tasks[0].__annotations__}
    with pytest.raises(ValueError, match=message):
        Task(**{**facts, **change})
