import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from diffsda_jax.evals import mutual_information as measure
from diffsda_jax.evals.mutual_information import Codes, FactorTable


def numbers(values):
    return Codes(values, np.arange(values.shape[1]))


def information(codes, table):
    return measure.mutual_information(measure.bin_codes(codes), measure.bin_factors(table))


def world(count, seed):
    """Three classes, two classes and a number."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(3, size=count), rng.integers(2, size=count), rng.uniform(size=count)]
    table = FactorTable(np.stack(columns, 1).astype(float), np.array([True, True, False]))
    codes = numbers(table.values * [1.0, -2.0, 5.0])
    return codes, table


TURN = np.eye(3) - 2 / 3  # a reflection: every code holds all factors


def scores(codes, table, test_codes, test_table):
    told, entropy = information(test_codes, test_table)
    singles = measure.single_code_scores(codes, table, test_codes, test_table)
    return (
        measure.mutual_information_gap(told, entropy),
        measure.separated_predictability(singles),
        measure.modularity(told),
        measure.explicitness(codes, table, test_codes, test_table),
    )


def test_one_code_a_factor_is_perfect():
    gap, sap, modular, explicit = scores(*world(800, 0), *world(600, 1))
    assert gap.min() > 0.9 and sap.min() > 0.9 and modular > 0.99 and explicit == 1.0


def test_mixed_codes_have_no_gap_and_are_still_explicit():
    sides = [world(count, seed) for seed, count in enumerate((800, 600))]
    mixed = []
    for codes, table in sides:
        scaled = codes.values / codes.values.std(0)
        mixed += [numbers(scaled @ TURN), table]
    gap, sap, modular, explicit = scores(*mixed)
    assert gap.mean() < 0.3 and sap.mean() < 0.3 and modular < 0.95 and explicit > 0.95


def test_codes_of_other_items_tell_nothing():
    rng = np.random.default_rng(5)
    shuffled = []
    for codes, table in (world(800, 0), world(600, 1)):
        shuffled += [numbers(rng.permutation(codes.values)), table]
    gap, sap, _, explicit = scores(*shuffled)
    assert gap.max() < 0.05 and sap.max() < 0.06 and abs(explicit - 0.5) < 0.06


def test_information_is_that_of_the_sample_but_for_its_size():
    rng = np.random.default_rng(0)
    factor = rng.integers(4, size=4000)
    code = np.where(rng.uniform(size=4000) < 0.7, factor, rng.integers(4, size=4000))
    told, entropy = measure.mutual_information(code[:, None], factor[:, None])
    assert told[0, 0] == pytest.approx(mutual_info_score(code, factor), abs=0.002)
    assert entropy[0] == pytest.approx(np.log(4), abs=0.002)
    # Without the correction, 20 bins of 500 items seem to tell (20 - 1) (4 - 1) / 1000 nats.
    noise = rng.integers(20, size=(500, 40))
    told, _ = measure.mutual_information(noise, factor[:500, None])
    assert np.mean(told) < 0.012 < 0.05 < mutual_info_score(noise[:, 0], factor[:500])


def test_modularity_by_hand():
    assert measure.modularity(np.eye(3)) == 1.0
    assert measure.modularity(np.ones((4, 3))) == 0.0
    assert measure.modularity(np.zeros((4, 3))) == 0.0
    # Half of the top on one of two others: 1 - 0.25 / 2; a silent code does not count.
    assert measure.modularity(np.array([[2.0, 1.0, 0.0], [0, 0, 0]])) == pytest.approx(0.875)


def test_courses_are_told_by_their_shape():
    rng = np.random.default_rng(0)
    table, sides = [], []
    for count in (600, 500):
        falls = rng.integers(2, size=count)
        rise = np.linspace(-1, 1, 12) * np.where(falls, -1, 1)[:, None]
        dynamic = np.stack([rise + rng.uniform(-1, 1, (count, 1)), rng.normal(size=(count, 12))], 2)
        parts = measure.segment_means(dynamic, num_segments=4)
        flat = parts.transpose(0, 2, 1).reshape(count, -1)
        sides.append(Codes(flat, np.repeat([0, 1], 4)))
        table.append(FactorTable(falls[:, None], np.array([True])))
    told, entropy = information(sides[1], table[1])
    assert measure.mutual_information_gap(told, entropy)[0] > 0.7
    singles = measure.single_code_scores(sides[0], table[0], sides[1], table[1])
    assert singles[0, 0] > 0.95 and singles[1, 0] < 0.2


def test_segments_are_of_real_steps():
    x = np.arange(12.0).reshape(1, 6, 2).repeat(2, axis=0)
    x[1, 4:] = 1e6
    means = measure.segment_means(x, np.array([6, 4]), num_segments=2)
    np.testing.assert_allclose(means[0], [[2, 3], [8, 9]])
    np.testing.assert_allclose(means[1], [[1, 2], [5, 6]])
    short = measure.segment_means(x, np.array([1, 2]), num_segments=3)
    np.testing.assert_allclose(short[0], x[0, [0, 0, 0]])
    np.testing.assert_allclose(short[1], x[1, [0, 0, 1]])
