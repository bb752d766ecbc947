"""The public API on arrays and files: any number and length, few programs, units, and errors."""

import dataclasses
import doctest
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffsda_jax import DiffSDA, Factors, buckets, mix, pipeline, programs
from diffsda_jax import factors as factors_module
from diffsda_jax.data import sequences
from diffsda_jax.data.media_writer import check_format
from diffsda_jax.data.outline import outline_of
from diffsda_jax.data.sequences import Columns, Sequences, side_by_side
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.data_form import DataForm, make_data_form
from diffsda_jax.features import FrontEnd
from diffsda_jax.first_stage.nets import variable_shapes as first_stage_shapes
from diffsda_jax.first_stage.spec import META_KEY, FirstStageSpec
from diffsda_jax.model import ModelSpec, variable_shapes
from diffsda_jax.train import checkpoint
from diffsda_jax.windowed import draw_noise, encode_windows

sys.path.insert(0, str(Path(__file__).parent))
from infer_models import random_weights  # noqa: E402

SPEC = ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4)
NORMALIZER = Normalizer(np.array([1.0, 2.0, 3.0], np.float32), np.full(3, 2.0, np.float32))
META = {
    "model": SPEC.to_dict(),
    "normalizer": NORMALIZER.to_dict(),
    "config": {"data": {"length": 6, "length_mode": "crop"}, "eval": {"batch_size": 4}},
}


def make_model(spec=SPEC, meta=META, normalizer=NORMALIZER):
    weights = random_weights(variable_shapes(spec))
    return DiffSDA(spec, weights, normalizer, meta).using("euler", 2)


@pytest.fixture(scope="module")
def model():
    return make_model()


