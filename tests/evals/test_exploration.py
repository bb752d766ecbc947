"""Components, their names and their stability, on codes and decoders whose axes are known."""

import dataclasses

import numpy as np
import pytest
from oracles import CANVAS, Clueless, DigitOracle, digit_arrays
from scipy.linalg import hadamard

from diffsda_jax.evals import component_names, component_stability, exploration
from diffsda_jax.evals.component_names import Attribute, associations, describe, find_meaning
from diffsda_jax.evals.exploration import Codes, fit_components, gather_codes
from diffsda_jax.evals.exploration_report import (
    FactorReport,
    Stability,
    arrays_of,
    markdown_of,
    metrics_of,
)
from diffsda_jax.evals.interface import encode_clips
from diffsda_jax.evals.rotation import varimax_rotation
from diffsda_jax.evals.traversal_pictures import draw_series, draw_videos, traverse
from diffsda_jax.factor_moves import load_components
from diffsda_jax.factors import Factors

AXES = hadamard(4) / 2  # orthonormal, and each axis weighs on all coordinates alike
SPREAD = np.array([2.0, 1.2, 0.6, 0.2])


def rng(seed=0):
    return np.random.default_rng(seed)


def codes_of(values):
    return Codes(values.astype(np.float32), np.arange(len(values)))


def known_codes(num=4000, seed=0):
    """Codes with known axes; all coordinates have one variance, so standardising turns nothing."""
    return codes_of(rng(seed).standard_normal((num, 4)) * SPREAD @ AXES.T + 3.0)


def best(coordinates, sources):
    return np.abs(component_stability.correlations(coordinates, sources)).max(0)


def test_pca_recovers_known_axes():
    components = fit_components(known_codes(), "static", num_components=4)
    np.testing.assert_allclose(np.abs(np.sum(components.directions * AXES.T, 1)), 1, atol=5e-3)
    np.testing.assert_allclose(components.share, SPREAD**2 / np.sum(SPREAD**2), atol=0.02)
    assert components.level == "sequence" and len(components) == 4


@pytest.mark.parametrize("decomposition", ["ica", "varimax"])
def test_components_of_equal_variance_need_more_than_pca(decomposition):
    """Two sources of one variance on three coordinates each: PCA turns them, others find them."""
    sources = rng(3).uniform(-1, 1, (4000, 2))
    loads = np.array([[1, 0], [1, 0], [-1, 0], [0, 1], [0, 1], [0, -1.0]])
    values = sources @ loads.T + 0.05 * rng(4).standard_normal((4000, 6))
    turned = fit_components(codes_of(values + 0.02 * values[:, ::-1]), "static", num_components=2)
    assert best(turned.coordinates(values), sources).min() < 0.9
    found = fit_components(
        codes_of(values), "static", num_components=2, decomposition=decomposition
    )
    assert best(found.coordinates(values), sources).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1)
    # Along a direction the coordinate grows by the distance, the other one not at all.
    moved = found.move(values, 0, 1.0 / np.sqrt(6))
    change = found.coordinates(moved) - found.coordinates(values)
    np.testing.assert_allclose(change, np.tile([1.0, 0.0], (len(values), 1)), atol=0.05)


def test_the_varimax_rotation_is_orthogonal_and_raises_the_criterion():
    loadings = rng().standard_normal((6, 3))
    rotation = varimax_rotation(loadings)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-9)
    turns = [np.linalg.qr(rng(seed).standard_normal((3, 3)))[0] for seed in range(50)]
    reached, *others = [
        np.var((loadings @ turn) ** 2, axis=0).sum() for turn in (rotation, np.eye(3), *turns)
    ]
    assert reached > max(others)


def test_alpha_0_returns_the_sample_and_others_follow_the_formula():
    codes = known_codes()
    components = fit_components(codes, "static", num_components=4)
    values = codes.values[:9]
    np.testing.assert_array_equal(components.move(values, 2, 0.0), values)
    mean, std, v = components.mean, components.std, components.directions[2]
    expected = ((values - mean) / std + 0.3 * v * np.sqrt(4)) * std + mean
    moved = components.move(values, 2, 0.3)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)
    assert moved.dtype == np.float32
    alpha = components.alphas(1.5)[2]  # 1.5 standard deviations of the third source
    change = (components.move(values, 2, alpha) - values) @ AXES[:, 2]
    np.testing.assert_allclose(np.abs(change), 1.5 * SPREAD[2], rtol=0.05)


