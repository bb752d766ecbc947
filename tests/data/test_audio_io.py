import builtins

import numpy as np
import pytest
from speech_files import cut, noise, soundfile, tone, write, write_sphere

from diffsda_jax.data import audio_io
from diffsda_jax.data.sources import BrokenItemError


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"coding": None},
        {"order": "10"},
        {"padding": b" "},
        {"padding": b"\n", "header": 2048},
        {"header": 3072},
        {"rate": 8000},
    ],
)
def test_sphere_headers(tmp_path, options):
    samples = noise(3000)
    path = write_sphere(tmp_path / "SX1.WAV", samples, **options)
    assert audio_io.audio_info(path) == (3000, options.get("rate", 16_000))
    found, rate = audio_io.read_audio(path)
    assert found.dtype == np.float32 and rate == options.get("rate", 16_000)
    np.testing.assert_allclose(found, samples, atol=1 / 32768)


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW"])
def test_sphere_in_the_coding_of_telephones(tmp_path, subtype):
    path = write(tmp_path / "a.wav", tone(0.5), 8000, format="NIST", subtype=subtype)
    assert path.read_bytes().startswith(b"NIST_1A")
    assert audio_io.audio_info(path) == (8000, 8000)
    np.testing.assert_allclose(audio_io.read_audio(path)[0], tone(0.5), atol=0.02)


def test_packed_sphere_names_the_way_out(tmp_path):
    coding = "pcm,embedded-shorten-v2.00"
    path = write_sphere(tmp_path / "a.wav", noise(3000), coding=coding)
    for read in (audio_io.audio_info, audio_io.read_audio):
        with pytest.raises(BrokenItemError, match=rf"sample_coding '{coding}'.*sph2pipe -p -f wav"):
            read(path)


@pytest.mark.parametrize(
    ("suffix", "rate", "subtype", "error"),
    [
        ("wav", 8000, "PCM_16", 1e-4),
        ("wav", 16_000, "FLOAT", 1e-7),
        ("wav", 44_100, "PCM_24", 1e-6),
        ("wav", 22_050, "PCM_U8", 1e-2),
        ("wav", 16_000, "IMA_ADPCM", 0.1),
        ("flac", 48_000, "PCM_16", 1e-4),
        ("mp3", 44_100, None, 0.05),
        ("ogg", 16_000, None, 0.05),
    ],
)
def test_formats(tmp_path, suffix, rate, subtype, error):
    samples = tone(0.5, rate=rate)
    path = write(tmp_path / f"a.{suffix}", samples, rate, subtype=subtype)
    found, found_rate = audio_io.read_audio(path)
    assert audio_io.audio_info(path) == (len(found), found_rate) and found_rate == rate
    assert 0 <= len(found) - len(samples) < 1200  # ADPCM fills its last block
    np.testing.assert_allclose(found[: len(samples)], samples, atol=error)


def test_what_a_file_holds_counts_and_not_its_name(tmp_path):
    samples = noise(2000)
    flac = write(tmp_path / "a.flac", samples)
    found, _ = audio_io.read_audio(flac.rename(tmp_path / "a.wav"))
    np.testing.assert_allclose(found, samples, atol=1 / 32768)


