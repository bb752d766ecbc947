import logging
import shutil

import numpy as np
import pytest
from speech_files import cut, noise, tone, write, write_sphere

from diffsda_jax.data import audio_io
from diffsda_jax.data.pipeline import load_arrays, make_train_iterator
from diffsda_jax.data.sources.base import BrokenItemError
from diffsda_jax.data.sources.speech_sets import (
    TIMIT_CORE,
    TIMIT_DEV,
    LibriSpeech,
    SpeechFolder,
    Timit,
)
from diffsda_jax.data.transforms import Normalizer

RNG = np.random.default_rng(0)
CHUNK = 12_800


def elements(source):
    return [source.load(index, RNG) for index in range(len(source))]


@pytest.fixture
def timit(tmp_path):
    """TRAIN with two speakers; TEST with one of the core set, one of the dev set, one of none."""
    places = ["TRAIN/DR1/FCJF0", "TRAIN/DR2/MARC0", "TEST/DR1/MDAB0", "TEST/DR1/FAKS0"]
    for number, place in enumerate([*places, "TEST/DR3/MXXX0"]):
        for code in ("SA1", "SA2", "SX1", f"SX{2 + number // 2}", f"SI{number}"):
            write_sphere(tmp_path / place / f"{code}.WAV", noise(16_000, number))
    return tmp_path


def test_the_published_speakers_of_timit():
    assert len(TIMIT_CORE) == 24 and len(TIMIT_DEV) == 50 and not TIMIT_CORE & TIMIT_DEV


def test_timit_splits_and_labels(timit, caplog):
    with caplog.at_level(logging.INFO):
        train, test = Timit("train", str(timit)), Timit("test", str(timit))
    assert "1 speakers of TEST are in neither" in caplog.text and "MXXX0" in caplog.text
    assert "23 of the 24 core test speakers are missing" in caplog.text
    assert train.spec == test.spec and train.spec.fps == 16_000 and train.spec.shape == ()
    assert train.spec.static_names == ("FAKS0", "FCJF0", "MARC0", "MDAB0")
    # 5 of every 8 TIMIT sentences are said by others too, so those said once have a class as well.
    assert train.spec.dynamic_names == ("SI0", "SI1", "SI2", "SI3", "SX1", "SX2", "SX3")
    speakers = [train.spec.static_names[e["static_label"]] for e in elements(train)]
    assert sorted(set(speakers)) == ["FAKS0", "FCJF0", "MARC0"] and len(speakers) == 3 * 3 * 2
    said = [
        (test.item_name(i), test.spec.dynamic_names[e["dynamic_label"]], e["group"])
        for i, e in enumerate(elements(test))
    ]
    assert said == [
        (f"TEST/DR1/MDAB0/{code}.WAV", code, group)
        for group, code in enumerate(["SI2", "SX1", "SX3"])
        for _ in range(2)
    ]
    whole = Timit("test", str(timit), sentences="all")
    assert len(whole) == 10 and "SA1" in whole.spec.dynamic_names
    assert whole.fingerprint() != test.fingerprint()


def test_timit_in_lower_case_riff_and_with_second_copies(timit, caplog):
    reference = Timit("train", str(timit))
    lower = timit / "lower"
    for path in sorted(timit.glob("T*/*/*/*.WAV")):
        target = lower / path.relative_to(timit).as_posix().lower()
        samples, rate = audio_io.read_audio(path)
        write(target, samples, rate, format="WAV")
        shutil.copy(target, target.with_name(target.name + ".wav"))
    write(lower / "train" / "dr1" / "fcjf0" / "notes.wav", noise(9))
    write(lower / "train" / "dr1" / "fcjf0" / "._sx1.wav", noise(9))  # of another file system
    with caplog.at_level(logging.INFO):
        source = Timit("train", str(lower), max_skipped_share=0.2)
    assert "files are second copies, not read" in caplog.text
    assert source.spec == reference.spec and len(source) == len(reference)
    assert list(source.skipped) == ["train/dr1/fcjf0/notes.wav"]
    for one, other in zip(elements(source), elements(reference), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])


def test_timit_says_what_is_missing(timit, tmp_path):
    with pytest.raises(FileNotFoundError, match="root .*nowhere' of source 'timit' is no folder"):
        Timit("train", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="root '' of source 'timit'"):
        Timit("train", "")
    with pytest.raises(FileNotFoundError, match="folder TRAIN .* where there is DR1, DR2;"):
        Timit("train", str(timit / "TRAIN"))
    with pytest.raises(ValueError, match=r"sentences='none' .* \('all but SA', 'all'\)"):
        Timit("train", str(timit), sentences="none")
    shutil.rmtree(timit / "TEST" / "DR1" / "MDAB0")
    with pytest.raises(ValueError, match="holds nothing for the split 'test'"):
        Timit("test", str(timit))
    shutil.rmtree(timit / "TEST" / "DR1")
    with pytest.raises(ValueError, match="none of the speakers of the core test set.*but MXXX0"):
        Timit("train", str(timit))


