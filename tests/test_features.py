import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import runs, sharding
from diffsda_jax.audio.spectrogram import LinearSpec, MelSpec, log_mel
from diffsda_jax.data.sources import BrokenItemError, ElementSpec, Source
from diffsda_jax.data.synthetic import Synthetic
from diffsda_jax.features import FrontEnd, fit_front_end_normalizer, load_frames

SAMPLES = 743  # of 16 kHz; they give 4 mel frames
FRONT_END = FrontEnd("mel", 16_000, SAMPLES)


class Recordings(Source):
    """Noise whose loudness and colour differ from chunk to chunk; `sizes` chunks a recording."""

    name, kind = "recordings", "audio"
    spec = ElementSpec("audio", (), fps=16_000.0)

    def __init__(self, sizes=(3, 2, 4), broken=(), seed=0, readable=True, **options):
        super().__init__("train", **options)
        self._groups = np.repeat(np.arange(len(sizes)), sizes)
        self._broken, self._seed, self._readable = broken, seed, readable
        self.reads = 0

    def __len__(self):
        return len(self._groups)

    def load(self, index, rng):
        assert self._readable, "the cache must do"
        self.reads += 1
        if index in self._broken:
            raise BrokenItemError("cut off")
        own = np.random.default_rng([self._seed, index])
        x = np.convolve(own.normal(size=SAMPLES), own.uniform(size=3), "same")
        x = (x * own.uniform(0.01, 0.2)).astype(np.float32)
        return {"x": x, "static_label": index % 5, "group": int(self._groups[index])}

    def groups(self):
        return self._groups

    def _identity(self):
        return [self._seed, self._groups.tolist()]


def raw_frames(source, index):
    """Twin: the frames of each chunk on its own."""
    rng = np.random.default_rng(0)
    waves = np.stack([source.load(int(place), rng)["x"] for place in index])
    return np.asarray(FRONT_END(jnp.asarray(waves)))


@pytest.fixture(scope="module")
def many():
    """More than one block of chunks, its frames, and the normaliser."""
    source = Recordings((70, 30))
    return source, raw_frames(source, range(100))


def test_a_chunk_gives_68_frames_of_80_bins():
    mel, linear = FrontEnd("mel", 16_000, 12_800), FrontEnd("linear", 16_000, 12_800)
    assert mel.shape() == (68, 80) and mel.spectrogram == MelSpec()
    assert linear.shape() == (78, 201) and linear.spectrogram == LinearSpec()
    for front_end in (FRONT_END, FrontEnd("linear", 16_000, SAMPLES)):
        x = np.random.default_rng(0).normal(size=(2, SAMPLES)).astype(np.float32)
        assert front_end(jnp.asarray(x)).shape == (2, *front_end.shape())
    with pytest.raises(ValueError, match="data.front_end is 'mfcc'; allowed: 'mel', 'linear'"):
        FrontEnd("mfcc", 16_000, 12_800)


def test_without_a_change_of_rate_frames_are_the_spectrogram():
    x = np.random.default_rng(0).normal(size=(2, 2048)).astype(np.float32)
    front_end = FrontEnd("mel", 22_050, 2048)
    np.testing.assert_array_equal(front_end(jnp.asarray(x)), log_mel(jnp.asarray(x), MelSpec()))


@pytest.mark.parametrize(("kind", "rate"), [("mel", 22_050 / 256), ("linear", 16_000 / 165)])
def test_the_element_is_a_series_of_named_bins(kind, rate):
    audio = ElementSpec("audio", (), static_names=("ann", "bob"), fps=16_000.0)
    element = FrontEnd(kind, 16_000, 12_800).element(audio)
    bins = {"mel": 80, "linear": 201}[kind]
    assert element.kind == "series" and element.shape == (bins,)
    assert element.feature_names[0] == f"{kind} 0" and len(element.feature_names) == bins
    assert element.fps == pytest.approx(rate) and element.static_names == ("ann", "bob")


def test_statistics_are_those_of_all_frames(many, tmp_path):
    source, frames = many
    normalizer = fit_front_end_normalizer(source, FRONT_END, 0.5, tmp_path)
    everything = frames.reshape(-1, 80).astype(np.float64)
    np.testing.assert_allclose(normalizer.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.std, everything.std(0), rtol=1e-5)


