"""The pictures of an evaluation: swaps, reconstructions and factors of some test clips."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips
from diffsda_jax.evals.pictures import (
    Picture,
    enlarge,
    strips_image,
    swap_grid_animation,
    swap_grid_image,
    to_uint8,
)
from diffsda_jax.evals.plots import (
    MAX_LINES,
    dynamics_figure,
    static_scatter_figure,
    swap_series_figure,
)
from diffsda_jax.evals.report import captions_for, choose_donors
from diffsda_jax.evals.swap import make_pairs, reconstruct, reconstruction_starts
from diffsda_jax.factors import mix

_GRID_ROWS = 4
_GRID_COLUMNS = 5
_SERIES_ROWS = 4
_CLIPS = 5
_VIDEO_PIXELS = 128  # smaller frames are enlarged by a whole factor to at least this side

Names = Sequence[str] | None


def draw(
    context: Context,
    static_names: Names,
    dynamic_names: Names,
    feature_names: Names,
    *,
    denormalize: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[dict[str, Picture], list[Picture], list[str]]:
    """All pictures by name, the frames of the animated swap grid (video only), and notes."""
    pictures = {"factors/static": _static_picture(context, static_names)}
    names = (static_names, dynamic_names)
    frames: list[Picture] = []
    notes: list[str] = []
    if len(context.some_clips()):
        pictures["factors/dynamic"] = _dynamic_picture(context, *names)
    reason = context.why_no_swaps()
    if reason:
        notes.append(f"swap pictures skipped: {reason}")
    elif context.kind == "video":
        pictures["swap/grid"], frames = _swap_grid(context)
    else:
        pictures["swap/series"] = _swap_series(context, *names, feature_names, denormalize)
    if context.kind == "video" and len(context.some_clips()):
        pictures["reconstruction/strips"] = _reconstruction_strips(context)
    return pictures, frames, notes


def _swap_grid(context: Context) -> tuple[Picture, list[Picture]]:
    """Every combination of a few donors, as a still picture and as an animation."""
    rng = np.random.default_rng(context.settings.seed)
    count = len(context.test["x"])
    columns = choose_donors(count, _GRID_COLUMNS, context.test.get("static_label"), rng)
    rows = choose_donors(count, _GRID_ROWS, context.test.get("dynamic_label"), rng)
    static_index = np.tile(columns, len(rows))
    dynamic_index = np.repeat(rows, len(columns))
    x_swap = context.to_frames(_mixed(context, static_index, dynamic_index))
    x_swap = x_swap.reshape(len(rows), len(columns), *x_swap.shape[1:])
    x_static, x_dynamic = (context.to_frames(context.test["x"][i]) for i in (columns, rows))
    grid = swap_grid_image(x_static, x_dynamic, x_swap)
    return grid, swap_grid_animation(x_static, x_dynamic, x_swap)


def swap_videos(context: Context, count: int) -> dict[str, UInt8[np.ndarray, "V H W 3"]]:
    """A few swaps one by one: who gives the static factor, who the dynamics, and the result."""
    static_index, dynamic_index = (index[:count] for index in context.pairs())
    clips = {
        "static": context.test["x"][static_index],
        "dynamic": context.test["x"][dynamic_index],
        "result": _mixed(context, static_index, dynamic_index),
    }
    videos: dict[str, np.ndarray] = {}
    for name, x in clips.items():
        frames = enlarge(to_uint8(context.to_frames(x)), _VIDEO_PIXELS)
        videos |= {f"swap_{number}/{name}": video for number, video in enumerate(frames)}
    return videos


def _reconstruction_strips(context: Context) -> Picture:
    """Originals above what their factors give from random noise and, if known, from their x_T."""
    index = context.some_clips()[:_CLIPS]
    captions = {"random": "from the codes", "inverted": "from x_T"}
    strips = [("original", context.to_frames(context.test["x"][index]))]
    for start in reconstruction_starts(context.model):
        shown = context.to_frames(_reconstructed(context, index, start))
        strips.append((captions[start], shown))
    return strips_image(strips)


def _swap_series(
    context: Context,
    static_names: Names,
    dynamic_names: Names,
    feature_names: Names,
    denormalize: Callable[[np.ndarray], np.ndarray] | None,
) -> Picture:
    """A few swaps beside their donors."""
    count = len(context.test["x"])
    labels = [context.test["static_label"]] if "static_label" in context.test else []
    static_index, dynamic_index = make_pairs(
        count, min(_SERIES_ROWS, count), seed=context.settings.seed, labels=labels
    )
    # A heat map shows normalised values: there the features have one scale.
    as_lines = context.test["x"].shape[2] <= MAX_LINES
    natural = denormalize if denormalize and as_lines else (lambda x: x)
    given = _captions(context, static_names, dynamic_names, static_index)
    moved = _captions(context, static_names, dynamic_names, dynamic_index)
    captions = None
    if given is not None and moved is not None:
        captions = [f"{left}\nmoves like {right}" for left, right in zip(given, moved, strict=True)]
    return swap_series_figure(
        natural(context.test["x"][static_index]),
        natural(context.test["x"][dynamic_index]),
        natural(_mixed(context, static_index, dynamic_index)),
        length_static=context.pick("length", static_index),
        length_dynamic=context.pick("length", dynamic_index),
        # From the same start noise as the swaps: beside them only the static factor differs.
        x_reconstructed=natural(_mixed(context, dynamic_index, dynamic_index)),
        captions=captions,
        feature_names=feature_names,
    )


def _static_picture(context: Context, static_names: Names) -> Picture:
    return static_scatter_figure(
        np.asarray(context.codes("test").static), context.test.get("static_label"), static_names
    )


def _dynamic_picture(context: Context, static_names: Names, dynamic_names: Names) -> Picture:
    index = context.some_clips()[:_CLIPS]
    return dynamics_figure(
        np.asarray(context.test_factors.dynamic)[index],
        context.pick("length", index),
        _captions(context, static_names, dynamic_names, index),
    )


def _captions(
    context: Context, static_names: Names, dynamic_names: Names, index: np.ndarray
) -> list[str] | None:
    """Names of the labels of some clips, or None where the data have none."""
    known = {
        name: (context.test[f"{name}_label"], names)
        for name, names in (("static", static_names), ("dynamic", dynamic_names))
        if f"{name}_label" in context.test
    }
    return captions_for(known, index) if known else None


def _mixed(context: Context, static_index: np.ndarray, dynamic_index: np.ndarray) -> Clips:
    factors = mix(
        static_from=context.test_factors[static_index],
        dynamic_from=context.test_factors[dynamic_index],
    )
    return context.decode(factors, static_index, dynamic_index)


def _reconstructed(context: Context, index: np.ndarray, start: str) -> Clips:
    x, factors, length = context.test_clips(index)
    return reconstruct(
        context.model,
        x,
        factors,
        start=start,
        num_steps=context.settings.num_steps,
        seed=context.settings.seed,
        length=length,
        batch_size=context.settings.batch_size,
    )
