import dataclasses

import numpy as np
import pytest
from oracles import DigitOracle, digit_arrays

from diffsda_jax.evals import generation_pictures
from diffsda_jax.evals.context import Context, Domain, EvalSettings
from diffsda_jax.evals.evaluate import evaluate
from diffsda_jax.evals.generation import generation, sample_batches
from diffsda_jax.evals.interface import FactorPrior, encode_clips
from diffsda_jax.evals.interpolation import interpolation_scores
from diffsda_jax.evals.judges import Judge, JudgeNet, Seen
from diffsda_jax.evals.network_options import NetworkOptions
from diffsda_jax.evals.networks import CallableNetwork, ClipFunction
from diffsda_jax.factors import Factors

STEPS = 8
CENTRES = 3.0 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])


def draw(count, seed):
    """Series whose first two features say who they are and whose last one rises or falls.

    Who decides most of it: two of the four classes nearly always rise, two nearly always fall.
    """
    rng = np.random.default_rng(seed)
    who = rng.integers(0, 4, count)
    rises = (rng.random(count) < np.where(who < 2, 0.9, 0.1)).astype(int)
    static = CENTRES[who] + rng.standard_normal((count, 2))
    slope = (2 * rises - 1) * rng.uniform(0.5, 1.5, count)
    path = rng.standard_normal((count, 1)) + slope[:, None] * np.linspace(-1, 1, STEPS)
    x = np.concatenate([np.repeat(static[:, None], STEPS, 1), path[..., None]], -1)
    return {"x": x.astype(np.float32), "static_label": who, "dynamic_label": rises}


class Oracle:
    """Knows the factors of these series."""

    def encode(self, x, length=None, mask=None):
        return Factors(static=x[:, 0, :2], dynamic=x[:, :, 2:])

    def decode(self, factors, start=None, num_steps=32, seed=0):
        shape = (*factors.dynamic.shape[:2], factors.static.shape[1])
        static = np.broadcast_to(factors.static[:, None], shape)
        return np.concatenate([static, factors.dynamic], -1)

    def invert(self, x, factors, num_steps=32):
        return x


class RuleJudge(Judge):
    """Reads both labels off; its features are what it reads."""

    def __init__(self):
        super().__init__(net=JudgeNet(4, 2, 4), params={})

    def see(self, x, length=None, mask=None):
        length = np.full(len(x), x.shape[1]) if length is None else length
        last = x[np.arange(len(x)), length - 1, 2]
        distance = np.square(x[:, 0, None, :2] - CENTRES).sum(-1)
        logits = {
            "static": -0.5 * distance,
            "dynamic": 4 * np.stack([x[:, 0, 2] - last, last - x[:, 0, 2]], 1),
        }
        exps = {k: np.exp(v - v.max(1, keepdims=True)) for k, v in logits.items()}
        features = np.concatenate([x[:, 0], last[:, None]], 1)
        return Seen(features, {k: v / v.sum(1, keepdims=True) for k, v in exps.items()})


class TruePrior:
    """Draws from the true distribution, also of one factor given the other; V is fixed."""

    def sample(self, count, length=None, *, seed=0, lengths=None):
        if length not in (None, STEPS):
            raise ValueError(f"length={length}: this prior makes {STEPS} steps")
        return Oracle().encode(draw(count, 100 + seed)["x"])

    def sample_dynamic(self, static, length=None, *, seed=0, lengths=None):
        return Factors(static, self._given(static, "static", length, seed).dynamic)

    def sample_static(self, dynamic, *, seed=0, lengths=None):
        return Factors(self._given(dynamic, "dynamic", None, seed).static, dynamic)

    def _given(self, values, name, length, seed):
        """Of many fresh series, those whose labels are as rare as that of the given factor asks."""
        pool = draw(4 * len(values), 200 + seed)
        rng = np.random.default_rng(seed)
        if name == "static":
            who = np.square(values[:, None] - CENTRES).sum(-1).argmin(1)
            found = [rng.choice(np.flatnonzero(pool["static_label"] == one)) for one in who]
        else:
            rises = (values[:, -1, 0] > values[:, 0, 0]).astype(int)
            found = [rng.choice(np.flatnonzero(pool["dynamic_label"] == one)) for one in rises]
        return Oracle().encode(pool["x"][found])


