"""Videos to files: H.264 in mp4 through PyAV, or an animated GIF where there is no PyAV."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffsda_jax.data import video_io

_CRF = "16"  # of H.264: hardly a difference can be seen


def video_suffix() -> str:
    """``.mp4``, or ``.gif`` where PyAV is not installed."""
    try:
        video_io.import_av()
    except ImportError:
        return ".gif"
    return ".mp4"


def write_video(frames: UInt8[np.ndarray, "V H W 3"], path: str | Path, fps: float = 8.0) -> Path:
    """Writes a video.

    H.264 takes even sides only: an odd last row or column is written twice.

    Args:
        frames: values 0 to 255.
        path: `.mp4` or `.gif`; the folder is made if missing.
        fps: frames a second.

    Returns:
        The path.

    Raises:
        ImportError: an mp4 without PyAV.
        ValueError: another suffix, no frames, or a rate that is not positive.
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise ValueError(f"video {path} has the suffix {path.suffix!r}: use .mp4 or .gif")
    if not len(frames) or fps <= 0:
        raise ValueError(f"video {path} has {len(frames)} frames, {fps} a second: use more than 0")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
        return path
    av = video_io.import_av()
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": _CRF}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
