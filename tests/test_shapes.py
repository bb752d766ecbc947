"""Any number, length and mask of sequences goes through the public API, and padding is nothing."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from infer_models import random_weights

from diffsda_jax import DiffSDA, Factors, mix
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.model import ModelSpec, variable_shapes

SPEC = ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4, encoder_sees_mask=True)
META = {"model": SPEC.to_dict(), "config": {"data": {"length": 6}, "eval": {"batch_size": 4}}}
FEW = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LENGTHS = st.lists(st.integers(1, 8), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def model():
    normalizer = Normalizer(np.zeros(3, np.float32), np.ones(3, np.float32))
    weights = random_weights(variable_shapes(SPEC))
    return DiffSDA(SPEC, weights, normalizer, META).using("euler", 2)


@FEW
@given(lengths=LENGTHS, seed=st.integers(0, 99), missing=st.floats(0, 0.9))
def test_sequences_of_any_length_with_missing_values(model, lengths, seed, missing):
    rng = np.random.default_rng(seed)
    given_ones = []
    for length in lengths:
        x = rng.standard_normal((length, 3)).astype(np.float32)
        x[rng.random(x.shape) < missing] = np.nan
        given_ones.append(x)
    factors = model.encode(given_ones)
    count, longest = len(lengths), max(lengths)
    assert factors.static.shape == (count, 4) and factors.dynamic.shape[0] == count
    assert factors.dynamic.shape[1] >= longest and factors.dynamic.shape[2] == 2
    assert np.isfinite(factors.static).all() and np.isfinite(factors.dynamic).all()
    alone = model.encode([given_ones[-1]])
    np.testing.assert_allclose(alone.static[0], factors.static[-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        alone.dynamic[0, : lengths[-1]],
        factors.dynamic[count - 1, : lengths[-1]],
        rtol=1e-4,
        atol=1e-5,
    )


@FEW
@given(count=st.integers(1, 4), steps=st.integers(1, 8), seed=st.integers(0, 99))
def test_what_is_masked_or_beyond_the_end_changes_nothing(model, count, steps, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, steps, 3)).astype(np.float32)
    length = rng.integers(1, steps + 1, count).astype(np.int32)
    mask = rng.random(x.shape) < 0.7
    real = (np.arange(steps) < length[:, None])[..., None] & mask
    first = model.encode(np.where(real, x, 0), length, mask)
    second = model.encode(np.where(real, x, 7).astype(np.float32), length, mask)
    np.testing.assert_allclose(first.static, second.static, rtol=1e-4, atol=1e-5)
    for row, end in enumerate(length):
        np.testing.assert_allclose(
            first.dynamic[row, :end], second.dynamic[row, :end], rtol=1e-4, atol=1e-5
        )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(count=st.integers(1, 5), steps=st.integers(1, 7), seed=st.integers(0, 99))
def test_factors_mix_and_survive_the_disk(tmp_path_factory, count, steps, seed):
    rng = np.random.default_rng(seed)
    who, what = (
        Factors(rng.normal(size=(count, 4)), rng.normal(size=(count, steps, 2))) for _ in range(2)
    )
    mixed = mix(static_from=who, dynamic_from=what)
    np.testing.assert_array_equal(mixed.static, who.static)
    np.testing.assert_array_equal(mixed.dynamic, what.dynamic)
    again = Factors.load(mixed.save(tmp_path_factory.mktemp("factors") / "f.npz"))
    np.testing.assert_array_equal(again.static, mixed.static)
    np.testing.assert_array_equal(again.dynamic, mixed.dynamic)
