"""The files of a folder of latents: shards, their parts of the index, and how they are replaced.

See `records` for what is in them and why.
"""

import contextlib
import dataclasses
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from diffsda_jax.data.sources.base import SPLITS

FRAMES_PER_RECORD = 16
FORMAT = 1  # of the folder; also stands for the number of frames in a record
FACTS, SKIPPED, SUMMARY = "facts.json", "skipped.json", "latents.json"
DATA, INDEX = ".arrayrecord", ".json"
_PART = ".part"
_CHECKSUM = "checksum"  # of the other values of a JSON file
_WRITER_OPTIONS = "group_size:1,uncompressed"
_LABELS = ("static", "dynamic")
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d+")


@dataclasses.dataclass(frozen=True)
class ClipEntry:
    """What the index says of a clip.

    Attributes:
        name: its name in its source, distinct within the split.
        split: "train" or "test".
        source: the name of the source that it came from.
        frames: number of frames.
        labels: names of what is known of it, with keys among "static" and "dynamic".
    """

    name: str
    split: str
    source: str
    frames: int
    labels: dict[str, str]

    def __post_init__(self):
        """Refuses what cannot be.

        Raises:
            ValueError: an unknown split or kind of label, or no frames.
        """
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} of clip {self.name}: use one of {SPLITS}")
        if self.frames < 1:
            raise ValueError(f"clip {self.name} has {self.frames} frames: leave it out")
        if unknown := set(self.labels) - set(_LABELS):
            raise ValueError(f"labels {sorted(unknown)} of clip {self.name}: use {_LABELS}")


