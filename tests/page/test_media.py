import base64
import io

import numpy as np
import pytest
from PIL import Image

from diffsda_jax.evals.pictures import write_gif
from diffsda_jax.page import media
from diffsda_jax.page.media import Shelf, encode_animation, heat_map, read_animation
from diffsda_jax.page.painter import Painter


def decode(uri):
    head, _, data = uri.partition(",")
    return head, base64.b64decode(data)


def moving(count=4, side=16):
    frames = np.zeros((count, side, side, 3), np.uint8)
    for number in range(count):
        frames[number, :, number * 4 : number * 4 + 4] = 255
    return list(frames)


def test_a_small_picture_keeps_every_pixel():
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    found = Shelf(10_000).add_picture("noise", picture)
    head, data = decode(found.uri)
    assert head == "data:image/png;base64" and (found.width, found.height) == (7, 5)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)


def test_a_large_picture_is_made_light():
    picture = np.random.default_rng(0).integers(0, 255, (400, 400, 3)).astype(np.uint8)
    found = Shelf(10**7).add_picture("noise", picture)
    assert found.uri.startswith("data:image/webp;") and len(found.uri) < picture.size / 2


def test_a_painter_without_frames_draws_no_latents():
    clips = [np.zeros((2, 4, 4, 3), np.float32)]
    blind = Painter(Shelf(10_000), "video")
    assert not blind.can_draw
    with pytest.raises(ValueError, match="to_frames=None and cannot draw"):
        blind.places(["here"], clips, "place")
    sighted = Painter(Shelf(10_000), "video", to_frames=lambda x: x)
    assert sighted.can_draw and sighted.places(["here"], clips, "place")[0].content.uri


def test_what_does_not_fit_is_named_and_what_is_smaller_still_fits():
    shelf = Shelf(1_000)
    assert shelf.add("large", bytes(2_000_000), ".wav") is None
    assert shelf.add("small", bytes(300), ".wav").kind == "audio"
    assert shelf.left_out == ["large (2.0 MB)"]
    assert 400 < shelf.used_bytes <= 1_000


def test_videos_move_and_have_a_first_frame_to_show():
    av = pytest.importorskip("av")
    found = Shelf(100_000).add_animation("bars", moving(), 8.0)
    head, data = decode(found.uri)
    assert head == "data:video/mp4;base64" and found.poster.startswith("data:image/png;")
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [int(frame[8].mean(-1).argmax() // 4) for frame in frames] == [0, 1, 2, 3]


def test_without_pyav_an_animation_is_a_picture_that_loops(monkeypatch):
    monkeypatch.setattr(media, "video_suffix", lambda: ".gif")
    data, suffix = encode_animation(moving(), 8.0)
    with Image.open(io.BytesIO(data)) as image:
        assert suffix == ".webp" and (image.n_frames, image.info["loop"]) == (4, 0)


def test_animations_of_an_evaluation_are_read_again(tmp_path):
    frames, fps = read_animation(write_gif(moving(), tmp_path / "a.gif", fps=5.0))
    assert fps == pytest.approx(5.0)
    np.testing.assert_array_equal(np.stack(frames), np.stack(moving()))


def test_a_heat_map_has_the_first_feature_below_and_is_brighter_where_values_are_large():
    picture = heat_map(np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], np.float32), (0.0, 1.0), 8)
    assert picture.shape == (8, 12, 3)
    brightness = picture.mean(-1)[2::4, 2::4]
    assert brightness.argmax() == 0 and np.ptp(brightness.ravel()[1:]) == 0
