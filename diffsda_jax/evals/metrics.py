"""Errors between clips, and whether a swap kept what it should, on plain arrays.

None of these has a quirk in the reference code: their `reference` and `corrected` forms agree.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.ndimage import correlate1d

from diffsda_jax.data.transforms import expand_mask
from diffsda_jax.evals.interface import Clips, Lengths, valid_steps

_SSIM_SIGMA_PIXELS = 1.5
_SSIM_RADIUS_PIXELS = 5
_SMALLEST_MSE = 1e-12  # keeps ratios to it finite


def masked_mse(
    x: Clips, x_other: Clips, mask: Bool[np.ndarray, "B V *maskdims"] | None = None
) -> float:
    """Mean squared error over the observed elements.

    Args:
      x: clips ``[B, V, H, W, C]`` or ``[B, V, F]``.
      x_other: the same shape.
      mask: True = observed; ``[B, V]``, or the shape of ``x``. None means all.

    Raises:
      ValueError: nothing is observed.
    """
    squared = np.square(x - x_other, dtype=np.float64)
    if mask is None:
        return float(squared.mean())
    weight = np.broadcast_to(expand_mask(mask, x.ndim), x.shape)
    if not weight.any():
        raise ValueError(
            "mask is False everywhere; at least one element must be observed; check "
            "the mask of the data."
        )
    return float(squared[weight].mean())


def normalized_mse(
    x: Clips, x_other: Clips, mask: Bool[np.ndarray, "B V *maskdims"] | None = None
) -> float:
    """`masked_mse` over that of the best constant clip element (its mean): 0 perfect, 1 chance.

    Where all observed clips are the same constant, the mean errs nowhere and there is no scale:
    the error is then taken over 1e-12, which is 0 for a perfect clip and very large otherwise.

    Args:
      x: clips.
      x_other: the same shape.
      mask: as in `masked_mse`.
    """
    weight = np.broadcast_to(expand_mask(_or_ones(mask, x), x.ndim), x.shape)
    count = np.maximum(weight.sum((0, 1), keepdims=True), 1)
    mean = np.where(weight, x, 0).sum((0, 1), dtype=np.float64, keepdims=True) / count
    spread = masked_mse(x, np.broadcast_to(mean, x.shape), mask)
    return masked_mse(x, x_other, mask) / max(spread, _SMALLEST_MSE)


def psnr(
    x: Clips,
    x_other: Clips,
    mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
    *,
    data_range: float = 2.0,
) -> float:
    """Peak signal-to-noise ratio in dB of all observed elements together.

    Args:
      x: clips.
      x_other: the same shape.
      mask: as in `masked_mse`.
      data_range: largest minus smallest possible value; 2 for frames in [-1, 1].
    """
    mse = max(masked_mse(x, x_other, mask), _SMALLEST_MSE)
    return float(10.0 * np.log10(data_range**2 / mse))


def ssim(
    x: Float[np.ndarray, "B V H W C"],
    x_other: Float[np.ndarray, "B V H W C"],
    mask: Bool[np.ndarray, "B V"] | None = None,
) -> float:
    """Mean structural similarity of the observed frames in [-1, 1], 1 for equal ones.

    Gaussian window of sigma 1.5 and radius 5 pixels (less for frames under 11 pixels), channels
    taken one by one, borders without a full window left out.

    References:
      Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment, IEEE TIP 2004, equation 13.
    """
    radius = min(_SSIM_RADIUS_PIXELS, (min(x.shape[2:4]) - 1) // 2)
    offsets = np.arange(-radius, radius + 1)
    window = np.exp(-0.5 * (offsets / _SSIM_SIGMA_PIXELS) ** 2)
    window /= window.sum()

    def blur(frames: np.ndarray) -> np.ndarray:
        blurred = correlate1d(correlate1d(frames, window, axis=2), window, axis=3)
        inside = slice(radius, -radius or None)
        return blurred[:, :, inside, inside]

    # The luminance term is meant for intensities from 0 up: map to [0, 1].
    x, x_other = (x.astype(np.float64) + 1) / 2, (x_other.astype(np.float64) + 1) / 2
    mean, mean_other = blur(x), blur(x_other)
    variance = blur(x * x) - mean**2
    variance_other = blur(x_other * x_other) - mean_other**2
    covariance = blur(x * x_other) - mean * mean_other
    c1, c2 = 0.01**2, 0.03**2
    index = ((2 * mean * mean_other + c1) * (2 * covariance + c2)) / (
        (mean**2 + mean_other**2 + c1) * (variance + variance_other + c2)
    )
    return float(index[_or_ones(mask, x)].mean())


def centre_of_mass(
    x: Float[np.ndarray, "B V H W C"], *, threshold: float = 0.25
) -> Float[np.ndarray, "B V 2"]:
    """Tracked place of a bright object on a dark ground: (row, column) in pixels, per frame.

    Args:
      x: frames in [-1, 1]; brightness is the channel mean mapped to [0, 1].
      threshold: brightness taken off first, so that faint noise of the ground does not pull.

    Returns:
      Centre of mass, pixel centres at whole numbers; NaN in frames with nothing bright.
    """
    brightness = np.clip((x.mean(-1, dtype=np.float64) + 1) / 2 - threshold, 0, None)
    mass = brightness.sum((2, 3))
    rows, columns = np.arange(x.shape[2]), np.arange(x.shape[3])
    place = np.stack(
        [brightness.sum(3) @ rows, brightness.sum(2) @ columns],
        axis=-1,
    )
    mass = np.where(mass > 0, mass, np.nan)
    return place / mass[..., None]


def trajectory_error(
    x_swap: Float[np.ndarray, "B V H W C"],
    position_dynamic: Float[np.ndarray, "B V 2"],
    x_static: Float[np.ndarray, "B V H W C"],
    position_static: Float[np.ndarray, "B V 2"],
    length: Lengths | None = None,
) -> tuple[float, float]:
    """How far the object of a swap is from where the donor of the dynamics moves it.

    The target is the position of the donor of the dynamics plus the offset between the centre of
    mass and the position in the donor of the static factor (mean over its frames), since every
    object has its own.

    Args:
      x_swap: swapped clips, frames in [-1, 1].
      position_dynamic: true (row, column) in pixels in the donor of the dynamics.
      x_static: clips that give the static factor.
      position_static: true (row, column) in pixels in those.
      length: real steps of all of these clips.

    Returns:
      ``(mean distance in pixels, share of frames without anything to track in percent)``; the
      frames without are left out of the mean, which is NaN if none is left.
    """
    valid = valid_steps(x_swap.shape, length)
    offset = _mean_without_nan(centre_of_mass(x_static) - position_static, valid)
    distance = np.linalg.norm(
        centre_of_mass(x_swap) - (position_dynamic + offset[:, None]), axis=-1
    )
    tracked = np.isfinite(distance) & valid
    error = float(distance[tracked].mean()) if tracked.any() else float("nan")
    return error, 100.0 * float(1.0 - tracked.sum() / valid.sum())


def kept_percent(
    judged: dict[str, Integer[np.ndarray, " B"]],
    static_label: Integer[np.ndarray, " B"] | None,
    dynamic_label: Integer[np.ndarray, " B"] | None,
) -> dict[str, float]:
    """Share of clips whose judged labels are those of their donors.

    Args:
      judged: what a judge sees in the swaps, ``static`` and maybe ``dynamic``.
      static_label: labels of the donors of the static factor, or None.
      dynamic_label: labels of the donors of the dynamics, or None.

    Returns:
      ``static_kept_percent`` and ``dynamic_kept_percent``, and ``both_kept_percent`` where both
      are known.
    """
    kept = {
        name: judged[name] == label
        for name, label in (("static", static_label), ("dynamic", dynamic_label))
        if label is not None and name in judged
    }
    if len(kept) == 2:
        kept["both"] = kept["static"] & kept["dynamic"]
    return {f"{name}_kept_percent": 100.0 * float(hits.mean()) for name, hits in kept.items()}


def _or_ones(mask: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    return np.ones(x.shape[:2], bool) if mask is None else mask


def _mean_without_nan(
    values: Float[np.ndarray, "B V 2"], valid: Bool[np.ndarray, "B V"]
) -> Float[np.ndarray, "B 2"]:
    """Mean over the valid steps whose values are finite; NaN where there are none."""
    use = valid[..., None] & np.isfinite(values)
    count = use.sum(1)
    return np.where(use, values, 0).sum(1) / np.where(count > 0, count, np.nan)
