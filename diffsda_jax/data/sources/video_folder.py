"""Clips of any folder: video files, GIFs and folders of frames."""

import concurrent.futures
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffsda_jax.data import video_io
from diffsda_jax.data.sources.base import (
    BrokenItemError,
    ElementSpec,
    Source,
    hash_of,
    hash_split,
    label_ids,
)

_LOG = logging.getLogger(__name__)
_PROBE_THREADS = 8
_COUNTING = 2  # version of how frames are counted; counts of another version are not believed


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip on disk.

    Attributes:
        path: the file, or the folder of frames.
        name: path relative to the root, with forward slashes.
        parents: names of the folders between the split (or the root) and the clip.
        frames: number of frames; 0 before they are counted.
    """

    path: Path
    name: str
    parents: tuple[str, ...]
    frames: int = 0


def find_clips(folder: Path, root: Path) -> list[Clip]:
    """Lists the clips under a folder, sorted by name.

    A clip is a file with one of `VIDEO_SUFFIXES`, or a folder without sub-folders and video files
    that holds images. Hidden files and folders are left out.

    Args:
        folder: where to look, at any depth.
        root: what the names are relative to.
    """
    clips = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        here = Path(place)
        parents = here.relative_to(folder).parts
        shown = [Path(name) for name in files if not name.startswith(".")]
        videos = [path for path in shown if path.suffix.lower() in video_io.VIDEO_SUFFIXES]
        for video in videos:
            clips.append(Clip(here / video, (here / video).relative_to(root).as_posix(), parents))
        images = any(path.suffix.lower() in video_io.IMAGE_SUFFIXES for path in shown)
        if images and not videos and not folders:
            clips.append(Clip(here, here.relative_to(root).as_posix(), parents[:-1]))
    return sorted(clips, key=lambda clip: clip.name)


class VideoFolder(Source):
    """Windows of `length` frames of the clips in a folder.

    Splits are the folders `train/` and `test/` when one of them is there, and else a hash of each
    clip's relative path. Training takes a random window, testing the first one. A clip that is too
    short for the stride gets the largest stride that fits; one with fewer frames than `length`, or
    one that cannot be read, is skipped, counted and named.
    """

    name, kind = "video_folder", "video"
    expected = "video files (mp4, webm, mov, gif) or folders of frames (jpg, png), at any depth"

    def __init__(
        self,
        split: str,
        root: str,
        length: int = 10,
        stride: int = 1,
        size: int = 64,
        test_share: float = 0.1,
        label_from: str | None = None,
        cache_dir: str | None = None,
        max_skipped_share: float = 0.05,
    ):
        """Lists the clips of a split and counts their frames.

        Args:
            split: "train" or "test".
            root: the folder.
            length: frames of an element.
            stride: distance between them.
            size: side of the square frames in pixels.
            test_share: share of the clips for testing, used without split folders.
            label_from: "parent" makes the name of the folder around a clip its static label.
            cache_dir: remember frame counts in this folder; None remembers nothing.
            max_skipped_share: see `Source`.

        Raises:
            FileNotFoundError: no such folder, or split folder.
            ValueError: no clips, too many skipped ones, or a bad option.
        """
        super().__init__(split, max_skipped_share)
        for option, value in (("length", length), ("stride", stride), ("size", size)):
            if value < 1:
                raise ValueError(f"{option}={value} of source {self.name!r}: use 1 or more")
        if label_from not in (None, "parent"):
            raise ValueError(f"label_from={label_from!r}: use None or 'parent'")
        self.length, self.stride, self.size, self._label_from = length, stride, size, label_from
        found = self._find(_existing_folder(root, self), test_share)
        self._labels = {clip.name: self._label(clip) for clips in found.values() for clip in clips}
        self._num_found = len(found[split])
        self._clips = self._probe(found[split], None if cache_dir is None else Path(cache_dir))
        self.spec = self._make_spec()

    def _find(self, root: Path, test_share: float) -> dict[str, list[Clip]]:
        """Clips of both splits."""
        folders = {split: root / split for split in ("train", "test")}
        if any(folder.is_dir() for folder in folders.values()):
            if not folders[self.split].is_dir():
                raise FileNotFoundError(
                    f"folder {folders[self.split]} is missing though the other split has one: make "
                    f"it and put {self.expected} there, or move all clips out of the split folders"
                )
            found = {s: find_clips(f, root) if f.is_dir() else [] for s, f in folders.items()}
        else:
            clips = {clip.name: clip for clip in find_clips(root, root)}
            found = {
                split: [clips[name] for name in hash_split(list(clips), split, test_share)]
                for split in folders
            }
        if not found[self.split]:
            where = folders[self.split] if folders[self.split].is_dir() else root
            count = sum(map(len, found.values())) if where == root else 0
            holds = f"{count} clip, too few for two splits" if count else "no clips"
            raise ValueError(
                f"folder {where} of source {self.name!r} holds {holds}; the split "
                f"{self.split!r} needs {self.expected}: put them there, or set root elsewhere"
            )
        return found

    def _label(self, clip: Clip) -> Any:
        """What names the labels of a clip: here the folder around it, or None."""
        if self._label_from is None:
            return None
        if not clip.parents:
            raise ValueError(
                f"clip {clip.name} has no folder around it to take a label from: put every clip in "
                "a folder named like its label, or set label_from=None"
            )
        return clip.parents[-1]

    def _make_spec(self) -> ElementSpec:
        names = None
        if self._label_from is not None:
            names = tuple(label_ids(self._labels.values()))
        return ElementSpec("video", (self.size, self.size, 3), static_names=names)

    def _label_elements(self, clip: Clip) -> dict[str, int]:
        """Labels of a clip as they go into an element."""
        if self._label_from is None:
            return {}
        return {"static_label": self.spec.static_names.index(self._labels[clip.name])}

    def _probe(self, clips: list[Clip], cache_dir: Path | None) -> list[Clip]:
        """Counts frames and leaves out what is broken or too short."""
        cache = _FrameCounts(cache_dir)
        with concurrent.futures.ThreadPoolExecutor(_PROBE_THREADS) as pool:
            counted = list(pool.map(cache.count, clips))
        cache.save()
        usable = []
        for clip, frames in zip(clips, counted, strict=True):
            if isinstance(frames, str):
                self.skip(clip.name, frames, check=False)
            elif frames < self.length:
                reason = f"{frames} frames, shorter than length={self.length} even at stride 1"
                self.skip(clip.name, reason, check=False)
            else:
                usable.append(dataclasses.replace(clip, frames=frames))
        self.check_skipped()
        if not usable:
            raise ValueError(f"{self.name}/{self.split}: no clip is left after skipping")
        return usable

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._clips)

    def num_items(self) -> int:
        """Number of clips, the skipped ones too."""
        return self._num_found

    def lengths(self) -> np.ndarray:
        """`length` for every clip."""
        return np.full(len(self), self.length)

    def item_name(self, index: int) -> str:
        """Path of the clip relative to the root."""
        return self._clips[index % len(self._clips)].name

    def clip_stride(self, frames: int) -> int:
        """The largest stride up to the wanted one that fits a clip of `frames` frames."""
        return min(self.stride, max(1, (frames - 1) // max(1, self.length - 1)))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A window of a clip: `x` `[length, size, size, 3]` in [-1, 1], and its labels."""
        clip = self._clips[index % len(self._clips)]
        stride = self.clip_stride(clip.frames)
        span = (self.length - 1) * stride + 1
        start = int(rng.integers(clip.frames - span + 1)) if self.split == "train" else 0
        frames = video_io.read_frames(clip.path, range(start, start + span, stride), self.size)
        if self.split == "train":
            frames = self._augment(frames, rng)
        x = frames.astype(np.float32) / 127.5 - 1.0
        return {"x": x, **self._label_elements(clip)}

    def _augment(
        self, frames: UInt8[np.ndarray, "V H W 3"], rng: np.random.Generator
    ) -> np.ndarray:
        """Changes training frames (0 to 255); here nothing."""
        del rng
        return frames

    def _identity(self) -> Any:
        clips = [[clip.name, clip.frames] for clip in self._clips]
        return [self.length, self.stride, self.size, hash_of(clips)]