def walks(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [2 + 2 * rng.standard_normal((length, 3)).astype(np.float32) for length in lengths]


@pytest.mark.parametrize(("module", "least"), [(pipeline, 9), (factors_module, 7), (sequences, 8)])
def test_the_examples_of_the_api_run(module, least):
    found = doctest.testmod(module)
    assert found.attempted >= least and not found.failed


def test_buckets_are_few_and_close():
    sizes = [buckets.length_bucket(length) for length in range(1, 129)]
    assert all(size >= length for length, size in enumerate(sizes, 1)) and len(set(sizes)) == 16
    assert all(size <= 1.25 * length for length, size in enumerate(sizes, 1) if length > 12)
    assert [buckets.batch_bucket(n, 8) for n in (1, 2, 3, 5, 8, 9)] == [1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize("size", [None, 6])
def test_windows_cover_every_step_once(size):
    lengths = [1, 5, 6, 7, 12, 20]
    windows = buckets.cut_windows(lengths, size)
    for sequence, length in enumerate(lengths):
        own = [w for w in windows if w.sequence == sequence]
        steps = [step for w in own for step in range(w.own, w.stop)]
        assert steps == list(range(length))
        assert all(w.start <= w.own and w.stop - w.start <= w.size for w in own)


def test_programs_are_compiled_once_for_each_bucket():
    model = make_model(SPEC.__class__.from_dict(SPEC.to_dict() | {"hidden_dim": 9}))
    before = programs.encode._cache_size(), programs.decode._cache_size()
    for lengths in ((6,), (3,), (4, 2), (9, 30, 5), (61,), (7, 1, 2, 3)):
        result = model.reconstruct(walks(*lengths))
        assert result.lengths.tolist() == list(lengths)
    encode, decode = (
        program._cache_size() - count
        for program, count in zip((programs.encode, programs.decode), before, strict=True)
    )
    # Windows of 4 (filled up) and 6 steps, in batches of 1, 2 and 4.
    assert 2 <= encode <= 6 and 2 <= decode <= 6


def test_short_and_long_sequences_in_one_batch_are_what_they_are_alone(model):
    x = walks(6, 3, 17)
    together = model.encode(model.read(x))
    for place, one in enumerate(x):
        alone = model.encode(model.read(one))
        np.testing.assert_allclose(together.static[[place]], alone.static, atol=1e-6)
        found = together.dynamic[place, : len(one)]
        np.testing.assert_allclose(found, alone.dynamic[0], atol=1e-6)
    exact = model.encode(NORMALIZER.apply(x[0])[None])
    np.testing.assert_allclose(together.static[:1], exact.static, atol=1e-6)
    # The windows of the long one start at steps 0, 6 and 11, and the last has five of its own.
    parts = [model.encode(model.read(x[2][i : i + 6])) for i in (0, 6, 11)]
    static = sum(n * part.static for n, part in zip((6, 6, 5), parts, strict=True)) / 17
    np.testing.assert_allclose(together.static[[2]], static, atol=1e-5)
    np.testing.assert_allclose(together.dynamic[2, 12:17], parts[2].dynamic[0, 1:], atol=1e-6)


def test_decoding_in_windows_is_decoding_at_once(model):
    factors = model.encode(model.read(walks(17)))
    ours = model.reconstruct(factors, seed=5).x
    noise = draw_noise(np.array([17]), (3,), 5)[0]
    whole = model.decode(factors, start=noise[None])
    np.testing.assert_allclose(ours, NORMALIZER.invert(np.asarray(whole)), atol=1e-4)
    with pytest.raises(ValueError, match="seed is -1; it must be 0 or more"):
        model.reconstruct(factors, seed=-1)


def test_missing_values_are_told_to_a_model_that_sees_them():
    spec = ModelSpec.from_dict(SPEC.to_dict() | {"encoder_sees_mask": True})
    model, (x,) = make_model(spec), walks(6)
    x[2, 1] = np.nan
    found = model.encode(model.read(x))
    normalised = NORMALIZER.apply(np.nan_to_num(x), ~np.isnan(x))
    expected = model.encode(normalised[None], mask=~np.isnan(x)[None])
    np.testing.assert_allclose(found.static, expected.static, atol=1e-6)
    filled = model.encode(model.read(np.where(np.isnan(x), NORMALIZER.mean, x)))
    assert not np.allclose(found.static, filled.static, atol=1e-4)
    assert np.isfinite(model.reconstruct(x).x).all()


def test_series_of_a_resampling_model_come_back_at_their_length():
    meta = META | {"config": {"data": {"length": 6, "length_mode": "resample"}}}
    model = make_model(meta=meta)
    ramp = np.repeat(np.linspace(0, 1, 11, dtype=np.float32)[:, None], 3, axis=1)
    factors = model.encode(model.read(ramp))
    assert factors.lengths.tolist() == [6]
    back = model.using("heun", 60).reconstruct(ramp, start="inverted")
    assert back.x.shape == (1, 11, 3)
    np.testing.assert_allclose(back.x[0], ramp, atol=0.1)


def test_what_the_data_go_through_must_be_known():
    meta = META | {"config": {"data": {"length_mode": "resample"}}}
    with pytest.raises(ValueError, match="resampled, and length is None; .* data.length"):
        make_model(meta=meta).encode(walks(5))
    with pytest.raises(ValueError, match="kind is 'audio' and front_end is None"):
        DataForm("audio", (80,), Normalizer())


@pytest.mark.parametrize("per_step", [False, True])
def test_frames_are_encoded_at_the_distance_of_the_training_clips(per_step):
    spec = ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4, static_per_step=per_step)
    model = make_model(spec)
    long, short, least = steps = walks(25, 10, 11)
    masks = [np.ones(len(x), bool) for x in steps]
    found = encode_windows(model, steps, masks, 6, 4, stride=3)
    assert found.lengths.tolist() == [25, 10, 11]
    # 25 steps hold three sequences of 6 or more, 11 two, and 10 one only, as 9 // 5 = 1.
    for row, (x, stride) in enumerate(((long, 3), (short, 1), (least, 2))):
        apart = [x[k::stride] for k in range(stride)]
        alone = encode_windows(model, apart, [np.ones(len(a), bool) for a in apart], 6, 4)
        for k, part in enumerate(apart):
            own = np.s_[k : len(x) : stride]
            np.testing.assert_allclose(
                found.dynamic[row, own], alone.dynamic[k, : len(part)], atol=1e-6
            )
            if per_step:
                np.testing.assert_allclose(
                    found.static[row, own], alone.static[k, : len(part)], atol=1e-6
                )
        if not per_step:
            shares = np.array([len(part) for part in apart]) / len(x)
            np.testing.assert_allclose(found.static[row], shares @ alone.static, atol=1e-6)


def test_the_verbs_encode_at_that_distance(model):
    spaced, (x,) = make_model(), walks(12)
    spaced.__dict__["form"] = dataclasses.replace(model.form, stride=2)
    steps = NORMALIZER.apply(x)
    found = spaced.encode([x])
    expected = encode_windows(model, [steps], [np.ones(x.shape, bool)], 6, 4, stride=2)
    np.testing.assert_allclose(found.dynamic, expected.dynamic, atol=1e-6)
    assert np.abs(found.dynamic - model.encode([x]).dynamic).max() > 1e-3


def test_a_bounded_factor_is_moved_within_its_bounds():
    bounded, (x,) = make_model(dataclasses.replace(SPEC, dynamic_activation="tanh")), walks(6)
    own = bounded.encode([x])
    result = bounded.traverse(
        x, factor="dynamic", along="dimensions", num_components=1, reach=3.0, start="zero"
    )
    change = 3.0 * np.arctanh(own.dynamic[0, :, 0]).std()
    moved = np.tanh(np.arctanh(own.dynamic) + np.array([change, 0.0], np.float32))
    expected = bounded.reconstruct(own.replace(dynamic=moved), start="zero")
    np.testing.assert_allclose(result.x[-1], expected.x[0], atol=1e-4)


def test_the_stride_is_that_of_the_training_clips():
    options = {"source": {"name": "video_folder", "options": {"stride": 3}}}
    meta = {"config": options | {"data": {"length": 4}}}
    form = make_data_form(ModelSpec("video", (8, 8, 3), 4, 2, 8), None, meta)
    assert form.stride == 3  # of a series it is the distance of windows
    assert make_data_form(SPEC, NORMALIZER, META | meta).stride == 1


def test_one_donor_serves_all(model):
    x = walks(5, 8)
    swapped = model.swap(static_from=walks(6, seed=3), dynamic_from=x, start="zero")
    assert swapped.lengths.tolist() == [5, 8]
    assert swapped.names == ("sequence_0_as_sequence_0", "sequence_0_as_sequence_1")
    mixed = mix(
        static_from=model.encode(model.read(walks(6, seed=3))),
        dynamic_from=model.encode(model.read(x)),
    )
    np.testing.assert_allclose(swapped.x, model.reconstruct(mixed, start="zero").x, atol=1e-5)
    with pytest.raises(ValueError, match="mix: static_from holds 3 sequences"):
        model.swap(static_from=walks(5, 5, 5), dynamic_from=x)


def test_traversing_by_pca_needs_codes_and_moves_the_other_factor_not(model):
    (x,) = walks(6)
    with pytest.raises(ValueError, match="'pca' need 8 codes of the static factor.* are 1"):
        model.traverse(x)
    result = model.traverse(x, codes=walks(*[6] * 9), num_components=2, num_places=3, reach=1.0)
    assert result.names[:3] == tuple(f"sequence_0_static1_{s}std" for s in ("-1", "+0", "+1"))
    own = model.reconstruct(x)
    np.testing.assert_allclose(result.x[1], own.x[0], atol=1e-5)
    np.testing.assert_allclose(result.x[4], own.x[0], atol=1e-5)
    assert np.abs(result.x[0] - own.x[0]).max() > 1e-4
    with pytest.raises(ValueError, match="along: unknown value 'tsne'; allowed are pca"):
        model.traverse(x, along="tsne")


def test_components_that_were_explored_are_taken(model, tmp_path, caplog):
    checkpoint.save_converted(tmp_path, model.variables, META)
    folder = tmp_path / "explore" / "00000000"
    folder.mkdir(parents=True)
    turned = np.eye(4)[::-1][:3]
    parts = {"mean": np.zeros(4), "std": np.full(4, 3.0), "directions": turned}
    parts |= {"spread": np.full(3, 2.0), "share": np.full(3, 0.25), "names": np.array(list("abc"))}
    np.savez(folder / "components.npz", **{f"static_{k}": v for k, v in parts.items()})
    loaded, (x,) = DiffSDA.from_checkpoint(tmp_path).using("euler", 2), walks(6)
    found = loaded.traverse(x, num_components=1, num_places=2, reach=1.5, start="zero")
    assert not caplog.records
    fewer = loaded.traverse(x, num_components=8, num_places=1)
    assert len(fewer.x) == 3 and "keeps 3 directions of the static factor, and 8" in caplog.text
    factors = loaded.encode(loaded.read(x))
    moved = factors.static + np.array([0, 0, 0, 1.5 * 2.0 * 3.0], np.float32)
    expected = loaded.reconstruct(factors.replace(static=moved), start="zero")
    np.testing.assert_allclose(found.x[1], expected.x[0], atol=1e-5)
    with pytest.raises(ValueError, match="holds no dynamic_mean; run --mode=explore again"):
        loaded.traverse(x, factor="dynamic")


@pytest.mark.parametrize("moved", ["static", "dynamic", "both"])
def test_paths_begin_and_end_where_they_should(model, moved):
    a, b = walks(6, 4)
    result = model.interpolate(a, b, factor=moved, num_points=3, start="zero")
    length = 6 if moved == "static" else 4
    assert result.lengths.tolist() == [length] * 3
    first, last = model.encode(model.read(a)), model.encode(model.read(b))
    np.testing.assert_allclose(
        result.x[0], model.reconstruct(a, start="zero").x[0, :length], atol=1e-5
    )
    end = Factors(
        static=first.static if moved == "dynamic" else last.static,
        dynamic=first.dynamic if moved == "static" else last.dynamic,
    )
    expected = model.reconstruct(end, start="zero").x[0, :length]
    np.testing.assert_allclose(result.x[2], expected, atol=1e-5)


def test_factors_are_saved_and_loaded(model, tmp_path):
    factors = model.encode(model.read(walks(6, 3)))
    found = Factors.load(factors.save(tmp_path / "deep" / "f.npz"))
    for name in ("static", "dynamic", "lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(factors, name))
    assert found[[1]].lengths.tolist() == [3]
    plain = Factors(static=factors.static, dynamic=factors.dynamic).save(tmp_path / "plain.npz")
    assert Factors.load(plain).lengths is None
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "code.npz", static=np.array([{}]), dynamic=np.zeros((1, 2, 2)))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "plain.npz").read_bytes()[:80])
    for name, words in (
        ("other.npz", "does not hold factors"),
        ("code.npz", "no .npz file of plain arrays .*allow_pickle"),
        ("broken.npz", "no .npz file of plain arrays"),
    ):
        with pytest.raises(ValueError, match=words):
            Factors.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none.npz does not exist"):
        Factors.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="must end in .npz"):
        factors.save(tmp_path / "f.txt")


