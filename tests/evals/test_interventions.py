import dataclasses

import levels
import numpy as np
import pytest

from diffsda_jax.evals import interventions as module
from diffsda_jax.evals import labels as reading
from diffsda_jax.evals.context import Domain
from diffsda_jax.evals.evaluate import evaluate
from diffsda_jax.evals.interventions import (
    assign_codes,
    codes_tell,
    exchange_codes,
    interventions,
    swap_hits,
)
from diffsda_jax.evals.judges import JudgeNet
from diffsda_jax.evals.labels import collect_labels
from diffsda_jax.factors import Factors


@pytest.fixture(autouse=True)
def exact_readers(request, monkeypatch):
    """Judges that need no training; those that are trained have their own tests."""

    def train(x, **options):
        assert "static_label" in options and set(np.unique(options["static_label"])) == {0, 1}
        return levels.HeightJudge(net=JudgeNet(2, 0, 4), params={})

    if "slow" in request.keywords:
        return
    monkeypatch.setattr(reading, "train_judge", train)


SCORES = ("swap_blocks", "swap_codes", "sample_blocks", "sample_codes")


def test_true_factors_do_what_they_should():
    metrics, notes = interventions(levels.make_context(levels.Oracle()))
    assert notes == []
    for name in SCORES:
        assert metrics[f"{name}_score_percent"] > 97.0, name
        assert metrics[f"{name}_score_chance_percent"] < 75.0
    for name in ("static", "height", "dynamic"):
        assert metrics[f"{name}_codes_count"] == 1.0
        assert metrics[f"swap_{name}_codes_{name}_taken_percent"] == 100.0
        assert metrics[f"judged_{name}_accuracy_percent"] == 100.0
    assert metrics["swap_static_codes_height_kept_percent"] == 100.0
    assert metrics["swap_s_static_taken_percent"] == metrics["swap_d_static_kept_percent"] == 100.0
    assert metrics["swap_s_static_taken_chance_percent"] == pytest.approx(100 / 3)
    for name in ("cycle_static", "cycle_dynamic", "swap_cycle_static", "swap_cycle_dynamic"):
        assert metrics[f"{name}_nmse"] < 1e-3 and metrics[f"{name}_nmse_chance"] == 1.0


def test_a_model_that_knows_nothing_is_at_chance():
    context = levels.make_context(levels.Clueless(levels.arrays(300, 1)["x"]))
    metrics, _ = interventions(context)
    for name in ("swap_blocks", "sample_blocks"):
        chance = metrics[f"{name}_score_chance_percent"]
        assert metrics[f"{name}_score_percent"] == pytest.approx(chance, abs=8.0), name
    assert metrics["cycle_static_nmse"] > 1.5


def test_a_model_that_changes_nothing_keeps_all_and_takes_none():
    context = levels.make_context(levels.Stuck(None), num_train=300)
    settings = dataclasses.replace(context.settings, start="target")
    metrics, _ = interventions(dataclasses.replace(context, settings=settings))
    for name in ("static", "height", "dynamic"):
        assert metrics[f"swap_{name}_codes_{name}_taken_percent"] == 0.0
    # The noise of a block is that of the clip that gives s.
    assert metrics["swap_d_static_kept_percent"] == metrics["swap_s_static_taken_percent"] == 100.0
    assert metrics["swap_d_dynamic_taken_percent"] == metrics["swap_s_dynamic_kept_percent"] == 0.0
    settings = dataclasses.replace(context.settings, start="donor")
    metrics, _ = interventions(dataclasses.replace(context, settings=settings))
    assert metrics["swap_d_static_kept_percent"] == metrics["swap_s_static_taken_percent"] == 0.0
    assert metrics["swap_d_dynamic_taken_percent"] == metrics["swap_s_dynamic_kept_percent"] == 100


def test_turned_codes_swap_as_a_block_but_not_alone():
    metrics, _ = interventions(levels.make_context(levels.Rotated()))
    assert metrics["swap_blocks_score_percent"] == 100.0
    assert metrics["swap_codes_score_percent"] < 90.0


class Prior:
    """Draws factors of clips of the world; knows one length."""

    def sample(self, count, length=None, *, seed=0, lengths=None):
        if length != levels.NUM_STEPS:
            raise ValueError(f"length={length}")
        return levels.Oracle().encode(levels.arrays(count, seed + 9)["x"])

    def sample_dynamic(self, static, length=None, *, seed=0, lengths=None):
        return self.sample(len(static), length, seed=seed).replace(static=static)

    def sample_static(self, dynamic, *, seed=0, lengths=None):
        return self.sample(len(dynamic), dynamic.shape[1], seed=seed).replace(dynamic=dynamic)