def _existing_folder(root: str, source: Source) -> Path:
    """The root as a path; errors name the source, the folder and the way out."""
    advice = f"expected there: {VideoFolder.expected}; set root to the folder of your data"
    if not str(root):
        raise ValueError(f"root of source {source.name!r} is not set; {advice}")
    folder = Path(root).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"root {folder} of source {source.name!r} is missing; {advice}")
    if not folder.is_dir():
        raise ValueError(f"root {folder} of source {source.name!r} is no folder; {advice}")
    return folder


class _FrameCounts:
    """Frame counts of clips, remembered in a JSON file when there is a cache folder."""

    def __init__(self, cache_dir: Path | None):
        self._file = None if cache_dir is None else cache_dir / "frame_counts.json"
        self._known: dict[str, list] = {}
        if self._file is not None and self._file.is_file():
            try:
                self._known = json.loads(self._file.read_text())
            except ValueError:
                _LOG.warning("%s is not readable and will be made anew", self._file)

    def count(self, clip: Clip) -> int | str:
        """Number of frames, or why they cannot be counted."""
        try:
            if clip.path.is_dir():
                return video_io.count_frames(clip.path)
            stat = clip.path.stat()
            stamp = [_COUNTING, stat.st_size, stat.st_mtime_ns]
            key = str(clip.path.absolute())
            if self._known.get(key, [None])[:-1] != stamp:
                self._known[key] = [*stamp, video_io.count_frames(clip.path)]
            return self._known[key][-1]
        except (BrokenItemError, OSError) as error:
            return str(error)

    def save(self) -> None:
        """Writes the cache file, whole or not at all."""
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(self._known))
        part.replace(self._file)
