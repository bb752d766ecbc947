"""Sequences in the units of their data to the files that people open."""

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from diffsda_jax.data.audio_io import import_soundfile
from diffsda_jax.data.video_io import list_images
from diffsda_jax.data.video_writer import video_suffix, write_video

FORMATS = {  # of each kind of data; what `Sequences.save` writes without a suffix comes first
    "video": ("mp4", "gif", "frames", "npz"),
    "audio": ("wav", "flac", "npz"),
    "series": ("csv", "npz"),
}
FRAMES = "frames"  # a folder of images
DEFAULT_FPS = 8.0  # of videos that come without a rate
_DIGITS = 9  # of float32 in text, so that reading gives the same number back


def check_format(kind: str, path: Path, name: str | None = None) -> str:
    """The format to write.

    Args:
        kind: of the data, a key of `FORMATS`.
        path: a file, whose suffix names the format, or a folder.
        name: of `FORMATS`; None takes the suffix, and for a folder the first that can be written.

    Raises:
        ValueError: one that this kind of data does not have, or another than the suffix names.
    """
    allowed = FORMATS[kind]
    if name is None and not path.suffix:
        return video_suffix().lstrip(".") if kind == "video" else allowed[0]
    suffix = path.suffix.lstrip(".").lower()
    name = suffix if name is None else name
    if name not in allowed:
        raise ValueError(
            f"{path} cannot be written as {name!r}: this model gives {kind}, whose formats are "
            f"{', '.join(allowed)}; end the name of the output in one of them, or give a folder."
        )
    if suffix in allowed and name != suffix:
        raise ValueError(
            f"{path} ends in .{suffix}, but the format is {name!r}; leave the format out, or give "
            "a folder (a name without suffix)."
        )
    return name


def check_new(folder: Path) -> None:
    """Refuses a folder that new frames would mix in with others.

    Raises:
        ValueError: it holds images.
    """
    if folder.is_dir() and list_images(folder):
        raise ValueError(f"folder {folder} holds images already: give a new or empty one.")


def write_frames(frames: UInt8[np.ndarray, "V H W C"], folder: Path) -> Path:
    """Writes frames (0 to 255, RGB or grey) as `00000.png` and on; the folder is made if missing.

    Raises:
        ValueError: the folder holds images already, which the new ones would mix with.
    """
    from PIL import Image

    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")
    return folder


def write_clip(
    frames: UInt8[np.ndarray, "V H W 3"], path: Path, form: str, fps: float | None
) -> Path:
    """Writes one video as `mp4`, `gif` or `frames`, at `DEFAULT_FPS` without a rate.

    Raises:
        ValueError: see `write_frames`.
        ImportError: an mp4 without PyAV.
    """
    if form == FRAMES:
        return write_frames(frames, path)
    return write_video(frames, path, fps or DEFAULT_FPS)


def write_sound(samples: Float[np.ndarray, " N"], path: Path, rate_hz: float) -> Path:
    """Writes a mono waveform in [-1, 1] as 16-bit wav or flac, by its suffix.

    Raises:
        ImportError: soundfile is missing.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    import_soundfile().write(path, np.clip(samples, -1.0, 1.0), round(rate_hz), subtype="PCM_16")
    return path


def write_table(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    """Writes a CSV file; numbers that are not finite become empty cells.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)
    return path


def _cell(value: object) -> object:
    """Text as it is, numbers with all digits of float32."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.{_DIGITS}g}" if np.isfinite(value) else ""
    return value
