import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsda_jax.data.sources import ElementSpec, Source
from diffsda_jax.data.transforms import Normalizer, check_finite, fit_length, fit_normalizer


class Arrays(Source):
    name = "arrays"

    def __init__(self, elements, kind="series"):
        super().__init__("train")
        self.elements = elements
        shape = elements[0]["x"].shape[1:]
        names = tuple(f"f{i}" for i in range(shape[0])) if kind == "series" else None
        self.spec = ElementSpec(kind, shape, feature_names=names)

    def __len__(self):
        return len(self.elements)

    def load(self, index, rng):
        return dict(self.elements[index])

    def _identity(self):
        return len(self)


def series(steps, features=2, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, features)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 12),
    length=st.integers(1, 12),
    mode=st.sampled_from(["resample", "crop", "pad"]),
    video=st.booleans(),
    random=st.booleans(),
)
def test_shapes_masks_and_lengths(steps, length, mode, video, random):
    x = np.ones((steps, 2, 2, 1) if video else (steps, 3), np.float32)
    element = {"x": x, "position": np.ones((steps, 2), np.float32), "static_label": 4}
    if mode == "crop" and steps < length:
        with pytest.raises(ValueError, match=f"{steps} steps, too short for .*length={length}"):
            fit_length(element, length, mode)
        return
    out = fit_length(element, length, mode, np.random.default_rng(0), random)
    assert out["x"].shape == (length, *x.shape[1:]) and out["x"].dtype == np.float32
    assert out["mask"].shape == ((length,) if video else (length, 3))
    assert out["mask"].dtype == bool and out["static_label"] == 4
    if video:
        assert out["position"].shape == (length, 2)
    real = min(steps, length) if mode == "pad" else length
    assert out["length"] == real
    # Padding is at the end only, zero and unobserved; all else is the data.
    assert out["mask"][:real].all() and not out["mask"][real:].any()
    np.testing.assert_allclose(out["x"][:real], 1.0)
    assert (out["x"][real:] == 0).all()


@pytest.mark.parametrize(("steps", "length"), [(7, 20), (29, 20), (2, 5), (1, 3), (20, 20)])
def test_resampling_matches_interp(steps, length):
    x = series(steps)
    out = fit_length({"x": x}, length)["x"]
    places = np.linspace(0, steps - 1, length)
    twin = np.stack([np.interp(places, np.arange(steps), column) for column in x.T], -1)
    np.testing.assert_allclose(out, twin, atol=1e-6)


def test_resampling_never_invents_observations():
    x = series(5, 1)
    mask = np.array([1, 1, 0, 1, 1], bool)[:, None]
    x[2] = np.nan
    out = fit_length({"x": x, "mask": mask}, 9)
    # Places 0, .5, ..., 4: those that touch step 2 are lost.
    assert out["mask"][:, 0].tolist() == [True] * 3 + [False] * 3 + [True] * 3
    assert np.isfinite(out["x"]).all() and (out["x"][3:6] == 0).all()
    np.testing.assert_allclose(out["x"][1], (x[0] + x[1]) / 2, rtol=1e-6)


def test_video_resampling_takes_whole_frames_with_their_positions():
    x = np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)
    position = np.arange(10, dtype=np.float32).reshape(5, 2)
    out = fit_length({"x": x, "position": position}, 3)
    assert out["x"][:, 0, 0, 0].tolist() == [0, 2, 4]
    np.testing.assert_array_equal(out["position"], position[[0, 2, 4]])


def test_windows_are_first_or_random():
    x = np.arange(10, dtype=np.float32)[:, None]
    assert fit_length({"x": x}, 4, "crop")["x"][:, 0].tolist() == [0, 1, 2, 3]
    rng = np.random.default_rng(0)
    windows = [fit_length({"x": x}, 4, "crop", rng, random=True)["x"][:, 0] for _ in range(200)]
    assert all((np.diff(window) == 1).all() for window in windows)
    assert {window[0] for window in windows} == set(range(7))