@pytest.fixture
def libri(tmp_path):
    """Two training speakers and a test speaker who read the same two sentences."""
    for place in ("train-clean-360/14/208", "train-clean-360/9/7", "test-clean/61/70968"):
        speaker, chapter = place.split("/")[1:]
        folder = tmp_path / place
        for number, seconds in enumerate((2.0, 0.5)):
            samples = tone(seconds, hz=100 + int(speaker))
            write(folder / f"{speaker}-{chapter}-{number:04d}.flac", samples)
        (folder / f"{speaker}-{chapter}.trans.txt").write_text(
            f"{speaker}-{chapter}-0000 GOOD  MORNING\n{speaker}-{chapter}-0001 good night\n"
        )
    return tmp_path


def test_librispeech_chunks_and_labels(libri):
    train, test = LibriSpeech("train", str(libri)), LibriSpeech("test", str(libri))
    assert train.spec == test.spec
    assert train.spec.static_names == ("9", "14", "61")  # numbered over both splits
    assert train.spec.dynamic_names == ("GOOD MORNING", "GOOD NIGHT")
    assert len(train) == 8 and train.lengths().tolist() == [CHUNK] * 8 and train.num_items() == 4
    labels = [(e["static_label"], e["dynamic_label"], e["group"]) for e in elements(train)]
    assert labels == [(1, 0, 0)] * 3 + [(1, 1, 1)] + [(0, 0, 2)] * 3 + [(0, 1, 3)]
    assert [e["static_label"] for e in elements(test)] == [2] * 4
    assert "8 audio sequences" in train.describe() and "4 utterances of 2 speakers" in (
        train.describe()
    )


def test_chunks_are_slices_and_the_last_is_padded(libri):
    source = LibriSpeech("test", str(libri))
    samples, _ = audio_io.read_audio(libri / "test-clean/61/70968/61-70968-0000.flac")
    chunks = [element["x"] for element in elements(source)]
    assert all(x.shape == (CHUNK,) and x.dtype == np.float32 for x in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks[:3])[:32_000], samples)
    assert not np.concatenate(chunks[:3])[32_000:].any()
    assert chunks[3][:8000].any() and not chunks[3][8000:].any()  # shorter than a chunk
    counted = [element["length"] for element in elements(source)]
    assert counted == [CHUNK, CHUNK, 32_000 - 2 * CHUNK, 8000]
    padded = LibriSpeech("test", str(libri), last_chunk="pad")  # silence that counts
    assert [element["length"] for element in elements(padded)] == [CHUNK] * 4
    assert padded.fingerprint() != source.fingerprint()
    dropped = LibriSpeech("test", str(libri), last_chunk="drop")
    assert len(dropped) == 3 and dropped.fingerprint() != source.fingerprint()
    np.testing.assert_array_equal(elements(dropped)[2]["x"], chunks[3])
    whole = LibriSpeech("test", str(libri), chunk_seconds=1.0)  # 2 s are two chunks, not three
    assert len(whole) == 3 and whole.load(1, RNG)["x"].shape == (16_000,)


def test_no_content_label_without_transcripts_or_without_repetition(libri, caplog):
    texts = sorted(libri.glob("*/*/*/*.trans.txt"))
    for number, path in enumerate(texts[1:]):
        path.write_text(path.read_text().replace("G", f"{number}").replace("g", f"{number}"))
    source = LibriSpeech("train", str(libri))
    assert source.spec.dynamic_names is None and "dynamic_label" not in source.load(0, RNG)
    assert not caplog.text
    texts[0].unlink()
    source = LibriSpeech("train", str(libri))
    assert source.spec.dynamic_names is None
    assert "2 of 2 utterances of test-clean have no transcript" in caplog.text


def test_librispeech_says_what_is_missing(libri, caplog):
    with pytest.raises(FileNotFoundError, match="'dev-clean'.*is test-clean, train-clean-360: .*"):
        LibriSpeech("train", str(libri), train_subsets=("dev-clean",))
    with pytest.raises(ValueError, match="subset test-clean .* in train_subsets and in test_subs"):
        LibriSpeech("train", str(libri), train_subsets=("test-clean",))
    for value in ("test-clean", ()):
        with pytest.raises(ValueError, match="test_subsets=.*: use a list"):
            LibriSpeech("test", str(libri), test_subsets=value)
    shutil.copytree(libri / "train-clean-360/9/7", libri / "test-clean/9/7")
    LibriSpeech("train", str(libri))
    assert "1 speakers are in both splits: 9" in caplog.text
    shutil.rmtree(libri / "train-clean-360")
    test = LibriSpeech("test", str(libri))
    assert test.spec.static_names == ("9", "61")
    assert "the subset train-clean-360 of the other split is missing" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_seconds": 0.0}, "chunk_seconds=0.0 of source 'librispeech': use 1/16000 or more"),
        ({"last_chunk": "keep"}, r"last_chunk='keep' of source 'librispeech': use \('mask', 'pad'"),
    ],
)
def test_bad_options(libri, options, message):
    with pytest.raises(ValueError, match=message):
        LibriSpeech("train", str(libri), **options)


