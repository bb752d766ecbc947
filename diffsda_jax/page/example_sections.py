"""Sections of a page about single sequences: swaps, traversals, and what goes wrong."""

from collections.abc import Sequence

import numpy as np

from diffsda_jax.evals.examples import Examples, Swaps, Traversal
from diffsda_jax.evals.pictures import Picture
from diffsda_jax.evals.report import captions_for
from diffsda_jax.page.blocks import Block, Figure, Panel, Row, Rows, Section, Slider, Sliders, Text
from diffsda_jax.page.media import Shelf, read_animation
from diffsda_jax.page.painter import Painter
from diffsda_jax.page.records import Evaluation

_SHOWN_SWAPS, _SHOWN_WORST = {"video": 6, "series": 4}, 3
_GRID_FPS = 6.0
_SOUND_ROLES = {
    "voice": ("voice from", "static"),
    "words": ("words from", "dynamic"),
    "result": ("swap", "result"),
    "reconstruction": ("words, reconstructed", "result"),
}
_VIDEO_ROLES = {
    "static": ("static factor from", "static"),
    "dynamic": ("dynamics from", "dynamic"),
    "result": ("swap", "result"),
}


def swaps_section(
    examples: Examples | None,
    painter: Painter,
    evaluation: Evaluation | None,
    grid: Sequence[Picture],
    sounds: Sequence[dict[str, bytes]],
    missing: Sequence[Text],
) -> Section:
    """What swaps look or sound like.

    Args:
      examples: made for the page, or None.
      painter: of the data.
      evaluation: the newest one, or None.
      grid: frames of an animated grid of swaps, where no evaluation wrote one.
      sounds: WAV files of swaps by role, where no evaluation wrote them.
      missing: what is not there, and how to get it.
    """
    shelf, blocks = painter.shelf, []
    blocks += _grid_blocks(shelf, evaluation, grid)
    if evaluation is not None:
        sounds = sounds or [
            {role: path.read_bytes() for role, path in files.items()}
            for files in evaluation.swaps("sounds")
        ]
        if not blocks or painter.kind == "series":
            blocks += _video_blocks(shelf, evaluation)
    if sounds:
        rows = [_sound_row(shelf, number, files) for number, files in enumerate(sounds)]
        blocks.append(Rows(rows))
    if examples is not None and examples.swaps is not None and painter.can_draw:
        count = min(_SHOWN_SWAPS[painter.kind], len(examples.swaps.x))
        rows = [_swap_row(examples, examples.swaps, painter, place) for place in range(count)]
        if rows:
            blocks.append(
                Text(
                    "Drawn as an evaluation draws them, not picked. Only the two factors are given "
                    f"to the decoder.{painter.hint(examples.swaps.x.shape[2])}"
                )
            )
            blocks += painter.legend(examples.swaps.x.shape[2])
            blocks.append(Rows(rows, compact=painter.kind == "video"))
    blocks += missing
    return Section("swaps", "Swaps", blocks)


def traversals_section(
    examples: Examples | None, painter: Painter, missing: Sequence[Text]
) -> Section:
    """Sliders that move one test sequence along the components of both factors."""
    blocks: list[Block] = []
    if examples is not None and examples.traversals and painter.can_draw:
        traversals = examples.traversals
        blocks.append(
            Text(
                "One test sequence whose factors are moved along a component, all else and the "
                "start noise kept. In the middle nothing is moved."
            )
        )
        if painter.kind == "series":
            blocks += painter.legend(traversals[0].x.shape[3])
        sliders = [
            _slider(examples, painter, traversal, place)
            for traversal in traversals
            for place in range(len(traversal.x))
        ]
        if sliders:
            blocks.append(Sliders(sliders))
    blocks += missing
    return Section("traversals", "What the factors change", blocks)


def failures_section(
    examples: Examples | None, painter: Painter, missing: Sequence[Text]
) -> Section:
    """The worst swaps and reconstructions of those that were tried."""
    blocks: list[Block] = []
    if examples is not None and painter.can_draw:
        swaps, rebuilt = examples.swaps, examples.reconstructions
        compact = painter.kind == "video"
        blocks += painter.legend(rebuilt.x.shape[2])
        if swaps is not None:
            blocks.append(
                Text(
                    f"The worst of {len(swaps.x)} swaps: those whose factors the encoder reads "
                    "back with the largest error (0 is exactly, 1 is as far off as the mean "
                    f"factor). The median swap has {np.median(swaps.static_error):.2f} for s and "
                    f"{np.median(swaps.dynamic_error):.2f} for d."
                )
            )
            worst = swaps.worst(_SHOWN_WORST)
            rows = [_swap_row(examples, swaps, painter, int(place)) for place in worst]
            blocks.append(Rows(rows, compact))
        if len(rebuilt.x):
            blocks.append(
                Text(
                    f"The worst of {len(rebuilt.x)} reconstructions from the factors alone, by "
                    "their mean squared error over the variance of the data. The median "
                    f"is {np.median(rebuilt.error):.2f}."
                )
            )
            worst = rebuilt.worst(_SHOWN_WORST)
            rows = [_reconstruction_row(examples, painter, int(i)) for i in worst]
            blocks.append(Rows(rows, compact))
    blocks += missing
    return Section("failures", "Failure cases", blocks)