def factors_of(num=30, steps=5, seed=0):
    draw = rng(seed).standard_normal
    return Factors(
        static=draw((num, 4), dtype=np.float32), dynamic=draw((num, steps, 2), dtype=np.float32)
    )


@pytest.mark.parametrize(
    ("factor", "level"), [("static", "step"), *[("dynamic", x) for x in exploration.LEVELS]]
)
def test_clips_decoded_at_alpha_0_are_those_of_the_factors(factor, level):
    factors = factors_of()
    components = fit_components(gather_codes(factors, factor, level), factor, num_components=2)
    moved, titles = traverse(components, factors, 3)
    assert titles[1] == "not moved" and len(moved) == 6
    mix = rng(1).standard_normal((6, 3))

    def decode(f):  # a linear decoder
        s = np.repeat(f.static[:, None], f.dynamic.shape[1], 1)
        return np.concatenate([s, f.dynamic], -1) @ mix

    np.testing.assert_array_equal(moved[1].static, factors.static)
    np.testing.assert_array_equal(moved[1].dynamic, factors.dynamic)
    np.testing.assert_array_equal(decode(moved[4]), decode(factors))
    change = decode(moved[2]) - decode(factors)
    assert np.abs(change).max() > 0.1
    if level == "step":  # all steps and clips move alike
        np.testing.assert_allclose(change, np.broadcast_to(change[0, 0], change.shape), atol=1e-4)


@pytest.mark.parametrize("level", exploration.LEVELS)
def test_bounded_dynamics_move_within_their_bounds(level):
    factors = factors_of(100)
    factors = factors.replace(dynamic=np.tanh(2 * factors.dynamic))
    codes = gather_codes(factors, "dynamic", level, bounded=True)
    np.testing.assert_allclose(
        np.tanh(codes.values), factors.dynamic.reshape(codes.values.shape), atol=2e-3
    )
    components = fit_components(codes, "dynamic", num_components=2)
    np.testing.assert_array_equal(components.move_factors(factors, 0, 0.0).dynamic, factors.dynamic)
    moved = components.move_factors(factors, 0, 0.5).dynamic
    assert np.abs(moved).max() <= 1 and moved.dtype == factors.dynamic.dtype
    shift = 0.5 * np.sqrt(len(components.mean)) * components.directions[0] * components.std
    wanted = np.tanh(codes.values.reshape(factors.dynamic.shape) + shift.reshape(-1, 2))
    np.testing.assert_allclose(moved, wanted, atol=1e-5)
    outside = factors.replace(dynamic=factors.dynamic.copy())
    outside.dynamic[0, :2] = [1.05, -1.0]  # a prior may draw them
    assert np.abs(components.move_factors(outside, 0, 50.0).dynamic).max() <= 1
    np.testing.assert_array_equal(components.move_factors(outside, 0, 0.0).dynamic, outside.dynamic)
    back = components.move_factors(outside, 0, -3.0 * np.sign(shift[0])).dynamic
    assert back[0, 0, 0] < 0.99
    assert not gather_codes(factors, "static", level, bounded=True).bounded


def test_components_follow_what_a_bounded_factor_holds():
    """Two sources of a factor whose tanh saturates: straight directions fit them before tanh."""
    sources = rng(5).uniform(-1, 1, (600, 4, 2)).astype(np.float32)
    dynamic = np.tanh(sources @ np.array([[3.0, 0.6], [-0.6, 2.0]], np.float32))
    factors = Factors(static=sources[:, 0], dynamic=dynamic)
    found = []
    for bounded in (False, True):
        codes = gather_codes(factors, "dynamic", bounded=bounded)
        components = fit_components(codes, "dynamic")
        found.append(best(components.coordinates(codes.values), sources.reshape(-1, 2)))
    assert found[0].min() < 0.96 and found[1].min() > found[0].min() + 0.02


