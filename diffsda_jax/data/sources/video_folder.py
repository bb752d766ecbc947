"""Clips of any folder: video files, GIFs and folders of frames."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffsda_jax.buckets import fitting_stride
from diffsda_jax.data import video_io
from diffsda_jax.data.frame_counts import FrameCounts
from diffsda_jax.data.sources.base import (
    SPLITS,
    BrokenItemError,
    ElementSpec,
    Source,
    hash_of,
    hash_split,
    label_ids,
)

_PROBE_THREADS = 8
_FEWEST_TO_SPLIT = 10


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
        images = sum(map(video_io.is_image, shown))
        for video in videos:
            clips.append(Clip(here / video, (here / video).relative_to(root).as_posix(), parents))
        if images and not videos and not folders:
            clips.append(Clip(here, here.relative_to(root).as_posix(), parents[:-1], images))
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
            stride: distance between them, in frames of the clip.
            size: side of the square frames in pixels.
            test_share: share of the clips for testing, used without split folders. Fewer than ten
                clips, of which it is less than one, are all in both splits.
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
        self._decoded_size = size
        found = self._find(_existing_folder(root, self), test_share)
        self.warn_if_not_held_out({s: [clip.name for clip in found[s]] for s in SPLITS})
        self._labels = {clip.name: self._label(clip) for clips in found.values() for clip in clips}
        self._num_found = len(found[split]) + len(self.skipped)
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
            found = _split_clips(find_clips(root, root), test_share)
        if not found[self.split]:
            where = folders[self.split] if folders[self.split].is_dir() else root
            raise ValueError(
                f"folder {where} of source {self.name!r} holds no clips; the split "
                f"{self.split!r} needs {self.expected}: put them there, or set root elsewhere"
            )
        return found

    def _label(self, clip: Clip) -> dict[str, str]:
        """Names of what is known of a clip as "static" and "dynamic": here the folder around it."""
        if self._label_from is None:
            return {}
        if not clip.parents:
            raise ValueError(
                f"clip {clip.name} has no folder around it to take a label from: put every clip in "
                "a folder named like its label, or set label_from=None"
            )
        return {"static": clip.parents[-1]}

    def _make_spec(self) -> ElementSpec:
        static = [labels["static"] for labels in self._labels.values() if "static" in labels]
        names = tuple(label_ids(static)) or None
        return ElementSpec("video", (self.size, self.size, 3), static_names=names)

    def _probe(self, clips: list[Clip], cache_dir: Path | None) -> list[Clip]:
        """Counts frames and leaves out what is broken or too short."""
        cache = FrameCounts(cache_dir)
        with concurrent.futures.ThreadPoolExecutor(_PROBE_THREADS) as pool:
            counted = list(pool.map(lambda clip: clip.frames or cache.count(clip.path), clips))
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
        """Number of clips of the split and of what belongs to none, the skipped ones too."""
        return self._num_found

    def lengths(self) -> np.ndarray:
        """`length` for every clip."""
        return np.full(len(self), self.length)

    def item_name(self, index: int) -> str:
        """Path of the clip relative to the root."""
        return self._clips[index % len(self._clips)].name

    def clip_stride(self, frames: int) -> int:
        """The largest stride up to the wanted one that fits a clip of `frames` frames."""
        return fitting_stride(self.stride, frames, self.length)

    @property
    def num_clips(self) -> int:
        """Number of distinct clips; an epoch may repeat them."""
        return len(self._clips)

    def clip(self, i: int) -> Clip:
        """A clip, i in `[0, num_clips)`; the elements `i`, `i + num_clips`, ... are cut from it."""
        return self._clips[i]

    def clip_labels(self, i: int) -> dict[str, str]:
        """Names of what is known of a clip, under "static" and "dynamic"."""
        return dict(self._labels[self._clips[i].name])

    def read_clip(
        self, i: int, start: int, stop: int
    ) -> UInt8[np.ndarray, "{stop}-{start} {self.size} {self.size} 3"]:
        """Reads consecutive frames of a clip, cropped as in elements but without augmentation.

        For a whole clip in blocks `iter_clip` is faster: a video is decoded from the key frame
        before `start`, a GIF from its first frame.

        Args:
            i: the clip, in `[0, num_clips)`.
            start: first frame.
            stop: the frame after the last one.

        Returns:
            RGB frames, 0 to 255.

        Raises:
            BrokenItemError: a frame cannot be read; clip, and image or place in it, are named.
            ValueError: frames that the clip does not have, or none.
        """
        clip = self._clips[i]
        if not 0 <= start < stop <= clip.frames:
            raise ValueError(
                f"frames {start} to {stop} of clip {clip.name}: use 0 <= start < stop <= "
                f"{clip.frames}, the number of its frames"
            )
        with _naming(clip):
            return self._read(clip, range(start, stop))

    def iter_clip(
        self, i: int, block_frames: int
    ) -> Iterator[UInt8[np.ndarray, "n {self.size} {self.size} 3"]]:
        """Reads all frames of a clip in order, decoding it once and holding one block.

        Args:
            i: the clip, in `[0, num_clips)`.
            block_frames: frames of a block; the last one may have fewer.

        Returns:
            An iterator of blocks, RGB, 0 to 255; together they are `read_clip` of all frames.

        Raises:
            BrokenItemError: see `read_clip`; when the block is reached.
            ValueError: `block_frames` below 1.
        """
        if block_frames < 1:
            raise ValueError(f"block_frames={block_frames} of source {self.name!r}: use 1 or more")
        return self._blocks(self._clips[i], block_frames)

    def _blocks(self, clip: Clip, block_frames: int) -> Iterator[np.ndarray]:
        with _naming(clip):
            frames = video_io.iter_frames(clip.path, range(clip.frames), self._decoded_size)
            while block := list(itertools.islice(frames, block_frames)):
                yield self._crop(clip, np.stack(block))

    def _read(self, clip: Clip, indices: range) -> np.ndarray:
        return self._crop(clip, video_io.read_frames(clip.path, indices, self._decoded_size))

    def _crop(self, clip: Clip, frames: UInt8[np.ndarray, "V S S 3"]) -> np.ndarray:
        """Cuts what elements show out of decoded frames of a clip; here they show all."""
        del clip
        return frames

    def last_start(self, index: int) -> int:
        """The last frame of its clip that the window of an element can start at."""
        clip = self._clips[index % len(self._clips)]
        return clip.frames - 1 - (self.length - 1) * self.clip_stride(clip.frames)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A window of a clip: `x` `[length, size, size, 3]` in [-1, 1], and its labels."""
        training = self.split == "train"
        start = int(rng.integers(self.last_start(index) + 1)) if training else 0
        frames = self._read_window(index, start)
        return self._element(index, self._augment(frames, rng) if training else frames)

    def load_window(self, index: int, start: int) -> dict[str, Any]:
        """A window of a clip as `load` gives it, but from a given frame on and not augmented.

        Args:
            index: of the element, in `[0, len(self))`.
            start: number of the window's first frame in its clip.

        Raises:
            BrokenItemError: a frame cannot be read; clip, and image or place in it, are named.
            ValueError: the window does not fit.
        """
        last = self.last_start(index)
        if not 0 <= start <= last:
            raise ValueError(
                f"start={start} of clip {self.item_name(index)}: its windows start at frame 0 to "
                f"{last}: use one of these, or lower the length or the stride"
            )
        with _naming(self._clips[index % len(self._clips)]):
            return self._element(index, self._read_window(index, start))

    def _read_window(self, index: int, start: int) -> UInt8[np.ndarray, "{self.length} H W 3"]:
        clip = self._clips[index % len(self._clips)]
        stride = self.clip_stride(clip.frames)
        return self._read(clip, range(start, start + (self.length - 1) * stride + 1, stride))

    def _element(self, index: int, frames: np.ndarray) -> dict[str, Any]:
        """The element of frames of values 0 to 255."""
        element: dict[str, Any] = {"x": frames.astype(np.float32) / 127.5 - 1.0}
        for kind, label in self._labels[self.item_name(index)].items():
            element[f"{kind}_label"] = getattr(self.spec, f"{kind}_names").index(label)
        return element

    def _augment(
        self, frames: UInt8[np.ndarray, "V H W 3"], rng: np.random.Generator
    ) -> np.ndarray:
        """Changes training frames (0 to 255); here nothing."""
        del rng
        return frames

    def _identity(self) -> Any:
        clips = [[clip.name, clip.frames] for clip in self._clips]
        return [self.length, self.stride, self.size, hash_of(clips)]