def test_device_and_precision_are_chosen(model, tmp_path):
    checkpoint.save_converted(tmp_path, model.variables, META)
    loaded = DiffSDA.from_checkpoint(tmp_path, device="cpu:3", precision="bfloat16")
    x = NORMALIZER.apply(walks(6)[0])[None]
    factors = loaded.encode(x)
    assert factors.static.devices() == {jax.devices("cpu")[3]}
    assert loaded.decode(factors, num_steps=2).devices() == {jax.devices("cpu")[3]}
    assert loaded.spec.precision == "bfloat16"
    same = DiffSDA.from_checkpoint(tmp_path, device=jax.devices("cpu")[1])
    np.testing.assert_allclose(same.encode(x).static, model.encode(x).static, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint|no prior"):
        loaded.sample(2)
    with pytest.raises(FileNotFoundError, match="not loaded from a workdir"):
        model.sample(2)
    mute = DiffSDA.from_checkpoint(tmp_path, vocoder="generator_v1")
    with pytest.raises(ValueError, match="vocoder is 'generator_v1', but this model is of series"):
        mute.reconstruct(walks(6))


@pytest.mark.slow
def test_a_model_of_latents_takes_and_gives_frames(tmp_path):
    stage = FirstStageSpec("kl", 8, (1, 2), 1, middle_attention=False, z_channels=4, embed_dim=4)
    weights = {"params": random_weights(first_stage_shapes(stage)["params"], scale=0.1)}
    checkpoint.save_converted(tmp_path / "stage", weights, {META_KEY: stage.to_dict()})
    spec = ModelSpec(
        "video", (4, 4, 4), 4, 2, 8, channels=8, encoder_channels=8, channel_mults=(1, 1),
        attention_levels=(),
    )  # fmt: skip
    config = {"source": {"name": "latents"}, "data": {"length": 4}, "eval": {"batch_size": 2}}
    config["first_stage"] = {"checkpoint": str(tmp_path / "stage"), "chunk_frames": 4}
    meta = {"model": spec.to_dict(), "config": config}
    checkpoint.save_converted(tmp_path / "run", random_weights(variable_shapes(spec)), meta)
    model = DiffSDA.from_checkpoint(tmp_path / "run").using("euler", 2)
    assert model.form.frame_size == (8, 8)
    clip = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    back = model.reconstruct(clip)
    assert back.x.shape == (1, 5, 8, 8, 3) and back.x.dtype == np.uint8
    latents = model.form.first_stage.encode(clip.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(model.form.to_steps(model.read(clip))[0][0], latents, atol=1e-6)
    (tmp_path / "stage").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="latents of frames.*--first_stage=DIR"):
        DiffSDA.from_checkpoint(tmp_path / "run").reconstruct(clip)
    again = DiffSDA.from_checkpoint(tmp_path / "run", first_stage=str(tmp_path / "moved"))
    np.testing.assert_array_equal(again.using("euler", 2).reconstruct(clip).x, back.x)


def test_data_that_do_not_fit_are_named(model):
    for x, words in (
        (np.zeros((4, 2), np.float32), r"steps of shape \(2,\); this model takes series"),
        (np.full((4, 3), np.inf, np.float32), "hold infinite values"),
        (np.zeros(4, np.float32), "a sequence has 2 axes"),
        ([], "a sequence has 2 axes|no input"),
        (
            [np.zeros((4, 3)), np.zeros((5, 1))],
            r"steps of one shape, and these have \(1,\), \(3,\)",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            model.reconstruct(x)
    with pytest.raises(ValueError, match="start is 'inverted', but there are no data"):
        model.reconstruct(model.encode(model.read(walks(6))), start="inverted")
    with pytest.raises(ValueError, match="num_points is 1"):
        model.interpolate(*walks(6, 6), num_points=1)
    with pytest.raises(ValueError, match="begin holds 1 sequences and end 2"):
        model.interpolate(walks(6), walks(6, 6))


@pytest.mark.parametrize(("kind", "bins"), [("mel", 80), ("linear", 201)])
def test_sounds_keep_length_and_rate_through_either_front_end(kind, bins):
    statistics = np.full(bins, -5.0, np.float32), np.full(bins, 2.0, np.float32)
    front_end = FrontEnd(kind, 16_000, 12_800)
    form = DataForm("audio", (bins,), Normalizer(*statistics), 68, front_end=front_end)
    time = np.arange(9_001) / 22_050
    given = form.read(np.sin(2 * np.pi * 440 * time).astype(np.float32) * 0.3, rate=22_050.0)
    (steps,), _ = form.to_steps(given)
    hop, rate = front_end.spectrogram.hop, front_end.spectrogram.sample_rate_hz
    assert abs(len(steps) - 9_001 * rate / 22_050 / hop) < 2.5 and steps.shape[1] == bins
    back = form.from_steps([steps], outline_of(given))
    assert back.x.shape == (1, 9_001) and back.rates == (22_050.0,)
    loudest = np.abs(np.fft.rfft(back.x[0])).argmax() * 22_050 / 9_001
    assert loudest == pytest.approx(440, abs=15)


def test_sequences_side_by_side():
    short, long = (np.full((n, 2, 2, 3), n, np.uint8) for n in (2, 3))
    parts = [Sequences.join([x], "video", [5.0], ["x"]) for x in (short, long)]
    both = side_by_side(parts, ["a", "b"])
    assert both.x.shape == (1, 3, 2, 4, 3) and (both.x[0, 2, :, :2] == 2).all()
    with pytest.raises(ValueError, match="cannot put 1 a, 2 b side by side"):
        side_by_side(
            [parts[0], Sequences.join([short, long], "video", [1.0, 1.0], ["x", "y"])], ["a", "b"]
        )
    same = Sequences.join([short, long], "video", [5.0, 6.0], ["x", "x"])
    assert same.names == ("x", "x_2") and same[[1]].rates == (6.0,)
    with pytest.raises(ValueError, match="cannot be written as 'wav': this model gives video"):
        check_format("video", Path("x.wav"))


def test_frames_and_columns_are_not_taken_for_others():
    video = DataForm("video", (2, 2, 3), Normalizer())
    with pytest.raises(ValueError, match="frames hold floats from 255 to 255; give -1 to 1"):
        video.read(np.full((4, 2, 2, 3), 255.0))
    assert video.read(np.full((4, 2, 2, 3), 1.05)).x.max() == 255
    series = DataForm("series", (2,), Normalizer(), feature_names=("a", "b"))
    other = Sequences.join([np.zeros((3, 2))], "series", [None], ["x"], ["b", "a"])
    with pytest.raises(ValueError, match="columns b, a; this model takes a, b, in this order"):
        series.read(other)


def test_files_lie_in_their_folder_and_tables_have_one_header(tmp_path):
    items = [np.zeros((2, 1), np.float32), np.ones((3, 1), np.float32)]
    columns = Columns("time", (("1", "2"), ("1", "2")))
    names = ["../up", "/tmp/x"]
    both = Sequences.join(items, "series", [None] * 2, names, ["v"], columns)
    paths = both.save(tmp_path / "out")
    assert [path.name for path in paths] == [".._up.csv", "_tmp_x.csv"]
    assert {path.parent for path in paths} == {tmp_path / "out"}
    lines = both.save(tmp_path / "all.csv")[0].read_text().splitlines()
    assert {line.count(",") for line in lines} == {2} and lines[-1] == "/tmp/x,,1"
    (path,) = both.save(tmp_path / "all.NPZ")
    assert Sequences.load(path).names == both.names
    with pytest.raises(ValueError, match="ends in .csv, but the format is 'npz'"):
        both.save(tmp_path / "x.csv", "npz")


def test_static_factors_of_each_step_stay_so():
    spec = ModelSpec.from_dict(SPEC.to_dict() | {"static_per_step": True})
    model = make_model(spec)
    factors = model.encode(model.read(walks(17, 5)))
    assert factors.static.shape == (2, 17, 4)
    steps = [NORMALIZER.apply(x) for x in walks(17, 5)]
    whole = encode_windows(model, steps, [np.ones(x.shape, bool) for x in steps], None, 4)
    np.testing.assert_allclose(factors.static[1, :5], whole.static[1, :5], atol=1e-5)
    assert model.reconstruct(factors).lengths.tolist() == [17, 5]
