import dataclasses

import numpy as np
import pytest

from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.interface import Sound, encode_clips
from diffsda_jax.evals.sounds import cepstral_distances, make_sounds
from diffsda_jax.factors import Factors

STEPS, BINS, HOP = 6, 20, 4
NAMES = ("voice", "words", "result", "reconstruction")
CHUNKS = (3, 1, 2, 2, 1, 3)  # of each recording; their speakers are 0, 0, 1, 1, 2, 2


class VoiceOracle:
    """s is the mean frame of a chunk, d what is left of each frame; samples add the two."""

    def encode(self, x, length=None, mask=None):
        static = x.mean(1)
        return Factors(static=static, dynamic=x - static[:, None])

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return factors.static[:, None] + factors.dynamic

    def invert(self, x, factors, num_steps=32):
        return np.asarray(x)


class Wild(VoiceOracle):
    """Samples that no recording is like."""

    def __init__(self, value):
        self.value = value

    def decode(self, factors, start=None, num_steps=32, seed=0):
        x = super().decode(factors, start, num_steps, seed)
        return np.where(np.arange(STEPS)[:, None] % 2 == 0, np.float32(self.value), x)


def denormalize(x):
    return np.asarray(2.0 * x - 3.0, np.float32)


def vocoder(log_spectrum):
    """Tells all of a frame's levels apart, and takes `HOP` samples for each frame."""
    weights = np.linspace(1.0, 2.0, BINS) ** 3
    return np.repeat(np.exp(log_spectrum) @ weights, HOP, axis=1)


SOUND = Sound(denormalize, vocoder, 16_000)


def courses(count, rng):
    """What is said: it averages out over a chunk."""
    course = rng.normal(size=(count, STEPS, BINS))
    return course - course.mean(1, keepdims=True)


