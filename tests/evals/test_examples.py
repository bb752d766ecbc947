import dataclasses

import numpy as np
import pytest
from oracles import Clueless, DigitOracle, digit_arrays

from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.examples import make_examples, normalised_errors, read_back
from diffsda_jax.evals.exploration import fit_components, gather_codes
from diffsda_jax.evals.interface import encode_clips
from diffsda_jax.factors import Factors


class Reader(DigitOracle):
    """An oracle that also reads the clips that it decoded."""

    def decode(self, factors, start=None, num_steps=32, seed=0):
        clips = super().decode(factors, start, num_steps, seed)
        for clip, static, dynamic in zip(clips, factors.static, factors.dynamic, strict=True):
            self._known[clip.tobytes()] = (np.asarray(static), np.asarray(dynamic))
        return clips


def make_context(model, train, test, **settings):
    factors = [encode_clips(model, data["x"], batch_size=4) for data in (train, test)]
    return Context(
        model=model,
        kind="video",
        train=train,
        test=test,
        train_factors=factors[0],
        test_factors=factors[1],
        judge=None,
        settings=EvalSettings(num_swaps=6, batch_size=4, **settings),
        readers=train,
        trial=np.arange(len(test["x"])),
    )


@pytest.fixture(scope="module")
def splits():
    return digit_arrays("train", 12), digit_arrays("test", 8)


@pytest.fixture(scope="module")
def oracle(splits):
    return make_context(Reader(*splits), *splits)


def test_an_oracle_makes_no_errors(oracle):
    examples = make_examples(oracle, num_clips=5, num_components=2, num_places=3)
    assert len(examples.swaps.x) == len(examples.reconstructions.x) == 5
    assert examples.reconstructions.error.max() < 1e-9
    assert examples.swaps.static_error.max() < 1e-9 and examples.swaps.dynamic_error.max() < 1e-9


def test_swaps_and_reconstructions_are_those_of_the_evaluation(oracle):
    examples = make_examples(oracle, num_clips=5)
    pairs = oracle.pairs()
    np.testing.assert_array_equal(examples.swaps.static_index, pairs[0][:5])
    np.testing.assert_array_equal(examples.swaps.dynamic_index, pairs[1][:5])
    np.testing.assert_array_equal(examples.reconstructions.clip_index, oracle.some_clips()[:5])


def test_the_middle_of_a_traversal_is_the_clip_and_its_ends_are_not(oracle):
    examples = make_examples(oracle, num_clips=3, num_components=2, num_places=5)
    clip = oracle.test["x"][examples.traversals[0].clip]
    assert [one.factor for one in examples.traversals] == ["static", "dynamic"]
    for traversal in examples.traversals:
        assert traversal.x.shape == (2, 5, *clip.shape) and len(traversal.titles) == 2
        assert traversal.places[2] == "not moved" and traversal.titles[0].endswith("of variance")
        for row in traversal.x:
            np.testing.assert_allclose(row[2], clip, atol=1e-6)
            assert np.abs(row[0] - clip).max() > 0.1 and np.abs(row[4] - row[0]).max() > 0.1


def test_components_that_are_known_keep_their_names(oracle):
    first = make_examples(oracle, num_clips=2, num_components=2, num_places=3)
    codes = gather_codes(oracle.codes("train"), "static")
    known = [(fit_components(codes, "static", num_components=2), ["s1: the class", "s2: nothing"])]
    second = make_examples(oracle, num_clips=2, num_components=1, num_places=3, known=known)
    assert second.traversals[0].titles == ["s1: the class"]
    np.testing.assert_allclose(second.traversals[0].x[0], first.traversals[0].x[0], atol=1e-6)


def test_the_worst_come_first_and_noise_is_worse_than_an_oracle(splits):
    context = make_context(Clueless(*splits), *splits)
    examples = make_examples(context, num_clips=6)
    for found, error in (
        (
            examples.swaps,
            np.maximum(examples.swaps.static_error, examples.swaps.dynamic_error),
        ),
        (examples.reconstructions, examples.reconstructions.error),
    ):
        order = error[found.worst(4)]
        assert (np.diff(order) <= 0).all() and order[0] == error.max() > 0.5


def test_the_mean_clip_has_error_one_and_padding_does_not_count(oracle):
    x = oracle.test["x"]
    index = np.arange(len(x))
    mean = np.full_like(x, x.mean())
    assert normalised_errors(oracle, index, mean).mean() == pytest.approx(1.0)
    short = dataclasses.replace(oracle, test=oracle.test | {"length": np.full(len(x), 3, np.int32)})
    spoilt = x.copy()
    spoilt[:, 3:] = 9.0
    assert normalised_errors(short, index, spoilt).max() == 0.0


def test_the_mean_factor_is_read_back_with_error_one(oracle):
    """What is wanted is the mean, what is read is each clip's own: the mean error is 1."""
    factors = oracle.test_factors
    count = len(factors)
    wanted = Factors(
        static=np.repeat(factors.static.mean(0, keepdims=True), count, 0),
        dynamic=np.broadcast_to(factors.dynamic.mean((0, 1)), factors.dynamic.shape).copy(),
    )
    static, dynamic = read_back(oracle, oracle.test["x"], wanted, None)
    assert static.mean() == pytest.approx(1.0, rel=1e-4)
    assert dynamic.mean() == pytest.approx(1.0, rel=1e-4)


def test_one_static_factor_a_step_has_no_traversals(oracle):
    factors = oracle.test_factors
    static = np.repeat(factors.static[:, None], factors.dynamic.shape[1], axis=1)

    class PerStep(Clueless):
        def encode(self, x, length=None, mask=None):
            return super().encode(x).replace(static=np.zeros((*x.shape[:2], 64), np.float32))

    model = PerStep(oracle.train, oracle.test)
    context = dataclasses.replace(oracle, model=model, test_factors=factors.replace(static=static))
    examples = make_examples(context, num_clips=2)
    assert examples.traversals == [] and examples.swaps.static_error.shape == (2,)
    assert "one s for each step" in examples.unmoved[0]


def test_one_training_clip_has_no_static_components(splits):
    train, test = splits
    one = {name: values[:1] for name, values in train.items()}
    examples = make_examples(make_context(Clueless(*splits), one, test), num_clips=2)
    assert [traversal.factor for traversal in examples.traversals] == ["dynamic"]
    assert examples.unmoved == ["There is 1 static code to find components in."]
