"""Pictures, videos and sounds as data URIs, within the weight that a page may have."""

import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from PIL import Image, ImageSequence

from diffsda_jax.data.video_writer import video_suffix, write_video
from diffsda_jax.evals.pictures import Picture

_TYPES = {
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".wav": "audio/wav",
}
_WEBP_QUALITY = 85
_LARGEST_PNG = 400_000  # values


class Media(NamedTuple):
    """Something to be seen or heard on a page.

    Attributes:
      uri: ``data:`` and all.
      kind: ``image``, ``video`` or ``audio``.
      width: in pixels; 0 where it is not known.
      height: in pixels; 0 where it is not known.
      poster: of a video: a picture of its first frame, for the time before it plays.
    """

    uri: str
    kind: str
    width: int = 0
    height: int = 0
    poster: str = ""


class Shelf:
    """What is embedded in a page, and what did not fit any more.

    Attributes:
      left_out: names of what did not fit, in their order.
      used_bytes: letters of all data URIs so far.
    """

    def __init__(self, max_bytes: int):
        """Empty, with room for data URIs of ``max_bytes`` letters in all."""
        self.max_bytes, self.used_bytes = max_bytes, 0
        self.left_out: list[str] = []

    def add(self, name: str, data: bytes, suffix: str, size: tuple[int, int] = (0, 0)):
        """Embeds a file; None, and a note of its name, where there is no room left.

        Args:
          name: for people, should it be left out.
          data: content of the file.
          suffix: such as ``.png``; one of those a browser shows.
          size: width and height in pixels.
        """
        mime = _TYPES[suffix]
        uri = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
        if self.used_bytes + len(uri) > self.max_bytes:
            self.left_out.append(f"{name} ({len(data) * 1e-6:.1f} MB)")
            return None
        self.used_bytes += len(uri)
        return Media(uri, mime.partition("/")[0], *size)

    def add_file(self, path: Path) -> Media | None:
        """Embeds a file as it is; pictures with their size."""
        size = (0, 0)
        if _TYPES[path.suffix].startswith("image/"):
            with Image.open(path) as image:
                size = image.size
        return self.add(path.name, path.read_bytes(), path.suffix, size)

    def add_picture(self, name: str, picture: Picture) -> Media | None:
        """Embeds a picture: a small one as PNG, which keeps every pixel, others as WebP."""
        suffix = ".png" if picture.size <= _LARGEST_PNG else ".webp"
        buffer = io.BytesIO()
        how = {"optimize": True} if suffix == ".png" else {"quality": _WEBP_QUALITY}
        Image.fromarray(picture).save(buffer, suffix[1:].upper(), **how)
        return self.add(name, buffer.getvalue(), suffix, (picture.shape[1], picture.shape[0]))

    def add_animation(self, name: str, frames: Sequence[Picture], fps: float) -> Media | None:
        """Embeds an animation, see `encode_animation`."""
        data, suffix = encode_animation(frames, fps)
        media = self.add(name, data, suffix, (frames[0].shape[1], frames[0].shape[0]))
        if media is None or media.kind != "video":
            return media
        poster = self.add_picture(f"first frame of {name}", frames[0])
        return media._replace(poster=poster.uri if poster else "")


def encode_animation(frames: Sequence[Picture], fps: float) -> tuple[bytes, str]:
    """An animation as H.264, or as a WebP that loops where PyAV is not installed.

    Args:
      frames: pictures of one size.
      fps: frames a second.

    Returns:
      The content of the file, and its suffix.
    """
    if video_suffix() == ".mp4":
        with tempfile.TemporaryDirectory() as folder:
            path = write_video(np.stack(frames), Path(folder) / "animation.mp4", fps)
            return path.read_bytes(), ".mp4"
    first, *others = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    how = {"duration": round(1000 / fps), "loop": 0, "quality": _WEBP_QUALITY}
    first.save(buffer, "WEBP", save_all=True, append_images=others, **how)
    return buffer.getvalue(), ".webp"


def read_animation(path: Path) -> tuple[list[Picture], float]:
    """Frames and frames a second of an animated GIF."""
    with Image.open(path) as image:
        milliseconds = image.info.get("duration") or 100
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    return frames, 1000.0 / milliseconds


def heat_map(
    series: Float[np.ndarray, "V F"], limits: tuple[float, float], side: int = 320
) -> Picture:
    """A series as a picture: steps to the right, features upwards, the larger the brighter.

    Args:
      series: real steps only.
      limits: values that get the darkest and the brightest colour.
      side: each value is enlarged by a whole factor, to about this height in pixels at least.
    """
    low, high = limits
    share = np.clip((np.asarray(series).T[::-1] - low) / max(high - low, 1e-12), 0.0, 1.0)
    pixels = np.round(colormaps["viridis"](share)[..., :3] * 255).astype(np.uint8)
    factor = max(1, side // len(pixels))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
