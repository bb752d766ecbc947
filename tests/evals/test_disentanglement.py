import numpy as np
import pytest

from diffsda_jax.evals.disentanglement import (
    TrueFactors,
    block_dci,
    block_shares,
    code_importance,
    dci,
    true_swap_error,
)
from diffsda_jax.factors import Factors

READERS = pytest.mark.parametrize("reader", ["trees", "lasso"])


# Every code holds an equal share of all factors; every code one static and one dynamic factor.
ALL_MIXED = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]) / 2
BLOCKS_MIXED = np.kron([[1, 1], [1, -1]], np.eye(2))


def splits(make, *sizes):
    """Factors of a training and a test split, as `make` gives codes of them."""
    rng = np.random.default_rng(0)
    factors = [rng.uniform(-1, 1, (size, 4)) for size in sizes]
    return make(factors[0]), factors[0], make(factors[1]), factors[1]


@READERS
def test_codes_that_are_the_factors_are_perfect(reader):
    # Order, sign and scale of the codes do not matter.
    data = splits(lambda factors: (factors * [1, -3, 0.1, 7])[:, ::-1] + 5, 500, 300)
    scores = dci(*data, reader=reader)
    assert scores["disentanglement"] > 0.97 and scores["completeness"] > 0.97
    assert scores["informativeness"] > 0.95


@READERS
def test_rotated_codes_are_informative_and_mixed(reader):
    scores = dci(*splits(lambda factors: factors @ ALL_MIXED, 500, 300), reader=reader)
    assert scores["disentanglement"] < 0.1 and scores["completeness"] < 0.1
    assert scores["informativeness"] > 0.7


def test_shuffled_codes_tell_nothing():
    rng = np.random.default_rng(1)
    data = splits(rng.permutation, 500, 300)
    by_trees, by_lasso = (dci(*data, reader=reader) for reader in ("trees", "lasso"))
    assert by_trees["disentanglement"] < 0.2 and by_trees["completeness"] < 0.2
    assert by_trees["informativeness"] < 0.05 and by_lasso["informativeness"] < 0.05


def test_copies_are_disentangled_but_not_complete():
    data = splits(lambda factors: np.repeat(factors, 2, axis=1) + 0.0, 500, 300)
    rng = np.random.default_rng(1)
    noisy = [values + 0.2 * rng.standard_normal(values.shape) for values in data[::2]]
    scores = dci(noisy[0], data[1], noisy[1], data[3], reader="lasso")
    assert scores["disentanglement"] > 0.9
    # Two of eight codes tell of each factor: 1 - log 2 / log 8.
    assert scores["completeness"] == pytest.approx(2 / 3, abs=0.05)


@READERS
def test_classes_are_scored_over_chance(reader):
    rng = np.random.default_rng(0)
    labels = [rng.integers(3, size=(size, 2)) for size in (400, 300)]
    codes = [np.concatenate([np.eye(3)[pair[:, 0]], np.eye(3)[pair[:, 1]]], 1) for pair in labels]
    scores = dci(codes[0], labels[0], codes[1], labels[1], reader=reader)
    assert scores["disentanglement"] > 0.95 and scores["informativeness"] == 1.0
    shuffled = dci(rng.permutation(codes[0]), labels[0], codes[1], labels[1], reader=reader)
    assert shuffled["informativeness"] < 0.2


def world(num_items, seed, mixer=None, steps=6):
    """Two static numbers, two dynamic ones a step; the codes are both, mixed or as they are."""
    rng = np.random.default_rng(seed)
    static = rng.uniform(-1, 1, (num_items, 2))
    dynamic = rng.uniform(-1, 1, (num_items, steps, 2))
    codes = np.concatenate([np.repeat(static[:, None], steps, 1), dynamic], axis=-1)
    if mixer is not None:
        codes = codes @ mixer
    return Factors(static=codes[:, 0, :2], dynamic=codes[..., 2:]), (static, dynamic)


