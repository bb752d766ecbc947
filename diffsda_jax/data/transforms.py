"""Fitting lengths and normalising: from raw elements to equal, model-ready ones."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32

from diffsda_jax.data.sources.base import BrokenItemError, Source

_LOG = logging.getLogger(__name__)

LENGTH_MODES = ("resample", "crop", "pad")
_PER_STEP = ("x", "mask", "position")


def check_length(length: int, mode: str) -> None:
    """Refuses options of `fit_length`.

    Raises:
        ValueError: a length under 1, or an unknown length mode.
    """
    if mode not in LENGTH_MODES:
        raise ValueError(f"length_mode {mode!r}: use one of {LENGTH_MODES}")
    if length < 1:
        raise ValueError(f"length={length}: use 1 step or more")


def fit_length(
    element: dict[str, Any],
    length: int,
    mode: str = "resample",
    rng: np.random.Generator | None = None,
    random: bool = False,
) -> dict[str, Any]:
    """Brings an element to `length` steps.

    - "resample": first and last step stay; between them a series is interpolated linearly (a value
      is observed when all values that it is made of are), a video takes the nearest frames.
    - "crop": a window of `length` steps; an element that is too short is refused.
    - "pad": longer elements are cropped, shorter ones get zeros at the end with mask False.

    Args:
        element: `x` `[V, ...]`, optionally `mask` (`[V, F]` for series, `[V]` for video) and
            `position` `[V, 2]`; all else is passed on.
        length: the number of steps wanted.
        mode: one of `LENGTH_MODES`.
        rng: where random windows come from; needed with `random=True`.
        random: a random window instead of the first.

    Returns:
        The element with `x`, `mask` (always there) and `position` of `length` steps and `length`,
        the number of steps that are not padding.

    Raises:
        ValueError: an unknown mode, an empty element, or one too short for "crop".
    """
    check_length(length, mode)
    x = element["x"]
    steps = len(x)
    if steps == 0:
        raise ValueError("the sequence has no steps: remove it from the data")
    series = x.ndim == 2
    out = dict(element)
    if out.get("mask") is None:
        out["mask"] = np.ones(x.shape if series else steps, bool)
    if steps == length:
        pass
    elif mode == "resample":
        out.update(_resample_series(out, length) if series else _nearest_steps(out, length))
    elif steps > length:
        start = 0
        if random:
            if rng is None:
                raise ValueError("random=True needs rng, where random windows come from.")
            start = int(rng.integers(steps - length + 1))
        out.update({k: out[k][start : start + length] for k in _PER_STEP if k in out})
    elif mode == "pad":
        out.update({k: _pad_end(out[k], length) for k in _PER_STEP if k in out})
    else:
        raise ValueError(
            f"the sequence has {steps} steps, too short for a crop of length={length}: lower the "
            "length, or use length_mode 'pad' or 'resample'"
        )
    out["length"] = min(steps, length) if mode == "pad" else length
    return out


def _pad_end(values: np.ndarray, length: int) -> np.ndarray:
    """Zeros (False) after the last step."""
    return np.pad(values, [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1))


def _nearest_steps(element: dict[str, Any], length: int) -> dict[str, Any]:
    """The steps nearest to `length` evenly spaced places."""
    places = np.linspace(0, len(element["x"]) - 1, length)
    nearest = np.floor(places + 0.5).astype(int)
    return {key: element[key][nearest] for key in _PER_STEP if key in element}


def _resample_series(element: dict[str, Any], length: int) -> dict[str, Any]:
    """Linear interpolation at `length` evenly spaced places, mask aware."""
    x, mask = element["x"], element["mask"]
    places = np.linspace(0, len(x) - 1, length)
    left = np.floor(places).astype(int)
    right = np.ceil(places).astype(int)
    share = (places - left).astype(np.float32)[:, None]
    observed = mask[left] & mask[right]
    known = np.where(mask, x, 0.0)
    mixed = known[left] * (1 - share) + known[right] * share
    return {"x": np.where(observed, mixed, 0.0).astype(np.float32), "mask": observed}


def expand_mask(mask: Bool[np.ndarray, "..."], ndim: int) -> Bool[np.ndarray, "..."]:
    """A mask with axes of size 1 appended, so that it broadcasts against `ndim` axes."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Shift and scale per feature to mean 0 and standard deviation `target_std`.

    `mean` and `std` are both None for data that need nothing (video is in [-1, 1] already).

    Attributes:
        mean: `[F]` or None.
        std: `[F]`, positive, or None.
        target_std: standard deviation after `apply`; 0.5 is the sigma_data of EDM.
    """

    mean: Float32[np.ndarray, " F"] | None = None
    std: Float32[np.ndarray, " F"] | None = None
    target_std: float = 0.5

    def __post_init__(self):
        """Checks that mean and deviation come together.

        Raises:
            ValueError: one of them is missing.
        """
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"a normalizer has mean={self.mean} and std={self.std}; give both, or None for "
                "both where the data need nothing."
            )

    def apply(
        self, x: Float[np.ndarray, "..."], mask: np.ndarray | None = None
    ) -> Float32[np.ndarray, "..."]:
        """Normalises `x` `[..., F]`; values whose `mask` (`[..., F]`) is False become 0."""
        if self.mean is not None and self.std is not None:
            # One row per pixel row and not per pixel: numpy is slow where the last axis is short.
            rows = x.reshape(*x.shape[:-2], math.prod(x.shape[-2:]))
            repeats = rows.shape[-1] // x.shape[-1]
            half = x.dtype == np.float16
            rows = float16_to_float32(rows) if half else rows
            rows = np.subtract(rows, np.tile(self.mean, repeats), out=rows if half else None)
            rows *= np.tile(self.target_std / self.std, repeats)
            x = rows.reshape(x.shape)
        if mask is not None and not mask.all():
            x = np.where(expand_mask(mask, x.ndim), x, 0.0)
        return np.asarray(x, np.float32)

    def invert(self, x: Float[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Takes normalised `x` `[..., F]` back to the units of the data."""
        x = np.asarray(x, np.float32)
        if self.mean is None or self.std is None:
            return x
        return x * (self.std / self.target_std) + self.mean

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        mean, std = (None if a is None else a.tolist() for a in (self.mean, self.std))
        return {"mean": mean, "std": std, "target_std": self.target_std}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Normalizer":
        """Inverse of `to_dict`."""
        lists = (values["mean"], values["std"])
        mean, std = (None if a is None else np.asarray(a, np.float32) for a in lists)
        return cls(mean, std, values["target_std"])


