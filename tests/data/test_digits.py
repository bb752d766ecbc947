import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.sources.digits import (
    MOTIONS,
    load_scans,
    position_range,
    render,
    sample_trajectory,
    scan_indices,
)
from diffsda_jax.data.transforms import Normalizer

RNG = np.random.default_rng(0)


def plain_render(scan, position, canvas):
    """Loop twin of `render` for one frame."""
    scale = canvas // 16
    frame = np.zeros((canvas, canvas))
    for row in range(canvas):
        for column in range(canvas):
            v = (row - position[0]) / scale + 3.5
            u = (column - position[1]) / scale + 3.5
            for i in range(8):
                for j in range(8):
                    frame[row, column] += (
                        max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j)) * scan[i, j]
                    )
    return 2 * frame - 1


@pytest.mark.parametrize("canvas", [16, 32])
def test_render_matches_its_plain_twin(canvas):
    scan = load_scans()[0][3]
    low, high = position_range(canvas)
    positions = np.array([[low, high], [low + 1.3, low + 2.8]], np.float32)
    frames = render(scan, positions, canvas)
    assert frames.shape == (2, canvas, canvas, 1) and frames.dtype == np.float32
    for frame, position in zip(frames, positions, strict=True):
        np.testing.assert_allclose(frame[..., 0], plain_render(scan, position, canvas), atol=1e-5)


def test_render_at_whole_pixels_is_a_copy():
    scan = load_scans()[0][0]
    frame = render(scan, np.array([[3.5, 8.5]], np.float32), 16)[0, ..., 0]
    np.testing.assert_array_equal(frame[:8, 5:13], 2 * scan - 1)
    assert (frame[8:] == -1).all()


@pytest.mark.parametrize("canvas", [16, 32])
def test_no_ink_is_lost_and_the_centre_of_mass_follows_the_position(canvas):
    scans = load_scans()[0][:16]
    rng = np.random.default_rng(0)
    positions = rng.uniform(*position_range(canvas), (16, 8, 2)).astype(np.float32)
    ink = (render(scans, positions, canvas)[..., 0] + 1) / 2
    scale = canvas // 16
    total = scans.sum((1, 2))[:, None] * scale**2
    np.testing.assert_allclose(ink.sum((-1, -2)), np.broadcast_to(total, (16, 8)), rtol=1e-5)
    pixels = np.arange(canvas)
    centre = (
        np.stack([(ink.sum(-1) * pixels).sum(-1), (ink.sum(-2) * pixels).sum(-1)], -1)
        / ink.sum((-1, -2))[..., None]
    )
    offset = centre - positions
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1], offset.shape), atol=1e-3)


def test_render_refuses_other_canvases():
    with pytest.raises(ValueError, match="canvas=20: use one of"):
        render(np.zeros((8, 8), np.float32), np.zeros((1, 2), np.float32), 20)


@pytest.mark.parametrize("canvas", [16, 32])
@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_trajectories_stay_inside_and_go_their_way(motion, canvas):
    rng = np.random.default_rng(motion)
    low, high = position_range(canvas)
    tracks = np.stack([sample_trajectory(motion, rng, 8, canvas) for _ in range(200)])
    assert tracks.shape == (200, 8, 2)
    assert tracks.min() >= low - 1e-5 and tracks.max() <= high + 1e-5
    travel = (tracks[:, -1] - tracks[:, 0]) / (high - low)
    name = MOTIONS[motion]
    if name in ("clockwise", "counter-clockwise"):
        step = np.diff(tracks, axis=1)
        turn = step[:, :-1, 1] * step[:, 1:, 0] - step[:, :-1, 0] * step[:, 1:, 1]
        sign = 1 if name == "clockwise" else -1
        assert (sign * turn.sum(1) > 0).all()
    else:
        wanted = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}.get(
            name, (1, 1) if name == "down-right" else (-1, 1)
        )
        for axis in range(2):
            if wanted[axis]:
                assert (wanted[axis] * travel[:, axis] > 0.4).all()
            else:
                assert (np.abs(travel[:, axis]) < 0.25).all()


