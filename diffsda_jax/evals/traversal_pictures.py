"""Pictures of moving along components: a row for each component, a column for each place on it."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from diffsda_jax.evals.exploration import Components
from diffsda_jax.evals.interface import Clips, Lengths
from diffsda_jax.evals.pictures import Picture, strips_image
from diffsda_jax.evals.plots import MAX_LINES, traversal_series_figure
from diffsda_jax.factors import Factors

_REACH = 2.0  # standard deviations shown to either side where no alpha is given


def traverse(
    components: Components, factors: Factors, num_columns: int, alpha: float = 0.0
) -> tuple[list[Factors], list[str]]:
    """Factors moved along each component, from one end to the other.

    Args:
      components: K of them.
      factors: of the clips to move.
      num_columns: places on each component, an odd number; the middle one is the clip itself.
      alpha: of the last place; 0 takes two standard deviations of each component.

    Returns:
      ``K * num_columns`` factors, component by component, and titles of the columns.
    """
    places = np.linspace(-1.0, 1.0, num_columns)
    if alpha:
        reach = np.full(len(components), alpha)
        titles = [f"alpha {alpha * place:+.2g}" for place in places]
    else:
        reach = components.alphas(_REACH)
        titles = [f"{_REACH * place:+.2g} std" for place in places]
    titles[num_columns // 2] = "not moved"
    moved = [
        components.move_factors(factors, k, float(reach[k] * place))
        for k in range(len(components))
        for place in places
    ]
    return moved, titles


def draw_videos(
    clips: Float[np.ndarray, "K A B V *element"],
    rows: Sequence[str],
    columns: Sequence[str],
    to_frames: Callable[[Clips], Clips],
) -> list[tuple[Picture, list[Picture]]]:
    """A still picture of strips and the frames of an animation for each of B clips.

    Args:
      clips: decoded, for K components and A places.
      rows: titles of the components.
      columns: titles of the places.
      to_frames: makes frames in [-1, 1] of clips ``[N, V, ...]``.
    """
    drawn = []
    for clip in range(clips.shape[2]):
        frames = [to_frames(row[:, clip]) for row in clips]
        steps = range(frames[0].shape[1])
        still, *animation = [
            strips_image(
                [(title, row[:, chosen]) for title, row in zip(rows, frames, strict=True)],
                columns=columns,
            )
            for chosen in [list(steps), *([step] for step in steps)]
        ]
        drawn.append((still, animation))
    return drawn


def draw_series(
    clips: Float[np.ndarray, "K A B V F"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    denormalize: Callable[[np.ndarray], np.ndarray],
    length: Lengths | None = None,
    feature_names: Sequence[str] | None = None,
) -> list[Picture]:
    """A picture of lines, or of heat maps where there are many features, for each of B clips.

    Args:
      clips: decoded, for K components and A places.
      rows: titles of the components.
      columns: titles of the places.
      denormalize: to the units of the data, for lines.
      length: number of real steps of the clips.
      feature_names: names of the features.
    """
    drawn = []
    for clip in range(clips.shape[2]):
        steps = clips.shape[3] if length is None else int(length[clip])
        shown = clips[:, :, clip, :steps]
        if shown.shape[-1] <= MAX_LINES:
            shown = np.stack([denormalize(row) for row in shown])
        named = list(zip(rows, shown, strict=True))
        drawn.append(traversal_series_figure(named, columns, feature_names=feature_names))
    return drawn