def test_padding_is_left_out():
    factors, length = factors_of(4, 5), np.array([5, 2, 5, 3])
    codes = gather_codes(factors, "dynamic", "step", length)
    assert len(codes.values) == 15 and not ((codes.sequence == 1) & (codes.step > 1)).any()
    whole = gather_codes(factors, "dynamic", "sequence", length)
    np.testing.assert_array_equal(whole.values, factors.dynamic[[0, 2]].reshape(2, -1))
    with pytest.raises(ValueError, match="dynamic_over is 'sequence' and 0 of 4 sequences"):
        gather_codes(factors, "dynamic", "sequence", np.full(4, 3))


def test_components_of_sequences_of_another_length_are_refused():
    codes = gather_codes(factors_of(), "dynamic", "sequence")
    components = fit_components(codes, "dynamic")
    with pytest.raises(ValueError, match="are for 5 steps, these have 4"):
        components.move_factors(factors_of(3, 4), 0, 1.0)


def test_other_decompositions_by_name():
    name = "sklearn.decomposition:TruncatedSVD"
    found = fit_components(known_codes(), "static", decomposition=name, num_components=1)
    assert abs(found.directions[0] @ AXES[:, 0]) > 0.95
    with pytest.raises(ValueError, match="'tsne'; allowed: pca, ica, varimax, or module:Class"):
        fit_components(known_codes(), "static", decomposition="tsne")
    with pytest.raises(ValueError, match="NMF' cannot be fitted to 4000 codes .*Negative"):
        fit_components(known_codes(), "static", decomposition="sklearn.decomposition:NMF")
    with pytest.raises(ValueError, match="StandardScaler' cannot be fitted"):
        fit_components(
            known_codes(), "static", decomposition="sklearn.preprocessing:StandardScaler"
        )


def test_a_constant_coordinate_does_no_harm():
    values = np.concatenate([known_codes().values, np.full((4000, 1), 7.0, np.float32)], 1)
    components = fit_components(codes_of(values), "static", num_components=5)
    assert np.isfinite(components.directions).all()
    np.testing.assert_allclose(components.share.sum(), 1.0)
    np.testing.assert_array_equal(components.move(values, 0, 1.0)[:, 4], values[:, 4])


def test_stability_over_samples_has_an_oracle_and_chance():
    codes = known_codes()
    components = fit_components(codes, "static", num_components=4)
    found, chance = component_stability.stability_over_samples(
        components, codes, decomposition="pca"
    )
    assert found.min() > 0.99 > chance + 0.2
    # The same size on all axes: there are no components, whatever PCA says.
    codes = codes_of(rng().standard_normal((400, 20)))
    components = fit_components(codes, "static", num_components=4)
    found, chance = component_stability.stability_over_samples(
        components, codes, decomposition="pca"
    )
    assert chance < 0.35 and found.mean() < chance + 0.15


def test_stability_over_models_has_an_oracle_and_chance():
    codes = known_codes()
    components = fit_components(codes, "static", num_components=4)
    coordinates = components.coordinates(codes.values)
    # The other model holds the same in other coordinates.
    same = codes.values[:, [2, 0, 3, 1]] * np.array([2, -1, 1, 3], np.float32)
    other = fit_components(codes_of(same), "static", num_components=4)
    found, chance = component_stability.stability_over_models(coordinates, other, same)
    assert found.min() > 0.99 > chance + 0.2
    strange = known_codes(seed=9).values
    other = fit_components(codes_of(strange), "static", num_components=4)
    found, chance = component_stability.stability_over_models(coordinates, other, strange)
    assert found.max() < 0.1 and chance < 0.1


