"""Writers of tiny clips whose frames tell their own number by their grey level."""

import numpy as np
import pytest
from PIL import Image

STEP, BASE = 5, 20


def grey_frames(count, size=(48, 64)):
    levels = BASE + STEP * np.arange(count)
    return np.broadcast_to(levels[:, None, None, None], (count, *size, 3)).astype(np.uint8)


def frame_numbers(frames):
    """Inverse of `grey_frames` for frames of values 0 to 255."""
    return [round((float(frame.mean()) - BASE) / STEP) for frame in frames]


@pytest.fixture
def numbers_of():
    """Frame numbers of an element's `x` in [-1, 1]."""
    return lambda x: frame_numbers((x + 1.0) * 127.5)


@pytest.fixture
def write_video():
    av = pytest.importorskip("av")
    codecs = {".mp4": "libx264", ".mov": "libx264", ".webm": "libvpx-vp9"}

    def write(path, count, options=None, frames=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = grey_frames(count) if frames is None else frames
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codecs[path.suffix], rate=25, options=options or {})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def write_gif():
    def write(path, count):
        path.parent.mkdir(parents=True, exist_ok=True)
        first, *rest = [Image.fromarray(frame) for frame in grey_frames(count)]
        first.save(path, save_all=True, append_images=rest, duration=40)
        return path

    return write


@pytest.fixture
def write_frames():
    def write(folder, count, suffix=".png", size=(48, 64)):
        folder.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(grey_frames(count, size)):
            Image.fromarray(frame).save(folder / f"frame_{number}{suffix}")
        return folder

    return write