@pytest.fixture
def mixed(tmp_path):
    """Five speakers with files of all formats, rates and channel counts."""
    kinds = [("a.wav", 8000), ("deep/er/b.flac", 44_100), ("c.ogg", 22_050), ("d.MP3", 48_000)]
    for speaker in range(5):
        for name, rate in kinds:
            samples = noise(rate, speaker)
            channels = np.stack([samples, samples], 1) if "b" in name else samples
            write(tmp_path / f"voice{speaker}" / name, channels, rate)
    (tmp_path / "voice0" / "notes.txt").write_text("no sound")
    return tmp_path


def test_any_folder_of_speakers(mixed):
    train, test = SpeechFolder("train", str(mixed)), SpeechFolder("test", str(mixed))
    assert train.spec == test.spec and train.spec.static_names == tuple(
        f"voice{number}" for number in range(5)
    )
    assert train.spec.dynamic_names is None
    found = [{e["static_label"] for e in elements(source)} for source in (train, test)]
    assert found[0] | found[1] == set(range(5)) and not found[0] & found[1] and found[1]
    assert len(train) + len(test) == 5 * 4 * 2
    for place in range(0, 8, 2):  # every format
        samples, rate = audio_io.read_audio(mixed / train.item_name(place))
        whole = np.pad(audio_io.resample(samples, rate, 16_000), (0, CHUNK))[: 2 * CHUNK]
        chunks = np.concatenate([train.load(place, RNG)["x"], train.load(place + 1, RNG)["x"]])
        np.testing.assert_allclose(chunks, whole, atol=1e-4)


def test_folders_split_by_utterance_or_by_hand(mixed):
    options = {"split_by": "utterance", "test_share": 0.5}
    sources = [SpeechFolder(split, str(mixed), **options) for split in ("train", "test")]
    names = [{source.item_name(i) for i in range(len(source))} for source in sources]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 20
    by_hand = mixed / "by_hand"
    shutil.copytree(mixed / "voice1", by_hand / "train" / "voice1")
    with pytest.raises(FileNotFoundError, match="by_hand/test is missing though there is .*train"):
        SpeechFolder("train", str(by_hand))
    shutil.copytree(mixed / "voice2", by_hand / "test" / "voice2")
    test = SpeechFolder("test", str(by_hand))
    assert test.spec.static_names == ("voice1", "voice2")
    assert {e["static_label"] for e in elements(test)} == {1}


def test_folders_that_cannot_be_split_or_labelled(mixed):
    with pytest.raises(ValueError, match="split_by='word' .*'speaker', 'utterance'"):
        SpeechFolder("train", str(mixed), split_by="word")
    write(mixed / "loose.wav", noise(100))
    with pytest.raises(ValueError, match="file loose.wav .* has no folder around it that names"):
        SpeechFolder("train", str(mixed))
    shutil.copytree(mixed / "voice1", mixed / "one" / "voice1")
    with pytest.raises(ValueError, match="one speaker, voice1, too few for two splits.*split_by='"):
        SpeechFolder("train", str(mixed / "one"))
    (mixed / "none").mkdir()
    with pytest.raises(
        ValueError, match="holds nothing for the split 'train'; expected there: a f"
    ):
        SpeechFolder("train", str(mixed / "none"))


def test_broken_files_are_skipped_counted_and_named(libri, caplog):
    speaker = libri / "train-clean-360" / "14" / "208"
    (speaker / "14-208-0002.flac").write_bytes(b"")
    cut(write(speaker / "14-208-0003.flac", noise(40_000), format="WAV"))
    cut(write(speaker / "14-208-0004.flac", noise(40_000)))  # its header is fine
    write(speaker / "14-208-0005.flac", np.zeros(20_000, "f4"))
    with pytest.raises(ValueError, match="2 of 8 items had to be skipped.*14-208-0002.flac .empty"):
        LibriSpeech("train", str(libri))
    source = LibriSpeech("train", str(libri), max_skipped_share=0.6)
    assert [name[-16:] for name in source.skipped] == ["14-208-0002.flac", "14-208-0003.flac"]
    assert "truncated: the header states 40000 samples" in caplog.text
    names = [source.item_name(index) for index in range(len(source))]
    silent = max(i for i, name in enumerate(names) if name.endswith("0005.flac"))
    with pytest.raises(BrokenItemError, match="silent"):
        source.load(silent, RNG)
    arrays = load_arrays(source, length=CHUNK, length_mode="crop", normalizer=Normalizer())
    assert len(source.skipped) == 4 and np.isfinite(arrays["x"]).all()
    assert arrays["x"].shape[0] <= len(source) - 3  # two silent chunks, and the end of 0004