def test_the_second_start_reads_no_data(caplog, tmp_path):
    first = fit_front_end_normalizer(Recordings(), FRONT_END, 0.5, tmp_path / "new")
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        again = fit_front_end_normalizer(
            Recordings(readable=False), FRONT_END, 0.5, tmp_path / "new"
        )
    assert "statistics of recordings/train from" in caplog.text
    for name in ("mean", "std"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert again.target_std == 0.5
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("source", "front_end", "target_std"),
    [
        (Recordings(seed=1), FRONT_END, 0.5),
        (Recordings(), FrontEnd("linear", 16_000, SAMPLES), 0.5),
        (Recordings(), FRONT_END, 1.0),
    ],
    ids=["other data", "other front end", "other scale"],
)
def test_statistics_of_something_else_are_not_used(source, front_end, target_std, tmp_path):
    fit_front_end_normalizer(Recordings(), FRONT_END, 0.5, tmp_path)
    fit_front_end_normalizer(source, front_end, target_std, tmp_path)
    assert source.reads == len(source) and len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_a_warning(caplog, tmp_path):
    (tmp_path / "file").write_text("")
    normalizer = fit_front_end_normalizer(Recordings(), FRONT_END, 0.5, tmp_path / "file" / "cache")
    assert normalizer.mean.shape == (80,)
    assert "statistics are not kept for the next start" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", '{"mean": [1.0', "[]", '{"mean": null, "std": null, "target_std": 0.5}']
    + ['{"mean": [1.0], "std": [1.0], "target_std": 0.5}', '{"std": [1.0]}'],
)
def test_a_damaged_cache_is_made_anew(text, caplog, tmp_path):
    fit_front_end_normalizer(Recordings(), FRONT_END, 0.5, tmp_path)
    (file,) = tmp_path.iterdir()
    good = json.loads(file.read_text())
    file.write_text(text)
    source = Recordings()
    fit_front_end_normalizer(source, FRONT_END, 0.5, tmp_path)
    assert source.reads == len(source) and json.loads(file.read_text()) == good
    assert "cannot be read and are made anew" in caplog.text and str(file) in caplog.text


