import json
import pickle
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources import BrokenItemError, make_source
from diffsda_jax.data.transforms import Normalizer

RNG = np.random.default_rng(0)


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
    assert f"no face in 2 of the 16 frames searched of {test[0]}" in caplog.text
    bright = x[..., 0] > 0.5
    columns = np.flatnonzero(bright[0].mean(axis=0) > 0.5)
    # The face fills 472 of 512 pixels of the crop, so 59 of 64, in the middle.
    assert abs(len(columns) - 59) <= 2 and abs(columns.mean() - 31.5) <= 1
    assert not bright[:, 0].any() and not bright[:, -1].any()
    with pytest.raises(BrokenItemError, match="finds no face in any of 16 frames"):
        source.load(1, RNG)
    assert source.missed_frames == {test[0]: 2, test[1]: 16}
    source.load(2, RNG)
    assert test[2] not in source.missed_frames
    whole = celebv("test", celebv_root, size=64)
    assert source.fingerprint() != whole.fingerprint()
    with pytest.raises(ValueError, match=r"1 of 4 items had to be skipped.*finds no face"):
        load_arrays(source, length=10, normalizer=Normalizer())


def test_celebv_crops_all_of_a_clip_alike(celebv_root, write_video, detector, monkeypatch):
    test = names_of(celebv("test", celebv_root))
    frames = np.concatenate([face_video([], shift)[:8] for shift in (0, 4, 9)])  # it moves
    for name in test[:2]:
        write_video(celebv_root / name, 24, {"crf": "5"}, frames)
    source = celebv("test", celebv_root, detector=detector, size=32)
    whole = source.read_clip(0, 0, 24)
    assert whole.shape == (24, 32, 32, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(source.read_clip(0, 16, 24), whole[16:])
    np.testing.assert_array_equal(np.concatenate(list(source.iter_clip(0, 7))), whole)
    window = source.load_window(0, 4)["x"]
    np.testing.assert_array_equal(window, whole[4:24:2].astype(np.float32) / 127.5 - 1)
    # Another start, and another source, find the same box; a known one is not looked for again.
    other = celebv("test", celebv_root, detector=detector, size=32)
    np.testing.assert_array_equal(other.read_clip(1, 20, 24), whole[20:])
    looked = []
    monkeypatch.setattr(other, "_detect", looked.append)
    other.load(1, RNG)
    assert looked == []
    assert np.ptp(whole[:, 16, 2].mean(axis=-1)) > 60  # the face moves within the crop


def test_celebv_calls_the_detector_from_one_thread_at_a_time(celebv_root, detector, monkeypatch):
    train, test = (celebv(split, celebv_root, detector=detector) for split in ("train", "test"))
    assert len(pickle.loads(pickle.dumps(test))) == 4
    busy, clips = threading.Lock(), []

    def detect(frame):
        assert busy.acquire(blocking=False)
        time.sleep(0.001)  # so that the others come meanwhile
        clips.append(frame)
        busy.release()
        return [[0, 0, 400, 400]]

    for source in (train, test):
        monkeypatch.setattr(source, "_detect", detect)
    with ThreadPoolExecutor(4) as pool:
        read = [pool.submit(source.read_clip, 0, 0, 1) for source in (train, test) * 3]
    assert all(frames.result().shape == (1, 16, 16, 3) for frames in read)
    assert len(clips) == 2 * 16  # a clip's box is found once


def test_celebv_without_a_detector_reads_the_stored_pixels(celebv_root):
    train = celebv("train", celebv_root)
    x = train.load(3, np.random.default_rng(5))["x"]
    start = int(np.random.default_rng(5).integers(24 - 19 + 1))
    np.testing.assert_array_equal(train.load_window(3, start)["x"], x)
    frames = train.read_clip(3, start, start + 19)[::2]
    np.testing.assert_array_equal(frames.astype(np.float32) / 127.5 - 1, x)
