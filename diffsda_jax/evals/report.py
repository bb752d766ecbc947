"""Results for people and programs: the printed table, ``metrics.json`` and the pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffsda_jax.evals.interface import Labels
from diffsda_jax.evals.pictures import Picture, write_png

UNITS = {"percent": "%", "points": "points", "pixels": "px", "db": "dB"}
_LONGEST_NAME = 20  # of a label in a caption; a sentence may be one
_SMALLEST = 5e-5  # that four decimals show
_CHANCE = "_chance"
_SPREAD = "_std"
_OVER_CHANCE = "_over_chance_points"


class MetricLine(NamedTuple):
    """One metric as a table shows it; texts, empty where there is nothing to say.

    Attributes:
      name: as in ``metrics.json``.
      title: without group and unit, such as ``static eer``.
      value: with its spread over repeats, where there is one.
      unit: such as ``%``.
      chance: level of chance.
      over_chance: value minus chance, with its sign.
    """

    name: str
    title: str
    value: str
    unit: str
    chance: str
    over_chance: str


def group_metrics(metrics: Mapping[str, Any]) -> dict[str, list[MetricLine]]:
    """The lines of a table, by the part of the name before the first slash, see `format_table`."""
    groups: dict[str, list[MetricLine]] = {}
    for name, value in metrics.items():
        if _is_chance(name) or name.endswith(_OVER_CHANCE) or _is_spread(name, metrics):
            continue
        base, unit = _split_unit(name)
        chance = metrics.get(f"{base}{_CHANCE}{'_' + unit if unit else ''}")
        line = MetricLine(
            name=name,
            title=base.split("/", 1)[-1].replace("_", " ").replace("/", " "),
            value=_with_spread(value, metrics.get(f"{name}{_SPREAD}")),
            unit=UNITS.get(unit, ""),
            chance="" if chance is None else format_number(chance),
            over_chance="" if chance is None else f"{value - chance:+.2f}",
        )
        groups.setdefault(name.split("/")[0], []).append(line)
    return groups


def format_table(metrics: Mapping[str, Any]) -> str:
    """Metrics as an aligned table, grouped by the part of the name before the first slash.

    A metric ``group/name_unit`` stands in one line with its chance level
    ``group/name_chance_unit``, where there is one, and the difference of both; its spread over
    repeats, ``group/name_unit_std``, follows the value. Without a unit in the name it is that of
    the data.

    Args:
      metrics: flat, such as ``{"probes/s_to_static_percent": 97.8}``.

    Returns:
      Text of several lines without a newline at the end.
    """
    header = ("metric", "value", "unit", "chance", "vs chance")
    rows: list[tuple[str, ...]] = []
    for group, lines in group_metrics(metrics).items():
        rows.append((group,))
        for line in lines:
            rows.append((f"  {line.title}", line.value, line.unit, line.chance, line.over_chance))
    widths = [max(len(row[i]) for row in [header, *rows] if len(row) > i) for i in range(5)]
    ruled = [_line(header, widths), "-" * (sum(widths) + 2 * 4)]
    return "\n".join([*ruled, *(_line(row, widths) for row in rows)])


def write_results(
    metrics: Mapping[str, Any],
    directory: str | Path,
    *,
    form: str = "corrected",
    settings: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write ``metrics.json`` into a directory, which is made if needed, and return its path.

    Args:
      metrics: flat metrics; those that are not finite are written as null.
      directory: where to write.
      form: ``corrected`` or ``reference``.
      settings: seeds, numbers of clips, sampler steps and what else the numbers depend on.
      notes: what was skipped and why.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "form": form,
        "settings": settings or {},
        "metrics": {
            name: float(value) if np.isfinite(value) else None for name, value in metrics.items()
        },
        "notes": list(notes),
    }
    path = directory / "metrics.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def write_pictures(pictures: dict[str, Picture], directory: str | Path) -> list[Path]:
    """Write pictures as ``<name>.png`` (slashes become underscores) and return the paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return [
        write_png(picture, directory / f"{name.replace('/', '_')}.png")
        for name, picture in pictures.items()
    ]


def choose_donors(
    num_clips: int, count: int, label: Labels | None, rng: np.random.Generator
) -> np.ndarray:
    """Clips for a picture, with different labels as far as there are enough, int64 ``[count]``."""
    order = rng.permutation(num_clips)
    if label is not None:
        _, first = np.unique(label[order], return_index=True)
        other = np.setdiff1d(np.arange(num_clips), first)
        order = order[np.concatenate([rng.permutation(first), other])]
    return order[: min(count, num_clips)]


def captions_for(
    describe: dict[str, tuple[Labels, Sequence[str] | None]], index: np.ndarray
) -> list[str]:
    """A short caption such as ``3, clockwise`` for each chosen clip; long names are cut.

    Args:
      describe: labels and their names by kind of label.
      index: chosen clips, ``[K]``.
    """
    texts = []
    for clip in index:
        parts = []
        for labels, names in describe.values():
            value = int(labels[clip])
            name = names[value] if names and value < len(names) else str(value)
            parts.append(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")
        texts.append(", ".join(parts))
    return texts


def _is_chance(name: str) -> bool:
    base, _ = _split_unit(name)
    return base.endswith(_CHANCE)


def _is_spread(name: str, metrics: Mapping[str, Any]) -> bool:
    return name.endswith(_SPREAD) and name.removesuffix(_SPREAD) in metrics


def _with_spread(value: float, spread: float | None) -> str:
    """The value, and its spread where there is more than one repeat."""
    if spread is None or not np.isfinite(spread):
        return format_number(value)
    return f"{format_number(value)} ± {format_number(spread)}"


def _split_unit(name: str) -> tuple[str, str]:
    """``(name without its unit, unit or "")``."""
    base, _, unit = name.rpartition("_")
    return (base, unit) if unit in UNITS else (name, "")


def format_number(value: float) -> str:
    """Percentages and the like with one or two decimals, small numbers with four."""
    if not np.isfinite(value):
        return "none"
    if value == 0:
        return "0"
    if abs(value) < _SMALLEST:
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    justify: list[Callable[[str, int], str]] = [
        str.ljust,
        str.rjust,
        str.ljust,
        str.rjust,
        str.rjust,
    ]
    cells = [justify[i](cell, widths[i]) for i, cell in enumerate(row)]
    return "  ".join(cells).rstrip()