class IndependentPrior(TruePrior):
    """Each factor is right alone."""

    def sample(self, count, length=None, *, seed=0, lengths=None):
        first, second = (super(IndependentPrior, self).sample(count, seed=k) for k in (1, 2))
        return Factors(first.static, second.dynamic)


class CopyPrior(TruePrior):
    """Gives training factors back; longer ones repeat them."""

    def sample(self, count, length=None, *, seed=0, lengths=None):
        factors = Oracle().encode(TRAIN["x"][:count])
        return Factors(factors.static, np.tile(factors.dynamic, (1, (length or STEPS) // STEPS, 1)))

    def sample_dynamic(self, static, length=None, *, seed=0, lengths=None):
        nearest = np.square(static[:, None] - TEST["x"][None, :, 0, :2]).sum(-1).argmin(1)
        return Factors(static, TEST["x"][nearest][:, :, 2:])


class Collapsed(TruePrior):
    """Always the same series."""

    def sample(self, count, length=None, *, seed=0, lengths=None):
        return Oracle().encode(np.repeat(TEST["x"][:1], count, 0))


TRAIN, TEST = draw(2000, 0), draw(1000, 1)


def context(prior, train=TRAIN, test=TEST, *, model=None, judge=True, kind="series", **domain):
    model = model or Oracle()
    return Context(
        model=model,
        kind=kind,
        train=train,
        test=test,
        train_factors=encode_clips(model, train["x"]),
        test_factors=encode_clips(model, test["x"]),
        judge=RuleJudge() if judge else None,
        settings=EvalSettings(num_samples=1000, parts=("generation",)),
        readers=train,
        trial=np.arange(len(test["x"])),
        prior=prior,
        **domain,
    )


@pytest.fixture(scope="module")
def perfect():
    return generation(context(TruePrior()))


def test_a_true_prior_is_as_good_as_real_clips(perfect):
    scores, notes = perfect
    assert isinstance(TruePrior(), FactorPrior)
    for kind in ("judge", "factors"):
        floor, shuffled = (scores[f"{name}/frechet_{kind}"] for name in ("train", "shuffled"))
        assert scores[f"samples/frechet_{kind}"] < 3 * floor
        assert scores[f"samples/frechet_{kind}"] < 0.3 * shuffled
        assert scores[f"samples/frechet_{kind}_chance"] > 0.9 * shuffled
    assert scores["reconstructed/frechet_judge"] == pytest.approx(scores["train/frechet_judge"])
    for name in ("values", "judge", "factors"):
        assert scores[f"samples/memorising_{name}"] == pytest.approx(1.0, abs=0.25)
    assert scores["samples/label_distance_percent"] < 8.0
    assert scores["shuffled/label_distance_percent"] > 30.0
    assert scores["samples/static_inception_score"] > 3.0
    assert notes == [
        f"sequences longer than seen skipped: length=16: this prior makes {STEPS} steps"
    ]


def test_what_is_kept_is_kept_and_the_rest_is_drawn_anew(perfect):
    scores, _ = perfect
    assert scores["given_s/static_kept_percent"] > 90.0
    assert scores["given_s/static_kept_chance_percent"] == pytest.approx(25.0, abs=2.0)
    assert scores["given_d/dynamic_kept_percent"] > 95.0
    # Two series of one class share the motion with 0.9^2 + 0.1^2.
    assert scores["given_s/dynamic_repeated_percent"] == pytest.approx(82.0, abs=7.0)
    assert scores["given_d/static_repeated_percent"] == pytest.approx(41.0, abs=9.0)
    assert scores["given_s/frechet_judge"] < 0.3 * scores["shuffled/frechet_judge"]


def test_paths_are_even_and_end_where_they_should(perfect):
    scores, _ = perfect
    for factor in "sd":
        assert scores[f"between_{factor}/largest_jump"] == pytest.approx(1 / 7, rel=0.01)
        assert scores[f"between_{factor}/largest_jump_chance"] == 1.0
        assert scores[f"between_{factor}/ends_kept_percent"] > 85.0
        assert scores[f"between_{factor}/other_kept_percent"] > 85.0
    case = context(TruePrior())
    round_way = dataclasses.replace(case.settings, interpolation="spherical")
    scores = interpolation_scores(dataclasses.replace(case, settings=round_way))
    assert 1 / 7 < scores["between_s/largest_jump"] < 0.5
    assert scores["between_d/largest_jump"] == pytest.approx(1 / 7, rel=0.01)


def test_an_independent_prior_is_no_better_than_shuffled_factors(perfect):
    scores, _ = generation(context(IndependentPrior()))
    for kind in ("judge", "factors"):
        independent = scores[f"samples/frechet_{kind}"]
        assert independent > 3 * perfect[0][f"samples/frechet_{kind}"]
        assert independent == pytest.approx(scores[f"shuffled/frechet_{kind}"], rel=0.4)
    assert scores["samples/label_distance_percent"] > 30.0


def test_copies_are_found_out():
    scores, notes = generation(context(CopyPrior()))
    for name in ("values", "judge", "factors"):
        assert scores[f"samples/memorising_{name}"] == pytest.approx(0.0, abs=1e-6)
    assert scores["reconstructed/memorising_values"] == pytest.approx(0.0, abs=1e-6)
    assert scores["samples/frechet_judge"] < 0.3 * scores["samples/frechet_judge_chance"]
    assert scores["given_s/dynamic_repeated_percent"] > 95.0
    assert scores["longer/frechet_judge"] == pytest.approx(scores["samples/frechet_judge"], rel=1.0)
    assert notes == []


def test_a_collapsed_prior_has_no_variety(perfect):
    scores, _ = generation(context(Collapsed()))
    assert scores["samples/static_inception_score"] == pytest.approx(1.0)
    assert scores["samples/static_entropy_y_nats"] < 0.1
    assert perfect[0]["samples/static_entropy_y_nats"] > 0.95 * np.log(4)
    assert scores["samples/frechet_judge"] > 20 * perfect[0]["samples/frechet_judge"]
    assert scores["samples/label_distance_percent"] > 50.0


def test_samples_are_seen_with_the_lengths_and_gaps_of_real_clips():
    def cut(data, seed):
        rng = np.random.default_rng(seed)
        length = rng.integers(4, STEPS + 1, len(data["x"])).astype(np.int32)
        mask = rng.random(data["x"].shape) < 0.8
        polluted = np.where(np.arange(STEPS)[:, None] < length[:, None, None], data["x"], 50.0)
        return data | {"x": polluted.astype(np.float32), "length": length, "mask": mask}

    case = context(TruePrior(), cut(TRAIN, 2), cut(TEST, 3), judge=False)
    scores, _ = generation(case)
    assert scores["samples/frechet_statistics"] < 3 * scores["train/frechet_statistics"]
    assert scores["samples/memorising_values"] == pytest.approx(1.0, abs=0.25)
    assert scores["samples/frechet_factors"] < 1.0


class LengthPrior(TruePrior):
    """Remembers which lengths it is asked for."""

    def __init__(self):
        self.asked = []

    def sample(self, count, length=None, *, seed=0, lengths=None):
        self.asked.append(lengths)
        return super().sample(count, length, seed=seed)

    def sample_dynamic(self, static, length=None, *, seed=0, lengths=None):
        self.asked.append(lengths)
        return super().sample_dynamic(static, length, seed=seed)


def test_samples_are_asked_for_in_the_lengths_of_real_clips():
    length = np.arange(4, 4 + len(TEST["x"])) % 5 + 4
    prior, like = LengthPrior(), np.array([3, 1, 8])
    batches, notes = sample_batches(context(prior, test=TEST | {"length": length}), like)
    assert not notes and len(prior.asked) == 2
    for lengths in (*prior.asked, *(batch.length for batch in batches.values())):
        np.testing.assert_array_equal(lengths, length[like])


def test_series_without_labels_have_plain_features():
    bare = {"train": {"x": TRAIN["x"]}, "test": {"x": TEST["x"]}}
    scores, _ = generation(context(TruePrior(), **bare, judge=False))
    assert scores["samples/frechet_statistics"] < 3 * scores["train/frechet_statistics"]
    assert not [name for name in scores if "label" in name or "judge" in name or "kept" in name]
    independent, _ = generation(context(IndependentPrior(), **bare, judge=False))
    assert independent["samples/frechet_statistics"] > 2 * scores["samples/frechet_statistics"]


class DigitPrior:
    """Fresh digits."""

    def __init__(self, oracle, data):
        self.factors = encode_clips(oracle, data["x"])

    def sample(self, count, length=None, *, seed=0, lengths=None):
        chosen = self.factors[np.arange(count) % len(self.factors)]
        repeats = (length or STEPS) // chosen.dynamic.shape[1]
        return Factors(chosen.static, np.tile(chosen.dynamic, (1, repeats, 1)))

    def sample_dynamic(self, static, length=None, *, seed=0, lengths=None):
        return Factors(static, self.sample(len(static), length).dynamic)

    def sample_static(self, dynamic, *, seed=0, lengths=None):
        return Factors(self.sample(len(dynamic), dynamic.shape[1]).static, dynamic)


def coarse(frames):
    """Embeddings: the brightness of 4 x 4 areas."""
    assert frames.shape[1:] == (16, 16, 3)
    return frames.reshape(len(frames), 4, 4, 4, 4, 3).mean((2, 4, 5)).reshape(len(frames), -1)


@pytest.fixture(scope="module")
def digits():
    train, both = digit_arrays("train", 80), digit_arrays("test", 120)
    test, fresh = ({k: v[part] for k, v in both.items()} for part in (slice(60), slice(60, None)))
    return train, test, fresh


def test_networks_give_the_fid_and_the_fvd_form_and_pictures_are_drawn(digits, tmp_path):
    train, test, fresh = digits
    oracle = DigitOracle(train, both := {k: np.concatenate([test[k], fresh[k]]) for k in test})
    assert len(both["x"]) == 120
    networks = {
        "features": CallableNetwork(coarse, NetworkOptions(), "features"),
        "clip_features": ClipFunction(
            lambda x: np.diff(
                coarse(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:2], -1), axis=1
            ).std(1),
            NetworkOptions(),
        ),
    }
    result = evaluate(
        oracle,
        {k: train[k] for k in ("x", "position")},
        {k: test[k] for k in ("x", "position")},
        kind="video",
        parts=("generation",),
        num_samples=60,
        num_swaps=6,
        domain=Domain(prior=DigitPrior(oracle, fresh), networks=networks),
        output_dir=tmp_path,
    )
    scores = result.metrics
    for kind in ("frames", "clips"):
        assert scores[f"generation/train/frechet_{kind}"] < 0.1
        sampled, chance = (
            scores[f"generation/samples/frechet_{kind}{end}"] for end in ("", "_chance")
        )
        assert sampled < 0.7 * chance
    assert not any("judge" in name for name in scores)
    names = ("samples", "given_s", "given_d", "between_s", "between_d", "longer")
    assert {f"generation/{name}" for name in names} <= set(result.images)
    assert {f"generation/sample_{n}" for n in range(4)} <= set(result.videos)
    assert (tmp_path / "generation_given_s.png").stat().st_size > 1000


def test_what_cannot_be_generated_is_noted(digits):
    train, test, _ = digits
    assert generation(context(None)) == (
        {},
        ["generation skipped: there is no prior; train one with --mode=prior"],
    )
    _, notes = generation(context(None, why_no_prior="the prior is of another model"))
    assert notes == ["generation skipped: the prior is of another model"]
    case = context(TruePrior())
    few = dataclasses.replace(case.settings, num_samples=1)
    scores, notes = generation(dataclasses.replace(case, settings=few))
    assert not scores and "num_samples is 1" in notes[0]
    oracle = DigitOracle(train, test)
    case = context(
        DigitPrior(oracle, train),
        train,
        test,
        model=oracle,
        judge=False,
        kind="video",
        frame_decoder=None,
    )
    few = dataclasses.replace(case.settings, num_samples=20)
    scores, notes = generation(dataclasses.replace(case, settings=few))
    assert any("set eval.networks.features.path" in note for note in notes)
    assert scores["samples/memorising_factors"] < 0.01


def test_series_are_drawn_as_lines(monkeypatch):
    for name in ("_COLUMNS", "_ROWS", "_POINTS"):
        monkeypatch.setattr(generation_pictures, name, 2)
    case = context(TruePrior(), judge=False)
    pictures, videos = generation_pictures.draw_generation(case, ["a", "b", "c"], lambda x: 10 * x)
    names = ("samples", "given_s", "given_d", "between_s", "between_d")
    assert set(pictures) == {f"generation/{name}" for name in names}
    assert videos == {}
    for picture in pictures.values():
        assert picture.dtype == np.uint8 and (picture < 128).any()
