"""Line charts as SVG: readable without a script; the page's script adds values to read off."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup, escape

NUM_COLOURS = 8  # classes c0 to c7 of the style sheet; later lines repeat them, dashed
_MAX_POINTS = 240  # of a line
_WIDTH, _HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 36  # margins of the plot
_NUM_TICKS = 4


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
      name: in the legend and where a value is read off.
      x: increasing ``[N]``.
      y: ``[N]``; values that are not finite leave a gap.
      colour: number of its colour.
    """

    name: str
    x: Float[np.ndarray, " N"] | Int[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    colour: int = 0


class Axis(NamedTuple):
    """The scale of one axis.

    Attributes:
      label: beside the axis.
      low: value at its start.
      high: value at its end, larger.
      log: whether distances are those of logarithms.
    """

    label: str
    low: float
    high: float
    log: bool = False

    def place(self, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Where values lie, 0 at the start and 1 at the end."""
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return (values - low) / (high - low)

    def ticks(self) -> list[float]:
        """A few round values."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                ticks = [factor * 10.0**power for power in powers for factor in factors]
                ticks = [value for value in ticks if self.low <= value <= self.high]
                if len(ticks) <= _NUM_TICKS + 1:
                    return ticks
            return ticks[:: -(-len(ticks) // (_NUM_TICKS + 1))]
        rough = (self.high - self.low) / _NUM_TICKS
        scale = 10.0 ** math.floor(math.log10(rough))
        step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def axis_of(values: Sequence[np.ndarray], label: str, log: bool = False) -> Axis:
    """An axis that shows all finite values, with some room at both ends of a linear one.

    Args:
      values: of each line, of any shape; a logarithmic axis takes positive ones only.
      label: beside the axis.
      log: as `Axis.log`, where all values are positive.
    """
    joined = np.concatenate([np.asarray(part, float).ravel() for part in values])
    joined = joined[np.isfinite(joined)]
    if not len(joined):
        return Axis(label, 0.0, 1.0)
    low, high = float(joined.min()), float(joined.max())
    if log and low > 0 and high > low:
        return Axis(label, low / 1.1, high * 1.1, True)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(label, low - room, high + room)


def format_tick(value: float) -> str:
    """A short text of a number; four digits at most."""
    if abs(value) < 1e-12:  # zero, but for rounding
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def line_chart(lines: Sequence[Line], x_axis: Axis, y_axis: Axis, title: str) -> Markup:
    """A chart of some lines, as an ``<svg>`` that scales with the page.

    Args:
      lines: with points inside both axes.
      x_axis: of all.
      y_axis: of all.
      title: what is seen, for those who do not see it.
    """
    parts = [_frame(x_axis, y_axis)]
    for line in lines:
        dashed = " dash" if line.colour >= NUM_COLOURS else ""
        classes = f"line c{line.colour % NUM_COLOURS}{dashed}"
        for points in _points(line, x_axis, y_axis):
            parts.append(
                f'<polyline class="{classes}" data-name="{escape(line.name)}" points="{points}"/>'
            )
    scales = " ".join(
        f'data-{key}="{axis.low:.6g} {axis.high:.6g} {int(axis.log)}"'
        for key, axis in (("x", x_axis), ("y", y_axis))
    )
    plot = f"{_LEFT} {_TOP} {_WIDTH - _RIGHT} {_HEIGHT - _BOTTOM}"
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(title)}" data-plot="{plot}" {scales}>{"".join(parts)}</svg>'
    )


def _frame(x_axis: Axis, y_axis: Axis) -> str:
    """Grid, ticks and labels."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    ticks = y_axis.ticks()
    for value, share in zip(ticks, y_axis.place(np.array(ticks)), strict=True):
        y = bottom - share * (bottom - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = format_tick(value)
        parts.append(f'<text class="tick end" x="{_LEFT - 5}" y="{y + 3.5:.1f}">{text}</text>')
    ticks = x_axis.ticks()
    for value, share in zip(ticks, x_axis.place(np.array(ticks)), strict=True):
        x = _LEFT + share * (right - _LEFT)
        text = format_tick(value)
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 14}">{text}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle, height = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(
        f'<text class="label mid" x="{middle}" y="{_HEIGHT - 6}">{escape(x_axis.label)}</text>'
        f'<text class="label mid" transform="translate(10 {height}) rotate(-90)">'
        f"{escape(y_axis.label)}</text>"
    )
    return "".join(parts)


def _points(line: Line, x_axis: Axis, y_axis: Axis) -> list[str]:
    """The points of each part of a line between gaps, thinned where there are very many."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    every = -(-len(x) // _MAX_POINTS)
    kept = np.arange(0, len(x), every) if len(x) else np.zeros(0, int)
    kept = np.union1d(kept, np.arange(len(x))[-1:])  # the last point, where there is one
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    across = _LEFT + x_axis.place(x[kept]) * (right - _LEFT)
    down = bottom - y_axis.place(y[kept]) * (bottom - _TOP)
    finite = np.isfinite(across) & np.isfinite(down)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], finite.astype(int), [0]])))
    texts = [f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True)]
    # A line of one point is a dot only if it goes from there to there.
    return [
        " ".join(texts[i:j] * (2 if j - i == 1 else 1))
        for i, j in zip(ends[::2], ends[1::2], strict=True)
    ]
