import dataclasses

import numpy as np
import pytest

from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.face_verification import calibrate_threshold, verify
from diffsda_jax.evals.faces import face_reconstruction, faces, look, swap_scores
from diffsda_jax.evals.interface import encode_clips
from diffsda_jax.evals.network_options import NetworkOptions
from diffsda_jax.evals.networks import CallableNetwork
from diffsda_jax.evals.swap import make_pairs
from diffsda_jax.factors import Factors

SIDE, STEPS, CLIPS = 12, 6, 60
FORMS = ("corrected", "reference")
POINTS = NetworkOptions(reading="points")


def render(colors, places):
    """Squares of 3 x 3 pixels on black: who is the colour, the motion is where it is."""
    frames = np.full((*places.shape[:2], SIDE, SIDE, 3), -1.0, np.float32)
    for clip, (color, path) in enumerate(zip(colors, places, strict=True)):
        for step, (x, y) in enumerate(path):
            frames[clip, step, y : y + 3, x : x + 3] = color
    return frames


def see_color(frames):
    """The embedding is the colour."""
    color = frames.max((1, 2))
    return color, color.max(1) > -0.99


def see_corner(frames):
    """The landmarks are the upper left and the lower right corner, (x, y)."""
    bright = frames.max(3) > -0.99
    across, along = bright.any(1), bright.any(2)
    first = np.stack([across.argmax(1), along.argmax(1)], -1)
    return np.stack([first, first + 2], 1).astype(np.float32), across.any(1)


NETWORKS = {
    "identity": CallableNetwork(see_color, NetworkOptions(batch_size=1000)),
    "landmarks": CallableNetwork(see_corner, POINTS, "landmarks"),
    "body": CallableNetwork(see_color, NetworkOptions(), "body"),
}


class SquareOracle:
    """Knows colour and place; samples are ideal."""

    def encode(self, x, length=None, mask=None):
        flat = x.reshape(-1, SIDE, SIDE, 3)
        color = see_color(flat)[0].reshape(*x.shape[:2], 3)
        return Factors(static=color[:, 0], dynamic=see_corner(flat)[0][:, 0].reshape(len(x), -1, 2))

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return render(factors.static, np.asarray(factors.dynamic, int))

    def invert(self, x, factors, num_steps=32):
        return np.asarray(x)


class Clueless(SquareOracle):
    """Samples are of random persons and motions."""

    def decode(self, factors, start=None, num_steps=32, seed=0):
        rng = np.random.default_rng(len(factors))
        return render(*truth(len(factors), rng))


def truth(count, rng):
    colors = rng.uniform(-0.8, 0.7, (count, 3)).astype(np.float32)
    return colors, rng.integers(0, SIDE - 3, (count, STEPS, 2))


@pytest.fixture(scope="module")
def swaps():
    """Donors and the ideal result."""
    rng = np.random.default_rng(0)
    (colors, places), (other_colors, other_places) = truth(CLIPS, rng), truth(CLIPS, rng)
    donors = render(colors, places), render(other_colors, other_places)
    return render(colors, other_places), *donors


def test_an_ideal_swap_is_perfect_and_others_are_chance(swaps):
    result, static, dynamic = swaps
    ideal = swap_scores(*swaps, NETWORKS)
    assert ideal["aed"] == ideal["body_aed"] == ideal["akd_pixels"] == 0.0
    assert ideal["verified_percent"] == ideal["body_verified_percent"] == 100.0
    assert ideal["verification_eer_percent"] == 0.0 and ideal["verified_chance_percent"] < 5.0
    assert ideal["aed_chance"] > 0.5 and ideal["akd_chance_pixels"] > 2.0
    for role in NETWORKS:
        for side in ("source", "result"):
            assert ideal[f"{role}_missing_in_{side}_percent"] == 0.0
    shuffled = swap_scores(np.roll(result, 1, 0), static, dynamic, NETWORKS)
    assert shuffled["aed"] == pytest.approx(shuffled["aed_chance"], rel=0.15)
    assert shuffled["akd_pixels"] == pytest.approx(shuffled["akd_chance_pixels"], rel=0.15)
    assert shuffled["verified_percent"] < 5.0
    # The donor of the dynamics itself: its motion is kept and nothing of the person.
    copy = swap_scores(dynamic, static, dynamic, NETWORKS)
    assert copy["akd_pixels"] == 0.0 and copy["aed"] > 0.5


@pytest.mark.parametrize("form", FORMS)
def test_distances_are_what_they_say(form):
    colors, places = truth(CLIPS, np.random.default_rng(1))
    places = np.minimum(places, SIDE - 5)
    clips = render(colors, places)
    result = render(colors + np.float32(0.3), places + [2, 1])
    scores = swap_scores(result, clips, clips, NETWORKS, form=form)
    distance = 0.3 * np.sqrt(3)
    assert scores["aed"] == pytest.approx(distance, rel=1e-5)
    body = distance**2 if form == "reference" else distance
    assert scores["body_aed"] == pytest.approx(body, rel=1e-5)
    assert scores["akd_pixels"] == pytest.approx((2 + 1) / 2)


