"""Series from CSV files: wide (time x feature) or long (id, time, feature...)."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64

from diffsda_jax.data.sources.tables import (
    Table,
    is_number,
    number_share,
    numbers,
    read_table,
    texts,
)

_LOG = logging.getLogger(__name__)

TIME_NAMES = ("time", "date", "datetime", "timestamp")
_NUMBER_SHARE = 0.5  # a column of at least so many numbers is a number column


@dataclasses.dataclass(frozen=True)
class Series:
    """All steps of one id.

    Attributes:
        name: the id.
        x: values, 0 where missing.
        mask: True where observed.
        labels: the static label of every step, or None.
        times: the cell of every step in the column of times, or None.
    """

    name: str
    x: Float32[np.ndarray, "N F"]
    mask: Bool[np.ndarray, "N F"]
    labels: list[str] | None
    times: list[str] | None = None

    def part(self, start: int, stop: int) -> "Series":
        """Steps `start` to `stop`."""
        x, mask = self.x[start:stop], self.mask[start:stop]
        labels, times = (
            None if cells is None else cells[start:stop] for cells in (self.labels, self.times)
        )
        return Series(self.name, x, mask, labels, times)


@dataclasses.dataclass(frozen=True)
class Roles:
    """Columns with a special role; None for none.

    Attributes:
        id: tells the sequences apart.
        time: when each row was.
        label: the static label.
        sorted: rows are sorted by `time`, and not in the order of the file.
    """

    id: str | None
    time: str | None
    label: str | None
    sorted: bool


@dataclasses.dataclass(frozen=True)
class SeriesFile:
    """What one CSV file, or a folder of them, holds.

    Attributes:
        series: in the order of the files and of the first row of each id.
        features: names of the columns that `x` is made of.
        roles: of other columns.
        masked: some values are missing.
    """

    series: list[Series]
    features: tuple[str, ...]
    roles: Roles
    masked: bool


def load_series(
    path: str,
    *,
    layout: str = "wide",
    id_column: str | None = None,
    time_column: str | None = None,
    features: Sequence[str] | None = None,
    static_label_column: str | None = None,
    nan_policy: str = "mask",
    delimiter: str = ",",
) -> SeriesFile:
    """Reads all series of a CSV file or of a folder of them.

    Args:
        path: and the others as in `sources.csv_table.CsvTable`.
        layout: see there.
        id_column: see there.
        time_column: see there.
        features: see there.
        static_label_column: see there.
        nan_policy: see there.
        delimiter: see there.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a bad file; with file, line, column and value.
    """
    tables = [read_table(file, delimiter) for file in _csv_files(path)]
    names = _same_columns(tables)
    if layout == "long":
        id_column, time_column = id_column or names[0], time_column or names[:2][-1]
    else:
        named_like_time = (name for name in names if name.lower() in TIME_NAMES)
        time_column = time_column or next(named_like_time, None)
    roles = Roles(id_column, time_column, static_label_column, layout == "long")
    special = (id_column, time_column, static_label_column)
    features = _choose_features(tables, names, special, features)
    values = [_read_values(table, features, nan_policy) for table in tables]
    _log_missing(tables, values, features)
    series = [
        one
        for table, cells in zip(tables, values, strict=True)
        for one in _make_series(table, cells, roles, len(tables) > 1)
    ]
    return SeriesFile(series, features, roles, any(np.isnan(cells).any() for cells in values))


def _csv_files(path: str) -> list[Path]:
    """The file, or the CSV files of the folder."""
    advice = "set path to a CSV file, or to a folder of CSV files with one sequence each"
    if not str(path):
        raise ValueError(f"path of source 'csv' is not set: {advice}")
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"path {place} of source 'csv' is missing: {advice}")
    if not place.is_dir():
        return [place]
    files = sorted(file for file in place.glob("*.csv") if not file.name.startswith("."))
    if not files:
        raise ValueError(f"folder {place} of source 'csv' holds no *.csv file: {advice}")
    return files


def _same_columns(tables: list[Table]) -> list[str]:
    """Column names, the same in all files (in any order)."""
    first = tables[0]
    for table in tables[1:]:
        other = set(table.columns) ^ set(first.columns)
        if other:
            raise ValueError(
                f"file {table.path} and file {first.path} differ in column {sorted(other)[0]!r}: "
                "give all files the same columns"
            )
    return list(first.columns)


def _choose_features(
    tables: list[Table],
    names: list[str],
    special: Sequence[str | None],
    features: Sequence[str] | None,
) -> tuple[str, ...]:
    """The wanted feature columns, or all columns of mostly numbers without a special role."""
    for name in (*special, *(features or ())):
        if name is not None and name not in names:
            raise ValueError(
                f"column {name!r} is not in file {tables[0].path}: use one of {', '.join(names)}"
            )
    if features:
        return tuple(features)
    free = [name for name in names if name not in special]
    chosen = [name for name in free if number_share(tables, name) >= _NUMBER_SHARE]
    left_out = [name for name in free if name not in chosen]
    if left_out:
        _LOG.warning("csv: columns without numbers are left out: %s", ", ".join(left_out))
    if not chosen:
        raise ValueError(
            f"file {tables[0].path} has no number column for features: add one, or name the "
            "columns by features=..."
        )
    return tuple(chosen)


def _read_values(
    table: Table, features: Sequence[str], nan_policy: str
) -> Float64[np.ndarray, "N F"]:
    """The feature columns of one table, NaN where missing."""
    allow = nan_policy == "mask"
    return np.stack([numbers(table, name, allow) for name in features], axis=-1)


def _make_series(
    table: Table, values: Float64[np.ndarray, "N F"], roles: Roles, prefix: bool
) -> list[Series]:
    """The ids of one table; `prefix` puts the name of the file before them."""
    mask = ~np.isnan(values)
    x = np.where(mask, values, 0.0).astype(np.float32)
    labels = None if roles.label is None else texts(table, roles.label)
    times = None if roles.time is None else table.columns[roles.time]
    order = list(range(len(x)))
    if roles.sorted and roles.time is not None:
        order = _time_order(table, roles.time).tolist()
    groups: dict[str, list[int]] = {}
    if roles.id is None:
        groups[table.path.stem] = order
    else:
        ids = texts(table, roles.id)
        for row in order:
            groups.setdefault(f"{table.path.stem}/{ids[row]}" if prefix else ids[row], []).append(
                row
            )

    def pick(cells: list[str] | None, rows: Sequence[int]) -> list[str] | None:
        return None if cells is None else [cells[row] for row in rows]

    return [
        Series(name, x[rows], mask[rows], pick(labels, rows), pick(times, rows))
        for name, rows in groups.items()
    ]


def _time_order(table: Table, column: str) -> np.ndarray:
    """Rows in the order of time; equal times stay in the order of the file."""
    cells = table.columns[column]
    if all(is_number(cell) for cell in cells):
        return np.argsort(numbers(table, column, allow_missing=False), kind="stable")
    return np.argsort(np.array(cells), kind="stable")


def _log_missing(
    tables: list[Table], values: list[Float64[np.ndarray, "_ F"]], features: Sequence[str]
) -> None:
    """Says how many values are missing, where the first one is, and which column has most."""
    missing = sum(np.isnan(cells).sum(0) for cells in values)
    if not np.any(missing):
        return
    number = next(i for i, cells in enumerate(values) if np.isnan(cells).any())
    row, column = np.argwhere(np.isnan(values[number]))[0]
    worst = int(np.argmax(missing))
    _LOG.warning(
        "csv: %d of %d values are missing and masked, the first in file %s, line %d, column %r "
        "(most in column %r: %d); fill them in, or set nan_policy='error' to refuse them",
        np.sum(missing),
        sum(cells.size for cells in values),
        tables[number].path,
        tables[number].lines[row],
        features[column],
        features[worst],
        missing[worst],
    )
