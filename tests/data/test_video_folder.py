import json
import shutil

import numpy as np
import pytest

from diffsda_jax.data import video_io
from diffsda_jax.data.frame_counts import FrameCounts
from diffsda_jax.data.pipeline import load_arrays, make_train_iterator
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.transforms import Normalizer

RNG = np.random.default_rng(0)
GOP = "keyint=8:min-keyint=8:scenecut=0"


def frame_numbers(frames):
    return [round((float(frame.mean()) - 20) / 5) for frame in frames]


def folder(split, root, **options):
    return make_source("video_folder", split, root=str(root), **{"size": 16, **options})


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path, write_video):
    import av

    whole = write_video(tmp_path / "a.mp4", 20, {"x264-params": f"{GOP}:bframes=0"})
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    path = tmp_path / "test" / "b.mp4"
    path.parent.mkdir()
    with av.open(str(whole)) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        early = 5 * packets[0].duration
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, stream
            target.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20  # what the container states
    assert video_io.count_frames(path) == 15
    frames = video_io.read_frames(path, [0, 14], 16)
    assert frame_numbers(frames) == [5, 19]
    with pytest.raises(ValueError, match=r"test/b.mp4 \(15 frames, shorter than length=16 even"):
        folder("test", tmp_path, length=16)
    old = tmp_path / "cache" / "frame_counts.json"  # counts of the time when 20 was believed
    old.parent.mkdir()
    stat = path.stat()
    old.write_text(json.dumps({str(path): [2, stat.st_size, stat.st_mtime_ns, 20]}))
    with pytest.raises(ValueError, match="15 frames"):
        folder("test", tmp_path, length=16, cache_dir=str(old.parent))


def test_elements_and_labels_by_folder(tmp_path, write_frames, numbers_of):
    for name, count in [("bob/one", 9), ("bob/two", 9), ("ann/one", 30), ("ann/two", 9)]:
        write_frames(tmp_path / name, count)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("no clip")
    options = {"length": 4, "stride": 2, "label_from": "parent", "test_share": 0.3}
    train, test = (folder(split, tmp_path, **options) for split in ("train", "test"))
    names = [source.item_name(i) for source in (train, test) for i in range(len(source))]
    assert sorted(names) == ["ann/one", "ann/two", "bob/one", "bob/two"]
    assert train.spec.static_names == test.spec.static_names == ("ann", "bob")
    for source in (train, test):
        for index in range(len(source)):
            element = source.load(index, RNG)
            assert element["x"].shape == (4, 16, 16, 3) and element["x"].dtype == np.float32
            assert -1 <= element["x"].min() and element["x"].max() <= 1
            person = source.item_name(index).split("/")[0]
            assert source.spec.static_names[element["static_label"]] == person
            assert set(np.diff(numbers_of(element["x"]))) == {2}
    assert "static_label" not in folder("train", tmp_path, length=4).load(0, RNG)


def test_windows_are_random_in_training_and_first_in_testing(tmp_path, write_frames, numbers_of):
    for split in ("train", "test"):
        write_frames(tmp_path / split / "a", 20)
    train, test = (folder(split, tmp_path, length=4, stride=2) for split in ("train", "test"))
    rng = np.random.default_rng(0)
    starts = {numbers_of(train.load(0, rng)["x"])[0] for _ in range(80)}
    assert len(starts) > 8 and min(starts) == 0 and max(starts) == 13
    assert numbers_of(test.load(0, rng)["x"]) == [0, 2, 4, 6]
    assert train.item_name(0) == "train/a" and train.lengths().tolist() == [4]


