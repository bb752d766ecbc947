"""What is decoded of video files, GIFs and folders of frames, whole, in blocks and in windows."""

import builtins

import numpy as np
import pytest
from PIL import Image

from diffsda_jax.data import video_io
from diffsda_jax.data.sources import BrokenItemError, make_source
from diffsda_jax.data.video_writer import write_video as write_clip

RNG = np.random.default_rng(0)
GOP = "keyint=8:min-keyint=8:scenecut=0"


def folder(split, root, **options):
    return make_source("video_folder", split, root=str(root), **{"size": 16, **options})


def frame_numbers(frames):
    return [round((float(frame.mean()) - 20) / 5) for frame in frames]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", {"x264-params": f"{GOP}:bframes=0"}),
        (".mp4", {"x264-params": f"{GOP}:bframes=3:b-adapt=0"}),
        (".mp4", {"x264-params": f"{GOP}:bframes=3:b-adapt=0:open-gop=1"}),
        (".mov", {"x264-params": f"{GOP}:bframes=2:b-adapt=0"}),
        (".webm", {"g": "8"}),
    ],
)
def test_any_window_of_a_video_is_decoded_exactly(tmp_path, write_video, suffix, options):
    path = write_video(tmp_path / f"clip{suffix}", 40, options)
    assert video_io.count_frames(path) == 40
    if "bframes=3" in options.get("x264-params", ""):
        assert decode_order(path) != sorted(decode_order(path))  # there are B-frames
    for start, stride in [(0, 1), (3, 3), (7, 1), (13, 4), (22, 2), (35, 1)]:
        wanted = list(range(start, 40, stride))[:5]
        frames = video_io.read_frames(path, wanted, 16)
        assert frames.shape == (5, 16, 16, 3) and frames.dtype == np.uint8
        assert frame_numbers(frames) == wanted


def decode_order(path):
    import av

    with av.open(str(path)) as container:
        return [packet.pts for packet in container.demux(video=0) if packet.size]


def test_gifs_and_folders_of_frames(tmp_path, write_gif, write_frames):
    clips = [write_gif(tmp_path / "a.gif", 12), write_frames(tmp_path / "b", 12)]
    clips.append(write_frames(tmp_path / "c", 12, ".jpg"))
    for path in clips:
        assert video_io.count_frames(path) == 12
        frames = video_io.read_frames(path, [2, 9, 10, 11], 16)  # frame_10 after frame_9
        assert frame_numbers(frames) == [2, 9, 10, 11]
        with pytest.raises(BrokenItemError, match="frame 12 is wanted, 12 can be read"):
            video_io.read_frames(path, [12], 16)


def test_frames_of_a_gif_that_are_alike_are_not_lost(tmp_path):
    frames = np.zeros((8, 16, 16, 3), np.uint8)
    frames[3], frames[5:7] = 100, 200
    path = write_clip(frames, tmp_path / "a.gif", 5.0)
    assert video_io.count_frames(path) == 8 and video_io.frame_rate(path) == pytest.approx(5)
    np.testing.assert_array_equal(video_io.read_frames(path, range(8), 16), frames)
    np.testing.assert_array_equal(video_io.read_frames(path, [2, 3, 6], 16), frames[[2, 3, 6]])
    images = [Image.fromarray(frame) for frame in frames[:4]]
    times = {"append_images": images[2:], "duration": [100, 150, 100]}  # no constant rate
    images[1].save(tmp_path / "b.gif", save_all=True, **times)
    assert video_io.count_frames(tmp_path / "b.gif") == 2  # the first two are alike


def test_gif_needs_no_av_and_video_says_what_is_missing(tmp_path, write_gif, monkeypatch):
    write_gif(tmp_path / "a.gif", 3)
    (tmp_path / "b.mp4").write_bytes(b"any")
    real = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    assert video_io.count_frames(tmp_path / "a.gif") == 3
    with pytest.raises(ImportError, match=r"diffsda_jax\[media\]"):
        video_io.count_frames(tmp_path / "b.mp4")


def test_the_short_side_is_scaled_and_the_centre_kept(tmp_path):
    from PIL import Image

    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 200  # the middle square
    (tmp_path / "clip").mkdir()
    Image.fromarray(image).save(tmp_path / "clip" / "0.png")
    frame = video_io.read_frames(tmp_path / "clip", [0], 16)[0]
    assert (frame[:, 1:-1] == 200).all() and (frame > 150).all()  # the border is blended


def test_turned_pictures_are_put_upright(monkeypatch, tmp_path, write_video):
    import av

    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :, 32:] = 220  # bright on the right
    path = write_video(tmp_path / "a.mp4", 3, {"crf": "5"}, frames)

    class Turned:
        """A frame of a phone held upright: shown turned by 90 degrees counter-clockwise."""

        rotation = 90

        def __init__(self, frame):
            self.frame, self.pts, self.is_corrupt = frame, frame.pts, frame.is_corrupt

        def to_image(self):
            return self.frame.to_image()

    class Container:
        def __init__(self, inner):
            self.inner = inner
            self.streams, self.demux, self.seek = inner.streams, inner.demux, inner.seek

        def decode(self, stream):
            return map(Turned, self.inner.decode(stream))

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.inner.close()

    real = av.open
    monkeypatch.setattr(av, "open", lambda name: Container(real(name)))
    frame = video_io.read_frames(path, [0], 32)[0]
    assert frame[:12].mean() > 200 and frame[20:].mean() < 20  # now bright at the top


def test_a_video_cut_in_the_middle(tmp_path, write_video):
    options = {"movflags": "faststart", "x264-params": f"{GOP}:bframes=0"}
    frames = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3)).astype(np.uint8)
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenItemError):
        video_io.read_frames(path, [25, 26], 16)


