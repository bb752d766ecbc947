import colorsys

import numpy as np
import pytest
from PIL import Image

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.sources.video_sets import EXPRESSIONS, ColorJitter
from diffsda_jax.data.transforms import Normalizer

RNG = np.random.default_rng(0)


@pytest.fixture
def mug_root(tmp_path, write_frames):
    clips = {"train": [(0, 1, 40), (3, 2, 20)], "test": [(5, 10, 31), (3, 2, 30)]}
    for split, items in clips.items():
        for expression, person, count in items:
            name = f"user{person:03d}_take000_00"
            write_frames(tmp_path / split / str(expression) / name, count, ".jpg", (20, 20))
    return tmp_path


def test_mug_labels_and_strides(mug_root, numbers_of):
    train, test = (make_source("mug", split, root=str(mug_root)) for split in ("train", "test"))
    people = ("user001", "user002", "user010")
    for source in (train, test):
        assert source.spec.static_names == people
        assert source.spec.dynamic_names == EXPRESSIONS
    got = [test.load(index, RNG) for index in range(2)]
    assert [(e["static_label"], e["dynamic_label"]) for e in got] == [(1, 3), (2, 5)]
    assert got[0]["x"].shape == (15, 64, 64, 3)
    assert numbers_of(got[0]["x"]) == list(range(15))  # 30 frames: consecutive
    assert numbers_of(got[1]["x"]) == list(range(0, 29, 2))  # 31 frames: every second
    assert {train.load(i, RNG)["dynamic_label"] for i in range(2)} == {0, 3}
    known = [test.clip_labels(i) for i in range(2)]
    assert known[0] == {"static": "user002", "dynamic": "fear"}
    assert known[1] == {"static": "user010", "dynamic": "surprise"}
    assert (test.last_start(0), test.last_start(1)) == (15, 2)
    assert numbers_of(test.load_window(1, 2)["x"]) == list(range(2, 31, 2))


def test_mug_explains_its_layout(tmp_path, mug_root, write_frames):
    with pytest.raises(
        FileNotFoundError, match=r"train of source 'mug' is missing; .*userXXX_takeYYY_ZZ"
    ):
        make_source("mug", "train", root=str(mug_root / "train"))
    write_frames(mug_root / "train" / "7" / "user001_take000_00", 20)
    with pytest.raises(ValueError, match=r"clip train/7/user001_take000_00 .* not laid out"):
        make_source("mug", "train", root=str(mug_root))