def test_frames_are_normalised_in_the_order_of_the_chunks(many, tmp_path):
    source, frames = many
    normalizer = fit_front_end_normalizer(source, FRONT_END, 0.5, tmp_path)
    data = load_frames(source, FRONT_END, normalizer, 100)
    assert data["x"].dtype == np.float32 and data["x"].shape == (100, 4, 80)
    np.testing.assert_allclose(data["x"], normalizer.apply(frames), atol=1e-5)
    np.testing.assert_array_equal(data["static_label"], np.arange(100) % 5)
    np.testing.assert_array_equal(data["group"], source.groups())
    assert (data["length"] == 4).all() and data["length"].dtype == np.int32
    flat = data["x"].reshape(-1, 80)
    np.testing.assert_allclose(flat.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(flat.std(0), 0.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("limit", "groups"),
    [(9, [0, 0, 0, 1, 1, 2, 2, 2, 2]), (8, [0, 0, 0, 2, 2, 2, 2]), (6, [0, 0, 0]), (1, [0, 0, 0])],
)
def test_a_limit_takes_whole_recordings(limit, groups):
    data = load_frames(Recordings(), FRONT_END, identity(), limit)
    assert data["group"].tolist() == groups


def identity():
    return experiments.Normalizer(np.zeros(80, np.float32), np.ones(80, np.float32), 1.0)


def test_broken_chunks_are_left_out_and_counted(many, tmp_path):
    """One in the first block, and all of the second block but one."""
    whole, frames = many
    broken = {5, *range(65, 100)}
    source = Recordings((70, 30), broken, max_skipped_share=0.5)
    kept = np.array([place for place in range(100) if place not in broken])
    data = load_frames(source, FRONT_END, identity(), 100)
    np.testing.assert_allclose(data["x"], frames[kept], atol=1e-4)
    np.testing.assert_array_equal(data["static_label"], kept % 5)
    assert len(source.skipped) == 36 and source.skipped["recordings/train[5]"] == "cut off"
    normalizer = fit_front_end_normalizer(source, FRONT_END, 0.5, tmp_path)
    np.testing.assert_allclose(normalizer.mean, frames[kept].mean((0, 1)), rtol=1e-5)
    with pytest.raises(ValueError, match="max_skipped_share=0.05 allows"):
        load_frames(Recordings((70, 30), broken), FRONT_END, identity(), 100)


@pytest.mark.parametrize("broken", [range(64), range(100)], ids=["a whole block", "all"])
def test_nothing_left_is_an_error_only_where_nothing_is_left(broken, tmp_path):
    source = Recordings((70, 30), broken, max_skipped_share=1.0)
    if len(broken) < 100:
        assert len(load_frames(source, FRONT_END, identity(), 100)["x"]) == 36
        fit_front_end_normalizer(source, FRONT_END, 0.5, tmp_path)
        return
    with pytest.raises(ValueError, match="recordings/train: no element can be read"):
        load_frames(source, FRONT_END, identity(), 100)
    with pytest.raises(ValueError, match="recordings/train: no element can be read"):
        fit_front_end_normalizer(source, FRONT_END, 0.5, tmp_path)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    config = runs.shrink(configuration.load_config("configs/librispeech.py:espeak"))
    config.data.cache_dir = str(tmp_path_factory.mktemp("cache"))
    element = ElementSpec("audio", (), static_names=("a", "b"), fps=16_000.0)
    sources = {split: Synthetic(split, element, 16, SAMPLES) for split in ("train", "test")}
    return experiments.build(config, sources)


def test_the_loss_of_waveforms_is_that_of_their_frames(experiment):
    mesh = sharding.make_mesh(jax.devices()[:1])
    transformation, _, from_waveforms = experiments.make_training(experiment, mesh)
    on_frames = experiments.make_training(dataclasses.replace(experiment, front_end=None), mesh)[2]
    state = experiments.initial_state(experiment, transformation, mesh)
    batch = next(experiments.make_iterator(experiment, seed=0))
    waves, length = batch["x"], batch["length"]
    assert waves.shape == (8, SAMPLES) and (length == SAMPLES).all()
    frames = experiment.normalizer.apply(np.asarray(experiment.front_end(jnp.asarray(waves))))

    def loss_of(loss_fn, x, **others):
        batch = {name: jnp.asarray(value) for name, value in {"x": x, **others}.items()}
        return float(loss_fn(state.params, state.constants, batch, jax.random.key(0))[0])

    from_waveforms, on_frames = jax.jit(from_waveforms), jax.jit(on_frames)
    expected = loss_of(on_frames, frames)
    assert loss_of(from_waveforms, waves, length=length) == pytest.approx(expected, rel=1e-4)
    assert loss_of(on_frames, frames[::-1]) != pytest.approx(expected, rel=1e-4)  # control
    # What only fills a chunk up is neither encoded nor scored, whatever it holds.
    short = np.where(np.arange(8) < 3, 200, SAMPLES)
    filled = np.where(np.arange(SAMPLES) < short[:, None] + 1024, waves, 0.7).astype(np.float32)
    part = loss_of(from_waveforms, waves, length=short)
    assert loss_of(from_waveforms, filled, length=short) == pytest.approx(part, rel=1e-5)
    assert part < 0.9 * expected


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(1, 1), (185, 1), (186, 2), (6400, 35), (12_800, 68)]
)
def test_frames_that_hold_something_of_the_first_samples(num_samples, num_frames):
    """A hop of 256 samples at 22,050 Hz is 185.8 samples at 16,000 Hz."""
    front_end = FrontEnd("mel", 16_000, 12_800)
    for array in (np.array([num_samples]), jnp.array([num_samples])):
        assert front_end.num_frames(array).tolist() == [num_frames]


def test_statistics_leave_out_what_fills_chunks_up(tmp_path):
    """Chunks of 200 samples hold 2 frames each, whatever follows."""

    class Short(Recordings):
        def load(self, index, rng):
            return {**super().load(index, rng), "length": 200}

    source = Short((70, 30))
    normalizer = fit_front_end_normalizer(source, FRONT_END, 0.5, tmp_path)
    frames = raw_frames(source, range(100))[:, :2].reshape(-1, 80).astype(np.float64)
    np.testing.assert_allclose(normalizer.mean, frames.mean(0), rtol=1e-5)
    assert (load_frames(source, FRONT_END, normalizer, 100)["length"] == 2).all()


def test_a_length_that_the_front_end_does_not_give_is_refused(experiment):
    config = experiment.config.copy_and_resolve_references()
    config.data.length = 5
    with pytest.raises(ValueError, match="743 samples give 4 frames .* --config.data.length=4"):
        experiments.build(config, experiment.sources)


def test_micro_batches_of_waveforms_are_given_draws_for_their_frames(experiment):
    config = experiment.config.copy_and_resolve_references()
    config.train.accumulation_steps = 2
    experiment = dataclasses.replace(experiment, config=config)
    mesh = sharding.make_mesh(jax.devices()[:1])
    transformation, step_fn, _ = experiments.make_training(experiment, mesh)
    state = experiments.initial_state(experiment, transformation, mesh)
    batch = {"x": jnp.zeros((8, SAMPLES)), "length": jnp.full(8, SAMPLES, jnp.int32)}
    _, metrics = step_fn.trace(state, batch, jax.random.key(0)).out_info
    assert metrics["loss"].shape == ()