def test_channels_are_averaged(tmp_path):
    left, right = noise(2000, 1), noise(2000, 2)
    path = write(tmp_path / "a.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    assert audio_io.audio_info(path) == (2000, 44_100)
    np.testing.assert_allclose(audio_io.read_audio(path)[0], (left + right) / 2, atol=1e-6)


def test_truncated_files_are_refused(tmp_path):
    samples = noise(30_000)
    early = {
        "wav": cut(write(tmp_path / "a.wav", samples)),
        "stereo": cut(write(tmp_path / "b.wav", np.stack([samples] * 2, 1), subtype="FLOAT")),
        "sphere": cut(write_sphere(tmp_path / "c.wav", samples)),
    }
    for path in early.values():  # libsndfile itself reads these without a word
        assert len(soundfile.read(path)[0]) < 30_000
        with pytest.raises(BrokenItemError, match="truncated: the header states 30000 samples"):
            audio_io.audio_info(path)
    flac = cut(write(tmp_path / "d.flac", samples))
    assert audio_io.audio_info(flac) == (30_000, 16_000)  # its end is seen only in decoding
    for read in (audio_io.read_audio, lambda path: audio_io.read_slice(path, 28_000, 500, 8000)):
        with pytest.raises(BrokenItemError, match=r"cannot be decoded|truncated"):
            read(flac)


def test_a_slice_past_the_end_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", noise(1000))
    with pytest.raises(BrokenItemError, match="ends before sample 1000 at 16000 Hz"):
        audio_io.read_slice(path, 1000, 10, 16_000)


@pytest.mark.parametrize("data", [b"", b"junk" * 400, b"RIFF\0\0\0\0WAVE", b"NIST_1A\n   1024\n"])
def test_unreadable_files_are_refused(tmp_path, data):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(BrokenItemError, match=r"empty: the file|cannot be decoded: \w"):
        audio_io.audio_info(path)
    with pytest.raises(BrokenItemError):
        audio_io.read_slice(path, 0, 10, 16_000)


def test_files_without_samples_or_length_are_refused(tmp_path):
    with pytest.raises(BrokenItemError, match="holds no samples"):
        audio_io.read_audio(write(tmp_path / "a.wav", np.zeros(0, "f4")))
    flac = write(tmp_path / "a.flac", noise(5000))
    data = bytearray(flac.read_bytes())
    data[21] &= 0xF0  # the total number of samples in the stream information
    data[22:26] = bytes(4)
    flac.write_bytes(data)
    with pytest.raises(BrokenItemError, match="header states no length"):
        audio_io.audio_info(flac)


def test_the_false_length_of_a_streamed_wav_is_no_truncation(tmp_path):
    path = write(tmp_path / "a.wav", noise(1000))
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert audio_io.audio_info(path) == (1000, 16_000)


def test_silence_and_values_that_are_not_finite_are_refused(tmp_path):
    silent = write(tmp_path / "a.wav", np.full(1000, 5e-5, "f4"), subtype="FLOAT")
    with pytest.raises(BrokenItemError, match=r"silent: no sample is above 0\.0001"):
        audio_io.read_audio(silent)
    assert len(audio_io.read_slice(silent, 0, 500, 16_000)) == 500  # a pause
    samples = noise(1000)
    samples[700] = np.nan
    broken = write(tmp_path / "b.wav", samples, subtype="FLOAT")
    with pytest.raises(BrokenItemError, match="sample 700 is not finite"):
        audio_io.read_audio(broken)
    with pytest.raises(BrokenItemError, match="sample 700 is not finite"):
        audio_io.read_slice(broken, 600, 300, 16_000)
    assert len(audio_io.read_slice(broken, 0, 700, 16_000)) == 700


def test_clipping_is_a_share_of_samples_at_full_scale(tmp_path):
    samples = noise(1000)
    samples[:11] = 1.0
    path = write(tmp_path / "a.wav", samples, subtype="PCM_16")
    assert audio_io.is_clipped(audio_io.read_audio(path)[0])
    assert not audio_io.is_clipped(np.append(samples[1:], samples[-1]))  # 10 of 1000
    loud = write(tmp_path / "b.wav", 10 * noise(1000), subtype="FLOAT")
    found, _ = audio_io.read_audio(loud)
    assert np.abs(found).max() == 1.0 and audio_io.is_clipped(found)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(8000, 16_000), (44_100, 16_000), (16_000, 22_050)])
def test_resampling_keeps_a_tone(from_hz, to_hz):
    found = audio_io.resample(tone(1.0, rate=from_hz), from_hz, to_hz)
    assert len(found) == audio_io.resampled_length(from_hz, from_hz, to_hz) == to_hz
    inner = slice(to_hz // 20, -to_hz // 20)
    np.testing.assert_allclose(found[inner], tone(1.0, rate=to_hz)[inner], atol=2e-3)


def test_resampling_to_the_same_rate_changes_nothing_and_a_bad_rate_is_refused():
    samples = noise(100)
    assert audio_io.resample(samples, 16_000, 16_000) is samples
    with pytest.raises(ValueError, match="0 and 16000 Hz: use 1 or more"):
        audio_io.resample(samples, 0, 16_000)


@pytest.mark.parametrize(
    ("suffix", "rate"),
    [("wav", 8000), ("wav", 16_000), ("flac", 44_100), ("wav", 11_025), ("ogg", 22_050)]
    + [("mp3", 22_050), ("flac", 48_000)],
)
def test_slices_equal_those_of_the_whole(tmp_path, suffix, rate):
    path = write(tmp_path / f"a.{suffix}", noise(3 * rate + 77), rate)
    samples, _ = audio_io.read_audio(path)
    whole = audio_io.resample(samples, rate, 16_000)
    assert len(whole) == audio_io.resampled_length(len(samples), rate, 16_000)
    for start, count in [(0, 12_800), (1, 7), (12_800, 12_800), (38_400, 12_800), (47_999, 500)]:
        part = audio_io.read_slice(path, start, count, 16_000)
        assert part.shape == whole[start : start + count].shape
        np.testing.assert_allclose(part, whole[start : start + count], atol=1e-5)


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_a_missing_soundfile_names_the_extra(tmp_path, monkeypatch, error):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "soundfile":
            raise error(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "diffsda_jax\[audio\]"'):
        audio_io.audio_info(tmp_path / "a.wav")