def test_eta_is_1_for_what_a_class_decides_and_0_for_random_classes():
    values = np.repeat(np.arange(10), 6)
    coordinates = np.stack(
        [values + 0.01 * rng().standard_normal(60), rng(1).standard_normal(60)], 1
    )
    eta = associations(coordinates, values, True)
    assert eta[0] > 0.999 and eta[1] < 0.4
    many = rng(2).integers(50, size=(100, 60))  # nearly one member each
    assert np.mean([associations(coordinates[:, 1:], v, True) ** 2 for v in many]) < 0.1
    assert associations(coordinates, np.arange(60), True).tolist() == [0.0, 0.0]


def test_names_say_what_is_followed_and_what_else_moves():
    items = [
        Attribute("x position", np.zeros(3)),
        Attribute("static label", np.zeros(3, int), True),
        Attribute("y position", np.zeros(3)),
    ]
    name = describe(items, np.array([-0.97, 0.2, 0.1]), np.array([0.9, 3.2, 0.01]))
    assert name == "x position (r = -0.97), also moves static label of 3 % of clips"
    name = describe(
        items, np.array([0.1, 0.9, 0.1]), np.array([np.nan, 50, 0.2]), ["", ", 1 to 2", ""]
    )
    assert name == "static label (eta = 0.90), 1 to 2, also moves y position by 0.20 std"
    name = describe(items, np.full(3, 0.1), np.array([0.2, 0.1, 0.0]))
    assert name == "nothing that is known, moves x position by 0.20 std"
    assert describe([], np.zeros(0), np.zeros(0)) == "nothing that is known"


def test_effects_are_in_units_of_the_real_steps():
    factors = factors_of()
    components = fit_components(gather_codes(factors, "dynamic"), "dynamic")
    values = np.where(np.arange(5) < 3, factors.dynamic[..., 0], 1e3)  # the rest is padding

    def effects(values, **lengths):
        known = Attribute("place", values, measure=lambda x: x[..., 0])
        decode = lambda sets: np.stack([one.dynamic for one in sets])  # noqa: E731
        return component_names.measure_effects(components, factors, [known], decode, **lengths)

    padded = effects(values, known_length=np.full(30, 3))
    np.testing.assert_allclose(padded, effects(values[:, :3]), rtol=1e-5)
    some = factors[:4]  # fewer clips are moved than are known
    moved = component_names.measure_effects(
        components,
        some,
        [Attribute("place", values, measure=lambda x: x[..., 0])],
        lambda sets: np.stack([one.dynamic for one in sets]),
        length=np.full(4, 5),
        known_length=np.full(30, 3),
    )
    assert np.isfinite(moved).all()
    by_clip = Attribute("mean", values[:, 0])
    assert by_clip.spread(np.full(30, 3)) == pytest.approx(np.std(values[:, 0]))


@pytest.fixture(scope="module")
def digits():
    data = digit_arrays("test", 80)
    return data, DigitOracle(data)


def meaning_of(model, data, decomposition):
    factors = encode_clips(model, data["x"])
    codes = gather_codes(factors, "dynamic")
    components = fit_components(codes, "dynamic", decomposition=decomposition)
    moved = {"x": data["x"][:10]}
    attributes = component_names.make_attributes(data, moved, to_frames=lambda x: x)

    def decode(sets):
        return np.stack([model.decode(one) for one in sets])

    return components, find_meaning(
        components, codes, attributes, factors[:10], decode, num_random=4
    )


def test_axes_of_a_model_that_knows_the_position_are_named(digits):
    """ICA finds rows and columns in a d that is a rotated position; PCA only their plane."""
    data, oracle = digits
    angle = np.pi / 6
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    class Turned(DigitOracle):
        def encode(self, x, length=None, mask=None):
            factors = super().encode(x)
            return factors.replace(dynamic=(factors.dynamic @ turn).astype(np.float32))

        def decode(self, factors, start=None, num_steps=32, seed=0):
            return super().decode(factors.replace(dynamic=factors.dynamic @ turn.T))

    components, found = meaning_of(Turned(data), data, "ica")
    keys = [item.key for item in found.attributes]
    assert keys == ["static_label", "dynamic_label", "y_position", "x_position"]
    r = np.abs(found.association[:, 2:])
    assert r.max(0).min() > 0.95 and r.argmax(0).tolist() != [0, 0]
    assert {name.split(" (")[0] for name in found.names} == {"x position", "y position"}
    np.testing.assert_allclose(found.together, [[np.nan] * 2] * 2 + [[1, 1]] * 2, atol=1e-6)
    effect = np.take_along_axis(found.effect[:, 2:], r.argmax(0)[None], 0)[0]
    np.testing.assert_allclose(effect, 1.0, atol=0.35)  # digits leave the canvas here and there
    assert (effect > 1.2 * found.effect_chance[2:]).all()
    assert np.isnan(found.effect[:, :2]).all()  # there is no judge
    turned, _ = meaning_of(Turned(data), data, "pca")
    assert len(turned) == len(components) == 2


