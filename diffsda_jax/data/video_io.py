"""Counting and decoding the frames of video files, GIFs and folders of images.

Video files go through PyAV (extra `media`), GIFs and images through Pillow. Frames are numbered in
presentation order, so files with B-frames come out right.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffsda_jax.data.sources.base import BrokenItemError, natural_key

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".gif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_INDEX_CACHE = 256  # files whose presentation times are remembered


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name; hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Images directly in a folder, in natural order."""
    return sorted(filter(is_image, folder.iterdir()), key=lambda path: natural_key(path.name))


def count_frames(path: Path) -> int:
    """Number of frames of a clip that can be shown, decoding none of a video file.

    What a container states is not asked: it counts frames that an edit list hides too.

    Raises:
        BrokenItemError: the clip cannot be opened.
        ImportError: PyAV is needed and missing.
    """
    with _broken_when_unreadable():
        if path.is_dir():
            return sum(map(is_image, path.iterdir()))
        if path.suffix.lower() == ".gif":
            return sum(_gif_repeats(path)[0])
        return len(_presentation_times(path))


def frame_rate(path: Path) -> float | None:
    """Mean number of frames a second of a clip; None of a folder, and where a file does not say.

    Raises:
        BrokenItemError: the clip cannot be opened.
        ImportError: PyAV is needed and missing.
    """
    with _broken_when_unreadable():
        if path.is_dir():
            return None
        if path.suffix.lower() == ".gif":
            return _gif_rate(path)
        with _open_video(path) as (_, stream):
            rate = stream.average_rate
            return float(rate) if rate else None


def _gif_repeats(path: Path) -> tuple[list[int], int]:
    """How often each frame of a GIF is shown at a constant rate, and the sum of times in ms.

    Writers leave out a frame that is like the one before, which is then shown for twice the time.
    Where times are no multiples of the shortest, or one is not given, each counts once.
    """
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        shown_ms = [frame.info.get("duration", 0) for frame in ImageSequence.Iterator(image)]
    shortest = min(shown_ms)
    if not shortest or any(shown % shortest for shown in shown_ms):
        return [1] * len(shown_ms), sum(shown_ms) if all(shown_ms) else 0
    return [round(shown / shortest) for shown in shown_ms], round(sum(shown_ms))


def _gif_rate(path: Path) -> float | None:
    """Frames over the time that they are shown for."""
    repeats, shown_ms = _gif_repeats(path)
    return 1000 * sum(repeats) / shown_ms if shown_ms else None


def read_frames(
    path: Path, indices: Sequence[int], size: int
) -> UInt8[np.ndarray, "V {size} {size} 3"]:
    """Decodes frames, scales the short side to `size` and cuts out the centre.

    Args:
        path: a video file, a GIF, or a folder of images.
        indices: rising frame numbers in presentation order.
        size: side of the frames in pixels.

    Returns:
        RGB frames, 0 to 255.

    Raises:
        BrokenItemError: a frame cannot be decoded.
        ImportError: PyAV is needed and missing.
    """
    return np.stack(list(iter_frames(path, indices, size)))


def iter_frames(
    path: Path, indices: Sequence[int], size: int
) -> Iterator[UInt8[np.ndarray, "{size} {size} 3"]]:
    """Decodes frames one by one, holding one at a time: `read_frames` for clips of any length.

    Args:
        path: see `read_frames`, as for all here.
        indices: see there.
        size: see there.

    Yields:
        The frames in the order of `indices`.

    Raises:
        BrokenItemError: see there; when the frame that cannot be decoded is reached.
        ImportError: see there.
    """
    with _broken_when_unreadable():
        if path.is_dir():
            images = _read_images(path, indices)
        elif path.suffix.lower() == ".gif":
            images = _read_gif(path, indices)
        else:
            images = _read_video(path, indices)
        yield from (_square(image, size) for image in images)