def _grid_blocks(
    shelf: Shelf, evaluation: Evaluation | None, grid: Sequence[Picture]
) -> list[Block]:
    """The animated grid of swaps, from its file or as it was just drawn."""
    fps, path = _GRID_FPS, evaluation and evaluation.folder / "swap_grid.gif"
    if path and path.is_file():
        grid, fps = read_animation(path)
    if not len(grid):
        return []
    alt = "Grid of swaps: each column looks like the clip above it, each row moves like its left"
    caption = (
        "Every combination of some test clips: a column takes its static factor from the clip "
        "above it, a row its dynamics from the clip at its left. The clips on a tinted ground are "
        "real; all others are made by the model."
    )
    return [Figure(Panel("", shelf.add_animation("grid of swaps", grid, fps), alt), caption)]


def _video_blocks(shelf: Shelf, evaluation: Evaluation) -> list[Block]:
    """Single swaps that an evaluation wrote as videos."""
    rows = []
    for number, files in enumerate(evaluation.swaps("videos")):
        panels = [
            Panel(title, shelf.add_file(files[role]), f"Swap {number + 1}: {title}", colour)
            for role, (title, colour) in _VIDEO_ROLES.items()
            if role in files
        ]
        rows.append(Row(panels))
    return [Rows(rows, compact=True)] if rows else []


def _sound_row(shelf: Shelf, number: int, files: dict[str, bytes]) -> Row:
    """Players of one swap of speech."""
    panels = []
    for role, (title, colour) in _SOUND_ROLES.items():
        if role in files:
            name = f"Swap {number + 1}: {title}"
            panels.append(Panel(title, shelf.add(name, files[role], ".wav"), name, colour))
    return Row(panels, f"Swap {number + 1} of speech: the words of one recording in another voice.")


def _real(examples: Examples, index: int, x: np.ndarray | None = None) -> np.ndarray:
    """The real steps of a test clip, or of what was decoded in its length."""
    context = examples.context
    x = context.test["x"][index] if x is None else x
    length = context.pick("length", np.array([index]))
    return x if length is None else x[: int(length[0])]


def _name(examples: Examples, index: int) -> str:
    """Labels of a test clip, or its number."""
    context = examples.context
    known = {
        name: (context.test[f"{name}_label"], names)
        for name, names in examples.label_names.items()
        if f"{name}_label" in context.test
    }
    if not known:
        return f"clip {index}"
    return f"clip {index} ({captions_for(known, np.array([index]))[0]})"


def _swap_row(examples: Examples, swaps: Swaps, painter: Painter, place: int) -> Row:
    """Both donors, the result, and its errors."""
    static, dynamic = int(swaps.static_index[place]), int(swaps.dynamic_index[place])
    names = _name(examples, static), _name(examples, dynamic)
    clips = [
        _real(examples, static),
        _real(examples, dynamic),
        _real(examples, dynamic, swaps.x[place]),
    ]
    panels = [
        ("static factor from", "static", names[0]),
        ("dynamics from", "dynamic", names[1]),
        ("swap", "result", f"s of {names[0]}, d of {names[1]}"),
    ]
    caption = (
        f"s of {names[0]}, d of {names[1]}. Read back from the swap: error of s "
        f"{swaps.static_error[place]:.2f}, of d {swaps.dynamic_error[place]:.2f}."
    )
    return painter.row(panels, clips, caption)


def _reconstruction_row(examples: Examples, painter: Painter, place: int) -> Row:
    """A test clip and what its factors give."""
    rebuilt = examples.reconstructions
    index = int(rebuilt.clip_index[place])
    name = _name(examples, index)
    clips = [_real(examples, index), _real(examples, index, rebuilt.x[place])]
    panels = [("original", "", name), ("from its factors", "result", f"{name}, reconstructed")]
    return painter.row(panels, clips, f"{name}: error {rebuilt.error[place]:.2f}.")


def _slider(examples: Examples, painter: Painter, traversal: Traversal, place: int) -> Slider:
    """One component."""
    title = traversal.titles[place]
    clips = [_real(examples, traversal.clip, x) for x in traversal.x[place]]
    name = f"{traversal.factor} factor: {title}"
    panels = painter.places(traversal.places, clips, name)
    return Slider(name, traversal.factor, panels, len(panels) // 2)
