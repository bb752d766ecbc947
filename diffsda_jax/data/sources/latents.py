"""Windows of the latents of clips, as `--mode=latents` writes them."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffsda_jax.buckets import fitting_stride
from diffsda_jax.data.records import LatentIndex, LatentReader
from diffsda_jax.data.sources.base import SPLITS, BatchedSource, ElementSpec, label_ids

_LABELS = ("static", "dynamic")


class Latents(BatchedSource):
    """Windows of `length` frames of latents `[length, h, w, c]`, not normalised.

    Splits and labels are those of the source that was encoded; labels are numbered over both
    splits. As in `VideoFolder`, training takes a random window, testing the first one, a clip that
    is too short for the stride gets the largest one that fits, and one with fewer frames than
    `length` is skipped, counted and named; so are the clips that could not be encoded.
    """

    name, kind = "latents", "video"

    def __init__(
        self,
        split: str,
        root: str,
        length: int = 10,
        stride: int = 1,
        test_stride: int | None = None,
        repeats: int = 1,
        max_skipped_share: float = 0.05,
    ):
        """Reads the index.

        Args:
            split: "train" or "test".
            root: the folder of the latents.
            length: frames of an element.
            stride: distance between them, in frames of the clip.
            test_stride: the same in frames in the test split; None takes `stride`.
            repeats: times that a training epoch visits every clip.
            max_skipped_share: see `Source`.

        Raises:
            FileNotFoundError: no latents in the folder.
            ValueError: unfinished or damaged ones, no clips, too many skipped ones, labels that
                only some clips have, or a bad option.
        """
        super().__init__(split, max_skipped_share)
        stride = stride if split == "train" or test_stride is None else test_stride
        options = {"length": length, "stride": stride, "repeats": repeats}
        for option, value in options.items():
            if value < 1:
                raise ValueError(f"{option}={value} of source {self.name!r}: use 1 or more")
        if not str(root):
            raise ValueError(
                "root of source 'latents' is not set: make latents by --mode=latents and set root "
                "to their folder"
            )
        index = LatentIndex.load(root)
        self.length, self.stride = length, stride
        self._repeats = repeats if split == "train" else 1
        self._index, self._reader = index, LatentReader(index, split)
        usable = self._usable()
        self._clips = np.array(usable)  # as the reader numbers them
        self.warn_if_not_held_out({s: [c.entry.name for c in index.clips[s]] for s in SPLITS})
        self._entries = [index.clips[split][clip].entry for clip in usable]
        frames = [entry.frames for entry in self._entries]
        self._frames = np.array(frames)
        self._strides = np.array([fitting_stride(stride, count, length) for count in frames])
        numbers = {key: self._numbers(key) for key in _LABELS}
        static, dynamic = (tuple(numbers[key]) or None for key in _LABELS)
        self.spec = ElementSpec(
            "video", index.frame_shape, static_names=static, dynamic_names=dynamic
        )
        self._labels = {
            f"{key}_label": np.array([ids[entry.labels[key]] for entry in self._entries])
            for key, ids in numbers.items()
            if ids
        }

    def _usable(self) -> list[int]:
        """Numbers of the clips that are long enough; counts the others."""
        for name, reason in self._index.skipped[self.split].items():
            self.skip(name, f"not encoded: {reason}", check=False)
        usable = []
        for number, clip in enumerate(self._index.clips[self.split]):
            frames = clip.entry.frames
            if frames < self.length:
                reason = f"{frames} frames, shorter than length={self.length} even at stride 1"
                self.skip(clip.entry.name, reason, check=False)
            else:
                usable.append(number)
        self.check_skipped()
        if not usable:
            raise ValueError(
                f"{self.name}/{self.split}: {self._index.folder} has no clip of this split to read"
            )
        return usable

    def _numbers(self, key: str) -> dict[str, int]:
        """Numbers of the distinct labels of both splits; none where no clip has one."""
        entries = [clip.entry for clips in self._index.clips.values() for clip in clips]
        labels = [entry.labels[key] for entry in entries if key in entry.labels]
        if labels and len(labels) < len(entries):
            without = next(entry.name for entry in entries if key not in entry.labels)
            raise ValueError(
                f"{self.name}: {len(entries) - len(labels)} of {len(entries)} clips in "
                f"{self._index.folder} have no {key} label, such as {without}: encode all from "
                "sources with this label, or all without it"
            )
        return label_ids(labels)

    @property
    def facts(self) -> dict[str, Any]:
        """What the latents were made of and with, as `--mode=latents` wrote it down."""
        return self._index.facts

    def __len__(self) -> int:
        """Number of clips times `repeats`."""
        return len(self._clips) * self._repeats

    def num_items(self) -> int:
        """Number of clips, the skipped ones too."""
        return len(self._index.clips[self.split]) + len(self._index.skipped[self.split])

    def lengths(self) -> np.ndarray:
        """`length` for every clip."""
        return np.full(len(self), self.length)

    def item_name(self, index: int) -> str:
        """Name of the clip in the source that was encoded."""
        return self._entries[index % len(self._entries)].name

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation per channel over all frames of the training split, `[c]`."""
        return self._index.mean, np.sqrt(self._index.variance)

    def load_batch(
        self, indices: Int[np.ndarray, " B"], draws: Float[np.ndarray, " B"]
    ) -> dict[str, np.ndarray]:
        """Windows of clips, `x` float16 `[B, length, h, w, c]`, and labels; see `BatchedSource`."""
        starts = np.zeros(len(indices), int)
        if self.split == "train":
            starts = (draws * (self._last_starts(indices) + 1)).astype(int)
        return self._windows(indices, starts)

    def load_window(self, index: int, start: int) -> dict[str, Any]:
        """The window of a clip whose first frame is `start`; see `load`."""
        batch = self._windows(np.array([index]), np.array([start]))
        batch["x"] = batch["x"].astype(np.float32)
        return {key: values[0] for key, values in batch.items()}

    def last_start(self, index: int) -> int:
        """The largest first frame of a window of a clip."""
        return int(self._last_starts(np.array([index]))[0])

    def _last_starts(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        clips = indices % len(self._clips)
        return self._frames[clips] - (self.length - 1) * self._strides[clips] - 1

    def _windows(
        self, indices: Int[np.ndarray, " B"], starts: Int[np.ndarray, " B"]
    ) -> dict[str, np.ndarray]:
        clips = indices % len(self._clips)
        frames = starts[:, None] + self._strides[clips][:, None] * np.arange(self.length)
        x = self._reader.read_batch(self._clips[clips], frames)
        return {"x": x, **{key: labels[clips] for key, labels in self._labels.items()}}

    def _identity(self) -> Any:
        return [self.length, self.stride, self._repeats, self._index.fingerprint()]