def test_components_of_noise_have_no_name(digits):
    data, _ = digits
    _, found = meaning_of(Clueless(data), data, "pca")
    assert np.abs(found.association).max() < 0.2
    assert found.together[2:].max() < 0.2
    assert all(name.startswith("nothing that is known") for name in found.names)


def report_of(digits):
    data, oracle = digits
    components, meaning = meaning_of(oracle, data, "pca")
    stability = Stability(np.array([0.9, 0.8]), 0.5)
    return FactorReport(components, meaning, stability, stability)


def test_the_report_has_a_row_for_each_component_and_one_for_chance(digits):
    report = report_of(digits)
    metrics = metrics_of(report)
    assert metrics["dynamic/same_in_samples"] == pytest.approx(0.85)
    assert metrics["dynamic/same_in_models_chance"] == 0.5
    assert {
        "dynamic/d1_variance_percent",
        "dynamic/d2_x_position_r",
        "dynamic/d1_y_position_moved_std",
        "dynamic/random_y_position_moved_std",
        "dynamic/x_position_first_two_together",
        "dynamic/d1_static_label_eta",
    } <= metrics.keys()
    assert metrics["dynamic/x_position_first_two_together"] > 0.999
    lines = markdown_of(report).splitlines()
    assert lines[2].startswith("| component | variance | static label: eta |")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert [line[:5] for line in lines[4:7]] == ["| d1 ", "| d2 ", "| ran"]
    assert arrays_of(report)["dynamic_directions"].shape == (2, 2)


@pytest.mark.parametrize("bounded", [False, True])
def test_kept_components_move_a_bounded_factor_within_its_bounds(digits, tmp_path, bounded):
    factors = factors_of()
    factors = factors.replace(dynamic=np.tanh(factors.dynamic))
    codes = gather_codes(factors, "dynamic", bounded=bounded)
    found = fit_components(codes, "dynamic", num_components=2)
    report = dataclasses.replace(report_of(digits), components=found)
    np.savez(tmp_path / "components.npz", **arrays_of(report))
    loaded, _ = load_components(tmp_path / "components.npz", "dynamic")
    moved = loaded.move_factors(factors, 1, 3.0).dynamic
    np.testing.assert_array_equal(moved, found.move_factors(factors, 1, 3.0).dynamic)
    assert (np.abs(moved).max() <= 1) == bounded


def test_pictures_show_a_row_for_each_component(digits):
    data, oracle = digits
    report = report_of(digits)
    moved, columns = traverse(report.components, encode_clips(oracle, data["x"][:2]), 3, alpha=0.5)
    clips = np.stack([oracle.decode(one) for one in moved])
    clips = clips.reshape(2, 3, *clips.shape[1:])
    drawn = draw_videos(clips, report.short_titles(), columns, lambda x: x)
    assert len(drawn) == 2 and len(drawn[0][1]) == clips.shape[3]
    assert columns == ["alpha -0.5", "not moved", "alpha +0.5"]
    still = drawn[0][0]
    assert still.shape[0] > 2 * CANVAS and still.ndim == 3 and still.std() > 0
    series = clips.reshape(*clips.shape[:4], -1)[..., :3]
    pictures = draw_series(
        series, report.short_titles(), columns, denormalize=lambda x: x, length=np.array([3, 4])
    )
    assert len(pictures) == 2 and pictures[0].std() > 0