@pytest.fixture(scope="module")
def speech():
    """Chunks of two recordings by each of three speakers, each voice a mean spectrum."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(len(CHUNKS)), CHUNKS)
    voices = rng.normal(size=(3, BINS))
    x = voices[group // 2][:, None] + courses(len(group), rng)
    return {"x": x.astype(np.float32), "group": group, "static_label": group // 2}, voices


def context(model, data, trial=None):
    x = data["x"]
    return Context(
        model=model,
        kind="series",
        train=data,
        test=data,
        train_factors=encode_clips(VoiceOracle(), x),
        test_factors=encode_clips(VoiceOracle(), x),
        judge=None,
        settings=EvalSettings(num_steps=2, batch_size=4),
        readers=data,
        trial=np.arange(len(x)) if trial is None else trial,
        sound=SOUND,
    )


def play(frames):
    return vocoder(denormalize(frames.reshape(1, -1, BINS)))[0]


def test_whole_recordings_change_their_voice(speech):
    data, voices = speech
    sounds = make_sounds(context(VoiceOracle(), data), SOUND, 6)
    assert set(sounds) == {f"swap_{number}/{name}" for number in range(6) for name in NAMES}
    recordings = [data["x"][data["group"] == group] for group in range(len(CHUNKS))]
    used = []
    for number in range(6):
        heard = {name: sounds[f"swap_{number}/{name}"] for name in NAMES}
        who, what = (which(recordings, heard[name]) for name in ("voice", "words"))
        assert who // 2 != what // 2
        swapped = recordings[what] - voices[what // 2] + voices[who // 2]
        # All recordings are voices here, so their levels are the limits of what is decoded.
        swapped = np.clip(swapped, data["x"].min(), data["x"].max()).astype(np.float32)
        np.testing.assert_allclose(heard["result"], play(swapped), rtol=1e-4)
        np.testing.assert_allclose(heard["reconstruction"], heard["words"], rtol=1e-4)
        used.append(who)
    assert sorted(used) == list(range(6))


def which(recordings, wave):
    """The recording that sounds like this."""
    return next(
        place
        for place, recording in enumerate(recordings)
        if len(wave) == HOP * STEPS * len(recording) and np.allclose(play(recording), wave)
    )


def test_what_fills_chunks_up_is_not_heard(speech):
    data, _ = speech
    length = np.full(len(data["x"]), STEPS)
    length[np.cumsum(CHUNKS) - 1] = 2  # of the last chunk of each recording
    sounds = make_sounds(context(VoiceOracle(), {**data, "length": length}), SOUND, 6)
    allowed = {HOP * (STEPS * (count - 1) + 2) for count in CHUNKS}
    assert {len(wave) for wave in sounds.values()} == allowed
    spoilt = {**data, "length": length, "x": data["x"].copy()}
    spoilt["x"][length == 2, 2:] = data["x"].min()
    voices = make_sounds(context(VoiceOracle(), spoilt), SOUND, 6)
    for name in ("swap_0/voice", "swap_3/words"):
        np.testing.assert_array_equal(voices[name], sounds[name])


def test_the_count_is_a_limit_and_the_seed_decides(speech):
    data, _ = speech
    few = make_sounds(context(VoiceOracle(), data), SOUND, 2)
    assert len(few) == 8
    whole = make_sounds(context(VoiceOracle(), data), SOUND, 99)
    assert len(whole) == 24
    other = context(VoiceOracle(), data)
    other = dataclasses.replace(other, settings=EvalSettings(num_steps=2, seed=1))
    changed = make_sounds(other, SOUND, 2)
    assert any(
        changed[name].shape != few[name].shape or not np.allclose(changed[name], few[name])
        for name in few
    )


def test_only_clips_of_the_trial_are_heard(speech):
    data, _ = speech
    trial = np.flatnonzero(np.isin(data["group"], (0, 2)))
    sounds = make_sounds(context(VoiceOracle(), data, trial), SOUND, 6)
    assert len(sounds) == 8
    assert {len(sounds["swap_0/voice"]), len(sounds["swap_0/words"])} == {
        CHUNKS[group] * STEPS * HOP for group in (0, 2)
    }


class FromStart(VoiceOracle):
    """Samples are what the start noise is; the noise of a clip is the clip."""

    def decode(self, factors, start=None, num_steps=32, seed=0):
        return start


def test_sounds_start_from_what_the_settings_say(speech):
    data, _ = speech

    def heard(start):
        case = context(FromStart(), data)
        settings = EvalSettings(num_steps=2, batch_size=4, start=start)
        return make_sounds(dataclasses.replace(case, settings=settings), SOUND, 6)

    sounds = {start: heard(start) for start in ("random", "zero", "donor", "target")}
    for number in range(6):
        of = {
            start: {name: some[f"swap_{number}/{name}"] for name in NAMES}
            for start, some in sounds.items()
        }
        np.testing.assert_allclose(of["donor"]["result"], of["donor"]["words"], rtol=1e-4)
        common = min(len(of["target"]["result"]), len(of["target"]["voice"]))
        for name in ("result", "voice"):
            of["target"][name] = of["target"][name][:common]
        np.testing.assert_allclose(of["target"]["result"], of["target"]["voice"], rtol=1e-4)
        assert np.ptp(of["zero"]["result"]) < 1e-9 and np.ptp(of["random"]["result"]) > 0.1


def test_one_speaker_has_nobody_to_swap_with(speech):
    data, _ = speech
    trial = np.flatnonzero(data["static_label"] == 1)
    assert make_sounds(context(VoiceOracle(), data, trial), SOUND, 4) == {}


@pytest.mark.parametrize("value", [1e30, -1e30, np.inf, -np.inf, np.nan])
def test_wild_decodes_stay_within_the_real_recordings(speech, value):
    data, _ = speech
    sounds = make_sounds(context(Wild(value), data), SOUND, 4)
    loudest = play(np.full((1, STEPS, BINS), data["x"].max())).max()
    assert len(sounds) == 16
    for name, wave in sounds.items():
        assert np.isfinite(wave).all() and wave.max() <= loudest * 1.0001, name


def donors():
    rng = np.random.default_rng(1)
    x_static, x_dynamic = (
        (rng.normal(size=(40, 1, BINS)) + courses(40, rng)).astype(np.float32) for _ in range(2)
    )
    return x_static, x_dynamic


def test_a_swap_is_as_near_to_a_donor_as_it_sounds():
    x_static, x_dynamic = donors()
    perfect = cepstral_distances(x_static, x_static, x_dynamic, denormalize)
    assert perfect["cepstral_distance_to_static_db"] == 0.0
    assert perfect["cepstral_distance_to_dynamic_db"] > 1.0
    assert perfect["nearer_to_static_percent"] == 100.0
    useless = cepstral_distances(x_dynamic, x_static, x_dynamic, denormalize)
    assert useless["cepstral_distance_to_dynamic_db"] == 0.0
    assert useless["nearer_to_static_percent"] == 0.0
    other = np.random.default_rng(2).normal(size=(40, 1, BINS)) + 0 * x_static
    chance = cepstral_distances(other.astype(np.float32), x_static, x_dynamic, denormalize)
    assert abs(chance["nearer_to_static_percent"] - chance["nearer_to_static_chance_percent"]) < 25


def test_neither_words_nor_loudness_count():
    x_static, x_dynamic = donors()
    words = x_dynamic - x_dynamic.mean(1, keepdims=True)
    swapped = x_static.mean(1, keepdims=True) + words + np.float32(0.7)
    result = cepstral_distances(swapped, x_static, x_dynamic, denormalize)
    assert result["cepstral_distance_to_static_db"] < 1e-4
    assert result["nearer_to_static_percent"] == 100.0


def test_what_fills_clips_up_is_no_part_of_a_voice():
    x_static, x_dynamic = donors()
    short = np.full(40, STEPS // 2)
    cut = [x[:, : STEPS // 2] for x in (x_dynamic, x_static, x_dynamic)]
    filled = [np.concatenate([x, np.full_like(x, 9.0)], axis=1) for x in cut]
    whole = cepstral_distances(*cut, denormalize)
    assert cepstral_distances(*filled, denormalize, short, short) == pytest.approx(whole)


@pytest.mark.parametrize("order", [1, 5, 13])
def test_the_distance_is_the_level_between_mean_spectra(order):
    """Closed form: a ripple of 1 dB root mean square over the bins is a distance of 1 dB."""
    ripple = np.sqrt(2.0) * np.cos(np.pi * order * (np.arange(BINS) + 0.5) / BINS)
    nats = np.log(10.0) / 20.0 * ripple  # of magnitudes
    x = np.zeros((1, STEPS, BINS), np.float32)
    result = cepstral_distances(x + nats.astype(np.float32), x, x, lambda frames: frames)
    assert result["cepstral_distance_to_static_db"] == pytest.approx(1.0, rel=1e-4)
