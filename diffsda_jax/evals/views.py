"""What measures of generated clips look at: features by kind, labels by a judge, plain values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffsda_jax.data.transforms import expand_mask
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.frechet import pool_over_time, series_statistics
from diffsda_jax.evals.interface import Clips, Lengths, map_batches, observed_values

NO_FEATURES = (
    "there are no features of the clips: no labels for a judge, and no network; set "
    "eval.networks.features.path or eval.networks.clip_features.path"
)


@dataclass(frozen=True)
class View:
    """What is seen of N clips.

    Attributes:
      values: the clips themselves, flat, 0 where nothing is observed.
      features: by kind: ``judge`` (what the heads of the judge read), ``frames`` (a network that
        looks at frames, pooled over time: the FID form), ``clips`` (a network that looks at whole
        clips: the FVD form), ``statistics`` (of series without any of these, see
        `series_statistics`).
      probabilities: of the classes, by ``static`` and ``dynamic``, from the judge.
    """

    values: Float[np.ndarray, "N E"]
    features: dict[str, Float[np.ndarray, "N _"]]
    probabilities: dict[str, Float[np.ndarray, "N _"]]

    def __getitem__(self, index: Any) -> "View":
        """What is seen of some of the clips."""
        return View(
            self.values[index],
            {name: features[index] for name, features in self.features.items()},
            {name: values[index] for name, values in self.probabilities.items()},
        )

    def main_features(self) -> Float[np.ndarray, "N _"]:
        """Those of the first kind there is, or the values."""
        return next(iter(self.features.values()), self.values)


def look_at(
    context: Context,
    x: Clips,
    length: Lengths | None = None,
    mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
    *,
    networks: bool = True,
) -> View:
    """Look at clips, real or generated.

    Args:
      context: whose judge and networks look.
      x: normalised clips.
      length: real steps; what comes after is not seen. Clip networks see it grey.
      mask: True = observed.
      networks: whether to ask the networks of the config, which may be slow.
    """
    observed = expand_mask(observed_values(x.shape, length, mask), x.ndim)
    x = np.where(observed, x, 0).astype(np.float32)
    features, probabilities = {}, {}
    if context.judge is not None:
        seen = context.judge.see(x, length, mask)
        features["judge"], probabilities = seen.features, seen.probabilities
    if networks and not context.why_no_frames():
        features |= _ask_networks(context, x, length)
    if not features and context.kind == "series":
        features["statistics"] = series_statistics(x, length)
    return View(x.reshape(len(x), -1), features, probabilities)


def _ask_networks(context: Context, x: Clips, length: Lengths | None) -> dict[str, np.ndarray]:
    """Features of the networks of the config that look at frames or clips; made block by block."""
    features = {}
    if "features" in context.networks:

        def of_frames(index: np.ndarray) -> np.ndarray:
            frames = context.to_rgb(x[index])
            flat = frames.reshape(-1, *frames.shape[2:])
            values, found = context.networks["features"].identity(flat)
            values = np.where(found[:, None], values, np.nan)
            steps = values.reshape(*frames.shape[:2], -1)
            return pool_over_time(steps, None if length is None else length[index])

        features["frames"] = map_batches(of_frames, len(x), context.settings.batch_size)
    if "clip_features" in context.networks:
        features["clips"] = map_batches(
            lambda index: context.networks["clip_features"].embed(context.to_rgb(x[index])),
            len(x),
            context.settings.batch_size,
        )
    return features
