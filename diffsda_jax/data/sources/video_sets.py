"""Published video sets with a layout of their own: MUG and TaiChi-HD."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffsda_jax.data import video_io
from diffsda_jax.data.sources.base import ElementSpec
from diffsda_jax.data.sources.video_folder import Clip, VideoFolder

EXPRESSIONS = ("anger", "disgust", "happiness", "fear", "sadness", "surprise")
_MUG_CLIP = re.compile(r"(.+?)_take.*", re.IGNORECASE)
_MUG_LONG = 30  # frames; longer clips are read with stride 2
_JITTER = 0.1  # strength of the colour jitter


def empty_folders(folder: Path) -> list[Path]:
    """Folders under a folder in which a clip is missing: no folders, images or videos in them.

    Hidden ones are left out.
    """
    suffixes = video_io.IMAGE_SUFFIXES + video_io.VIDEO_SUFFIXES
    empty = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        shown = (name for name in files if not name.startswith("."))
        if not folders and not any(Path(name).suffix.lower() in suffixes for name in shown):
            empty.append(Path(place))
    return empty


class _GivenSplits(VideoFolder):
    """A set whose splits are the folders `train/` and `test/`; empty clips count as skipped."""

    def _find(self, root: Path, test_share: float) -> dict[str, list[Clip]]:
        if not (root / self.split).is_dir():
            raise FileNotFoundError(
                f"folder {root / self.split} of source {self.name!r} is missing; expected in the "
                f"root: {self.expected}; set root to the folder that holds train/ and test/"
            )
        found = super()._find(root, test_share)
        for folder in empty_folders(root / self.split):
            self.skip(folder.relative_to(root).as_posix(), "holds no frames", check=False)
        return found


class Mug(_GivenSplits):
    """MUG facial expressions: `<split>/<0..5>/<userXXX_takeYYY_ZZ>/*.jpg`.

    `static_label` is the person, `dynamic_label` the expression. Clips of more than 30 frames are
    read with stride 2, others consecutively.
    """

    name = "mug"
    expected = "{train,test}/<0..5>/<userXXX_takeYYY_ZZ>/*.jpg"

    def __init__(
        self,
        split: str,
        root: str,
        length: int = 15,
        size: int = 64,
        cache_dir: str | None = None,
        max_skipped_share: float = 0.05,
    ):
        """See `VideoFolder`."""
        super().__init__(
            split,
            root,
            length=length,
            stride=2,
            size=size,
            cache_dir=cache_dir,
            max_skipped_share=max_skipped_share,
        )

    def clip_stride(self, frames: int) -> int:
        """2 for clips of more than 30 frames where the length allows it, else 1."""
        return super().clip_stride(frames) if frames > _MUG_LONG else 1

    def _label(self, clip: Clip) -> dict[str, str]:
        person = _MUG_CLIP.fullmatch(clip.path.name)
        folder = clip.parents[-1] if clip.parents else ""
        if person is None or folder not in map(str, range(len(EXPRESSIONS))):
            raise ValueError(
                f"clip {clip.name} of source 'mug' is not laid out as {self.expected}: "
                "rename or remove it"
            )
        return {"static": person.group(1), "dynamic": EXPRESSIONS[int(folder)]}

    def _make_spec(self) -> ElementSpec:
        return dataclasses.replace(super()._make_spec(), dynamic_names=EXPRESSIONS)


class TaiChi(_GivenSplits):
    """TaiChi-HD: `{train,test}/<video>/*.png`, flipped and colour-jittered in training."""

    name = "taichi"
    expected = "{train,test}/<video>/*.png (or video files)"

    def __init__(
        self,
        split: str,
        root: str,
        length: int = 10,
        stride: int = 4,
        size: int = 64,
        repeats: int = 150,
        flip: bool = True,
        color_jitter: float = _JITTER,
        cache_dir: str | None = None,
        max_skipped_share: float = 0.05,
    ):
        """See `VideoFolder`.

        Args:
            split: see there, as for all that is not listed here.
            root: see there.
            length: see there.
            stride: see there.
            size: see there.
            repeats: times that a training epoch visits every video.
            flip: mirror every second training clip, drawn anew at each visit.
            color_jitter: strength of the change of colours of training clips, see
                `ColorJitter.draw`; 0 changes none.
            cache_dir: see there.
            max_skipped_share: see there.

        Raises:
            FileNotFoundError: see there.
            ValueError: see there, and for `repeats` below 1 or `color_jitter` outside [0, 0.5].
        """
        if repeats < 1:
            raise ValueError(f"repeats={repeats} of source 'taichi': use 1 or more")
        if not 0.0 <= color_jitter <= 0.5:
            raise ValueError(f"color_jitter={color_jitter} of source 'taichi': use 0 (none) to 0.5")
        self._repeats = repeats if split == "train" else 1
        self._flip, self._color_jitter = flip, color_jitter
        super().__init__(
            split,
            root,
            length=length,
            stride=stride,
            size=size,
            cache_dir=cache_dir,
            max_skipped_share=max_skipped_share,
        )

    def __len__(self) -> int:
        """Number of clips times `repeats`."""
        return super().__len__() * self._repeats

    def _augment(
        self, frames: UInt8[np.ndarray, "V H W 3"], rng: np.random.Generator
    ) -> np.ndarray:
        if self._flip and rng.uniform() < 0.5:
            frames = frames[:, :, ::-1]
        if self._color_jitter:
            return ColorJitter.draw(rng, self._color_jitter).apply(frames)
        return frames

    def _identity(self) -> Any:
        return [super()._identity(), self._repeats, self._flip, self._color_jitter]


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """One change of colours for all frames of a clip.

    Attributes:
        brightness: factor on all values.
        contrast: factor on the distance from the clip's mean grey.
        saturation: factor on the distance from grey.
        hue: turn of the hue, in turns.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, strength: float = _JITTER) -> "ColorJitter":
        """Draws the factors within `1 -+ strength` and the hue within `-+ strength` turns."""
        brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
        return cls(brightness, contrast, saturation, rng.uniform(-strength, strength))

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """Changes frames `[V, H, W, 3]` of values 0 to 255; returns float32 in that range."""
        to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        angle = 2 * np.pi * self.hue
        turn = np.eye(3)
        turn[1:, 1:] = self.saturation * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        matrix = self.contrast * self.brightness * (np.linalg.inv(to_yiq) @ turn @ to_yiq)
        out = frames.astype(np.float32) @ matrix.T.astype(np.float32)
        grey = self.brightness * float((frames @ to_yiq[0]).mean())
        return np.clip(out + (1 - self.contrast) * grey, 0.0, 255.0).astype(np.float32)