def test_padding_counts_nowhere(swaps):
    result, static, dynamic = (clips.copy() for clips in swaps)
    lengths = np.full(CLIPS, 4), np.full(CLIPS, 3)
    static[:, 4:], dynamic[:, 3:], result[:, 3:] = -1.0, 0.7, -1.0
    scores = swap_scores(
        result, static, dynamic, NETWORKS, static_length=lengths[0], dynamic_length=lengths[1]
    )
    assert scores["aed"] == scores["akd_pixels"] == 0.0 and scores["verified_percent"] == 100.0
    assert not any(value for name, value in scores.items() if "missing" in name)


def failing(function, share, seed=0, is_by_point=False):
    """A detector that finds nothing in a share of the frames, at random."""
    rng = np.random.default_rng(seed)

    def see(frames):
        values, found = function(frames)
        if is_by_point:
            values = np.where(rng.random((*values.shape[:2], 1)) < share, np.nan, values)
            return values, found
        return values, found & (rng.random(len(frames)) >= share)

    return see


def test_a_detector_that_fails_improves_the_reference_score_only(swaps):
    result, static, dynamic = swaps
    # All frames err alike in colour, and by 1 pixel in place.
    off = np.where(result > -1, result + np.float32(0.3), -1)[:, :, :, :-1]
    off = np.concatenate([np.full_like(off[:, :, :, :1], -1), off], 3)
    poor = {
        "identity": CallableNetwork(failing(see_color, 0.1), NetworkOptions(batch_size=1000)),
        "landmarks": CallableNetwork(failing(see_corner, 0.1, seed=1), POINTS, "landmarks"),
    }
    good, bad = (
        {form: swap_scores(off, static, dynamic, nets, form=form) for form in FORMS}
        for nets in (NETWORKS, poor)
    )
    for name in ("aed", "akd_pixels"):
        assert bad["corrected"][name] >= good["corrected"][name] * (1 - 1e-6)
        assert bad["reference"][name] < good["reference"][name] * 0.88
        # Nobody is found in 10 % of the sources or 10 % of the results: 19 % of the pairs.
        ratio = bad["reference"][name] / good["reference"][name]
        assert ratio == pytest.approx(0.81, abs=0.05)
    for side in ("source", "result"):
        for role in poor:
            missing = bad["corrected"][f"{role}_missing_in_{side}_percent"]
            assert missing == pytest.approx(10.0, abs=4.0)
    assert bad["corrected"]["verified_percent"] <= good["corrected"]["verified_percent"]
    ideal = swap_scores(result, static, dynamic, poor)
    assert ideal["verified_percent"] == pytest.approx(
        100 - ideal["identity_missing_in_result_percent"], abs=3.0
    )