def test_short_clips_lower_the_stride_and_too_short_ones_are_skipped(
    tmp_path, write_frames, numbers_of, caplog
):
    for name, count in [("a", 13), ("b", 9), ("c", 5), ("d", 4)]:
        write_frames(tmp_path / "test" / name, count)
    with pytest.raises(ValueError, match=r"1 of 4 items .* test/d \(4 frames, shorter than len"):
        folder("test", tmp_path, length=5, stride=3)
    caplog.clear()
    source = folder("test", tmp_path, length=5, stride=3, max_skipped_share=0.5)
    strides = [np.diff(numbers_of(source.load(i, RNG)["x"])).tolist() for i in range(3)]
    assert strides == [[3] * 4, [2] * 4, [1] * 4]
    assert list(source.skipped) == ["test/d"] and "skipped test/d" in caplog.text
    assert "1 skipped" in source.describe()
    with pytest.raises(ValueError, match="no clip is left"):
        folder("test", tmp_path, length=50, max_skipped_share=1.0)


def test_single_frames_and_lengths_of_one(tmp_path, write_frames):
    write_frames(tmp_path / "test" / "a", 3)
    assert folder("test", tmp_path, length=1, stride=4).load(0, RNG)["x"].shape[0] == 1


def test_broken_files_are_skipped_named_and_capped(tmp_path, write_video, caplog):
    good = write_video(tmp_path / "test" / "good0.mp4", 6)
    for number in range(1, 9):
        shutil.copy(good, tmp_path / "test" / f"good{number}.mp4")
    (tmp_path / "test" / "bad.mp4").write_bytes(good.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"1 of 10 .*test/bad.mp4 \(.*max_skipped_share") as caught:
        folder("test", tmp_path, length=4)
    assert "\n" not in str(caught.value)
    caplog.clear()
    source = folder("test", tmp_path, length=4, max_skipped_share=0.1)
    assert len(source) == 9 and list(source.skipped) == ["test/bad.mp4"]
    assert caplog.text.count("bad.mp4") == 1


def test_files_that_break_while_decoding(tmp_path, write_frames):
    for split in ("train", "test"):
        for name in "abcde":
            write_frames(tmp_path / split / name, 6)
        torn = tmp_path / split / "b" / "frame_2.png"
        torn.write_bytes(torn.read_bytes()[:60])
    options = {"length": 6, "max_skipped_share": 0.2}
    arrays = load_arrays(folder("test", tmp_path, **options), length=6, normalizer=Normalizer())
    assert len(arrays["x"]) == 4
    source = folder("train", tmp_path, **options)
    batches = make_train_iterator(
        source, length=6, normalizer=Normalizer(), batch_size=5, seed=0, num_threads=0
    )
    assert next(batches)["x"].shape == (5, 6, 16, 16, 3)
    assert list(source.skipped) == ["train/b"]
    assert source.skipped["train/b"].startswith("cannot be decoded: frame_2.png: OSError: ")
    with pytest.raises(ValueError, match=r"1 of 5 .*test/b \(cannot be decoded"):
        load_arrays(folder("test", tmp_path, length=6), length=6, normalizer=Normalizer())


@pytest.mark.parametrize("make", ["missing", "empty", "file", "unset", "hidden"])
def test_roots_without_clips(tmp_path, make):
    root = tmp_path / "data"
    kind, message = ValueError, "holds no clips; the split 'train' needs video files"
    if make == "missing":
        kind, message = FileNotFoundError, "is missing; expected there: video files"
    elif make == "file":
        root.write_text("")
        message = "is no folder; expected there"
    elif make == "unset":
        root, message = "", "root of source 'video_folder' is not set"
    else:
        root.mkdir()
        if make == "hidden":
            (root / "._a.mp4").write_bytes(b"mac")
    with pytest.raises(kind, match=message) as caught:
        folder("train", root)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)
    assert "set root " in str(caught.value)


def test_a_missing_split_folder(tmp_path, write_frames):
    write_frames(tmp_path / "train" / "a", 10)
    assert len(folder("train", tmp_path)) == 1
    with pytest.raises(FileNotFoundError, match="test is missing though the other split has one"):
        folder("test", tmp_path)


