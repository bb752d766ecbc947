import dataclasses

import numpy as np
import pytest

from diffsda_jax.data.sources.known_factors import KnownFactors
from diffsda_jax.data.sources.tasks import Task
from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.downstream import known_factors, tasks
from diffsda_jax.factors import Factors

STEPS, BLOCKS = 24, 4
TASKS = (
    Task("season", "target_season", "classes", "static", 4, "mlp", (64,), ("accuracy",)),
    Task("rain", "target_rain", "regression", "both", None, "mlp", (16, 8), ("mae",)),
    Task("late", "target_late", "binary", "both", 2, "lstm", (8, 8), ("auprc", "auroc")),
)


def arrays(split, count):
    """What the pipeline makes of the made-up weather, and answers to a task of each kind."""
    source = KnownFactors(split, count, length=STEPS, noise=0.0)
    rng = np.random.default_rng(0)
    made = [source.load(index, rng) for index in range(count)]
    data = {name: np.stack([element[name] for element in made]) for name in made[0]}
    rain = data["factor_dynamic"][..., 0]
    data["target_rain"] = rain.reshape(count, BLOCKS, -1).mean(2)
    late = rain[:, STEPS // 2 :].max(1) > rain[:, : STEPS // 2].max(1)
    data["target_late"] = late.astype(np.float32)  # as the pipeline has all that is known
    data["target_season"] = data["target_season"].astype(np.float32)
    return data


class Oracle:
    """Makes the clip of the factors it is given, which are the true ones; nothing else is asked."""

    def __init__(self, source):
        """Remembers the world."""
        self._source = source

    def encode(self, x, length=None, mask=None):
        raise NotImplementedError

    def invert(self, x, factors, num_steps=32):
        raise NotImplementedError

    def decode(self, factors, start=None, num_steps=32, seed=0):
        """The true clip."""
        return self._source.render(factors.static, factors.dynamic)


def true_factors(data):
    return Factors(static=data["factor_static"], dynamic=data["factor_dynamic"])


@pytest.fixture(scope="module")
def oracle():
    """An evaluation of the true factors."""
    source = KnownFactors("test", 1, length=STEPS)
    train, test = arrays("train", 300), arrays("test", 150)
    return Context(
        model=Oracle(source),
        kind="series",
        train=train,
        test=test,
        train_factors=true_factors(train),
        test_factors=true_factors(test),
        judge=None,
        settings=EvalSettings(task_steps=800, num_swaps=60),
        readers=train,
        trial=np.arange(len(test["x"])),
        tasks=TASKS,
        render=source.render,
    )


@pytest.fixture(scope="module")
def shuffled(oracle):
    """The same with the factors of other sequences."""
    rng = np.random.default_rng(0)
    train, test = (
        factors[rng.permutation(len(factors))]
        for factors in (oracle.train_factors, oracle.test_factors)
    )
    return dataclasses.replace(oracle, train_factors=train, test_factors=test)


def test_tasks_are_read_from_the_true_factors(oracle):
    metrics, notes = tasks(oracle)
    assert notes == []
    assert metrics["season_accuracy_percent"] > 99.0
    assert metrics["season_accuracy_chance_percent"] < 40.0
    assert metrics["rain_mae"] < 0.3 * metrics["rain_mae_chance"]
    assert metrics["late_auroc_percent"] > 95.0 and metrics["late_auprc_percent"] > 90.0
    positives = oracle.test["target_late"].mean()
    assert metrics["late_auprc_chance_percent"] == pytest.approx(100 * positives)
    scores = {name for name in metrics if "chance" not in name and not name.endswith("_std")}
    assert all(metrics[f"{name}_std"] >= 0 for name in scores) and len(scores) == 4


def test_tasks_are_at_chance_from_the_factors_of_others(shuffled):
    metrics, _ = tasks(shuffled)
    assert metrics["season_accuracy_percent"] < metrics["season_accuracy_chance_percent"] + 10.0
    assert metrics["rain_mae"] > 0.9 * metrics["rain_mae_chance"]
    assert metrics["late_auroc_percent"] == pytest.approx(50.0, abs=12.0)
    assert metrics["late_auprc_percent"] < metrics["late_auprc_chance_percent"] + 15.0


def test_the_settings_reach_the_probes(oracle):
    settings = {"task_steps": 1, "form": "reference"}
    barely = dataclasses.replace(oracle, settings=EvalSettings(**settings), tasks=TASKS[:1])
    assert tasks(barely)[0]["season_accuracy_percent"] < 90.0


def test_tasks_that_the_data_do_not_allow_are_named(oracle):
    assert tasks(dataclasses.replace(oracle, tasks=()))[1] == [
        "tasks skipped: the data set has none"
    ]
    test = {name: values for name, values in oracle.test.items() if name != "target_rain"}
    test["target_late"] = np.zeros_like(test["target_late"])
    metrics, notes = tasks(dataclasses.replace(oracle, test=test, tasks=TASKS[1:]))
    assert metrics == {} and notes[0] == "task rain skipped: the data have no target_rain"
    assert notes[1].startswith("task late skipped: binary probe: the test target holds [0]")


def test_true_factors_correspond_and_swap_without_error(oracle):
    metrics, notes = known_factors(oracle)
    assert notes == []
    assert metrics["static_on_s_percent"] > 95.0 and metrics["dynamic_on_d_percent"] > 95.0
    assert metrics["disentanglement"] > 0.85 and metrics["informativeness"] > 0.9
    assert metrics["true_swap_nmse"] < 1e-10
    assert min(metrics[f"true_{side}_donor_nmse"] for side in ("static", "dynamic")) > 0.2


def test_factors_of_others_tell_nothing(shuffled):
    metrics, _ = known_factors(shuffled)
    assert metrics["informativeness"] < 0.1
    assert metrics["true_swap_nmse"] > metrics["true_swap_nmse_chance"]


def test_what_is_not_known_is_named(oracle):
    test = {name: values for name, values in oracle.test.items() if name != "factor_static"}
    plain = dataclasses.replace(oracle, train=test)
    note = "known_factors skipped: the true factors of the data are not known"
    assert known_factors(plain) == ({}, [note])
    unmade, notes = known_factors(dataclasses.replace(oracle, render=None))
    assert "disentanglement" in unmade and notes == ["true swaps skipped: the data cannot be made"]