def float16_to_float32(x: Float16[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """The same as `x.astype(np.float32)`, about five times as fast as numpy does it.

    The bits of a finite number are shifted to where float32 has them, which leaves the exponent too
    small by the difference of the two biases, 112.
    """
    half = x.view(np.int16)
    if ((half & 0x7C00) == 0x7C00).any():  # infinite or NaN
        return x.astype(np.float32)
    bits = half.astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # the sign, and exponent and mantissa in their new place
    out = bits.view(np.float32)
    out *= np.float32(2.0**112)
    return out


def fit_normalizer(
    source: Source,
    *,
    target_std: float = 0.5,
    length: int | None = None,
) -> Normalizer:
    """Takes mean and standard deviation of every feature over the observed values of a source.

    Args:
        source: the training split.
        target_std: see `Normalizer`.
        length: measure after fitting to this length, as suits "resample"; None measures all raw
            steps, as suits "crop" and "pad", whose random windows reach all of them.

    Returns:
        The normalizer; for video without statistics of its own one that changes nothing.

    Raises:
        ValueError: a feature without any observed value, NaN in an observed value, or no element
            that can be read.
    """
    if (statistics := source.statistics()) is not None:
        mean, std = statistics
        zeros = np.zeros_like(mean)
        return normalizer_from_sums(source, zeros + 1.0, zeros, std**2, mean, target_std)
    if source.spec.kind == "video":
        return Normalizer(target_std=target_std)
    rng = np.random.default_rng(0)
    count, total, squares = (np.zeros(source.spec.shape) for _ in range(3))
    shift = None
    for index in range(len(source)):
        try:
            element = source.load(index, rng)
        except BrokenItemError as error:
            source.skip(source.item_name(index), str(error))
            continue
        check_finite(element, source, index)
        if length is not None:
            element = fit_length(element, length)
        x = element["x"].astype(np.float64)
        mask = element.get("mask")
        mask = np.ones(x.shape, bool) if mask is None else mask
        if shift is None:  # near the mean, so that the squares lose no digits
            shift = np.divide(np.where(mask, x, 0).sum(0), np.maximum(mask.sum(0), 1))
        centred = np.where(mask, x - shift, 0.0)
        count += mask.sum(0)
        total += centred.sum(0)
        squares += (centred**2).sum(0)
    if shift is None:
        raise ValueError(f"{source.name}/{source.split}: no element can be read")
    return normalizer_from_sums(source, count, total, squares, shift, target_std)


def normalizer_from_sums(
    source: Source,
    count: Float[np.ndarray, " F"],
    total: Float[np.ndarray, " F"],
    squares: Float[np.ndarray, " F"],
    shift: Float[np.ndarray, " F"],
    target_std: float,
) -> Normalizer:
    """Turns sums over observed values into a normalizer; speaks up about useless features.

    Args:
        source: for messages.
        count: number of values.
        total: their sum after taking off `shift`.
        squares: the sum of their squares after taking off `shift`.
        shift: near the mean, in units of the data, so that the squares lose no digits.
        target_std: of `Normalizer`.

    Raises:
        ValueError: a feature without any observed value.
    """
    if not count.all():
        feature = _feature(source, int(np.argmin(count)))
        raise ValueError(
            f"{source.name}/{source.split}: feature {feature} has no observed value: leave it out"
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    constant = std <= 1e-7 * np.maximum(np.abs(mean + shift), 1e-30)
    if constant.any():
        names = ", ".join(_feature(source, int(i)) for i in np.flatnonzero(constant))
        _LOG.warning("%s/%s: constant features: %s", source.name, source.split, names)
    std = np.where(constant, 1.0, std)
    return Normalizer((mean + shift).astype(np.float32), std.astype(np.float32), target_std)


def check_finite(element: dict[str, Any], source: Source, index: int) -> None:
    """Refuses an element with an observed value that is not finite.

    Raises:
        ValueError: there is one; with item, step and feature.
    """
    x, mask = element["x"], element.get("mask")
    bad = ~np.isfinite(x)
    if mask is not None:
        bad &= expand_mask(mask, x.ndim)
    if not bad.any():
        return
    place = np.argwhere(bad)[0]
    value, step = x[tuple(place)], int(place[0])
    raise ValueError(
        f"{source.item_name(index)}: value {value} at step {step}, feature "
        f"{_feature(source, int(place[-1]))}: data must be finite; mend it or mark it as missing"
    )


def _feature(source: Source, number: int) -> str:
    """Name of a feature for a message."""
    names = source.spec.feature_names
    return repr(names[number]) if names else str(number)
