import shutil

import numpy as np
import pytest
from PIL import Image

from diffsda_jax.data import video_io
from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.sources.pairs import clip_names, read_pairs, sample_pairs, write_pairs
from diffsda_jax.data.transforms import Normalizer

RNG = np.random.default_rng(0)
META = [
    ("id10001", "A.J._Buckley", "m", "Ireland", "dev"),
    ("id10002", "A.R._Rahman", "m", "India", "dev"),
    ("id10270", "Eartha_Kitt", "f", "USA", "test"),
    ("id10309", "Ezra_Miller", "m", "USA", "test"),
    ("id10310", "Famke_Janssen", "f", "Netherlands", "dev"),
]
META_HEADER = ("VoxCeleb1 ID", "VGGFace1 ID", "Gender", "Nationality", "Set")


def write_meta(path, rows=META, header=META_HEADER, delimiter="\t"):
    path.write_text("".join(delimiter.join(row) + "\n" for row in [header, *rows]))


@pytest.fixture
def vox_root(tmp_path, write_frames):
    data = tmp_path / "unzippedIntervalFaces" / "data"
    for _, name, *_ in META:
        for video, clip, count in [("1zcIwhmdeo4", "0000375", 40), ("1zcIwhmdeo4", "0000376", 21)]:
            write_frames(data / name / "1.6" / video / clip, count, ".jpg", (8, 10))
    write_meta(tmp_path / "vox1_meta.csv")
    return tmp_path


def vox(split, root, **options):
    return make_source("voxceleb1", split, root=str(root), **{"size": 8, **options})


def clip_of(root, name):
    return root / "unzippedIntervalFaces" / "data" / name / "1.6" / "1zcIwhmdeo4"


def test_vox_splits_by_speaker_and_labels_them(vox_root):
    train, test = (vox(split, vox_root) for split in ("train", "test"))
    names = tuple(sorted(name for _, name, *_ in META))
    assert train.spec.static_names == test.spec.static_names == names
    assert (len(train), len(test)) == (6, 4) and not train.skipped
    assert test.item_name(0) == ("unzippedIntervalFaces/data/Eartha_Kitt/1.6/1zcIwhmdeo4/0000375")
    for source, speakers in ((train, {0, 1, 4}), (test, {2, 3})):
        got = [source.load(index, RNG) for index in range(len(source))]
        assert {element["static_label"] for element in got} == speakers
        assert got[0]["x"].shape == (10, 8, 8, 3)
    assert make_source("voxceleb1", "test", root=str(vox_root)).spec.shape == (256, 256, 3)


def test_vox_windows(vox_root, numbers_of):
    train, test = (vox(split, vox_root) for split in ("train", "test"))
    assert numbers_of(test.load(0, RNG)["x"]) == list(range(0, 20, 2))
    drawn = [numbers_of(train.load(0, RNG)["x"]) for _ in range(60)]
    assert {tuple(np.diff(numbers)) for numbers in drawn} == {(1,) * 9}
    starts = {numbers[0] for numbers in drawn}
    assert len(starts) > 15 and max(starts) <= 30
    wide = vox("train", vox_root, stride=3).load(0, RNG)["x"]
    assert set(np.diff(numbers_of(wide))) == {3}
    close = vox("test", vox_root, test_stride=1)
    assert numbers_of(close.load(0, RNG)["x"]) == list(range(10))
    assert close.fingerprint() != test.fingerprint()


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_vox_list_of_speakers_elsewhere(vox_root, tmp_path, delimiter):
    (vox_root / "vox1_meta.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"vox1_meta.csv of source 'voxceleb1' is missing"):
        vox("test", vox_root)
    meta = tmp_path / "lists" / "speakers.csv"
    with pytest.raises(FileNotFoundError, match=r"speakers.csv .*\(--config.source.options.meta\)"):
        vox("test", vox_root, meta=str(meta))
    meta.parent.mkdir()
    write_meta(meta, delimiter=delimiter)
    assert len(vox("test", vox_root, meta=str(meta))) == 4


def test_vox_folders_named_by_number_need_no_list(vox_root):
    (vox_root / "vox1_meta.csv").unlink()
    for number, name, *_ in META:
        place = vox_root / "unzippedIntervalFaces" / "data"
        (place / name).rename(place / number)
    train, test = (vox(split, vox_root) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 4)
    assert test.spec.static_names[2] == "id10270"


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (("VoxCeleb1 ID", "Name"), [("id10001", "x")], "has no column 'VGGFace1 ID' but VoxCeleb1"),
        (META_HEADER, META[:2], "lists none of the test speakers id10270..id10309"),
        (META_HEADER, [("id10270", "Eartha_Kitt")], "line 2: 2 cells, but the header names 5"),
    ],
)
def test_vox_lists_that_are_none(vox_root, header, rows, message):
    write_meta(vox_root / "vox1_meta.csv", rows, header)
    with pytest.raises(ValueError, match=message) as caught:
        vox("test", vox_root)
    assert "\n" not in str(caught.value)