@contextlib.contextmanager
def _naming(clip: Clip) -> Iterator[None]:
    """Puts the name of the clip before what is broken in it."""
    try:
        yield
    except BrokenItemError as error:
        raise BrokenItemError(f"clip {clip.name}: {error}") from error


def _split_clips(clips: list[Clip], test_share: float) -> dict[str, list[Clip]]:
    """Clips of both splits, by a hash of their names; of a few all are in both.

    A model knows only what it was trained on: with two clips, one held out, it could not show what
    they are trained for, the looks of one with the dynamics of the other.
    """
    by_name = {clip.name: clip for clip in clips}
    names = {split: hash_split(list(by_name), split, test_share) for split in SPLITS}
    if len(clips) < min(_FEWEST_TO_SPLIT, 1 / test_share):
        return dict.fromkeys(SPLITS, clips)
    return {split: [by_name[name] for name in names[split]] for split in SPLITS}


def _existing_folder(root: str, source: "VideoFolder") -> Path:
    """The root as a path; errors name the source, the folder and the way out."""
    advice = f"expected there: {source.expected}; set root to the folder of your data"
    if not str(root):
        raise ValueError(f"root of source {source.name!r} is not set; {advice}")
    folder = Path(root).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"root {folder} of source {source.name!r} is missing; {advice}")
    if not folder.is_dir():
        raise ValueError(f"root {folder} of source {source.name!r} is no folder; {advice}")
    return folder