@READERS
def test_oracle_blocks_by_step_and_by_sequence(reader):
    (train, known_train), (test, known_test) = world(400, 0), world(300, 1)
    length = [np.full(size, 4) for size in (400, 300)]
    for side in (train, test):
        side.dynamic[:, 4:] = 1e3 * np.random.default_rng(0).standard_normal(
            side.dynamic[:, 4:].shape
        )
    for by_sequence in (False, True):
        known = [
            TrueFactors(s, d[:, :4].mean(1) if by_sequence else d, steps)
            for (s, d), steps in zip((known_train, known_test), length, strict=True)
        ]
        scores = block_dci(train, test, *known, reader=reader, num_items=600)
        assert scores["static_on_s_percent"] > 97.0 and scores["dynamic_on_d_percent"] > 97.0
        assert scores["disentanglement"] > 0.9 and scores["informativeness"] > 0.85


def test_codes_that_mix_the_blocks_share_them():
    (train, known_train), (test, known_test) = (
        world(size, seed, BLOCKS_MIXED, steps=1) for seed, size in enumerate((600, 300))
    )
    known = TrueFactors(*known_train), TrueFactors(*known_test)
    scores = block_dci(train, test, *known, num_items=600)
    for name in ("static_on_s", "dynamic_on_d"):
        assert scores[f"{name}_percent"] == pytest.approx(50.0, abs=10.0)
        assert scores[f"{name}_chance_percent"] == 50.0
    assert scores["disentanglement"] < 0.7


def test_swapped_blocks_have_no_share():
    (train, known_train), (test, known_test) = world(200, 0), world(200, 1)
    shares = block_shares(np.array([[0, 0, 2], [0, 0, 1], [1, 3, 0.0]]), 2, 2)
    assert shares["static_on_s_percent"] == 0.0 and shares["dynamic_on_d_percent"] == 0.0
    assert shares["static_on_s_chance_percent"] == pytest.approx(200 / 3)
    silent = block_shares(np.zeros((3, 2)), 1, 1)
    assert silent["static_on_s_percent"] == silent["dynamic_on_d_percent"] == 0.0
    # Static labels beside dynamic numbers.
    label = [(known[0] > 0).astype(int) for known in (known_train, known_test)]
    known = [TrueFactors(s, d) for s, (_, d) in zip(label, (known_train, known_test), strict=True)]
    scores = block_dci(train, test, *known, is_class_static=True, num_items=400)
    assert scores["static_on_s_percent"] > 95.0 and scores["informativeness"] > 0.85


def test_the_seed_decides():
    data = splits(lambda factors: factors @ ALL_MIXED, 100, 50)
    first, again = (code_importance(*data, seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_what_is_refused():
    data = splits(lambda factors: factors, 20, 20)
    with pytest.raises(ValueError, match="reader: unknown value 'forest'"):
        dci(*data, reader="forest")
    with pytest.raises(ValueError, match="4 codes and 1 factors"):
        dci(data[0], data[1][:, :1], data[2], data[3][:, :1])
    constant = data[1] * [1, 1, 0, 1]
    with pytest.raises(ValueError, match=r"factors \[2\] of 4 are constant"):
        dci(data[0], constant, data[2], data[3])


def test_true_swaps_have_no_error_and_donors_do():
    rng = np.random.default_rng(0)
    level, course = rng.standard_normal((2, 50, 1, 1)), rng.standard_normal((2, 50, 8, 1))
    donors = level[0] + course[0], level[1] + course[1]
    truth = level[0] + course[1]
    errors = true_swap_error(truth, truth, *donors)
    assert errors["swap_nmse"] == 0.0 and errors["swap_nmse_chance"] == 1.0
    # Variances 1 and 1: the donor of s has another course, error 2 over a spread of 2.
    assert errors["static_donor_nmse"] == pytest.approx(1.0, abs=0.25)
    assert errors["dynamic_donor_nmse"] == pytest.approx(1.0, abs=0.4)
    given_back = true_swap_error(donors[0], truth, *donors)
    assert given_back["swap_nmse"] == given_back["static_donor_nmse"]
    mask = np.arange(8)[None] < np.full(50, 5)[:, None]
    polluted = np.where(mask[..., None], truth, 1e3)
    assert true_swap_error(polluted, truth, *donors, mask)["swap_nmse"] == 0.0
