"""How far frames are from those they should show: MSE, PSNR and SSIM, frame by frame.

Frames are in [-1, 1], so the data range is 2: PSNR is that of the same frames as 0 to 255 under
data range 255, and so is SSIM, which is taken on frames mapped to [0, 1]. None of these has a
quirk in the reference code: their `reference` and `corrected` forms agree.
"""

import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from diffsda_jax.evals import metrics as measure
from diffsda_jax.evals.interface import valid_steps

Video = Float[np.ndarray | Array, "N V H W C"]
Errors = Float[np.ndarray, "N V"]

_DATA_RANGE = 2.0
_SMALLEST_MSE = 1e-12  # of equal frames, whose PSNR would be infinite: it is 126 dB


def frame_errors(x: Video, x_other: Video) -> dict[str, Errors]:
    """Errors of each frame.

    Args:
      x: frames in [-1, 1], of numpy or jax.
      x_other: the same shape.

    Returns:
      ``mse`` in squares of the range [-1, 1]; ``psnr_db``, at most 126; ``ssim``, 1 for equal
      frames.

    References:
      Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment, IEEE TIP 2004: Gaussian window of
      11 pixels and sigma 1.5, see `metrics.ssim`.
    """
    x, x_other = np.asarray(x), np.asarray(x_other)
    mse = np.square(x.astype(np.float64) - x_other).mean((2, 3, 4))
    # One frame at a time: the windowed sums of a whole set of large clips would not fit.
    ssim = [
        [measure.ssim(a[None, None], b[None, None]) for a, b in zip(clip, other, strict=True)]
        for clip, other in zip(x, x_other, strict=True)
    ]
    return {
        "mse": mse,
        "psnr_db": 10.0 * np.log10(_DATA_RANGE**2 / np.maximum(mse, _SMALLEST_MSE)),
        "ssim": np.array(ssim, np.float64),
    }


def mean_errors(
    errors: dict[str, Errors],
    length: Integer[np.ndarray | Array, " N"] | None = None,
    mask: Bool[np.ndarray | Array, "N V"] | None = None,
) -> dict[str, float]:
    """Means over the frames that are real and observed; each frame weighs the same.

    Args:
      errors: by name, from `frame_errors`.
      length: number of real frames of each clip; None means all.
      mask: True = observed; None means all.

    Raises:
      ValueError: no frame is left.
    """
    steps = next(iter(errors.values())).shape
    use = valid_steps(steps, None if length is None else np.asarray(length))
    use = use if mask is None else use & np.asarray(mask)
    if not use.any():
        raise ValueError(
            "length and mask leave no frame; allowed is at least one real, observed frame; check "
            "the mask of the data."
        )
    return {name: float(values[use].mean()) for name, values in errors.items()}