def test_vox_counts_what_it_leaves_out(vox_root, write_frames, caplog):
    data = vox_root / "unzippedIntervalFaces" / "data"
    (clip_of(vox_root, "Eartha_Kitt") / "0000377").mkdir()  # an empty clip
    write_frames(clip_of(vox_root, "Eartha_Kitt") / "0000378", 9, ".jpg", (8, 10))
    shutil.copytree(clip_of(vox_root, "Eartha_Kitt"), clip_of(vox_root, "No_One"))
    write_frames(data / "Ezra_Miller" / "1.6" / "flat", 12, ".jpg", (8, 10))
    (data / "Ezra_Miller" / "talk.mp4").write_bytes(b"")
    (data / "Ezra_Miller" / "notes.txt").write_text("odd")
    (data / ".DS_Store").write_bytes(b"mac")
    (data / "__MACOSX" / "a").mkdir(parents=True)
    (clip_of(vox_root, "Ezra_Miller") / "0000375" / "Thumbs.db").write_bytes(b"odd")
    with pytest.raises(ValueError, match="8 of 12 items had to be skipped"):
        vox("test", vox_root)
    caplog.clear()
    source = vox("test", vox_root, max_skipped_share=0.7)
    short = {name.split("data/")[1]: reason for name, reason in source.skipped.items()}
    where = "1.6/1zcIwhmdeo4"
    assert sorted(short) == [
        f"Eartha_Kitt/{where}/0000377",
        f"Eartha_Kitt/{where}/0000378",
        "Ezra_Miller/1.6/flat",
        "Ezra_Miller/talk.mp4",
        *(f"No_One/{where}/000037{number}" for number in (5, 6, 7, 8)),
    ]
    assert short[f"Eartha_Kitt/{where}/0000377"].startswith("0 frames, shorter than length=10")
    assert short["Ezra_Miller/talk.mp4"].startswith("not laid out as unzippedIntervalFaces/data/<N")
    assert "'No_One' is not in the list" in short[f"No_One/{where}/0000375"]
    assert len(source) == 4 and "8 skipped" in source.describe()
    assert "skipped 8 of 12 items so far" in caplog.text
    assert "No_One" not in source.spec.static_names


def test_vox_truncated_and_odd_frames(vox_root):
    torn = clip_of(vox_root, "Eartha_Kitt") / "0000375" / "frame_4.jpg"
    torn.write_bytes(torn.read_bytes()[:-40])
    (clip_of(vox_root, "Ezra_Miller") / "0000376" / "frame_6.jpg").write_bytes(b"")
    grey = clip_of(vox_root, "Ezra_Miller") / "0000375" / "frame_0.jpg"
    Image.new("L", (31, 17), 20).save(grey)
    source = vox("test", vox_root, max_skipped_share=0.5)
    arrays = load_arrays(source, length=10, normalizer=Normalizer())
    assert arrays["x"].shape == (2, 10, 8, 8, 3)
    assert all(reason.startswith("cannot be decoded") for reason in source.skipped.values())
    with pytest.raises(ValueError, match=r"1 of 4 items .*0000375 \(cannot be decoded"):
        load_arrays(vox("test", vox_root), length=10, normalizer=Normalizer())


def test_vox_missing_parts(vox_root, tmp_path):
    missing = "root .* of source 'voxceleb1' is missing; expected there: unzippedIntervalFaces/data"
    with pytest.raises(FileNotFoundError, match=missing):
        vox("train", tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="set root to the folder that holds unzippedInt"):
        vox("train", vox_root / "unzippedIntervalFaces")
    for name in ("Eartha_Kitt", "Ezra_Miller"):
        shutil.rmtree(vox_root / "unzippedIntervalFaces" / "data" / name)
    assert len(vox("train", vox_root)) == 6
    with pytest.raises(
        ValueError, match=r"no clip for the split 'test' \(0 skipped\); the test spl"
    ):
        vox("test", vox_root)
    with pytest.raises(ValueError, match="test_stride=0 of source 'voxceleb1': use 1 or more"):
        vox("test", vox_root, test_stride=0)


def test_vox_pairs_of_other_speakers(vox_root):
    source = vox("test", vox_root)
    speakers = np.array([source.load(index, RNG)["static_label"] for index in range(len(source))])
    write_pairs(vox_root / "p.csv", sample_pairs(clip_names(source), 8, labels=speakers))
    pairs = read_pairs(vox_root / "p.csv", source)
    assert len(pairs) == 8
    assert all(("Eartha" in a.static_clip) != ("Eartha" in a.dynamic_clip) for a in pairs)
    with pytest.raises(ValueError, match="line 2: source 'voxceleb1', split 'train' has no clip"):
        read_pairs(vox_root / "p.csv", vox("train", vox_root))


def test_vox_counts_are_remembered(vox_root, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    first = vox("test", vox_root, cache_dir=cache)
    calls = []
    real = video_io.count_frames
    monkeypatch.setattr(video_io, "count_frames", lambda path: calls.append(path) or real(path))
    again = vox("test", vox_root, cache_dir=cache)
    assert calls == [] and again.fingerprint() == first.fingerprint()
    assert (again.num_clips, again.clip_labels(0)) == (4, {"static": "Eartha_Kitt"})
    gone = again.clip(1).path / "frame_20.jpg"
    gone.unlink()
    changed = vox("test", vox_root, cache_dir=cache)
    assert calls == [gone.parent] and changed.clip(1).frames == 20
