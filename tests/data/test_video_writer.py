import numpy as np
import pytest

from diffsda_jax.data import video_io, video_writer
from diffsda_jax.data.video_writer import video_suffix, write_video


def moving_square(num_frames, height, width):
    frames = np.full((num_frames, height, width, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[8:24, 2 * number : 2 * number + 16] = (220, 120, 60)
    return frames


@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
def test_a_video_reads_back_as_it_was(tmp_path, size):
    pytest.importorskip("av")
    frames = moving_square(7, *size)
    path = write_video(frames, tmp_path / "new" / "a.mp4", fps=12.5)
    assert video_io.count_frames(path) == 7
    side = min(size) // 2 * 2
    back = video_io.read_frames(path, range(7), side).astype(float)
    assert back.shape == (7, side, side, 3)
    left = (size[1] + size[1] % 2 - side) // 2
    top = (size[0] + size[0] % 2 - side) // 2
    if size == (48, 64):  # no resizing: colours are kept but for their coarser grid
        wanted = frames[:, top : top + side, left : left + side]
        assert np.abs(back - wanted).mean() < 4.0
    assert np.abs(back[0] - back[-1]).mean() > 10.0


def test_frame_rate_is_the_given_one(tmp_path):
    av = pytest.importorskip("av")
    path = write_video(moving_square(4, 32, 32), tmp_path / "a.mp4", fps=12.5)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(12.5)


def test_without_pyav_there_are_gifs(tmp_path, monkeypatch):
    def missing():
        raise ImportError("no PyAV")

    monkeypatch.setattr(video_writer.video_io, "import_av", missing)
    assert video_suffix() == ".gif"
    frames = moving_square(3, 32, 32)
    path = write_video(frames, tmp_path / "a.gif", fps=10.0)
    np.testing.assert_allclose(
        video_io.read_frames(path, range(3), 32).astype(float), frames, atol=12
    )
    with pytest.raises(ImportError, match="no PyAV"):
        write_video(frames, tmp_path / "a.mp4")


def test_bad_videos(tmp_path):
    frames = moving_square(2, 32, 32)
    with pytest.raises(ValueError, match=r"has the suffix '.avi': use .mp4 or .gif"):
        write_video(frames, tmp_path / "a.avi")
    with pytest.raises(ValueError, match="has 0 frames, 8.0 a second"):
        write_video(frames[:0], tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="has 2 frames, 0.0 a second"):
        write_video(frames, tmp_path / "a.mp4", fps=0.0)