def test_clipped_files_and_pauses_are_kept(libri, caplog):
    folder = libri / "test-clean" / "61" / "70968"
    for number in range(2, 7):
        write(folder / f"61-70968-{number:04d}.flac", np.clip(9 * noise(20_000, number), -1, 1))
    pause = tone(2.4)
    pause[CHUNK : 2 * CHUNK] = 0.0
    write(folder / "61-70968-0007.flac", pause)
    source = LibriSpeech("test", str(libri))
    for _ in range(2):
        assert len(elements(source)) == len(source) == 4 + 5 * 2 + 3
    assert len(source.clipped) == 5 and "5 clipped" in source.describe() and not source.skipped
    assert caplog.text.count("is clipped") == 3
    assert caplog.text.count("more of them are only counted") == 1


def test_the_fingerprint_is_of_the_content(libri, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("other") / "root"
    shutil.copytree(libri, elsewhere)
    before = LibriSpeech("train", str(libri)).fingerprint()
    assert LibriSpeech("train", str(elsewhere)).fingerprint() == before
    write(elsewhere / "train-clean-360" / "9" / "7" / "9-7-0001.flac", tone(0.6))
    assert LibriSpeech("train", str(elsewhere)).fingerprint() != before


def test_batches_of_chunks(libri):
    source = LibriSpeech("train", str(libri))
    batches = make_train_iterator(
        source,
        length=CHUNK,
        length_mode="crop",
        normalizer=Normalizer(),
        batch_size=8,
        seed=0,
        num_threads=0,
    )
    batch = next(batches)
    assert batch["x"].shape == (8, CHUNK)
    assert sorted(batch["static_label"].tolist()) == [0] * 4 + [1] * 4


def test_timit_files_that_cannot_be_used(timit):
    speaker = timit / "TRAIN" / "DR1" / "FCJF0"
    (speaker / "SX1.WAV").write_bytes(b"")
    cut(speaker / "SX2.WAV")
    write_sphere(speaker / "SI0.WAV", np.zeros(16_000))
    write_sphere(speaker / "SX9.WAV", noise(8_000), rate=8_000)  # a second at another rate
    write_sphere(speaker / "SX8.WAV", np.clip(9 * noise(16_000), -1, 0.9999))
    (speaker / "SX8.PHN").write_text("0 16000 h#\n")
    source = Timit("train", str(timit), max_skipped_share=0.5)
    assert [name[-7:] for name in source.skipped] == ["SX1.WAV", "SX2.WAV"]
    names = [source.item_name(index) for index in range(len(source))]
    assert [
        sum(name.endswith(f"FCJF0/{code}.WAV") for name in names) for code in ("SX8", "SX9")
    ] == [
        2,
        2,
    ]
    with pytest.raises(BrokenItemError, match="silent"):
        source.load(next(i for i, name in enumerate(names) if name.endswith("FCJF0/SI0.WAV")), RNG)
    loud = next(i for i, name in enumerate(names) if name.endswith("SX8.WAV"))
    assert np.abs(source.load(loud, RNG)["x"]).max() <= 1 and len(source.clipped) == 1


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.ogg", "d.mp3"])
def test_broken_files_of_any_format_in_a_folder(mixed, name):
    for speaker in range(4):
        write(mixed / f"voice{speaker}" / name, noise(16_000, speaker))
    write(mixed / "voice0" / f"empty_{name}", noise(16_000)).write_bytes(b"")
    cut(write(mixed / "voice1" / f"cut_{name}", noise(160_000)), 0.5)
    write(mixed / "voice2" / f"silent_{name}", np.zeros(16_000, "f4"))
    options = {"max_skipped_share": 0.9, "split_by": "utterance", "test_share": 0.5}
    skipped = {}
    for split in ("train", "test"):
        source = SpeechFolder(split, str(mixed), **options)
        arrays = load_arrays(source, length=CHUNK, length_mode="crop", normalizer=Normalizer())
        assert np.isfinite(arrays["x"]).all()
        skipped |= source.skipped
    reasons = ["empty_", "silent_"]
    if name != "c.ogg":  # states no length: what is left is a shorter recording
        reasons.append("cut_")
    for reason in reasons:
        assert any(reason + name in item for item in skipped), (reason, list(skipped))
