"""Files that people have to sequences: videos, recordings, tables and arrays."""

import contextlib
import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsda_jax.data import audio_io, video_io
from diffsda_jax.data.sequences import Columns, Sequences
from diffsda_jax.data.sources.base import BrokenItemError, natural_key
from diffsda_jax.data.sources.csv_series import load_series
from diffsda_jax.npz_file import read_arrays

_LOG = logging.getLogger(__name__)

SUFFIXES = {
    "video": video_io.VIDEO_SUFFIXES,
    "audio": audio_io.AUDIO_SUFFIXES,
    "series": (".csv",),
}
ARRAYS = ".npz"
_FORMS = {
    "video": "videos (mp4, webm, mov, gif) or folders of frames (png, jpg)",
    "audio": "recordings (wav, flac, mp3, ogg)",
    "series": "CSV files",
}
CSV_OPTIONS = ("layout", "id_column", "time_column", "delimiter")


def find_files(paths: Sequence[str | Path], kind: str) -> list[Path]:
    """The files that are meant by files and folders, in natural order within a folder.

    Args:
        paths: files; a folder stands for all files of the kind in it, one of images for one clip.
        kind: "video", "audio" or "series".

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no path, a file of another kind, or a folder without any.
    """
    if not paths:
        raise ValueError(f"no input is given; give {_FORMS[kind]}, or an .npz file.")
    found: list[Path] = []
    for path in (Path(path).expanduser() for path in paths):
        if not path.exists():
            raise FileNotFoundError(f"input {path} does not exist; give {_FORMS[kind]}.")
        if not path.is_dir():
            if path.suffix.lower() not in (*SUFFIXES[kind], ARRAYS):
                raise ValueError(
                    f"input {path} is no file for this model, which takes {_FORMS[kind]}, or .npz "
                    "files."
                )
            found.append(path)
        elif kind == "video" and any(map(video_io.is_image, path.iterdir())):
            found.append(path)
        else:
            found += _files_in(path, kind)
    return found


def _files_in(folder: Path, kind: str) -> list[Path]:
    """Files of a kind, and folders of frames, directly in a folder; others are logged."""
    entries = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
    shown = [path for path in entries if not path.name.startswith(".")]
    files = [path for path in shown if path.suffix.lower() in SUFFIXES[kind]]
    if kind == "video":
        files += [
            path for path in shown if path.is_dir() and any(map(video_io.is_image, path.iterdir()))
        ]
    if not files:
        raise ValueError(f"folder {folder} holds nothing for this model; put {_FORMS[kind]} there.")
    if others := [path.name for path in shown if path not in files]:
        _LOG.warning(
            "folder %s: %d of %d entries are not for this model and left out, such as %s; it takes "
            "%s",
            folder,
            len(others),
            len(shown),
            others[0],
            _FORMS[kind],
        )
    return files


def read_files(
    paths: Sequence[str | Path],
    kind: str,
    *,
    size: int = 0,
    feature_names: Sequence[str] | None = None,
    csv_options: Mapping[str, Any] | None = None,
) -> Sequences:
    """Reads files as one batch.

    Args:
        paths: see `find_files`.
        kind: "video", "audio" or "series".
        size: side of the frames in pixels; the centre square is scaled to it.
        feature_names: columns of a table to read; None takes those that hold numbers.
        csv_options: by the names of `CSV_OPTIONS`, see `sources.csv_series.load_series`.

    Returns:
        The sequences; a CSV file may hold several. An .npz file is what `Sequences.save` wrote.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a file of another kind, or one that cannot be read; with its name.
        ImportError: a package that the format needs is missing.
    """
    batches = [
        _read_npz(path, kind)
        if path.suffix.lower() == ARRAYS
        else _read_series(path, feature_names, csv_options or {})
        if kind == "series"
        else _read_one(path, kind, size)
        for path in find_files(paths, kind)
    ]
    first = batches[0]
    if len(batches) == 1:
        return first
    times = [times for batch in batches for times in batch.columns.times]
    columns = Columns(first.columns.time_name, tuple(times), first.columns.id_name)
    count = sum(map(len, batches))
    _check_alike(batches, paths)
    return Sequences.join(
        [x for batch in batches for x in batch.items()],
        kind,
        [rate for batch in batches for rate in batch.rates],
        [name for batch in batches for name in batch.names],
        first.feature_names,
        columns if len(times) == count else None,
    )


def _check_alike(batches: Sequence[Sequences], paths: Sequence[str | Path]) -> None:
    """Refuses steps of different shapes, which no batch holds, and features in another order."""
    shapes = {batch.x.shape[2:] for batch in batches}
    features = {batch.feature_names for batch in batches if batch.feature_names is not None}
    for what, found in (("shapes", shapes), ("columns", features)):
        if len(found) > 1:
            raise ValueError(
                f"the inputs {', '.join(map(str, paths))} have steps of different {what} "
                f"({', '.join(map(str, sorted(found)))}); give them one by one."
            )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the name of a file before what is broken in it."""
    try:
        yield
    except BrokenItemError as error:
        raise ValueError(f"input {path} {error}; give a file that plays.") from error


def _read_one(path: Path, kind: str, size: int) -> Sequences:
    """A clip or a recording."""
    with _naming(path):
        if kind == "audio":
            samples, rate_hz = audio_io.read_audio(path)
            return Sequences.join([samples], kind, [float(rate_hz)], [path.stem])
        count = video_io.count_frames(path)
        if not count:
            raise BrokenItemError("holds no frames")
        frames = video_io.read_frames(path, range(count), size)
        name = path.name if path.is_dir() else path.stem
        return Sequences.join([frames], kind, [video_io.frame_rate(path)], [name])


def _read_series(
    path: Path, feature_names: Sequence[str] | None, options: Mapping[str, Any]
) -> Sequences:
    """All series of a CSV file; of one that `Sequences.save` wrote, its column of names tells."""
    own = Columns.id_name
    if options.get("id_column") is None and own not in (feature_names or (own,)):
        with path.open(newline="", errors="replace") as lines:
            header = next(csv.reader(lines, delimiter=options.get("delimiter", ",")), [])
        if header[:1] == [own]:
            options = {**options, "id_column": own}
    file = load_series(str(path), features=feature_names, **options)
    items = [np.where(one.mask, one.x, np.float32(np.nan)) for one in file.series]
    times = tuple(tuple(one.times) for one in file.series if one.times is not None)
    columns = Columns(file.roles.time, times, file.roles.id or Columns.id_name)
    names = [one.name for one in file.series]
    return Sequences.join(items, "series", [None] * len(items), names, file.features, columns)


def _read_npz(path: Path, kind: str) -> Sequences:
    """Sequences that were saved as arrays."""
    if "static" in read_arrays(path):
        raise ValueError(
            f"input {path} holds factors, from which nothing can be encoded; load them with "
            "Factors.load, or give data."
        )
    sequences = Sequences.load(path)
    if sequences.kind != kind:
        raise ValueError(f"input {path} holds {sequences.kind}; this model takes {kind}.")
    return sequences
