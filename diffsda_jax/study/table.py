"""What the runs of a study show: mean and spread over seeds as Markdown, CSV and a plot."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffsda_jax.data.sources.base import unknown_name_message
from diffsda_jax.study.description import Metric, Study

Measured = Mapping[str, Sequence[Mapping[str, float]]]  # metrics of each seed, by variant
_COLOURS = ("#1f5fa8", "#b5541c", "#3b7d3b", "#7a4b94", "#8a6d1f", "#333333")
_MAX_COLUMNS = 3  # of panels


class Cell(NamedTuple):
    """One metric of one variant.

    Attributes:
      values: of the seeds that have it.
      mean: of them; nan without any.
      spread: standard deviation (n - 1); nan for fewer than two.
    """

    values: list[float]
    mean: float
    spread: float

    def __str__(self) -> str:
        """Mean and spread, as many digits as the spread has meaning."""
        if not self.values:
            return "-"
        if not self.spread > 0:
            return f"{self.mean:.3g}" + (" ± 0" if len(self.values) > 1 else "")
        digits = min(max(1 - math.floor(math.log10(self.spread)), 0), 6)
        return f"{self.mean:.{digits}f} ± {self.spread:.{digits}f}"


def make_cell(values: Sequence[float]) -> Cell:
    """Mean and spread of the values of some seeds."""
    mean = float(np.mean(values)) if values else math.nan
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Cell(list(values), mean, spread)


def make_cells(study: Study, measured: Measured) -> dict[str, list[Cell]]:
    """The cells of each variant, in the order of the study's metrics."""
    return {
        variant: [
            make_cell([float(one[metric.name]) for one in measured[variant] if metric.name in one])
            for metric in study.metrics
        ]
        for variant in study.variants
    }


def find_missing(study: Study, measured: Measured) -> list[str]:
    """A sentence for each metric that a finished run does not have."""
    problems = []
    for metric in study.metrics:
        for variant, seeds in measured.items():
            if any(metric.name not in one for one in seeds):
                known = sorted(set().union(*seeds))
                message = unknown_name_message("metric", metric.name, known)
                problems.append(
                    f"{variant} was not measured in all of a study's metrics: {message}"
                )
                break
    return problems


def _best(metric: Metric, cells: Sequence[Cell]) -> float | None:
    """The best mean of a column, or None where none is marked."""
    means = [cell.mean for cell in cells if cell.values]
    if not metric.better or len(means) < 2:
        return None
    return min(means) if metric.better == "low" else max(means)


def markdown_table(study: Study, measured: Measured) -> str:
    """A row for each variant; the best mean of a column is bold where the study says what is."""
    cells = make_cells(study, measured)
    columns = list(zip(*cells.values(), strict=True))
    best = [_best(metric, column) for metric, column in zip(study.metrics, columns, strict=True)]
    lines = [f"| | seeds | {' | '.join(metric.label for metric in study.metrics)} |"]
    lines.append("|---" * (2 + len(study.metrics)) + "|")
    for variant, row in cells.items():
        texts = [
            f"**{cell}**" if cell.values and cell.mean == top else str(cell)
            for cell, top in zip(row, best, strict=True)
        ]
        lines.append(f"| {variant} | {len(measured[variant])} | {' | '.join(texts)} |")
    return "\n".join(lines)


def csv_table(study: Study, measured: Measured) -> str:
    """A line for each variant: seeds, and mean, spread and values of every metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [
        f"{metric.name} {what}"
        for metric in study.metrics
        for what in ("mean", "standard deviation", "values")
    ]
    writer.writerow(["variant", "seeds", *names])
    for variant, row in make_cells(study, measured).items():
        values = []
        for cell in row:
            numbers = ["" if math.isnan(x) else f"{x:.6g}" for x in (cell.mean, cell.spread)]
            values += [*numbers, " ".join(f"{x:.6g}" for x in cell.values)]
        writer.writerow([variant, len(measured[variant]), *values])
    return text.getvalue()


def write_plot(study: Study, measured: Measured, path: Path) -> Path:
    """Draws mean, spread and the seeds of every metric, a panel each.

    Args:
      study: its ``x`` puts the variants on a scale, its ``lines`` says which are joined.
      measured: of ``make_cells``.
      path: of the PNG file.
    """
    from matplotlib.figure import Figure

    cells = make_cells(study, measured)
    columns = min(_MAX_COLUMNS, len(study.metrics))
    rows = -(-len(study.metrics) // columns)
    height = 3.0 if study.x else 0.34 * len(study.variants) + 1.2
    figure = Figure(figsize=(4.2 * columns, height * rows + 0.4), layout="constrained")
    figure.suptitle(study.title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, axis in enumerate(axes):
        if number >= len(study.metrics):
            axis.set_axis_off()
            continue
        column = {variant: row[number] for variant, row in cells.items()}
        draw = _draw_lines if study.x else _draw_rows
        draw(axis, study, column, number % columns == 0)
        wanted = {"low": ", lower is better", "high": ", higher is better", "": ""}
        metric = study.metrics[number]
        axis.set_title(f"{metric.label}{wanted[metric.better]}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, lw=0.6)
    figure.savefig(path, dpi=110)
    return path


def _draw_rows(axis, study: Study, column: Mapping[str, Cell], is_first: bool) -> None:
    """A row for each variant: its seeds as dots, mean and spread as a bar."""
    for place, cell in enumerate(column.values()):
        axis.plot(cell.values, [place] * len(cell.values), "o", ms=3.5, alpha=0.45, color="#777777")
        spread = 0 if math.isnan(cell.spread) else cell.spread
        axis.errorbar(
            cell.mean, place, xerr=spread, fmt="D", ms=5, capsize=3, color=_COLOURS[0], lw=1.4
        )
    axis.set_yticks(range(len(column)), list(column) if is_first else [""] * len(column))
    axis.set_ylim(len(column) - 0.5, -0.5)


def _draw_lines(axis, study: Study, column: Mapping[str, Cell], is_first: bool) -> None:
    """Mean and spread over the study's horizontal axis, a line for each name of ``lines``."""
    names = study.lines or dict.fromkeys(study.variants, "")
    for number, line in enumerate(dict.fromkeys(names.values())):
        chosen = [v for v in study.variants if names[v] == line and column[v].values]
        chosen.sort(key=lambda variant: study.x[variant])
        colour = _COLOURS[number % len(_COLOURS)]
        axis.errorbar(
            [study.x[variant] for variant in chosen],
            [column[variant].mean for variant in chosen],
            yerr=[np.nan_to_num(column[variant].spread) for variant in chosen],
            fmt="o-",
            ms=4,
            capsize=3,
            lw=1.4,
            color=colour,
            label=line,
        )
    axis.set_xlabel(study.x_label, fontsize=9)
    if min(study.x.values()) > 0 and max(study.x.values()) >= 4 * min(study.x.values()):
        axis.set_xscale("log", base=2)
    places = sorted(set(study.x.values()))
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()
    if study.lines and is_first:
        axis.legend(fontsize=8, frameon=False)
