"""Pictures of what a prior makes: samples, one factor kept, paths between clips, longer clips."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.generation import sample_batches, sample_longer, why_no_generation
from diffsda_jax.evals.interface import Clips
from diffsda_jax.evals.interpolation import FACTORS, interpolate
from diffsda_jax.evals.pictures import Picture, enlarge, strips_image, to_uint8
from diffsda_jax.evals.plots import MAX_LINES, traversal_series_figure
from diffsda_jax.evals.report import choose_donors

Rows = Sequence[tuple[str, Clips]]

_COLUMNS, _ROWS = 4, 4
_PAIRS, _POINTS = 2, 8  # as many clips as columns times rows: one compiled program serves all
_LONGER = 4
_MOST_FRAMES = 16  # of a longer clip
_VIDEO_PIXELS = 128


def draw_generation(
    context: Context,
    feature_names: Sequence[str] | None = None,
    denormalize: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[dict[str, Picture], dict[str, UInt8[np.ndarray, "V H W 3"]]]:
    """All of them by name, and of video some samples that move; nothing without a prior.

    What cannot be sampled is left out here and named in the notes of the part ``generation``.

    Args:
      context: of the evaluation.
      feature_names: names of the features of a series.
      denormalize: maps a series to natural units.
    """
    if why_no_generation(context) or (context.kind == "video" and context.why_no_frames()):
        return {}, {}
    rng = np.random.default_rng(context.settings.seed)
    label = context.pick("static_label", context.trial)
    count = min(_COLUMNS, len(context.trial))
    donors = context.trial[choose_donors(len(context.trial), count, label, rng)]
    batches, _ = sample_batches(context, np.tile(donors, _ROWS))
    clips = {name: context.decode_from_noise(batch.factors) for name, batch in batches.items()}

    def show(rows: Rows, columns: Sequence[str] = (), num_frames: int = 4) -> Picture:
        if context.kind == "video":
            shown = [(title, context.to_frames(x)) for title, x in rows]
            return strips_image(shown, columns=columns, num_frames=num_frames)
        as_lines = rows[0][1].shape[2] <= MAX_LINES  # heat maps show normalised values
        natural = denormalize if denormalize and as_lines else np.asarray
        shown = [(title, natural(x)) for title, x in rows]
        titles = columns or [""] * len(rows[0][1])
        return traversal_series_figure(shown, titles, feature_names=feature_names)

    pictures, videos = {}, {}
    originals = [("given", context.test["x"][donors])]
    for name, x in clips.items():
        title = {"samples": "sample", "given_s": "s kept", "given_d": "d kept"}[name]
        rows = [(title, part) for part in x.reshape(_ROWS, len(donors), *x.shape[1:])]
        pictures[f"generation/{name}"] = show(rows if name == "samples" else originals + rows)
    for factor in FACTORS:
        path = interpolate(context, factor, _PAIRS, _POINTS)
        shares = np.linspace(0, 1, _POINTS)
        rows = [(f"{share:.2f}", x) for share, x in zip(shares, path.x.swapaxes(0, 1), strict=True)]
        pictures[f"generation/between_{factor}"] = show(rows)
    longer, _ = sample_longer(context, _LONGER)
    if longer is not None:
        rows = [("sample", x[None]) for x in longer]
        frames = min(longer.shape[1], _MOST_FRAMES)
        pictures["generation/longer"] = show(rows, num_frames=frames)
    if context.kind == "video" and "samples" in clips:
        frames = enlarge(to_uint8(context.to_frames(clips["samples"][:_COLUMNS])), _VIDEO_PIXELS)
        videos = {f"generation/sample_{number}": video for number, video in enumerate(frames)}
    return pictures, videos