def test_a_few_clips_are_in_both_splits_which_says_so(tmp_path, write_frames, caplog):
    for count in range(1, 11):
        write_frames(tmp_path / f"{count}", 10)
        caplog.clear()
        sources = {split: folder(split, tmp_path) for split in ("train", "test")}
        names = {s: {x.item_name(i) for i in range(len(x))} for s, x in sources.items()}
        assert names["train"] | names["test"] == {str(n) for n in range(1, count + 1)}
        said = f"both splits of video_folder hold the same {count} clips" in caplog.text
        assert said == (names["train"] == names["test"]) == (count < 10)
    assert not names["train"] & names["test"]


@pytest.mark.parametrize("option", [{"length": 0}, {"size": 0}, {"label_from": "name"}])
def test_bad_options(tmp_path, option):
    with pytest.raises(ValueError, match="use"):
        folder("train", tmp_path, **option)


def test_labels_need_a_folder_around_the_clip(tmp_path, write_frames):
    write_frames(tmp_path / "a", 10)
    with pytest.raises(ValueError, match="clip a has no folder around it"):
        folder("train", tmp_path, label_from="parent")


def test_counts_are_cached_only_where_asked(tmp_path, write_video, monkeypatch):
    root, cache = tmp_path / "data", tmp_path / "cache"
    path = write_video(root / "test" / "a.mp4", 12)
    before = sorted(root.rglob("*"))
    source = folder("test", root, cache_dir=str(cache))
    assert sorted(root.rglob("*")) == before
    assert [file.name for file in cache.iterdir()] == ["frame_counts.json"]
    calls = []
    real = video_io.count_frames
    monkeypatch.setattr(video_io, "count_frames", lambda p: calls.append(p) or real(p))
    again = folder("test", root, cache_dir=str(cache))
    assert calls == [] and again.fingerprint() == source.fingerprint()
    write_video(path, 14)
    changed = folder("test", root, cache_dir=str(cache))
    assert calls == [path] and changed.fingerprint() != source.fingerprint()
    (cache / "frame_counts.json").write_text("{")
    assert len(folder("test", root, cache_dir=str(cache))) == 1


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"a": 1}'])
def test_a_file_of_counts_that_is_none_is_made_anew(tmp_path, write_frames, caplog, text):
    clip, file = write_frames(tmp_path / "clip", 3), tmp_path / "frame_counts.json"
    file.write_text(text)
    counts = FrameCounts(tmp_path)
    assert f"{file} is not readable and will be made anew" in caplog.text
    assert counts.count(clip) == 3
    counts.save()
    assert list(json.loads(file.read_text())) == [str(clip)]


def test_folders_of_frames_are_cached_too(tmp_path, write_frames, monkeypatch):
    clip, gone = (write_frames(tmp_path / name, 3) for name in ("clip", "gone"))
    counts = FrameCounts(tmp_path / "cache")
    assert (counts.count(clip), counts.count(gone)) == (3, 3)
    counts.save()
    written = (tmp_path / "cache" / "frame_counts.json").stat().st_mtime_ns
    calls = []
    real = video_io.count_frames
    monkeypatch.setattr(video_io, "count_frames", lambda p: calls.append(p) or real(p))
    again = FrameCounts(tmp_path / "cache")
    assert again.count(clip) == 3 and calls == []
    again.save()  # nothing new
    assert (tmp_path / "cache" / "frame_counts.json").stat().st_mtime_ns == written
    write_frames(clip, 4)
    shutil.rmtree(gone)
    assert again.count(clip) == 4 and calls == [clip]
    assert "No such file" in again.count(gone)


def test_fingerprint_does_not_depend_on_the_place(tmp_path, write_frames):
    for root in ("one", "two"):
        write_frames(tmp_path / root / "test" / "a", 12)
    one, two = (folder("test", tmp_path / root) for root in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != folder("test", tmp_path / "one", stride=2).fingerprint()
