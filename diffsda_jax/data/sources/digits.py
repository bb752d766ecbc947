"""Moving digits: real handwritten scans of scikit-learn carried along known trajectories.

The scan (and its class) is the static factor, the trajectory the dynamic one; both are known, so
swaps can be scored exactly. Scans: Alpaydin and Kaynak, UCI optdigits, 8x8 pixels of 0 to 16.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from diffsda_jax.data.sources.base import ElementSpec, Source, hash_of

SCAN_SIZE = 8
CANVASES = (16, 32)
MOTIONS = (
    "right",
    "left",
    "down",
    "up",
    "down-right",
    "up-right",
    "clockwise",
    "counter-clockwise",
)
_SWEEPS = {  # (row, column) direction of each straight motion
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 0),
    "up": (-1, 0),
    "down-right": (1, 1),
    "up-right": (-1, 1),
}
_JITTER = 0.03  # standard deviation of the jitter, as a share of the free range
_SWEEP_SHARE = (0.6, 1.0)  # length of a sweep, as a share of the free range
_RADIUS_SHARE = (0.6, 1.0)  # radius of a circle, as a share of half the free range
_TURNS = (0.7, 1.1)  # turns of a circle within one clip
_DEFAULT_CLIPS = {"train": 20000, "test": 400}
_TEST_SHARE = 0.2
_SPLIT_SEED = 0


def position_range(canvas: int) -> tuple[float, float]:
    """Lowest and highest patch centre (pixels) that keep every pixel of the patch on the canvas."""
    scale = canvas // 16
    low = (SCAN_SIZE - 1) / 2 * scale + (scale - 1)
    return low, canvas - 1 - low


def sample_trajectory(
    motion: int, rng: np.random.Generator, num_frames: int, canvas: int
) -> Float32[np.ndarray, "V 2"]:
    """Draws a trajectory of one of the `MOTIONS`.

    Speed, start (or phase and radius) and a small jitter are random; the patch never leaves the
    canvas.

    Args:
        motion: index into `MOTIONS`.
        rng: source of randomness.
        num_frames: V.
        canvas: side of the canvas in pixels, 16 or 32.

    Returns:
        The patch centre (row, column) in pixels at every frame.
    """
    low, high = position_range(canvas)
    time = np.linspace(0.0, 1.0, num_frames)[:, None]
    name = MOTIONS[motion]
    if name in _SWEEPS:
        direction = np.array(_SWEEPS[name], float)
        extent = rng.uniform(*_SWEEP_SHARE) * np.abs(direction)
        start = rng.uniform(size=2) * (1 - extent) + extent * (direction < 0)
        unit = start + time * direction * extent
    else:
        radius = 0.5 * rng.uniform(*_RADIUS_SHARE)
        centre = radius + rng.uniform(size=2) * (1 - 2 * radius)
        sign = 1.0 if name == "clockwise" else -1.0
        angle = 2 * np.pi * (rng.uniform() + sign * rng.uniform(*_TURNS) * time[:, 0])
        # Rows grow downwards, so a growing angle turns clockwise to the eye.
        unit = centre + radius * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    unit = np.clip(unit + _JITTER * rng.standard_normal(unit.shape), 0.0, 1.0)
    return (low + (high - low) * unit).astype(np.float32)


def render(
    scans: Float[np.ndarray, "*batch 8 8"], positions: Float[np.ndarray, "*batch V 2"], canvas: int
) -> Float32[np.ndarray, "*batch V {canvas} {canvas} 1"]:
    """Draws scans at sub-pixel positions by bilinear interpolation.

    The interpolation is separable, so a frame is `rows @ scan @ columns.T` with tent weights.

    Args:
        scans: intensities in [0, 1].
        positions: patch centre (row, column) in pixels; the canvas centre is `(canvas - 1) / 2`.
        canvas: side of a frame in pixels, 16 (the scan at 8x8) or 32 (enlarged to 16x16).

    Returns:
        Frames in [-1, 1], background -1.

    Raises:
        ValueError: for another canvas.
    """
    if canvas not in CANVASES:
        raise ValueError(f"canvas={canvas}: use one of {CANVASES}")
    scale = canvas // 16
    pixels = np.arange(canvas, dtype=np.float32)
    texels = np.arange(SCAN_SIZE, dtype=np.float32) - (SCAN_SIZE - 1) / 2
    where = (pixels - positions.astype(np.float32)[..., None]) / scale  # [..., V, 2, canvas]
    weights = np.maximum(0.0, 1.0 - np.abs(where[..., None] - texels))  # [..., V, 2, canvas, 8]
    rows, columns = weights[..., 0, :, :], weights[..., 1, :, :]
    drawn = rows @ scans.astype(np.float32)[..., None, :, :] @ np.swapaxes(columns, -1, -2)
    return (2.0 * drawn - 1.0)[..., None].astype(np.float32)


@functools.cache
def load_scans() -> tuple[Float32[np.ndarray, "N 8 8"], Int[np.ndarray, " N"]]:
    """The 1,797 scans with intensities in [0, 1], and their classes."""
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():  # importing what reads it takes seconds, and a training would wait
            table = np.loadtxt(file, delimiter=",")
            return _scans_of(table[:, :-1], table[:, -1])
    from sklearn.datasets import load_digits

    return _scans_of(*load_digits(return_X_y=True))


def _scans_of(
    pixels: Float[np.ndarray, "N 64"], classes: Shaped[np.ndarray, " N"]
) -> tuple[Float32[np.ndarray, "N 8 8"], Int[np.ndarray, " N"]]:
    """Rows of pixels from 0 to 16 as pictures, and their classes as whole numbers."""
    pictures = pixels.reshape(-1, SCAN_SIZE, SCAN_SIZE) / 16.0
    return pictures.astype(np.float32), classes.astype(np.int64)


def scan_indices(split: str) -> Int[np.ndarray, " M"]:
    """Scans of a split: per class a fixed random fifth is "test", the rest "train"."""
    classes = load_scans()[1]
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = []
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(classes == digit))
        count = round(_TEST_SHARE * len(members))
        chosen.append(members[:count] if split == "test" else members[count:])
    return np.sort(np.concatenate(chosen))


class Digits(Source):
    """Clips of one moving digit.

    Every element is a function of (seed, split, index) alone: the scan, the motion class and the
    trajectory. Elements: `x` `[V, canvas, canvas, 1]`, `position` `[V, 2]`, `static_label` (digit),
    `static_id` (scan index) and `dynamic_label` (index into `MOTIONS`).
    """

    name, kind = "digits", "video"

    def __init__(
        self,
        split: str,
        canvas: int = 16,
        num_frames: int = 8,
        num_clips: int | None = None,
        seed: int = 0,
    ):
        """Prepares the scans of the split; clips are drawn when they are asked for.

        Args:
            split: "train" or "test"; they share no scan.
            canvas: side in pixels, 16 or 32.
            num_frames: V, at least 2.
            num_clips: clips in an epoch; None for 20,000 (train) or 400 (test).
            seed: which clips.

        Raises:
            ValueError: for a value outside these.
        """
        super().__init__(split)
        if canvas not in CANVASES:
            raise ValueError(f"canvas={canvas} of source 'digits': use one of {CANVASES}")
        if num_frames < 2:
            raise ValueError(f"num_frames={num_frames} of source 'digits': use 2 or more")
        self._num_clips = _DEFAULT_CLIPS[split] if num_clips is None else num_clips
        if self._num_clips < 1:
            raise ValueError(f"num_clips={num_clips} of source 'digits': use 1 or more")
        self.canvas, self.num_frames, self._seed = canvas, num_frames, seed
        self._scans, self._classes = load_scans()
        self._members = scan_indices(split)
        self.spec = ElementSpec(
            kind="video",
            shape=(canvas, canvas, 1),
            static_names=tuple(str(digit) for digit in range(10)),
            dynamic_names=MOTIONS,
        )

    def __len__(self) -> int:
        """Number of clips in an epoch."""
        return self._num_clips

    def lengths(self) -> np.ndarray:
        """`num_frames` for every clip."""
        return np.full(len(self), self.num_frames)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index`; draws nothing from `rng`, so that a clip is the same in every epoch.

        Raises:
            IndexError: there is no such clip.
        """
        del rng
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        own = np.random.default_rng([self._seed, self.split == "test", index])
        scan = int(self._members[own.integers(len(self._members))])
        motion = int(own.integers(len(MOTIONS)))
        position = sample_trajectory(motion, own, self.num_frames, self.canvas)
        return {
            "x": render(self._scans[scan], position, self.canvas),
            "position": position,
            "static_label": int(self._classes[scan]),
            "static_id": scan,
            "dynamic_label": motion,
        }

    def _identity(self) -> Any:
        return [self._num_clips, self.num_frames, self._seed, hash_of(self._members.tolist())]
