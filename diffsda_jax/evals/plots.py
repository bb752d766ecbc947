"""Plots of series and of factors, drawn with matplotlib off screen."""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffsda_jax.evals.interface import Labels, Lengths, valid_steps
from diffsda_jax.evals.pictures import Picture

MAX_LINES = 8  # series with more features are drawn as heat maps
_MAX_LEGEND = 12
_DPI = 110
_CAPTION_WIDTH = 24  # letters that fit beside a row
_STATIC_COLOUR, _DYNAMIC_COLOUR, _RESULT_COLOUR = "#1f5fa8", "#b5541c", "#333333"


def swap_series_figure(
    x_static: Float[np.ndarray, "B V F"],
    x_dynamic: Float[np.ndarray, "B V F"],
    x_swap: Float[np.ndarray, "B V F"],
    *,
    length_static: Lengths | None = None,
    length_dynamic: Lengths | None = None,
    x_reconstructed: Float[np.ndarray, "B V F"] | None = None,
    captions: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
) -> Picture:
    """A row for each swap: static donor, donor of the dynamics, swap, and a reconstruction.

    Up to `MAX_LINES` features are drawn as lines, more as heat maps; all panels share one scale.

    Args:
      x_static: series that give the static factor.
      x_dynamic: series that give the dynamics.
      x_swap: the swaps, as long as the donors of the dynamics.
      length_static: real steps of the static donors.
      length_dynamic: real steps of the donors of the dynamics.
      x_reconstructed: donors of the dynamics decoded from their own factors.
      captions: one text for each row, at its left.
      feature_names: names of the features.
    """
    columns = [
        ("static from", x_static, length_static, _STATIC_COLOUR),
        ("dynamics from", x_dynamic, length_dynamic, _DYNAMIC_COLOUR),
        ("swap", x_swap, length_dynamic, _RESULT_COLOUR),
    ]
    if x_reconstructed is not None:
        title = "dynamics donor, reconstructed"
        columns.append((title, x_reconstructed, length_dynamic, _RESULT_COLOUR))
    num_rows, num_features = len(x_static), x_static.shape[2]
    shown = [series[valid_steps(series.shape, length)] for _, series, length, _ in columns[:2]]
    values = np.concatenate(shown)
    # A heat map may saturate at its few largest values; a line may not leave its panel.
    limits = np.percentile(values, [0.5, 99.5] if num_features > MAX_LINES else [0, 100])
    figure = Figure(figsize=(2.9 * len(columns) + 1.2, 1.7 * num_rows + 0.9), layout="constrained")
    axes = figure.subplots(num_rows, len(columns), squeeze=False, sharex=True, sharey=True)
    image = None
    for row in range(num_rows):
        for column, (title, series, length, colour) in enumerate(columns):
            axis = axes[row, column]
            steps = series.shape[1] if length is None else int(length[row])
            image = _draw_series(axis, series[row, :steps], limits, feature_names)
            axis.set_xlim(-0.5, series.shape[1] - 0.5)
            if row == 0:
                axis.set_title(title, color=colour, fontsize=10, fontweight="bold")
            if row == num_rows - 1:
                axis.set_xlabel("step", fontsize=9)
        if captions is not None:
            _caption(axes[row, 0], captions[row])
    _explain(figure, axes, image, feature_names)
    return render_figure(figure)