def test_clips_and_their_labels(tmp_path, write_frames):
    for name in ("bob/one", "ann/one", "ann/two"):
        write_frames(tmp_path / "test" / name, 9)
    source = folder("test", tmp_path, length=4, label_from="parent")
    assert source.num_clips == 3
    assert [source.clip(i).name for i in range(3)] == [source.item_name(i) for i in range(3)]
    assert (source.clip(2).path, source.clip(2).frames) == (tmp_path / "test" / "bob" / "one", 9)
    assert [source.clip_labels(i) for i in (0, 2)] == [{"static": "ann"}, {"static": "bob"}]
    assert folder("test", tmp_path, length=4).clip_labels(0) == {}


@pytest.mark.parametrize("kind", ["folder", "gif", "mp4", "webm"])
def test_a_clip_is_read_in_blocks(tmp_path, write_frames, write_gif, write_video, kind):
    place = tmp_path / "test"
    if kind == "folder":
        write_frames(place / "a", 23)
    elif kind == "gif":
        write_gif(place / "a.gif", 23)
    else:
        options = {"x264-params": f"{GOP}:bframes=3:b-adapt=0:open-gop=1"}
        write_video(place / f"a.{kind}", 23, options if kind == "mp4" else {"g": "8"})
    source = folder("test", tmp_path, length=4, stride=2)
    whole = source.read_clip(0, 0, 23)
    assert whole.shape == (23, 16, 16, 3) and whole.dtype == np.uint8
    assert frame_numbers(whole) == list(range(23))
    for start, stop in [(0, 1), (7, 15), (16, 20), (22, 23)]:
        np.testing.assert_array_equal(source.read_clip(0, start, stop), whole[start:stop])
    for size in (1, 5, 23, 100):
        blocks = list(source.iter_clip(0, size))
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        np.testing.assert_array_equal(np.concatenate(blocks), whole)
    for start in (0, 6, source.last_start(0)):
        window = whole[start : start + 7 : 2].astype(np.float32) / 127.5 - 1
        np.testing.assert_array_equal(source.load_window(0, start)["x"], window)
    assert source.last_start(0) == 16
    np.testing.assert_array_equal(source.load(0, RNG)["x"], source.load_window(0, 0)["x"])


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_blocks_decode_a_clip_once(tmp_path, write_video, write_gif, monkeypatch, kind):
    make, reader = (write_video, "_decode") if kind == "mp4" else (write_gif, "_read_gif")
    make(tmp_path / "test" / f"a.{kind}", 20)
    source = folder("test", tmp_path, length=4)
    calls = []
    real = getattr(video_io, reader)
    monkeypatch.setattr(video_io, reader, lambda *args: calls.append(args) or real(*args))
    assert sum(map(len, source.iter_clip(0, 4))) == 20
    assert len(calls) == 1


def test_frames_and_windows_that_a_clip_does_not_have(tmp_path, write_frames):
    write_frames(tmp_path / "test" / "a", 12)
    source = folder("test", tmp_path, length=4, stride=3)
    for start, stop in [(-1, 3), (3, 3), (5, 4), (0, 13)]:
        with pytest.raises(ValueError, match=r"of clip test/a: use 0 <= start < stop <= 12"):
            source.read_clip(0, start, stop)
    for start in (-1, 3):
        with pytest.raises(ValueError, match=rf"start={start} of clip test/a: .* frame 0 to 2: u"):
            source.load_window(0, start)
    with pytest.raises(ValueError, match="block_frames=0 of source 'video_folder': use 1 or more"):
        source.iter_clip(0, 0)


def test_a_clip_that_breaks_half_way_is_named(tmp_path, write_frames, write_video):
    import av

    torn = write_frames(tmp_path / "test" / "a", 12) / "frame_7.png"
    torn.write_bytes(torn.read_bytes()[:60])
    video = write_video(tmp_path / "test" / "b.mp4", 24, {"x264-params": f"{GOP}:bframes=0"})
    whole = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in packets[13:]:
        whole[place : place + size] = bytes(size)
    video.write_bytes(whole)
    source = folder("test", tmp_path, length=4)
    assert len(source.read_clip(0, 0, 7)) == 7 and len(source.read_clip(1, 8, 13)) == 5
    for clip, message in [
        (0, r"^clip test/a: cannot be decoded: frame_7.png: "),
        (1, r"^clip test/b.mp4: cannot be decoded: "),
    ]:
        with pytest.raises(BrokenItemError, match=message) as caught:
            source.read_clip(clip, 4, 12 if clip == 0 else 20)
        assert "\n" not in str(caught.value)
        with pytest.raises(BrokenItemError, match=message):
            source.load_window(clip, 6 if clip == 0 else 12)
        blocks = source.iter_clip(clip, 4)
        assert len(next(blocks)) == 4
        with pytest.raises(BrokenItemError, match=message):
            list(blocks)


@pytest.mark.parametrize("damage", ["ends early", "impossible size"])
def test_gifs_that_pillow_reports_in_odd_ways_are_broken_items(tmp_path, damage):
    path = tmp_path / "a.gif"
    images = [Image.fromarray(np.full((8, 8, 3), 30 * i, np.uint8)) for i in range(6)]
    images[0].save(path, save_all=True, append_images=images[1:])
    data = bytearray(path.read_bytes())
    second = data.index(b"\x21\xf9", data.index(b"\x2c"))  # the control block of another frame
    if damage == "ends early":
        data = data[: second + 1]
    else:
        place = data.index(b"\x2c", second)
        data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(BrokenItemError, match="cannot be decoded"):
        video_io.read_frames(path, range(video_io.count_frames(path)), 8)