def test_resampling_ignores_randomness():
    out = fit_length({"x": series(9)}, 4, "resample", np.random.default_rng(0), random=True)
    np.testing.assert_array_equal(out["x"], fit_length({"x": series(9)}, 4)["x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "stretch"), "length_mode 'stretch': use one of"),
        ((0, "crop"), "length=0: use 1"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_length({"x": series(5)}, *arguments)
    with pytest.raises(ValueError, match="no steps"):
        fit_length({"x": series(0)}, 3)


def test_normalizer_reaches_the_target_over_observed_values():
    elements = []
    for index in range(20):
        x = series(6, 2, index) * [3.0, 0.01] + [1000.0, -5.0]
        mask = np.random.default_rng(index).uniform(size=x.shape) < 0.7
        elements.append({"x": np.where(mask, x, np.nan).astype(np.float32), "mask": mask})
    normalizer = fit_normalizer(Arrays(elements), target_std=0.5)
    out = [normalizer.apply(e["x"], e["mask"]) for e in elements]
    values = np.concatenate(out)
    mask = np.concatenate([e["mask"] for e in elements])
    assert values.dtype == np.float32 and (values[~mask] == 0).all()
    for feature in range(2):
        seen = values[mask[:, feature], feature]
        assert abs(seen.mean()) < 2e-3 and abs(seen.std() - 0.5) < 2e-3
    back = normalizer.invert(out[0])
    keep = elements[0]["mask"]
    np.testing.assert_allclose(back[keep], elements[0]["x"][keep], rtol=1e-5)


def test_normalizer_without_a_length_counts_all_steps_of_long_sequences():
    x = series(300)
    x[100:] = 50 * x[100:] + 7  # far from the first window
    elements = [{"x": x}, {"x": series(4, seed=1)}]
    normalizer = fit_normalizer(Arrays(elements), target_std=0.5)
    every = np.concatenate([element["x"] for element in elements]).astype(np.float64)
    np.testing.assert_allclose(normalizer.mean, every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.std, every.std(0), rtol=1e-5)
    rng = np.random.default_rng(0)
    for mode in ("crop", "pad"):
        out = [fit_length({"x": x}, 10, mode, rng, random=True) for _ in range(400)]
        values = np.stack([normalizer.apply(e["x"], e["mask"]) for e in out])
        assert 0.35 < values.std() < 0.65


def test_normalizer_survives_json():
    normalizer = fit_normalizer(Arrays([{"x": series(9)}]), target_std=0.3)
    back = Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    np.testing.assert_array_equal(back.apply(series(4)), normalizer.apply(series(4)))
    nothing = Normalizer.from_dict(json.loads(json.dumps(Normalizer().to_dict())))
    np.testing.assert_array_equal(nothing.apply(series(4)), series(4))
    np.testing.assert_array_equal(nothing.invert(series(4)), series(4))


def test_a_normalizer_takes_mean_and_deviation_or_neither():
    ones = np.ones(2, np.float32)
    for statistics in ({"mean": ones}, {"std": ones}):
        with pytest.raises(ValueError, match="give both, or None for both"):
            Normalizer(**statistics)
    for known in ("mean", "std"):
        values = Normalizer().to_dict() | {known: [1.0, 1.0]}
        with pytest.raises(ValueError, match="give both"):
            Normalizer.from_dict(values)


def test_video_is_left_as_it_is_except_where_masked():
    x = np.full((3, 2, 2, 1), 0.5, np.float32)
    normalizer = fit_normalizer(Arrays([{"x": x}], kind="video"))
    assert normalizer.mean is None
    out = normalizer.apply(x, np.array([True, True, False]))
    assert (out[:2] == 0.5).all() and (out[2] == 0).all()


def test_constant_features_are_named_and_kept_finite(caplog):
    x = series(8)
    x[:, 1] = 7.3
    normalizer = fit_normalizer(Arrays([{"x": x}]))
    assert "constant features: 'f1'" in caplog.text
    out = normalizer.apply(x)
    np.testing.assert_allclose(out[:, 1], 0.0, atol=1e-5)


def test_a_feature_that_is_never_observed_is_refused():
    mask = np.ones((5, 2), bool)
    mask[:, 1] = False
    with pytest.raises(ValueError, match="feature 'f1' has no observed value"):
        fit_normalizer(Arrays([{"x": series(5), "mask": mask}]))


def test_nan_is_named_by_item_step_and_feature():
    x = series(5)
    x[3, 1] = np.nan
    source = Arrays([{"x": series(5)}, {"x": x}])
    with pytest.raises(ValueError, match=r"arrays/train\[1\]: value nan at step 3, feature 'f1'"):
        fit_normalizer(source)
    check_finite({"x": x, "mask": np.isfinite(x)}, source, 1)