def traversal_series_figure(
    rows: Sequence[tuple[str, Float[np.ndarray, "columns V F"]]],
    columns: Sequence[str],
    *,
    feature_names: Sequence[str] | None = None,
) -> Picture:
    """A row for each component, a column for each place on it; lines or heat maps.

    Args:
      rows: (title, series) of each row; all hold as many series as there are columns.
      columns: titles.
      feature_names: names of the features.
    """
    values = np.concatenate([series.ravel() for _, series in rows])
    limits = np.percentile(values, [0.5, 99.5] if rows[0][1].shape[2] > MAX_LINES else [0, 100])
    size = (1.5 * len(columns) + 1.6, 1.3 * len(rows) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    image = None
    for row, (title, series) in enumerate(rows):
        for column, one in enumerate(series):
            image = _draw_series(axes[row, column], one, limits, feature_names)
        _caption(axes[row, 0], title.replace(" (", "\n("))
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    _explain(figure, axes, image, feature_names)
    return render_figure(figure)


def dynamics_figure(
    dynamic: Float[np.ndarray, "B V D"],
    length: Lengths | None = None,
    captions: Sequence[str] | None = None,
) -> Picture:
    """The dynamic factors of some clips over the steps, a panel for each clip.

    Args:
      dynamic: factors of at most some ten clips.
      length: real steps.
      captions: title of each panel.
    """
    num_clips, num_steps, width = dynamic.shape
    figure = Figure(figsize=(2.6 * num_clips + 0.4, 2.4), layout="constrained")
    axes = figure.subplots(1, num_clips, squeeze=False, sharey=True)[0]
    for clip, axis in enumerate(axes):
        steps = num_steps if length is None else int(length[clip])
        for unit in range(min(width, MAX_LINES)):
            axis.plot(dynamic[clip, :steps, unit], lw=1.4, label=f"$d_{{{unit + 1}}}$")
        _clean(axis)
        axis.set_xlim(0, num_steps - 1)
        axis.set_xlabel("step", fontsize=9)
        if captions is not None:
            axis.set_title(captions[clip], fontsize=9)
    axes[0].set_ylabel("dynamic factor", fontsize=9)
    axes[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return render_figure(figure)


def static_scatter_figure(
    static: Float[np.ndarray, "N S"],
    label: Labels | None = None,
    names: Sequence[str] | None = None,
) -> Picture:
    """Static factors on their first two principal components, coloured by label.

    Args:
      static: factors, at least two clips.
      label: classes, or None for one colour.
      names: name of each class.
    """
    centred = static - static.mean(0)
    _, scale, directions = np.linalg.svd(centred, full_matrices=False)
    place = centred @ directions[:2].T
    share = 100 * scale**2 / max(np.sum(scale**2), 1e-12)
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    classes = np.zeros(len(static), int) if label is None else label
    for number, value in enumerate(np.unique(classes)):
        name = None if label is None else _name(names, int(value))
        chosen = place[classes == value]
        second = chosen[:, 1] if place.shape[1] > 1 else np.zeros(len(chosen))
        axis.scatter(
            chosen[:, 0], second, s=14, alpha=0.8, lw=0, color=_class_colour(number), label=name
        )
    _clean(axis)
    axis.set_xlabel(f"component 1 of s ({share[0]:.0f} % of variance)", fontsize=9)
    if len(share) > 1:
        axis.set_ylabel(f"component 2 of s ({share[1]:.0f} %)", fontsize=9)
    if label is not None and len(np.unique(classes)) <= _MAX_LEGEND:
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return render_figure(figure)


def _draw_series(
    axis,
    series: Float[np.ndarray, "V F"],
    limits: Float[np.ndarray, "2"],
    feature_names: Sequence[str] | None,
):
    """One series as lines or as a heat map; returns the map for the colour bar, or None."""
    axis.tick_params(labelsize=8)
    if series.shape[1] > MAX_LINES:
        axis.set_yticks([])
        # White at the middle of the scale that all panels share.
        reach = float(np.abs(limits).max())
        return axis.imshow(
            series.T,
            aspect="auto",
            origin="lower",
            cmap="RdBu_r",
            vmin=-reach,
            vmax=reach,
            interpolation="nearest",
        )
    margin = 0.08 * float(limits[1] - limits[0]) or 1.0  # of constants, too
    for feature in range(series.shape[1]):
        axis.plot(series[:, feature], lw=1.3, label=_name(feature_names, feature))
    axis.set_ylim(float(limits[0]) - margin, float(limits[1]) + margin)
    _clean(axis)
    return None


def _caption(axis, text: str) -> None:
    """A text of several lines at the left of a panel."""
    wrapped = "\n".join(textwrap.fill(line, _CAPTION_WIDTH) for line in text.splitlines())
    axis.set_ylabel(wrapped, fontsize=8)


def _explain(figure: Figure, axes, image, feature_names: Sequence[str] | None) -> None:
    """Colour bar of heat maps, or legend of lines with names."""
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, extend="both")
        bar.ax.tick_params(labelsize=8)
        bar.set_label("value of each feature (first one at the bottom)", fontsize=9)
    elif feature_names is not None:
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8
        )


def _name(names: Sequence[str] | None, index: int) -> str:
    return str(index) if names is None or index >= len(names) else names[index]


def _class_colour(number: int):
    return colormaps["tab20" if number >= 10 else "tab10"](number % 20)


def _clean(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, lw=0.6)


def render_figure(figure: Figure) -> Picture:
    """The figure as an array, drawn without a display."""
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