def test_samples_come_from_the_prior():
    context = levels.make_context(levels.Oracle(), prior=Prior())
    metrics, notes = interventions(context)
    assert notes == [] and metrics["sample_blocks_score_percent"] > 97.0
    # Static classes are 3: two of three samples differ, as those of two clips do.
    assert metrics["sample_s_static_changed_percent"] == pytest.approx(200 / 3, abs=8.0)
    assert metrics["sample_s_static_changed_expected_percent"] == pytest.approx(200 / 3, abs=2.0)
    assert metrics["sample_s_dynamic_kept_percent"] == 100.0
    unable = Prior()
    unable.sample = lambda count, *_, **__: Prior().sample(count, 3)
    metrics, notes = interventions(dataclasses.replace(context, prior=unable))
    assert notes == ["sample interventions skipped: length=3"]
    assert "swap_blocks_score_percent" in metrics and "sample_blocks_score_percent" not in metrics


PADDING = 50.0


def padded(data, seed):
    """Clips of 4 steps or more whose padding is far out, with a gap in all that fall."""
    length = np.random.default_rng(seed).integers(4, levels.NUM_STEPS + 1, len(data["x"]))
    real = np.arange(levels.NUM_STEPS) < length[:, None]
    mask = np.ones(data["x"].shape, bool)
    mask[data["dynamic_label"] == 1, 1] = False
    x = np.where(real[..., None], data["x"], np.float32(PADDING))
    return data | {"x": x, "length": length.astype(np.int32), "mask": mask}


class StrictJudge(levels.ExactJudge):
    """Sees no padding, and only gaps that the course has."""

    gaps_follow_course = False

    def predict(self, x, length=None, mask=None):
        real = np.arange(x.shape[1]) < length[:, None]
        assert (x[real] < PADDING).all()
        last = x[np.arange(len(x)), length - 1, 2]
        falls = (last < x[:, 0, 2]).astype(int)
        if self.gaps_follow_course:
            np.testing.assert_array_equal(mask[:, 1, 0], falls == 0)
        return super().predict(x) | {"dynamic": falls}


class PaddingPrior(Prior):
    """Samples, and is told of, the lengths of the clips."""

    def sample(self, count, length=None, *, seed=0, lengths=None):
        data = levels.arrays(count, seed + 9)
        real = np.arange(length) < lengths[:, None]
        return levels.Oracle().encode(np.where(real[..., None], data["x"], PADDING), lengths)

    def sample_dynamic(self, static, length=None, *, seed=0, lengths=None):
        return self.sample(len(static), length, lengths=lengths).replace(static=static)

    def sample_static(self, dynamic, *, seed=0, lengths=None):
        real = np.arange(dynamic.shape[1]) < lengths[:, None]
        assert (dynamic[real] < PADDING).all() and (dynamic[~real] == PADDING).all()
        return self.sample(len(dynamic), 8, lengths=lengths).replace(dynamic=dynamic)


def padded_context(**changes):
    context = levels.make_context(levels.Oracle(), num_train=300)
    train, test = padded(context.train, 2), padded(context.test, 3)
    encode = context.model.encode
    return dataclasses.replace(
        context,
        train=train,
        test=test,
        train_factors=encode(train["x"], train["length"]),
        test_factors=encode(test["x"], test["length"]),
        judge=StrictJudge(net=JudgeNet(3, 2, 4), params={}),
        readers=train,
        **changes,
    )


@pytest.mark.parametrize("prior", [None, PaddingPrior()], ids=("training codes", "prior"))
def test_padding_is_never_read(prior):
    metrics, notes = interventions(padded_context(prior=prior))
    assert notes == []
    assert metrics["sample_d_static_kept_percent"] == 100.0
    assert metrics["sample_d_dynamic_changed_percent"] == pytest.approx(50.0, abs=12.0)


def test_gaps_are_those_of_the_clip_that_gives_the_dynamics(monkeypatch):
    context = padded_context()
    monkeypatch.setattr(StrictJudge, "gaps_follow_course", True)
    labels = [label for label in collect_labels(context)[0] if label.name != "height"]
    base, donor = np.arange(150), np.arange(150, 300)
    trial = module._Trial(context, labels, {}, base, donor)
    module._swap_blocks(trial)
    assert trial.metrics["swap_d_dynamic_taken_percent"] == 100.0