@dataclasses.dataclass(frozen=True)
class PlacedClip:
    """A clip and where it is.

    Attributes:
        entry: the clip.
        shard: name of the shard, without a suffix.
        first: number of its first record in the shard.
    """

    entry: ClipEntry
    shard: str
    first: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard's part of the index: its clips in their order, and sums for the statistics."""

    name: str
    frame_shape: tuple[int, ...]
    size: int  # of the data file in bytes
    clips: list[ClipEntry]
    count: int  # of values per channel
    total: list[float]
    squares: list[float]

    @property
    def split(self) -> str:
        """The split of its clips."""
        return self.name.partition("-")[0]

    @classmethod
    def load(cls, folder: Path, name: str) -> "Shard":
        """Reads a part; the data file must be there in the size that it had.

        Raises:
            ValueError: one of the two files is missing or damaged.
        """
        values = load_json(folder / (name + INDEX))
        try:
            clips = [ClipEntry(**clip) for clip in values.pop("clips")]
            shape = tuple(values.pop("frame_shape"))
            shard = cls(frame_shape=shape, clips=clips, **values)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / (name + INDEX)} is damaged ({error}): {anew(name)}"
            ) from None
        data = folder / (name + DATA)
        size = data.stat().st_size if data.is_file() else None
        if size != shard.size:
            state = "is missing" if size is None else f"has {size} bytes"
            raise ValueError(f"{data} {state}, written were {shard.size}: {anew(name)}")
        return shard

    def save(self, folder: Path) -> None:
        """Writes the part; with this the shard counts."""
        save_json(folder / (self.name + INDEX), dataclasses.asdict(self))

    def places(self) -> Iterable[PlacedClip]:
        """Its clips and where they are."""
        first = 0
        for clip in self.clips:
            yield PlacedClip(clip, self.name, first)
            first += -(-clip.frames // FRAMES_PER_RECORD)


class OpenShard:
    """A shard that is being written; nothing of it counts before `commit`."""

    def __init__(self, folder: Path, name: str, frame_shape: tuple[int, ...]):
        """Opens its data file under a name that counts for nothing."""
        self._folder, self._name = folder, name
        self._part = folder / (name + DATA + _PART)
        self._writer = array_record_module.ArrayRecordWriter(str(self._part), _WRITER_OPTIONS)
        self.frame_shape = frame_shape
        self.clips: list[ClipEntry] = []
        self._count = 0
        self._sums = np.zeros((2, frame_shape[-1]))

    def write(self, entry: ClipEntry, latents: np.ndarray) -> None:
        """Adds a clip.

        Args:
            entry: what the index is to say of it.
            latents: float16 `[frames, h, w, c]`.

        Raises:
            OSError: the disk is full or broken.
        """
        for start in range(0, entry.frames, FRAMES_PER_RECORD):
            with _disk_errors(self._part):
                self._writer.write(latents[start : start + FRAMES_PER_RECORD].tobytes())
        values = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
        self._count += len(values)
        self._sums += values.sum(0), np.square(values).sum(0)
        self.clips.append(entry)

    def commit(self) -> Shard:
        """Puts first the data file in its place and then the part of the index that counts it.

        Raises:
            OSError: the disk is full or broken.
        """
        with _disk_errors(self._part):
            self._writer.close()
        size = self._part.stat().st_size
        _put(self._part, self._folder / (self._name + DATA))
        total, squares = self._sums.tolist()
        shard = Shard(self._name, self.frame_shape, size, self.clips, self._count, total, squares)
        shard.save(self._folder)
        return shard


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns what the C++ writer says of a full or broken disk into OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def anew(name: str) -> str:
    """The way out of a damaged shard."""
    return f"remove {name}{INDEX} there and run --mode=latents again, it makes these clips anew"


def _put(part: Path, path: Path) -> None:
    """Renames a whole file into its place once it is on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def save_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file, whole or not at all, with a checksum of its values."""
    part = path.with_name(path.name + _PART)
    part.write_text(json.dumps({**values, _CHECKSUM: _checksum(values)}))
    _put(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that `save_json` wrote; older ones are without a checksum.

    Raises:
        FileNotFoundError: there is none.
        ValueError: what is wrong with it, in a few words.
    """
    try:
        values = json.loads(path.read_text())
    except ValueError:
        raise ValueError("is no JSON") from None
    if not isinstance(values, dict):
        raise ValueError("is no JSON object")
    checksum = values.pop(_CHECKSUM, None)
    if checksum not in (None, _checksum(values)):
        raise ValueError("is damaged (its checksum differs)")
    return values


def _checksum(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def load_json(path: Path) -> dict[str, Any]:
    """Reads a file of a folder of latents.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run --mode=latents again") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}: remove it and run --mode=latents again") from None


def shard_names(folder: Path) -> list[str]:
    """Names of the shards that count."""
    return sorted(p.stem for p in folder.glob("*" + INDEX) if _SHARD.fullmatch(p.stem))


def check_format(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuses a folder that another version wrote.

    Raises:
        ValueError: its format is another one.
    """
    if values.get("format") != FORMAT:
        raise ValueError(
            f"latents in {folder} have format {values.get('format')!r}, this version reads "
            f"{FORMAT}: make them anew in another folder"
        )


def settle_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the facts of a new folder, or holds those of an old one against them.

    Raises:
        ValueError: they differ, or the folder holds shards without facts.
    """
    path = folder / FACTS
    if not path.is_file():
        if strange := sorted(p.name for p in folder.iterdir() if _SHARD.fullmatch(p.stem)):
            raise ValueError(f"{folder} holds {strange[0]} but no {FACTS}: use an empty folder")
        save_json(path, {"format": FORMAT, "facts": facts})
        return
    values = load_json(path)
    check_format(folder, values)
    old = values["facts"]
    for key in sorted({*old, *facts}):
        if old.get(key) != facts.get(key):
            raise ValueError(
                f"latents in {folder} were made with {key}={old.get(key)!r}, not "
                f"{facts.get(key)!r}: use another folder, or remove this one to make them anew"
            )


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed run left: parts, and data files that no part of the index counts."""
    counted = set(shard_names(folder))
    for path in folder.iterdir():
        name = Path(path.name.removesuffix(_PART))
        shard = name.suffix in (DATA, INDEX) and bool(_SHARD.fullmatch(name.stem))
        if path.suffix == _PART:
            leftover = shard or path.stem in (FACTS, SKIPPED, SUMMARY)
        else:
            leftover = shard and name.suffix == DATA and name.stem not in counted
        if leftover:
            path.unlink()