def test_splits_share_no_scan_and_hold_all_classes():
    train, test = scan_indices("train"), scan_indices("test")
    assert len(train) + len(test) == 1797 and not set(train) & set(test)
    counts = np.bincount(load_scans()[1][test], minlength=10)
    assert counts.min() >= 34 and counts.max() <= 38


def test_scans_are_those_that_scikit_learn_reads(monkeypatch):
    digits = load_digits()
    for found in (importlib.util.find_spec, lambda name: None):  # by their file, by the library
        monkeypatch.setattr(importlib.util, "find_spec", found)
        scans, classes = load_scans.__wrapped__()
        np.testing.assert_array_equal(scans, (digits.images / 16).astype(np.float32))
        np.testing.assert_array_equal(classes, digits.target)
        assert scans.dtype == np.float32 and classes.dtype == np.int64


def test_scans_are_read_without_importing_what_takes_seconds():
    code = "import sys; from diffsda_jax.data.sources import digits; digits.load_scans(); "
    code += "print('sklearn' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert printed.stdout == b"False\n"


def test_elements_are_a_function_of_seed_split_and_index():
    first = make_source("digits", "train", num_clips=50)
    again = make_source("digits", "train", num_clips=50)
    for index in (0, 17, 49):
        one = first.load(index, np.random.default_rng(1))
        two = again.load(index, np.random.default_rng(2))
        assert set(one) == {"x", "position", "static_label", "static_id", "dynamic_label"}
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
        scans, classes = load_scans()
        assert one["static_label"] == classes[one["static_id"]]
        np.testing.assert_array_equal(
            one["x"], render(scans[one["static_id"]], one["position"], 16)
        )
        assert one["x"].min() >= -1 and one["x"].max() <= 1 + 1e-6
    other = make_source("digits", "train", num_clips=50, seed=1)
    assert not np.array_equal(first.load(0, RNG)["x"], other.load(0, RNG)["x"])
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    with pytest.raises(IndexError):
        first.load(50, RNG)


def test_default_sizes_and_labels():
    train, test = make_source("digits", "train"), make_source("digits", "test", canvas=32)
    assert (len(train), len(test)) == (20000, 400)
    assert test.spec.shape == (32, 32, 1)
    assert test.spec.dynamic_names == MOTIONS and len(test.spec.static_names) == 10
    arrays = load_arrays(test, length=8, normalizer=Normalizer())
    assert np.bincount(arrays["dynamic_label"], minlength=8).min() > 25
    assert np.bincount(arrays["static_label"], minlength=10).min() > 20


@pytest.mark.parametrize(("option", "value"), [("num_frames", 1), ("num_clips", 0)])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"{option}={value} .*use"):
        make_source("digits", "train", **{option: value})


def test_a_judge_reads_motion_and_digit_from_clips():
    train = load_arrays(
        make_source("digits", "train"), length=8, normalizer=Normalizer(), limit=3000
    )
    test = load_arrays(make_source("digits", "test"), length=8, normalizer=Normalizer())

    def tracks(x):
        ink = (x[..., 0] + 1) / 2
        grid = np.arange(16)
        rows, columns = (ink.sum(-1) * grid).sum(-1), (ink.sum(-2) * grid).sum(-1)
        centre = np.stack([rows, columns], -1) / ink.sum((-1, -2))[..., None]
        step = np.diff(centre, axis=1)
        turn = step[:, :-1, 1] * step[:, 1:, 0] - step[:, :-1, 0] * step[:, 1:, 1]
        return np.concatenate([step.reshape(len(x), -1), turn], 1)

    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    judge.fit(tracks(train["x"]), train["dynamic_label"])
    accuracy = judge.score(tracks(test["x"]), test["dynamic_label"])
    assert accuracy > 0.97, accuracy