def test_missing_points_are_counted_one_by_one(swaps):
    result, static, dynamic = swaps
    see = failing(see_corner, 0.2, is_by_point=True)
    networks = {"landmarks": CallableNetwork(see, POINTS, "landmarks")}
    scores = swap_scores(result, static, dynamic, networks)
    assert scores["akd_pixels"] == 0.0
    assert scores["landmarks_missing_in_result_percent"] == pytest.approx(20.0, abs=5.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_blind_network_gives_no_number(swaps, form):
    networks = {"identity": CallableNetwork(failing(see_color, 1.0), NetworkOptions())}
    scores = swap_scores(*swaps, networks, form=form)
    assert scores["identity_missing_in_source_percent"] == 100.0
    assert np.isnan(scores["verified_percent"])
    assert scores["aed"] == 0.0 if form == "reference" else np.isnan(scores["aed"])


def test_the_threshold_errs_equally_often_on_both_kinds():
    assert calibrate_threshold(np.array([0.1, 0.2]), np.array([0.6, 0.9])) == (
        pytest.approx(0.4),
        0.0,
    )
    rng = np.random.default_rng(0)
    same, different = rng.normal(1.0, 0.2, 20_000), rng.normal(2.0, 0.2, 5_000)
    threshold, rate = calibrate_threshold(same, different)
    assert threshold == pytest.approx(1.5, abs=0.02)
    assert rate == pytest.approx(0.0062, abs=0.002)  # of a normal beyond 2.5 deviations
    assert calibrate_threshold(np.ones(3), np.ones(2)) == (1.0, 0.5)


def test_verification_knows_persons_from_pairs_of_real_frames():
    rng = np.random.default_rng(0)
    person = rng.normal(size=(80, 1, 8))
    real = person + 0.3 * rng.normal(size=(80, 5, 8))
    valid = np.ones((80, 5), bool)
    other = np.roll(np.arange(80), 1)
    fresh = person + 0.3 * rng.normal(size=(80, 5, 8))
    scores = verify(fresh, real, valid, valid, other)
    eer = scores["verification_eer_percent"]
    assert 0.0 < eer < 10.0
    assert scores["verified_percent"] == pytest.approx(100 - eer, abs=2.0)
    assert scores["verified_chance_percent"] == pytest.approx(eer, abs=2.0)


def context(model, networks, **settings):
    rng = np.random.default_rng(3)
    data = {"x": render(*truth(24, rng)), "static_label": np.arange(24) % 3}
    factors = encode_clips(SquareOracle(), data["x"])
    return Context(
        model=model,
        kind="video",
        train=data,
        test=data,
        train_factors=factors,
        test_factors=factors,
        judge=None,
        settings=EvalSettings(num_steps=2, batch_size=7, num_swaps=30, **settings),
        readers=data,
        trial=np.arange(24),
        networks=networks,
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_part_scores_swaps_of_a_model(form):
    ideal, notes = faces(context(SquareOracle(), NETWORKS, form=form))
    assert ideal["aed"] == ideal["akd_pixels"] == 0.0 and ideal["verified_percent"] == 100.0
    assert not notes
    poor, _ = faces(context(Clueless(), NETWORKS, form=form))
    assert poor["aed"] == pytest.approx(poor["aed_chance"], rel=0.3)
    assert poor["akd_pixels"] == pytest.approx(poor["akd_chance_pixels"], rel=0.3)
    assert poor["verified_percent"] < 10.0


def test_the_part_scores_reconstructions():
    ideal, notes = face_reconstruction(context(SquareOracle(), NETWORKS))
    assert not notes
    for start in ("random", "inverted"):
        for name in ("aed", "body_aed", "akd_pixels", "mse"):
            assert ideal[f"{start}_{name}"] == 0.0
        assert ideal[f"{start}_ssim"] == 1.0 and ideal[f"{start}_psnr_db"] > 100
    poor, _ = face_reconstruction(context(Clueless(), NETWORKS))
    assert poor["random_aed"] > 0.5 and poor["random_mse"] > 0.01 and poor["random_ssim"] < 0.9
    assert poor["random_aed_chance"] == pytest.approx(poor["random_aed"], rel=0.3)


def test_networks_for_other_things_are_not_asked():
    others = {"features": CallableNetwork(see_color, NetworkOptions(), "features")}
    scores, notes = faces(context(SquareOracle(), others))
    assert not scores and "names no network for faces" in notes[0]
    both, _ = faces(context(SquareOracle(), NETWORKS | others))
    assert both == faces(context(SquareOracle(), NETWORKS))[0]


def test_what_cannot_be_scored_is_noted():
    scores, notes = faces(context(SquareOracle(), {}))
    assert not scores and "set eval.networks.identity.path" in notes[0]
    scores, notes = face_reconstruction(context(SquareOracle(), {}))
    assert set(scores) == {
        f"{start}_{name}" for start in ("random", "inverted") for name in ("mse", "psnr_db", "ssim")
    }
    assert len(notes) == 2 and "AKD skipped" in notes[1]


class GreyOracle(SquareOracle):
    """Samples have one channel."""

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return super().decode(factors)[..., :1]


def test_networks_see_pictures():
    """Grey ones, those that a first stage makes, and none of what has no picture."""
    case = context(SquareOracle(), NETWORKS)
    grey = context(GreyOracle(), NETWORKS)
    grey = dataclasses.replace(grey, test=grey.test | {"x": grey.test["x"][..., :1]})
    bright = dataclasses.replace(case, frame_decoder=lambda x: np.float32(1.5) * x)
    for part in (faces, face_reconstruction):
        for one in (grey, bright):
            scores, _ = part(one)
            assert scores["aed" if part is faces else "random_aed"] == 0.0
    embedding = look(NETWORKS, np.full((1, 2, SIDE, SIDE, 3), 1.5, np.float32))["identity"]
    np.testing.assert_array_equal(embedding, np.ones((1, 2, 3)))
    data = {"x": np.zeros((24, STEPS, 4, 4, 4), np.float32)}
    for part in (faces, face_reconstruction):
        scores, notes = part(dataclasses.replace(case, test=data))
        assert not scores and "set first_stage.checkpoint" in notes[0]


def test_chance_compares_with_other_clips_and_persons():
    """Pairs that share the donor are never exchanged with each other."""
    index, label = np.arange(20) // 2, np.arange(20) // 4
    other, own = make_pairs(20, 20, seed=0, labels=[index, label])
    assert (label[other] != label[own]).all()
