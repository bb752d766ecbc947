"""Speech from files to sound: training, evaluation and what they leave, on a made-up corpus."""

import io
import json
import logging
import wave

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from diffsda_jax import config as configuration
from diffsda_jax import eval_setup, runs, workdirs
from diffsda_jax import experiment as experiments

soundfile = pytest.importorskip("soundfile")

from small_hifigan import vocoder_file  # noqa: E402

RATE, SECONDS = 16_000, 1.1
SENTENCES = {"0": "A LOW TONE", "1": "A RISING TONE", "2": "A FALLING TONE"}
VOICES = {"train-clean-360": ("10", "20", "30", "40"), "test-clean": ("50", "60")}


def utterance(speaker, sentence, seconds=SECONDS):
    """Harmonics of a pitch that the sentence bends, below formants that the speaker has."""
    time = np.arange(round(seconds * RATE)) / RATE
    bend = (0.0, 0.4, -0.4)[int(sentence)] * time
    phase = 2 * np.pi * np.cumsum((90 + speaker) * np.exp(bend)) / RATE
    formants = 400 + 12 * speaker, 1_200 + 25 * speaker
    samples = np.zeros(len(time))
    for harmonic in range(1, 30):
        hz = harmonic * (90 + speaker)
        gain = sum(np.exp(-(((hz - formant) / 150) ** 2)) for formant in formants)
        samples += (0.02 + gain) * np.sin(harmonic * phase)
    return (0.3 * samples / np.abs(samples).max()).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six voices that say three sentences of two chunks, in the layout of LibriSpeech."""
    root = tmp_path_factory.mktemp("corpus")
    for subset, speakers in VOICES.items():
        for speaker in speakers:
            chapter = root / subset / speaker / "1"
            chapter.mkdir(parents=True)
            lines = []
            for sentence, text in SENTENCES.items():
                name = f"{speaker}-1-{sentence}"
                soundfile.write(chapter / f"{name}.flac", utterance(int(speaker), sentence), RATE)
                lines.append(f"{name} {text}")
            (chapter / f"{speaker}-1.trans.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    config = runs.shrink(configuration.load_config("configs/librispeech.py:espeak"))
    config.data.length = 68
    config.data.cache_dir = str(tmp_path_factory.mktemp("cache"))
    config.source.options.root = str(corpus)
    config.eval.batch_size = 8  # all that is sampled comes in eights: one program
    config.eval.parts = ("swap", "judge", "verification", "utterances")
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    result = runs.run_train(config, workdir)
    return workdir, result


def test_a_run_on_speech_ends_with_its_numbers(finished):
    workdir, result = finished
    assert int(result.state.step) == 2 and not result.interrupted
    metrics = json.loads((workdir / "eval" / "00000002" / "metrics.json").read_text())["metrics"]
    assert {
        "verification/static_eer_percent",
        "verification/gap_points",
        "utterances/s_to_speaker_percent",
        "utterances/d_to_content_percent",
        "swap/nearer_to_static_percent",
        "judge/static_accuracy_percent",
    } <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())
    assert (workdir / "eval" / "00000002" / "swap_series.png").stat().st_size


def test_the_notes_say_that_the_test_speakers_are_new(finished):
    notes = json.loads((finished[0] / "eval" / "00000002" / "metrics.json").read_text())["notes"]
    assert any("2 static labels of the test split are not in training" in note for note in notes)


def seconds_of(file):
    """Length of a WAV file that can be played: mono, 16 bits, at the rate of the mel."""
    with wave.open(file) as sound:
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        assert sound.getframerate() == 22_050
        samples = np.frombuffer(sound.readframes(10**9), "<i2")
    assert samples.any()
    return len(samples) / 22_050


def test_swaps_of_whole_utterances_can_be_heard(finished):
    files = sorted((finished[0] / "eval" / "00000002" / "sounds").glob("*.wav"))
    # Two speakers, and two of the three sentences, the other one introduced the speakers.
    assert [file.name for file in files] == [
        f"swap_{number}_{name}.wav"
        for number in range(4)
        for name in ("reconstruction", "result", "voice", "words")
    ]
    for file in files:
        assert seconds_of(str(file)) == pytest.approx(SECONDS, abs=0.03)  # of two chunks


def test_tensorboard_has_the_sounds(finished):
    audio = {}
    for path in (finished[0] / "logs").glob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:  # a record is length (8), crc (4), the event, crc (4)
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                if value.HasField("audio"):
                    audio.setdefault(value.tag, []).append(value.audio)
    assert {"eval/swap_0/voice", "eval/swap_3/result"} <= audio.keys()
    assert [len(values) for values in audio.values()] == [1] * 16
    sound = audio["eval/swap_0/result"][-1]
    assert sound.sample_rate == 22_050
    assert seconds_of(io.BytesIO(sound.encoded_audio_string)) == pytest.approx(SECONDS, abs=0.03)


def test_the_second_start_reads_the_statistics(finished, config, caplog):
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        experiment = experiments.build(config)
    assert f"statistics of librispeech/train from {config.data.cache_dir}" in caplog.text
    assert experiment.meta()["front_end"] == {
        "kind": "mel",
        "source_rate_hz": RATE,
        "num_samples": 12_800,
    }
    workdirs.check_workdir(finished[0], experiment)


def with_vocoder(config, path, **data):
    config = config.copy_and_resolve_references()
    config.eval.vocoder = str(path)
    config.data.update(data)
    return config


def test_a_hifigan_checkpoint_plays_the_swaps(config, tmp_path):
    experiment = experiments.build(
        with_vocoder(config, vocoder_file(tmp_path / "generator.npz", num_mels=80))
    )
    sound = eval_setup.make_sound(experiment)
    log_mel = np.random.default_rng(0).normal(size=(2, 9, 80)).astype(np.float32)
    waves = np.asarray(sound.vocoder(log_mel))
    assert waves.shape == (2, 9 * 256) and sound.sample_rate_hz == 22_050
    assert np.isfinite(waves).all() and (np.abs(waves) <= 1.0).all() and waves.std() > 0.0


def test_a_vocoder_that_cannot_be_used_is_named_before_training(config, tmp_path):
    linear = {"front_end": "linear", "length": 78}
    path = tmp_path / "generator_v1"
    for number, (changed, error, words) in enumerate(
        (
            (with_vocoder(config, path), FileNotFoundError, "generator_v1' is not a file"),
            (with_vocoder(config, path, **linear), ValueError, "HiFi-GAN needs 'mel'"),
        )
    ):
        with pytest.raises(error) as caught:
            runs.run_train(changed, tmp_path / f"run{number}")
        assert words in str(caught.value) and "\n" not in str(caught.value)
        assert not list((tmp_path / f"run{number}").glob("checkpoints/*"))


def test_griffin_lim_plays_linear_spectrograms(config):
    changed = config.copy_and_resolve_references()
    changed.data.update(front_end="linear", length=78)
    experiment = experiments.build(changed)
    sound = eval_setup.make_sound(experiment)
    data = experiments.load_split(experiment, "test", 4)
    assert data["x"].shape == (4, 78, 201)
    waves = np.asarray(sound.vocoder(sound.denormalize(data["x"][:1])))
    assert waves.shape == (1, 77 * 165) and sound.sample_rate_hz == RATE