@contextmanager
def _broken_when_unreadable(part: str = "") -> Iterator[None]:
    """Turns what Pillow, PyAV and the file system say about bad files into BrokenItemError.

    Args:
        part: the part of the clip that is read, for the message.
    """
    try:
        yield
    except (BrokenItemError, ImportError):
        raise
    # Pillow reports a bad PNG by SyntaxError, a GIF that ends early by IndexError, a size beyond
    # reason by a type of its own, and so on.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        where = f"{part}: " if part else ""
        message = f"cannot be decoded: {where}{type(error).__name__}: {reason}"
        raise BrokenItemError(message) from error


def _square(image: Any, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Centre square of an RGB image, scaled to `size` pixels."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _read_images(folder: Path, indices: Sequence[int]) -> Iterator[Any]:
    """The images of a folder with these places in natural order."""
    from PIL import Image

    paths = list_images(folder)
    _check_reach(len(paths), indices)
    for index in indices:
        path = paths[index]
        with _broken_when_unreadable(path.name), Image.open(path) as image:
            yield image.convert("RGB")


def _read_gif(path: Path, indices: Sequence[int]) -> Iterator[Any]:
    """Frames of a GIF, composed on what earlier frames left."""
    from PIL import Image

    places = np.repeat(np.arange(len(repeats := _gif_repeats(path)[0])), repeats)
    _check_reach(len(places), indices)
    with Image.open(path) as image:
        for index in indices:
            image.seek(int(places[index]))
            yield image.convert("RGB")


def _check_reach(count: int, indices: Sequence[int]) -> None:
    if indices[-1] >= count:
        raise BrokenItemError(f"frame {indices[-1]} is wanted, {count} can be read")


def import_av() -> Any:
    """The package PyAV.

    Raises:
        ImportError: it is missing; the error says how to get it.
    """
    try:
        import av
    except ImportError:
        raise ImportError(
            ".mp4, .webm and .mov need PyAV: pip install 'diffsda_jax[media]' (GIFs and "
            "folders of images work without it)"
        ) from None
    return av


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and first video stream of a file."""
    av = import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BrokenItemError("holds no video stream")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise BrokenItemError(f"cannot be decoded: {error.strerror}") from error


def _presentation_times(path: Path) -> tuple[int, ...]:
    """Presentation time of every shown frame in stream units, rising; reads packets only."""
    stat = path.stat()
    return _times_of_version(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(_INDEX_CACHE)
def _times_of_version(path: Path, size: int, changed_ns: int) -> tuple[int, ...]:
    """`_presentation_times` of a file as it was when it had this size and time of change."""
    del size, changed_ns  # part of the key: a file that was replaced is read anew
    with _open_video(path) as (container, stream):
        times = [
            packet.pts
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None and not packet.is_discard
        ]
    return tuple(sorted(set(times)))


def _read_video(path: Path, indices: Sequence[int]) -> Iterator[Any]:
    """Frames of a video file: from the key frame before them, or else from the start."""
    times = _presentation_times(path)
    _check_reach(len(times), indices)
    wanted = [times[index] for index in indices]
    done = 0
    # After a seek, the first frames of an open group of pictures lack the group before: the second
    # time round they come out of a decoder that has seen everything.
    for seek in (True, False):
        for image in _decode(path, wanted[done:], seek):
            yield image
            done += 1
        if done == len(wanted):
            return
    raise BrokenItemError(f"cannot be decoded: frame {indices[done]} is damaged or missing")


def _decode(path: Path, wanted: Sequence[int], seek: bool) -> Iterator[Any]:
    """Images with these rising presentation times, up to the first one without or with damage."""
    with _open_video(path) as (container, stream):
        if seek:
            container.seek(wanted[0], stream=stream)
        place = 0
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts < wanted[place]:
                continue
            if frame.pts > wanted[place] or frame.is_corrupt:
                return
            # Phones store turned pictures; both angles count counter-clockwise.
            yield frame.to_image().rotate(frame.rotation, expand=True)
            place += 1
            if place == len(wanted):
                return
