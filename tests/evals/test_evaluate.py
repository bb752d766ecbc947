import json

import numpy as np
import pytest
from oracles import Clueless, DigitOracle, digit_arrays

from diffsda_jax.data.sources.digits import MOTIONS
from diffsda_jax.evals.context import Domain
from diffsda_jax.evals.evaluate import evaluate
from diffsda_jax.evals.judges import Judge, JudgeNet
from diffsda_jax.evals.pictures import enlarge, to_uint8
from diffsda_jax.evals.swap import make_pairs
from diffsda_jax.factors import Factors


@pytest.fixture(scope="module")
def digits():
    return digit_arrays("train", 800), digit_arrays("test", 150)


@pytest.fixture(scope="module")
def oracle_result(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("oracle")
    result = evaluate(
        DigitOracle(*digits),
        *digits,
        kind="video",
        num_swaps=100,
        judge_steps=100,
        dynamic_names=MOTIONS,
        output_dir=directory,
    )
    return result, directory


def test_oracle_factors_score_perfectly(oracle_result):
    metrics = oracle_result[0].metrics
    assert metrics["reconstruction/random_mse"] < 1e-6
    assert metrics["reconstruction/inverted_ssim"] == pytest.approx(1.0)
    assert metrics["swap/trajectory_error_pixels"] < 0.3
    # The ideal swap is kept as well as the judge reads real clips.
    for name, slack in (("static", 12.0), ("dynamic", 5.0)):
        kept = metrics[f"swap/{name}_kept_percent"]
        assert kept > metrics[f"judge/{name}_accuracy_percent"] - slack
    assert metrics["probes/s_to_static_over_chance_points"] > 60.0
    assert metrics["probes/d_flat_to_dynamic_over_chance_points"] > 50.0
    assert metrics["probes/d_mean_to_static_over_chance_points"] < 12.0
    assert metrics["probes/s_to_dynamic_over_chance_points"] < 12.0
    assert metrics["verification/static_eer_percent"] < 30.0
    assert metrics["verification/dynamic_eer_percent"] == pytest.approx(50.0, abs=3.0)
    assert metrics["one_factor/static_only_dynamic_kept_percent"] < 35.0
    assert metrics["one_factor/dynamic_only_static_kept_percent"] < 35.0
    assert metrics["one_factor/dynamic_only_dynamic_kept_percent"] > 80.0
    assert oracle_result[0].notes == []


def test_clueless_model_is_at_chance(digits, oracle_result):
    metrics = evaluate(
        Clueless(*digits),
        *digits,
        kind="video",
        num_swaps=140,
        judge=oracle_result[0].judge,
        pictures=False,
    ).metrics
    assert metrics["swap/static_kept_percent"] < 25.0
    assert metrics["swap/dynamic_kept_percent"] < 27.0
    error, chance = (
        metrics[f"swap/trajectory_{name}_pixels"] for name in ("error", "error_chance")
    )
    assert error == pytest.approx(chance, rel=0.2)
    assert error > 2.0
    assert metrics["reconstruction/random_nmse"] > 1.0
    for name in ("s_to_static", "d_flat_to_static", "s_to_dynamic", "d_flat_to_dynamic"):
        assert abs(metrics[f"probes/{name}_over_chance_points"]) < 13.0, name
    assert metrics["verification/static_eer_percent"] == pytest.approx(50.0, abs=3.0)


def test_files_hold_what_the_result_says(oracle_result):
    result, directory = oracle_result
    assert {path.name for path in result.files} == {
        "metrics.json",
        "factors_static.png",
        "factors_dynamic.png",
        "swap_grid.png",
        "swap_grid.gif",
        "reconstruction_strips.png",
        *(f"swap_{n}_{who}.mp4" for n in range(4) for who in ("static", "dynamic", "result")),
    }
    content = json.loads((directory / "metrics.json").read_text())
    assert content["form"] == "corrected"
    assert content["settings"]["start"] == "random"
    assert content["metrics"] == pytest.approx(result.metrics)
    for image in result.images.values():
        assert image.dtype == np.uint8 and image.ndim == 3


class UpsideDown(DigitOracle):
    """The oracle on latents, which are the frames upside down."""

    def encode(self, x, length=None, mask=None):
        return super().encode(x[:, :, ::-1])

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return super().decode(factors)[:, :, ::-1]


def test_latents_are_shown_as_frames(digits):
    train, test = ({**data, "x": data["x"][:, :, ::-1]} for data in digits)
    settings = {"kind": "video", "num_swaps": 8, "parts": ()}
    upright = evaluate(DigitOracle(*digits), *digits, **settings)
    domain = Domain(frame_decoder=lambda latents: latents[:, :, ::-1])
    shown = evaluate(UpsideDown(*digits), train, test, domain=domain, **settings)
    for name in ("swap/grid", "reconstruction/strips"):
        np.testing.assert_array_equal(shown.images[name], upright.images[name])
    np.testing.assert_array_equal(shown.videos["swap_0/result"], upright.videos["swap_0/result"])


def test_given_pairs_are_swapped(digits):
    given = np.array([3, 4, 5]), np.array([7, 8, 9])
    result = evaluate(
        DigitOracle(*digits), *digits, kind="video", parts=(), domain=Domain(given_pairs=given)
    )
    x = digits[1]["x"]
    for number in range(3):
        for name, places in zip(("static", "dynamic"), given, strict=True):
            frames = enlarge(to_uint8(x[places[number]]), 128)
            np.testing.assert_array_equal(result.videos[f"swap_{number}/{name}"], frames)


class Echo:
    """Series model whose factors are the mean and the deviations."""

    def encode(self, x, length=None, mask=None):
        mean = np.stack([clip[:steps].mean(0) for clip, steps in zip(x, length, strict=True)])
        return Factors(static=mean, dynamic=x - mean[:, None])

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return factors.static[:, None] + factors.dynamic

    def invert(self, x, factors, num_steps=32):
        return x


def series(num_clips, seed):
    rng = np.random.default_rng(seed)
    length = rng.integers(5, 11, num_clips).astype(np.int32)
    x = rng.standard_normal((num_clips, 10, 3), np.float32)
    x[np.arange(10)[None] >= length[:, None]] = 0.0
    mask = np.repeat((np.arange(10)[None] < length[:, None])[..., None], 3, axis=-1)
    return {"x": x, "length": length, "mask": mask}


def test_series_without_labels_says_what_is_skipped(tmp_path):
    train, test = series(20, 0), series(12, 1)
    result = evaluate(
        Echo(),
        train,
        test,
        kind="series",
        num_swaps=8,
        denormalize=lambda x: 10 * x,
        output_dir=tmp_path,
    )
    assert result.judge is None
    assert {name.split("/")[0] for name in result.metrics} == {"reconstruction", "one_factor"}
    assert result.metrics["reconstruction/random_nmse"] == pytest.approx(0.0, abs=1e-9)
    text = " ".join(result.notes)
    for part in ("verification skipped", "probes to static_label", "judge skipped", "swap metrics"):
        assert part in text
    assert json.loads((tmp_path / "metrics.json").read_text())["notes"] == result.notes
    assert "swap/series" in result.images


def test_several_chunks_of_one_recording_each_cannot_be_verified():
    train, test = series(20, 0), series(12, 1)
    test |= {"static_label": np.arange(12) // 4, "group": np.arange(12) // 4}
    result = evaluate(Echo(), train, test, kind="series", parts=("verification",), pictures=False)
    assert not result.metrics
    assert "3 static labels on 3 test recordings" in " ".join(result.notes)


def test_padding_changes_no_metric():
    train, test = series(20, 0), series(12, 1)
    rng = np.random.default_rng(0)
    for data, count in ((train, 20), (test, 12)):
        data["static_label"] = np.arange(count) % 3
        data["dynamic_label"] = rng.permutation(np.arange(count) % 2)
    settings = {"kind": "series", "num_swaps": 8, "judge_steps": 5, "pictures": False}
    clean = evaluate(Echo(), train, test, **settings).metrics
    for data in (train, test):
        data["x"] = np.where(data["mask"], data["x"], 50.0).astype(np.float32)
    assert evaluate(Echo(), train, test, **settings).metrics == pytest.approx(clean)


@pytest.mark.parametrize("kind", ["series", "video"])
def test_one_test_clip_skips_the_swaps_with_a_note(kind):
    train, test = (series(6, 0), series(1, 1)) if kind == "series" else digit_pair(6, 1)
    model = Echo() if kind == "series" else DigitOracle(train, test)
    result = evaluate(model, train, test, kind=kind, num_swaps=4)
    assert "swap skipped: there is 1 test clip; swaps need 2 or more" in result.notes
    assert "swap pictures skipped: there is 1 test clip; swaps need 2 or more" in result.notes
    groups = {name.split("/")[0] for name in result.metrics}
    assert "swap" not in groups and "reconstruction" in groups
    assert np.isfinite(list(result.metrics.values())).all()
    assert not any(name.startswith("swap") for name in result.images)


def digit_pair(num_train, num_test):
    pair = digit_arrays("train", num_train), digit_arrays("test", num_test)
    for data in pair:  # no labels, no judge: quicker
        del data["static_label"], data["dynamic_label"]
    return pair


def test_no_metrics_of_no_clips():
    train, test = series(6, 0), series(3, 1)
    result = evaluate(Echo(), train, test, kind="series", num_swaps=0)
    assert result.metrics == {} and "swap skipped: num_swaps is 0" in " ".join(result.notes)
    empty = {name: values[:0] for name, values in test.items()}
    with pytest.raises(ValueError, match="the test split has 0 clips"):
        evaluate(Echo(), train, empty, kind="series")


def test_a_model_that_cannot_invert_is_shown_without_what_is_inverted():
    class Student(DigitOracle):
        can_invert = False

        def invert(self, x, factors, num_steps=32):
            raise AssertionError("asked to invert")

    splits = digit_pair(4, 6)
    parts = ("reconstruction", "face_reconstruction")
    result = evaluate(Student(*splits), *splits, kind="video", parts=parts, num_swaps=5)
    names = [name for name in result.metrics if "inverted" in name]
    assert "reconstruction/random_nmse" in result.metrics and not names
    assert result.notes[0] == "reconstruction from x_T skipped: a distilled model cannot invert"
    able = evaluate(DigitOracle(*splits), *splits, kind="video", parts=parts, num_swaps=5)
    pictures = [found.images["reconstruction/strips"] for found in (result, able)]
    assert pictures[0].shape[0] < pictures[1].shape[0]  # one strip less


def test_one_factor_starts_from_random_noise_in_every_form():
    class Counting(Echo):
        inverted = 0

        def invert(self, x, factors, num_steps=32):
            self.inverted += 1
            return x

    for part, expected in (("one_factor", 0), ("swap", 1)):
        model = Counting()
        settings = {"form": "reference", "start": "donor", "num_swaps": 4, "pictures": False}
        evaluate(model, series(8, 0), series(8, 1), kind="series", parts=(part,), **settings)
        assert model.inverted == expected


def test_the_judge_sees_a_swap_through_the_mask_of_the_donor_of_the_dynamics(monkeypatch):
    train, test = series(8, 0), series(8, 1)
    rng = np.random.default_rng(2)
    test["mask"] &= rng.uniform(size=test["mask"].shape) < 0.6
    calls = []

    def predict(self, x, length=None, mask=None):
        calls.append(mask)
        return {}

    monkeypatch.setattr(Judge, "predict", predict)
    evaluate(
        Echo(),
        train,
        test,
        kind="series",
        parts=("swap",),
        num_swaps=5,
        judge=Judge(net=JudgeNet(2, 0, 4), params={}),
        pictures=False,
    )
    _, dynamic_index = make_pairs(8, 5, seed=0)
    np.testing.assert_array_equal(calls[0], test["mask"][dynamic_index])


def test_reference_form_starts_from_the_target(tmp_path):
    train, test = series(8, 0), series(8, 1)
    evaluate(Echo(), train, test, kind="series", form="reference", parts=(), output_dir=tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert (content["form"], content["settings"]["start"]) == ("reference", "target")


@pytest.mark.parametrize(
    "wrong", [{"kind": "sound"}, {"start": "noise"}, {"parts": ("probe",)}, {"form": "best"}]
)
def test_unknown_choices_are_named(wrong):
    data = series(4, 0)
    name, value = next(iter(wrong.items()))
    value = value[0] if name == "parts" else value
    with pytest.raises(ValueError, match=f"{name}: unknown value '{value}'; allowed are"):
        evaluate(Echo(), data, data, **{"kind": "series", **wrong})