def test_taichi_repeats_flips_and_jitters_in_training_only(tmp_path):
    for split in ("train", "test"):
        place = tmp_path / split / "v"
        place.mkdir(parents=True)
        frame = np.zeros((32, 32, 3), np.uint8)
        frame[:, :16] = 200  # bright on the left
        for number in range(40):
            Image.fromarray(frame).save(place / f"{number:07d}.png")
    options = {"root": str(tmp_path), "size": 16}
    train = make_source("taichi", "train", **options)
    test = make_source("taichi", "test", **options)
    assert (len(train), len(test)) == (150, 1)
    assert len(make_source("taichi", "train", repeats=2, **options)) == 2
    assert (train.num_clips, train.clip(0).frames) == (1, 40)
    rng = np.random.default_rng(0)
    drawn = [train.load(index, rng)["x"] for index in range(40)]
    left_bright = [x[:, :, :7].mean() > x[:, :, 9:].mean() for x in drawn]
    assert 8 < sum(left_bright) < 32
    levels = {round(float(x.max()), 3) for x in drawn}
    assert len(levels) > 10 and all(-1 <= x.min() and x.max() <= 1 for x in drawn)
    assert all(np.ptp(x, axis=0).max() == 0 for x in drawn)  # one change for the whole clip
    plain = test.load(0, rng)["x"]
    assert plain.shape == (10, 16, 16, 3) and plain[0, 0, 0, 0] == pytest.approx(200 / 127.5 - 1)
    same = make_source("taichi", "train", flip=False, color_jitter=0.0, **options)
    np.testing.assert_array_equal(same.load(3, rng)["x"], plain)
    np.testing.assert_array_equal(train.load_window(77, 2)["x"], plain)  # no augmentation
    np.testing.assert_array_equal(train.read_clip(0, 3, 4)[0] / np.float32(127.5) - 1, plain[0])
    flipped = make_source("taichi", "train", color_jitter=0.0, **options)
    sides = [flipped.load(index, rng)["x"] for index in range(20)]
    for x in sides:
        np.testing.assert_array_equal(x[:, :, ::-1] if x[0, 0, 0, 0] < 0 else x, plain)
    assert len({float(x[0, 0, 0, 0]) for x in sides}) == 2
    jittered = make_source("taichi", "train", flip=False, color_jitter=0.3, **options)
    drawn = [jittered.load(index, rng)["x"] for index in range(20)]
    assert all(x[:, :, :7].mean() > x[:, :, 9:].mean() for x in drawn)
    assert len({source.fingerprint() for source in (train, same, flipped, jittered)}) == 4
    for option in ({"repeats": 0}, {"color_jitter": 0.6}, {"color_jitter": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.* of source 'taichi': use"):
            make_source("taichi", "train", **option, **options)


@pytest.mark.parametrize("name", ["mug", "taichi"])
def test_empty_and_broken_clips_are_counted(tmp_path, write_frames, name):
    folder = tmp_path / "test" / ("3" if name == "mug" else "")
    names = [f"user{person:03d}_take000_00" for person in range(5)]
    for clip in names:
        write_frames(folder / clip, 40, ".jpg", (20, 20))
    (folder / "user007_take000_00").mkdir()
    (folder / "user007_take000_00" / "Thumbs.db").write_bytes(b"odd")
    (folder / ".hidden").mkdir()
    torn = folder / names[1] / "frame_0.jpg"
    torn.write_bytes(torn.read_bytes()[:-50])
    empty = f"test/{'3/' if name == 'mug' else ''}user007_take000_00"
    with pytest.raises(ValueError, match=rf"1 of 6 items .*{empty} \(holds no frames\)"):
        make_source(name, "test", root=str(tmp_path), length=10)
    options = {"root": str(tmp_path), "length": 10, "size": 8, "max_skipped_share": 0.4}
    source = make_source(name, "test", **options)
    arrays = load_arrays(source, length=10, normalizer=Normalizer())
    assert len(arrays["x"]) == 4 and source.num_items() == 6
    assert list(source.skipped.values())[0] == "holds no frames"
    assert "cannot be decoded" in list(source.skipped.values())[1]


def test_taichi_stride(tmp_path, write_frames, numbers_of):
    write_frames(tmp_path / "test" / "v", 40)
    source = make_source("taichi", "test", root=str(tmp_path))
    assert numbers_of(source.load(0, RNG)["x"]) == list(range(0, 40, 4))


def test_color_jitter_closed_forms():
    frames = np.random.default_rng(0).uniform(60, 160, (2, 4, 4, 3))
    np.testing.assert_allclose(ColorJitter().apply(frames), frames, rtol=1e-3)
    np.testing.assert_allclose(ColorJitter(brightness=1.1).apply(frames), frames * 1.1, rtol=1e-3)
    grey = frames @ [0.299, 0.587, 0.114]
    out = ColorJitter(saturation=0.0).apply(frames)
    np.testing.assert_allclose(out, np.repeat(grey[..., None], 3, -1), rtol=2e-3)
    flat = ColorJitter(contrast=0.0).apply(frames)
    np.testing.assert_allclose(flat, grey.mean(), rtol=1e-3)
    turned = ColorJitter(hue=0.5).apply(frames)
    np.testing.assert_allclose(turned + frames, 2 * np.repeat(grey[..., None], 3, -1), rtol=5e-3)
    reds = np.broadcast_to(np.array([160.0, 100.0, 100.0]), (1, 1, 1, 3))
    small = ColorJitter(hue=0.05).apply(reds)[0, 0, 0] / 255
    assert colorsys.rgb_to_hsv(*small)[0] not in (0.0,)
