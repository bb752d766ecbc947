import numpy as np
import pytest

from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.interface import encode_clips, padded_batches, with_one_static
from diffsda_jax.evals.swap import (
    keep_one_factor,
    make_pairs,
    mean_factors,
    reconstruct,
)
from diffsda_jax.factors import Factors, mix


class Additive:
    """x = s + d + noise share: sampling adds the start noise, so starts can be told apart."""

    def __init__(self):
        self.sizes = []

    def encode(self, x, length=None, mask=None):
        self.sizes.append(len(x))
        return Factors(static=x[:, 0], dynamic=x - x[:, :1])

    def decode(self, factors, start=None, num_steps=32, seed=0):
        self.sizes.append(len(factors))
        return factors.static[:, None] + factors.dynamic + start

    def invert(self, x, factors, num_steps=32):
        self.sizes.append(len(x))
        return 100.0 * x


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 7, 4, 3), np.float32)


@pytest.mark.parametrize("num_swaps", [5, 50, 130])
def test_pairs_differ_in_clip_and_labels(num_swaps):
    rng = np.random.default_rng(0)
    labels = [rng.integers(10, size=50), rng.integers(8, size=50)]
    static_index, dynamic_index = make_pairs(50, num_swaps, seed=1, labels=labels)
    assert len(static_index) == len(dynamic_index) == num_swaps
    assert (static_index != dynamic_index).all()
    for label in labels:
        assert (label[static_index] != label[dynamic_index]).all()
    again = make_pairs(50, num_swaps, seed=1, labels=labels)
    np.testing.assert_array_equal(static_index, again[0])
    other = make_pairs(50, num_swaps, seed=2, labels=labels)
    assert (static_index != other[0]).any()


def test_pairs_use_every_clip_once_on_either_side():
    for index in make_pairs(40, 40, seed=0):
        np.testing.assert_array_equal(np.sort(index), np.arange(40))


def test_pairs_with_a_majority_label_still_never_meet_themselves():
    label = np.array([0] * 15 + [1] * 5)
    static_index, dynamic_index = make_pairs(20, 20, labels=[label])
    assert (static_index != dynamic_index).all()
    # Only 5 + 5 of the 20 pairs can differ.
    assert (label[static_index] != label[dynamic_index]).sum() == 10


def test_pairs_refuse_a_single_clip():
    with pytest.raises(ValueError, match="num_clips=1"):
        make_pairs(1, 4)


def swap(model, x_static, x_dynamic, start, seed=0, batch_size=64, length=None):
    """Swaps as an evaluation makes them."""
    x, half = np.concatenate([x_static, x_dynamic]), np.arange(len(x_static))
    data = {"x": x} if length is None else {"x": x, "length": np.tile(length, 2)}
    factors = encode_clips(model, x, batch_size=batch_size)
    settings = EvalSettings(start=start, seed=seed, batch_size=batch_size)
    context = Context(
        model=model,
        kind="series",
        train=data,
        test=data,
        train_factors=factors,
        test_factors=factors,
        judge=None,
        settings=settings,
        readers=data,
        trial=np.arange(len(x)),
    )
    mixed = mix(static_from=factors[half], dynamic_from=factors[half + len(half)])
    return context.decode(mixed, half, half + len(half))


@pytest.mark.parametrize("start", ["random", "zero", "target", "donor"])
def test_swap_takes_each_factor_and_the_start_from_where_it_says(clips, start):
    x_static, x_dynamic = clips
    result = swap(Additive(), x_static, x_dynamic, start=start, seed=3)
    noise = np.random.default_rng(3).standard_normal(x_static.shape, np.float32)
    begun = {"random": noise, "zero": 0 * noise, "target": x_static, "donor": x_dynamic}[start]
    begun = begun * (100 if start in ("target", "donor") else 1)
    expected = x_static[:, :1] + x_dynamic - x_dynamic[:, :1] + begun
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_steps_past_the_end_of_the_inverted_clip_start_from_noise(clips):
    x_static, x_dynamic = clips
    length = np.full(7, 2, np.int32)
    result = swap(Additive(), x_static, x_dynamic, start="target", length=length, seed=3)
    random = swap(Additive(), x_static, x_dynamic, start="random", seed=3)
    np.testing.assert_array_equal(result[:, 2:], random[:, 2:])
    assert (result[:, :2] != random[:, :2]).all()


def test_result_does_not_depend_on_the_batch_size_and_batches_have_one_size(clips):
    model = Additive()
    small = swap(model, *clips, start="donor", batch_size=3)
    assert set(model.sizes) == {3}
    np.testing.assert_array_equal(small, swap(Additive(), *clips, start="donor"))


def test_padded_batches_cover_every_item_once():
    blocks = list(padded_batches(7, 3))
    assert [count for _, count in blocks] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([i[:n] for i, n in blocks]), np.arange(7))


def test_unknown_start(clips):
    with pytest.raises(
        ValueError, match="start: unknown value 'noise'; allowed are random, zero, target, donor"
    ):
        swap(Additive(), *clips, start="noise")


def test_reconstruct_from_own_noise(clips):
    model, x = Additive(), clips[0]
    factors = encode_clips(model, x)
    result = reconstruct(model, x, factors, start="inverted")
    np.testing.assert_allclose(result, 101 * x, rtol=1e-4)


def test_one_factor_is_the_mean_over_real_steps():
    dynamic = np.array([[[1.0], [3.0], [99.0]], [[2.0], [4.0], [6.0]]], np.float32)
    factors = Factors(static=np.array([[0.0], [2.0]], np.float32), dynamic=dynamic)
    mean = mean_factors(factors, np.array([2, 3], np.int32))
    assert mean.static.tolist() == [[1.0]]
    np.testing.assert_allclose(mean.dynamic, np.full((1, 3, 1), 16 / 5), rtol=1e-6)
    static_only = keep_one_factor(factors, mean, "static")
    np.testing.assert_array_equal(static_only.static, factors.static)
    np.testing.assert_allclose(static_only.dynamic, 16 / 5, rtol=1e-6)
    dynamic_only = keep_one_factor(factors, mean, "dynamic")
    np.testing.assert_array_equal(dynamic_only.dynamic, dynamic)
    assert dynamic_only.static.tolist() == [[1.0], [1.0]]


def test_a_static_factor_of_each_step_is_read_as_its_mean_over_real_steps():
    static = np.array([[[1.0], [3.0], [99.0]], [[2.0], [4.0], [6.0]]], np.float32)
    factors = Factors(static=static, dynamic=np.zeros((2, 3, 1), np.float32))
    length = np.array([2, 3], np.int32)
    assert with_one_static(factors, length).static.tolist() == [[2.0], [4.0]]
    shared = with_one_static(factors, length)
    assert with_one_static(shared, length) is shared
    assert mean_factors(factors, length).static.tolist() == [[3.0]]
    kept = keep_one_factor(factors, mean_factors(factors, length), "static")
    np.testing.assert_array_equal(kept.static, static)
