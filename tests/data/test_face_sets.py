import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources import BrokenItemError, make_source
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
    with pytest.raises(FileNotFoundError, match="root .* of source 'voxceleb1' is missing"):
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


def info_of(names):
    """As published: what is known of the clips by their names, YouTube id and number."""
    entry = {
        "duration": {"start_sec": 81.62, "end_sec": 86.17},
        "bbox": {"top": 0.0, "bottom": 0.8815, "left": 0.1964, "right": 0.6922},
        "attributes": {
            "appearance": [0, 1],
            "action": [0],
            "emotion": {"sep_flag": False, "labels": "neutral"},
        },
        "version": "v0.1",
    }
    mappings = {"appearance_mapping": ["Blurry", "Male"], "action_mapping": ["blow"]}
    clips = {name: {"ytb_id": name.rsplit("_", 1)[0], **entry} for name in names}
    return {"meta_info": mappings, "clips": clips}


NAMES = [f"{video}_{number}" for video in ("M2Ohb0FAaJU", "_0tf2n3rlJU") for number in range(10)]


@pytest.fixture
def celebv_root(tmp_path, write_video):
    first = write_video(tmp_path / "35666" / f"{NAMES[0]}.mp4", 24)
    for name in NAMES[1:]:
        shutil.copy(first, first.with_name(f"{name}.mp4"))
    (tmp_path / "celebvhq_info.json").write_text(json.dumps(info_of(NAMES)))
    return tmp_path


def celebv(split, root, **options):
    return make_source("celebv_hq", split, root=str(root), **{"size": 16, **options})


def names_of(source):
    return [source.item_name(index) for index in range(len(source))]


def test_celebv_split_is_the_one_of_scikit_learn(celebv_root, numbers_of):
    from sklearn.model_selection import train_test_split

    train, test = (celebv(split, celebv_root) for split in ("train", "test"))
    clips = sorted(f"35666/{name}.mp4" for name in NAMES)
    expected = train_test_split(clips, test_size=0.2, random_state=42)
    assert [names_of(train), names_of(test)] == [sorted(names) for names in expected]
    assert names_of(test) != names_of(celebv("test", celebv_root, split_seed=1))
    x = test.load(0, RNG)["x"]
    assert x.shape == (10, 16, 16, 3) and numbers_of(x) == list(range(0, 20, 2))
    assert {numbers_of(train.load(0, RNG)["x"])[0] for _ in range(30)} == set(range(6))
    assert make_source("celebv_hq", "test", root=str(celebv_root)).spec.shape == (256, 256, 3)


def test_celebv_missing_videos_move_no_other(celebv_root, caplog):
    before = [names_of(celebv(split, celebv_root)) for split in ("train", "test")]
    gone = [before[0][3], before[0][7], before[1][0]]
    for name in gone:
        (celebv_root / name).unlink()
    after = [names_of(celebv(split, celebv_root)) for split in ("train", "test")]
    assert after == [[name for name in names if name not in gone] for names in before]
    assert "3 listed but not there: " in caplog.text


def test_celebv_split_by_video(celebv_root):
    train, test = (
        celebv(split, celebv_root, split_by="video", test_share=0.5) for split in ("train", "test")
    )
    videos = [{name[6:17] for name in names_of(source)} for source in (train, test)]
    assert len(videos[0]) == len(videos[1]) == 1 and videos[0] != videos[1]
    (celebv_root / "celebvhq_info.json").write_text('{"clips": {"a": {"ytb_id": 3}}}')
    with pytest.raises(ValueError, match="clip 'a' has no text 'ytb_id', which split_by='video'"):
        celebv("train", celebv_root, split_by="video")


def test_celebv_without_a_list(celebv_root, caplog):
    listed = names_of(celebv("test", celebv_root))
    (celebv_root / "celebvhq_info.json").unlink()
    assert names_of(celebv("test", celebv_root)) == listed
    assert "celebvhq_info.json, the split is over the 20 clips there" in caplog.text
    for options in ({"info": str(celebv_root / "other.json")}, {"split_by": "video"}):
        with pytest.raises(FileNotFoundError, match=r"json of source 'celebv_hq' is missing: get"):
            celebv("test", celebv_root, **options)


