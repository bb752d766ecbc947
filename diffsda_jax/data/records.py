"""Latents of clips on disk: ArrayRecord shards with an index, written resumably, read at random.

A folder holds `facts.json` (what the latents were made from), for every shard a data file and its
part of the index (`train-00000.arrayrecord`, `train-00000.json`), `skipped.json` (clips that could
not be encoded) and, once all is written, `latents.json` (the summary).

A record holds up to `FRAMES_PER_RECORD` consecutive frames of one clip, raw float16 without
compression. A window is cut from the records that it touches, so the rest of a long clip is neither
read nor decoded. Why 16 frames: a record costs about 25 us of CPU time to fetch, however small, and
a frame of 32x32x4 about 4. Windows of 10 frames, read in batches of 64, cost each

| frames in a record              |   1 |   4 |   8 |  16 |  32 | 100 (the whole clip) |
| ------------------------------- | --- | --- | --- | --- | --- | -------------------- |
| clips of 100 frames             | 277 | 131 | 107 | 121 | 180 | 420 us               |
| the same, every fourth frame    | 291 | 393 | 285 | 264 | 298 | 432 us               |
| clips of 10 frames              | 273 |     |  86 |  57 |     | us                   |

of CPU time (`records` of `benchmarks/latents_reading.py` with this constant changed; the least of
40 rounds on two cores of an AMD EPYC that other programs kept busy, files in the page cache). From
a cold disk a window of a long clip reads 25 frames, of which it needs 10.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from jaxtyping import Float16, Float64, Int

from diffsda_jax.data import record_files as files
from diffsda_jax.data.record_files import FRAMES_PER_RECORD, ClipEntry, PlacedClip
from diffsda_jax.data.sources.base import SPLITS, BrokenItemError, hash_of

__all__ = ["ClipEntry", "LatentIndex", "LatentReader", "LatentWriter"]

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READ_BUFFER = 32768  # bytes
_RECORDS = 2**32  # more than a shard has, to number those of all shards
_OPEN_SHARDS = 512  # at once, so that the usual limit of 1,024 open files is kept


class LatentWriter:
    """Writes latents to a folder, or goes on where a killed run stopped.

    A shard counts as a whole or not at all, by one rename; leftovers of a killed run are removed
    when a writer opens the folder. So a kill at any time loses only the clips of open shards, which
    `done` does not name: the caller writes them again, and no clip is ever there twice. Only one
    writer may have the folder open.
    """

    def __init__(self, folder: str | os.PathLike, facts: dict[str, Any], clips_per_shard: int = 64):
        """Opens a new folder, or one that was written with the same facts.

        Args:
            folder: is made when it is missing.
            facts: JSON values that tell what the latents are made from and how.
            clips_per_shard: how many clips a kill may lose at most for each split.

        Raises:
            ValueError: other facts in the folder, shards without facts, a damaged shard, or
                `clips_per_shard` below 1.
        """
        if clips_per_shard < 1:
            raise ValueError(f"clips_per_shard={clips_per_shard}: use 1 or more")
        self._folder, self._clips_per_shard = Path(folder), clips_per_shard
        self._folder.mkdir(parents=True, exist_ok=True)
        self._facts = json.loads(json.dumps(facts))
        files.settle_facts(self._folder, self._facts)
        files.remove_leftovers(self._folder)
        self._shards = [
            files.Shard.load(self._folder, name) for name in files.shard_names(self._folder)
        ]
        skipped = self._folder / files.SKIPPED
        self._skipped: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
        self._skipped.update(files.load_json(skipped) if skipped.is_file() else {})
        self._open: dict[str, files.OpenShard] = {}
        self._names = {split: set(self._skipped[split]) for split in SPLITS}
        for shard in self._shards:
            for clip in shard.clips:
                self._names[clip.split].add(clip.name)

    def done(self, split: str) -> frozenset[str]:
        """Names of the clips that are in finished shards or were skipped."""
        waiting = self._open[split].clips if split in self._open else []
        return frozenset(self._names[split] - {clip.name for clip in waiting})

    def write(self, entry: ClipEntry, latents: Float16[np.ndarray, "frames h w c"]) -> None:
        """Takes a clip; it counts with its shard, which is finished with the last of its clips.

        Raises:
            ValueError: a clip that was written or skipped before, another number of frames than
                stated, another frame shape than before, or values that are not finite.
        """
        self._refuse_known(entry.split, entry.name)
        shape = self._frame_shape() or latents.shape[1:]
        if latents.shape != (entry.frames, *shape):
            raise ValueError(
                f"latents of clip {entry.name} have shape {latents.shape}: use frames of {shape} "
                f"as before, {entry.frames} as its entry says"
            )
        if not np.isfinite(latents).all():
            raise ValueError(
                f"latents of clip {entry.name} are not finite in float16 (at most 65504): leave it "
                "out by skip(), or mend the first stage"
            )
        if entry.split not in self._open:
            (self._folder / files.SUMMARY).unlink(missing_ok=True)  # it tells of a finished folder
            self._open[entry.split] = files.OpenShard(self._folder, self._next(entry.split), shape)
        shard = self._open[entry.split]
        shard.write(entry, latents)
        self._names[entry.split].add(entry.name)
        if len(shard.clips) == self._clips_per_shard:
            self._commit(entry.split)

    def skip(self, name: str, split: str, reason: str) -> None:
        """Remembers that a clip cannot be encoded, so that a later run leaves it out too.

        Raises:
            ValueError: a clip that was written or skipped before.
        """
        self._refuse_known(split, name)
        (self._folder / files.SUMMARY).unlink(missing_ok=True)
        self._skipped[split][name] = reason
        self._names[split].add(name)
        files.save_json(self._folder / files.SKIPPED, self._skipped)

    def finish(self) -> None:
        """Writes what is held back and the summary; only then the folder can be read.

        Raises:
            ValueError: there is no clip of the training split to take mean and variance over.
        """
        for split in sorted(self._open):
            self._commit(split)
        train = [shard for shard in self._shards if shard.split == "train"]
        if not train:
            raise ValueError(
                f"latents in {self._folder} have no clip of the split 'train', over which mean and "
                f"variance are taken; {len(self._skipped['train'])} of it were skipped"
            )
        count = sum(shard.count for shard in train)
        mean = np.sum([shard.total for shard in train], axis=0) / count
        squares = np.sum([shard.squares for shard in train], axis=0) / count
        summary = {
            "format": files.FORMAT,
            "facts": self._facts,
            "frame_shape": self._frame_shape(),
            "shards": sorted(shard.name for shard in self._shards),
            "skipped": self._skipped,
            "mean": mean.tolist(),
            "variance": np.maximum(squares - mean**2, 0.0).tolist(),
        }
        for split in SPLITS:
            frames = [c.frames for s in self._shards for c in s.clips if c.split == split]
            summary[split] = {"clips": len(frames), "frames": sum(frames)}
        files.save_json(self._folder / files.SUMMARY, summary)

    def _refuse_known(self, split: str, name: str) -> None:
        if name in self._names[split]:
            raise ValueError(f"clip {name} of split {split!r} was written or skipped before")

    def _frame_shape(self) -> tuple[int, ...] | None:
        """Shape of all frames so far."""
        shards: list[files.Shard | files.OpenShard] = [*self._shards, *self._open.values()]
        return shards[0].frame_shape if shards else None

    def _next(self, split: str) -> str:
        """Name of the next shard."""
        numbers = [int(s.name.partition("-")[2]) for s in self._shards if s.split == split]
        return f"{split}-{max(numbers, default=-1) + 1:05d}"

    def _commit(self, split: str) -> None:
        self._shards.append(self._open.pop(split).commit())


@dataclasses.dataclass(frozen=True)
class LatentIndex:
    """What a finished folder holds.

    Attributes:
        folder: where it is.
        facts: what the latents were made from and how.
        frame_shape: `(h, w, c)`.
        mean: per channel over the training split, `[c]`.
        variance: likewise.
        skipped: clips of each split that could not be encoded, as {name: reason}.
        clips: those of each split with their places, sorted by name.
    """

    folder: Path
    facts: dict[str, Any]
    frame_shape: tuple[int, ...]
    mean: Float64[np.ndarray, " c"]
    variance: Float64[np.ndarray, " c"]
    skipped: dict[str, dict[str, str]]
    clips: dict[str, list[PlacedClip]]

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "LatentIndex":
        """Reads the index of a folder.

        Raises:
            FileNotFoundError: there are no latents in it.
            ValueError: they are not finished, or a shard is missing or has another size.
        """
        folder = Path(folder).expanduser()
        if not (folder / files.SUMMARY).is_file():
            if (folder / files.FACTS).is_file():
                count = len(files.shard_names(folder))
                raise ValueError(
                    f"the latents in {folder} are not finished ({count} shards so far): run "
                    "--mode=latents again with the same config, it goes on there"
                )
            raise FileNotFoundError(
                f"no latents in {folder} ({files.SUMMARY} is missing): make them by "
                "--mode=latents, or set root to the folder that holds them"
            )
        summary = files.load_json(folder / files.SUMMARY)
        files.check_format(folder, summary)
        shards = [files.Shard.load(folder, name) for name in summary["shards"]]
        placed = [place for shard in shards for place in shard.places()]
        placed.sort(key=lambda place: place.entry.name)
        return cls(
            folder=folder,
            facts=summary["facts"],
            frame_shape=tuple(summary["frame_shape"]),
            mean=np.array(summary["mean"]),
            variance=np.array(summary["variance"]),
            skipped=summary["skipped"],
            clips={s: [place for place in placed if place.entry.split == s] for s in SPLITS},
        )

    def fingerprint(self) -> str:
        """16 hex digits of the facts and the clips, whatever shards they lie in."""
        entries = [place.entry for split in SPLITS for place in self.clips[split]]
        clips = [[e.name, e.split, e.source, e.frames, e.labels] for e in entries]
        return hash_of([self.facts, self.frame_shape, clips])


class LatentReader:
    """Random access to the frames of a split's clips; any number of threads may read."""

    def __init__(self, index: LatentIndex, split: str):
        """Opens nothing yet.

        Args:
            index: of the folder.
            split: "train" or "test".
        """
        clips = index.clips[split]
        self._shape, self._folder = index.frame_shape, index.folder
        self._shards = sorted({clip.shard for clip in clips})
        number = {name: i for i, name in enumerate(self._shards)}
        first = [number[clip.shard] * _RECORDS + clip.first for clip in clips]
        self._first = np.array(first, int)  # record, counted over all shards
        self._frames = np.array([clip.entry.frames for clip in clips], int)
        self._opened = functools.lru_cache(_OPEN_SHARDS)(self._open_shard)

    def read(self, clip: int, frames: Sequence[int]) -> Float16[np.ndarray, "n h w c"]:
        """Frames of one clip; see `read_batch`."""
        return self.read_batch(np.array([clip]), np.array([frames], int))[0]

    def read_batch(
        self, clips: Int[np.ndarray, " B"], frames: Int[np.ndarray, "B n"]
    ) -> Float16[np.ndarray, "B n h w c"]:
        """Frames of many clips, with one call to the C++ reader for each shard.

        Args:
            clips: numbers of clips in `index.clips[split]`.
            frames: numbers of frames of each.

        Returns:
            The latents, not normalised.

        Raises:
            BrokenItemError: a shard cannot be read; it is named.
            ValueError: a frame that a clip does not have.
        """
        if (frames < 0).any() or (frames >= self._frames[clips, None]).any():
            raise ValueError(
                f"frames {frames.min()} to {frames.max()}: the clips have "
                f"{self._frames[clips].min()} or more, counted from 0"
            )
        keys = self._first[clips, None] + frames // FRAMES_PER_RECORD
        keys, place = np.unique(keys, return_inverse=True)
        place = place.reshape(frames.shape)
        blobs = []
        for shard, group in itertools.groupby(keys.tolist(), lambda key: key // _RECORDS):
            blobs += self._read_records(shard, [key % _RECORDS for key in group])
        # The last record of a clip may be short, so where each starts is a running sum.
        starts = np.cumsum([0, *(len(blob) // (2 * math.prod(self._shape)) for blob in blobs)])
        first, last = place.min(axis=1), place.max(axis=1)
        wanted = starts[place] - starts[first, None] + frames % FRAMES_PER_RECORD
        out = np.empty((*frames.shape, *self._shape), np.float16)
        for i in range(len(clips)):  # one clip at a time stays in the processor's cache
            joined = np.frombuffer(b"".join(blobs[first[i] : last[i] + 1]), np.float16)
            out[i] = joined.reshape(-1, *self._shape)[wanted[i]]
        return out

    def _open_shard(self, shard: int) -> Any:
        path = self._folder / (self._shards[shard] + files.DATA)
        return array_record_module.ArrayRecordReader(
            str(path), options=_READER_OPTIONS, file_reader_buffer_size=_READ_BUFFER
        )

    def _where(self, shard: int, records: list[int]) -> str:
        """Which of some records cannot be read; none of them where the whole file cannot."""
        for record in records:
            try:
                self._opened(shard).read([record])
            except RuntimeError:
                return f"record {record}"
        return f"records {records[0]} to {records[-1]}"

    def _read_records(self, shard: int, records: list[int]) -> list[bytes]:
        try:
            return self._opened(shard).read(records)
        except RuntimeError as error:
            name, first = self._shards[shard], str(error).partition(";")[0]
            raise BrokenItemError(
                f"{self._folder / (name + files.DATA)} is damaged in {self._where(shard, records)} "
                f"({first}): {files.anew(name)}"
            ) from None
