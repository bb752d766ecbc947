"""How the plug-in networks of `networks` are fed and read; the config section ``eval.networks``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffsda_jax.evals.choices import check_choice

READINGS = ("embedding", "points", "heatmaps")
UNITS = ("pixels", "unit", "signed")
ROLES = ("identity", "landmarks", "body", "features", "clip_features")


@dataclass(frozen=True)
class NetworkOptions:
    """How a network is fed and read; a Python function needs no more than path and batch size.

    Attributes:
      path: an ``.onnx`` file, or a function as ``module:function`` or ``file.py:function``; empty:
        there is no such network.
      size: height and width in pixels of the input; 0, 0: those that the file states.
      layout: of the input, ``NCHW`` or ``NHWC``.
      color: order of the channels, ``RGB`` or ``BGR``.
      mean: subtracted from values 0 to 255, one for each channel in the order of ``color``.
      std: what the difference is divided by.
      alignment: ``none`` (the whole frame), ``crop`` (a box of it) or ``landmarks5`` (moved, turned
        and scaled so that eyes, nose and mouth, found by the network for ``landmarks``, lie where
        ArcFace was trained to have them).
      box: left, top, right, bottom of a crop, as shares of the frame.
      output: name of the output to read, or its number.
      reading: ``embedding`` ``[N, E]``, ``points`` ``[N, K, 2]`` or ``[N, 2 K]``, or ``heatmaps``
        ``[N, K, h, w]`` (with ``NHWC``: ``[N, h, w, K]``).
      units: of points: ``pixels`` of the input, ``unit`` (0 to 1) or ``signed`` (-1 to 1).
      num_points: the first so many points are kept; 0 keeps all.
      normalize: whether embeddings are scaled to length 1.
      score_output: name or number of an output that says how sure the network is, one value a
        frame or a point; empty: the peaks of heatmaps, or none.
      min_score: below it nothing was found.
      batch_size: frames seen at once, unless the file fixes it.
    """

    path: str = ""
    size: Sequence[int] = (0, 0)
    layout: str = "NCHW"
    color: str = "RGB"
    mean: Sequence[float | int] = (127.5, 127.5, 127.5)
    std: Sequence[float | int] = (127.5, 127.5, 127.5)
    alignment: str = "none"
    box: Sequence[float | int] = (0.0, 0.0, 1.0, 1.0)
    output: str = "0"
    reading: str = "embedding"
    units: str = "unit"
    num_points: int = 0
    normalize: bool = True
    score_output: str = ""
    min_score: float = 0.0
    batch_size: int = 32

    def check(self, name: str) -> None:
        """Checks values.

        Args:
          name: what errors call these options.

        Raises:
          ValueError: one that is not allowed, with the option and what is.
        """
        check_choice(f"{name}.layout", self.layout, ("NCHW", "NHWC"))
        check_choice(f"{name}.color", self.color, ("RGB", "BGR"))
        check_choice(f"{name}.alignment", self.alignment, ("none", "crop", "landmarks5"))
        check_choice(f"{name}.reading", self.reading, READINGS)
        check_choice(f"{name}.units", self.units, UNITS)
        for option, count in (("size", 2), ("mean", 3), ("std", 3), ("box", 4)):
            value = getattr(self, option)
            if len(value) != count:
                raise ValueError(f"{name}.{option}={tuple(value)}: give {count} numbers.")
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(
                f"{name}.box={tuple(self.box)}: give left, top, right, bottom as shares of the "
                f"frame, from 0 to 1, with left < right and top < bottom."
            )
        if min(self.std) <= 0 or min(self.size) < 0 or self.num_points < 0 or self.batch_size < 1:
            raise ValueError(
                f"{name}: std={tuple(self.std)}, size={tuple(self.size)}, num_points="
                f"{self.num_points}, batch_size={self.batch_size}; allowed are std above 0, "
                f"size and num_points from 0 and batch_size from 1; correct the one that is not."
            )


# Read as w600k_r50.onnx, a PFLD export, an OSNet export and an Inception export are.
DEFAULTS = {
    "identity": NetworkOptions(alignment="landmarks5"),
    "landmarks": NetworkOptions(reading="points", mean=(0.0,) * 3, std=(255.0,) * 3),
    "body": NetworkOptions(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    "features": NetworkOptions(normalize=False),  # their length is part of what is compared
    "clip_features": NetworkOptions(normalize=False),
}


def network_defaults() -> dict[str, dict[str, Any]]:
    """The config section ``eval.networks``: the options of each role."""
    return {role: dataclasses.asdict(options) for role, options in DEFAULTS.items()}