def test_celebv_counts_what_it_leaves_out(celebv_root, write_video):
    test = names_of(celebv("test", celebv_root))
    torn, short = (celebv_root / name for name in test[:2])
    torn.write_bytes(torn.read_bytes()[:200])
    write_video(short, 5)
    shutil.copy(celebv_root / test[2], celebv_root / "35666" / "other_0.mp4")
    (celebv_root / "35666" / "empty_0.mp4").write_bytes(b"")
    (celebv_root / "35666" / "half.mp4.part").write_bytes(b"")
    source = celebv("test", celebv_root, max_skipped_share=0.7)
    assert names_of(source) == test[2:]
    assert source.num_items() == 6
    assert source.skipped["35666/other_0.mp4"] == "not in the list of clips"
    assert "shorter than length=10" in source.skipped[test[1]]
    assert sorted(source.skipped) == sorted(["35666/empty_0.mp4", "35666/other_0.mp4", *test[:2]])
    with pytest.raises(ValueError, match="4 of 6 items had to be skipped"):
        celebv("test", celebv_root)


@pytest.mark.parametrize("text", ["{", "[]", '{"clips": []}', '{"clips": {}}', "\udcff"])
def test_celebv_lists_that_are_none(celebv_root, text):
    path = celebv_root / "celebvhq_info.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        ValueError, match=r"celebvhq_info.json (is not JSON|has no clips)"
    ) as caught:
        celebv("test", celebv_root)
    assert "\n" not in str(caught.value)


def test_celebv_missing_parts_and_bad_options(celebv_root):
    with pytest.raises(FileNotFoundError, match="set root to the folder that holds 35666"):
        celebv("train", celebv_root / "35666")
    for option in ({"split_by": "person"}, {"test_share": 1.0}, {"size": 0}, {"detector": "faces"}):
        name = next(iter(option))
        with pytest.raises(ValueError, match=f"{name}=.*(use|write)"):
            celebv("train", celebv_root, **option)
    shutil.rmtree(celebv_root / "35666")
    (celebv_root / "35666").mkdir()
    with pytest.raises(
        ValueError, match=r"holds 0 clips .* 'train' \(0 skipped, 20 listed but not"
    ):
        celebv("train", celebv_root)


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """A detector of bright faces that finds none in frames whose corner is dark."""
    (tmp_path / "bright_faces.py").write_text(
        "import numpy as np\n\n\n"
        "def detect(frame):\n"
        "    assert frame.shape == (512, 512, 3) and frame.dtype == np.uint8\n"
        "    if frame[:20, :20].mean() < 50:\n"
        "        return None\n"
        "    y, x = np.nonzero(frame[..., 0] > 180)\n"
        "    face = [x.min(), y.min(), x.max() + 1, y.max() + 1]\n"
        "    return [[0, 0, 9, 9], face]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "bright_faces:detect"
    sys.modules.pop("bright_faces", None)


def face_video(failing, shift=0):
    """A bright square in 64x64 frames; the corner is dark in the frames without a face."""
    frames = np.full((24, 64, 64, 3), 100, np.uint8)
    frames[:, 16:40, 20 + shift : 44 + shift] = 230
    frames[failing, :6, :6] = 0
    return frames


def test_celebv_crops_to_the_face(celebv_root, write_video, detector, caplog):
    for name in NAMES:
        write_video(celebv_root / "35666" / f"{name}.mp4", 24, {"crf": "5"}, face_video([]))
    test = names_of(celebv("test", celebv_root))
    write_video(celebv_root / test[0], 24, {"crf": "5"}, face_video([2, 8]))
    write_video(celebv_root / test[1], 24, {"crf": "5"}, face_video(slice(None)))
    source = celebv("test", celebv_root, detector=detector, size=64, length=10)
    assert source.spec.shape == (64, 64, 3)
    x = source.load(0, RNG)["x"]
    assert x.shape == (10, 64, 64, 3) and -1 <= x.min() and x.max() <= 1
    assert source.missed_frames == {test[0]: 2}
    assert f"no face in 2 of 10 frames of {test[0]}" in caplog.text
    bright = x[..., 0] > 0.5
    columns = np.flatnonzero(bright[0].mean(axis=0) > 0.5)
    # The face fills 472 of 512 pixels of the crop, so 59 of 64, in the middle.
    assert abs(len(columns) - 59) <= 2 and abs(columns.mean() - 31.5) <= 1
    assert not bright[:, 0].any() and not bright[:, -1].any()
    with pytest.raises(BrokenItemError, match="finds no face in any of 10 frames"):
        source.load(1, RNG)
    assert source.missed_frames == {test[0]: 2, test[1]: 10}
    source.load(2, RNG)
    assert test[2] not in source.missed_frames
    whole = celebv("test", celebv_root, size=64)
    assert source.fingerprint() != whole.fingerprint()
    with pytest.raises(ValueError, match=r"1 of 4 items had to be skipped.*finds no face"):
        load_arrays(source, length=10, normalizer=Normalizer())