def test_a_prior_that_cannot_be_used_is_named():
    context = levels.make_context(levels.Oracle(), 300, why_no_prior="it is of another model")
    wanted = "sample interventions draw codes of training clips: it is of another model"
    assert interventions(context)[1] == [wanted]


def test_what_is_missing_is_named():
    context = levels.make_context(levels.Oracle(), num_train=300)
    one = dataclasses.replace(context, trial=np.arange(1))
    assert interventions(one)[1] == [
        "interventions skipped: there is 1 test clip; swaps need 2 or more"
    ]
    bare = [{"x": data["x"]} for data in (context.train, context.test)]
    plain = dataclasses.replace(context, train=bare[0], test=bare[1], tasks=())
    assert interventions(plain)[1] == ["interventions skipped: the clips have no labels that vary"]
    train, test = (
        {name: data[name] for name in ("x", "static_label")}
        for data in (context.train, context.test)
    )
    metrics, notes = interventions(dataclasses.replace(context, train=train, test=test, tasks=()))
    assert notes == ["multi-factor interventions skipped: 1 label; they need 2 or more"]
    assert metrics["swap_s_static_taken_percent"] == 100.0
    assert not any("codes" in name for name in metrics)


def test_codes_go_to_the_label_they_tell_most_about():
    context = levels.make_context(levels.Oracle())
    told, chance = codes_tell(context, collect_labels(context)[0])
    np.testing.assert_array_equal(assign_codes(told, chance), [0, 1, 2])
    assert np.diag(told).min() > 0.9 and chance.max() < 0.1
    noise = levels.make_context(levels.Clueless(None))
    told, chance = codes_tell(noise, collect_labels(noise)[0])
    assert told.max() < 0.1
    np.testing.assert_array_equal(
        assign_codes(np.array([[0.2, 0.5], [0.2, 0.05], [0.1, 0.1]]), np.full(2, 0.1)), [1, 0, -1]
    )


def test_codes_of_either_factor_are_exchanged():
    base = Factors(static=np.zeros((2, 2)), dynamic=np.zeros((2, 3, 2)))
    donor = Factors(static=np.ones((2, 2)), dynamic=np.ones((2, 3, 2)))
    mixed = exchange_codes(base, donor, np.array([False, True, True, False]))
    np.testing.assert_array_equal(mixed.static, [[0, 1]] * 2)
    np.testing.assert_array_equal(mixed.dynamic, [[[1, 0]] * 3] * 2)


def test_only_pairs_that_differ_count():
    judged = {"a": np.array([1, 1, 0, 0]), "b": np.array([0, 1, 0, 1])}
    own = {"a": np.array([0, 0, 0, 0]), "b": np.array([0, 0, 1, 1])}
    given = {"a": np.array([1, 1, 1, 0]), "b": np.array([1, 1, 0, 0])}
    hits = swap_hits(judged, own, given, {"a"})
    assert hits == {"a": pytest.approx(200 / 3), "b": 50.0}
    assert "b" not in swap_hits(judged, own, dict(given, b=own["b"]), {"a"})


SETTINGS = {"kind": "series", "num_swaps": 60, "parts": ("disentanglement", "interventions")}


def test_an_evaluation_has_both_parts(tmp_path):
    result = evaluate(
        levels.Oracle(),
        levels.arrays(200, 0),
        levels.arrays(150, 1),
        judge=levels.ExactJudge(net=JudgeNet(3, 2, 4), params={}),
        domain=Domain(tasks=levels.TASKS),
        pictures=False,
        output_dir=tmp_path,
        **SETTINGS,
    )
    assert result.notes == [] and (tmp_path / "metrics.json").exists()
    assert result.metrics["disentanglement/clips_mig"] > 0.8
    assert result.metrics["interventions/swap_codes_score_percent"] == 100.0
    assert np.isfinite(list(result.metrics.values())).all()


@pytest.mark.slow
def test_trained_judges_read_every_label():
    result = evaluate(
        levels.Oracle(),
        levels.arrays(300, 0),
        levels.arrays(150, 1),
        judge_steps=150,
        domain=Domain(tasks=levels.TASKS),
        pictures=False,
        **SETTINGS,
    )
    for name in ("static", "height", "dynamic"):
        assert result.metrics[f"interventions/judged_{name}_accuracy_percent"] > 97.0, name
    assert result.metrics["interventions/swap_codes_score_percent"] > 97.0
