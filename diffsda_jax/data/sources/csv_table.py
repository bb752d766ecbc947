"""Time series from CSV files: wide (time x feature) or long (id, time, feature...)."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from diffsda_jax.data.sources.base import ElementSpec, Source, hash_split, label_ids
from diffsda_jax.data.sources.tables import (
    Table,
    is_number,
    number_share,
    numbers,
    read_table,
    texts,
)

_LOG = logging.getLogger(__name__)

LAYOUTS = ("wide", "long")
NAN_POLICIES = ("mask", "error")
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
    """

    name: str
    x: Float32[np.ndarray, "N F"]
    mask: Bool[np.ndarray, "N F"]
    labels: list[str] | None

    def part(self, start: int, stop: int) -> "Series":
        """Steps `start` to `stop`."""
        labels = None if self.labels is None else self.labels[start:stop]
        return Series(self.name, self.x[start:stop], self.mask[start:stop], labels)


@dataclasses.dataclass(frozen=True)
class Roles:
    """Columns with a special role; None for none.

    Attributes:
        id: tells the sequences apart.
        sort_by: rows are sorted by it.
        label: the static label.
    """

    id: str | None
    sort_by: str | None
    label: str | None


class CsvTable(Source):
    """Sequences cut from one CSV file or from a folder of them.

    - `layout="wide"`: a row is a step, in the order of the file. Elements are windows of `length`
      steps, one every `stride` steps.
    - `layout="long"`: rows of many ids, sorted by time within each id (numerically, or as text
      such as ISO dates). An element is a whole id, or with `length` a window of it.

    Several ids (values of `id_column`, or the files of a folder) are split by a hash of the id; a
    single one is split by time, its last `test_share` being the test split. No window reaches
    across. An id shorter than `length` is skipped, counted and named. Missing values are empty
    cells, NA, NaN, null and none in any case.

    Args:
        split: "train" or "test".
        path: a CSV file, or a folder whose `*.csv` files each hold one id.
        layout: "wide" or "long".
        length: steps of a window; needed for wide, None takes whole ids for long.
        stride: steps between windows; None for `length`.
        id_column: None for one id a file (wide) or the first column (long).
        time_column: None for a column named like `TIME_NAMES`, if any (wide), or the second
            column (long).
        features: columns to use; None for all other columns that hold mostly numbers.
        static_label_column: column of the static class; constant within a window.
        nan_policy: "mask" takes missing values as not observed, "error" refuses them.
        test_share: share of ids, or of the steps of a single id, for testing.
        delimiter: between cells.
        max_skipped_share: see `Source`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a bad option or a bad file; with file, line, column and value.
    """

    name, kind = "csv", "series"

    def __init__(
        self,
        split: str,
        path: str,
        layout: str = "wide",
        length: int | None = None,
        stride: int | None = None,
        id_column: str | None = None,
        time_column: str | None = None,
        features: Sequence[str] | None = None,
        static_label_column: str | None = None,
        nan_policy: str = "mask",
        test_share: float = 0.2,
        delimiter: str = ",",
        max_skipped_share: float = 0.05,
    ):
        """Reads the files and cuts the windows; see the class."""
        super().__init__(split, max_skipped_share)
        _check_options(layout, length, stride, nan_policy)
        tables = [read_table(file, delimiter) for file in _csv_files(path)]
        names = _same_columns(tables)
        if layout == "long":
            id_column, time_column = id_column or names[0], time_column or names[:2][-1]
        else:
            named_like_time = (name for name in names if name.lower() in TIME_NAMES)
            time_column = time_column or next(named_like_time, None)
        roles = Roles(id_column, time_column if layout == "long" else None, static_label_column)
        special = (id_column, time_column, static_label_column)
        self._features = _choose_features(tables, names, special, features)
        values = [_read_values(table, self._features, nan_policy) for table in tables]
        _log_missing(tables, values, self._features)
        all_series = [
            series
            for table, cells in zip(tables, values, strict=True)
            for series in _make_series(table, cells, roles, len(tables) > 1)
        ]
        self._names = None
        if static_label_column is not None:
            self._names = label_ids(label for series in all_series for label in series.labels)
        self.spec = ElementSpec(
            kind="series",
            shape=(len(self._features),),
            static_names=None if self._names is None else tuple(self._names),
            feature_names=self._features,
            masked=any(np.isnan(cells).any() for cells in values),
        )
        parts = _split_series(all_series, split, test_share)
        self._num_ids = len(parts)
        self._windows = self._cut(parts, length, stride)

    def _cut(self, parts: list[Series], length: int | None, stride: int | None) -> list[Series]:
        """Windows of all ids; their names tell id and steps."""
        windows = []
        for series in parts:
            steps = len(series.x)
            if length is not None and steps < length:
                reason = f"{steps} steps, shorter than length={length}"
                if len(parts) == 1:
                    raise ValueError(
                        f"csv/{self.split}: {series.name} has {reason} (after the split): lower "
                        "length, or change test_share"
                    )
                self.skip(series.name, reason, check=False)
                continue
            size = length or steps
            for start in range(0, steps - size + 1, stride or size):
                window = series.part(start, start + size)
                name = f"{series.name}[{start}:{start + size}]"
                if window.labels is not None and len(set(window.labels)) > 1:
                    found = ", ".join(sorted(set(window.labels))[:3])
                    raise ValueError(
                        f"csv/{self.split}: the static label changes within {name} ({found}): cut "
                        "at the changes by id_column, or choose another static_label_column"
                    )
                windows.append(dataclasses.replace(window, name=name))
        self.check_skipped()
        return windows

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows)

    def num_items(self) -> int:
        """Number of ids in the split, the skipped ones too."""
        return self._num_ids

    def lengths(self) -> np.ndarray:
        """Steps of each window."""
        return np.array([len(window.x) for window in self._windows])

    def item_name(self, index: int) -> str:
        """Id and steps of a window."""
        return f"{self.name}/{self.split} {self._windows[index].name}"

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Window `index`: `x` and `mask` `[V, F]`, and its `static_label` if there is one."""
        del rng
        window = self._windows[index]
        element = {"x": window.x.copy(), "mask": window.mask.copy()}
        if self._names is not None:
            element["static_label"] = self._names[window.labels[0]]
        return element

    def _identity(self) -> Any:
        digest = hashlib.sha256()
        for window in self._windows:
            digest.update(window.name.encode() + window.x.tobytes() + window.mask.tobytes())
        return digest.hexdigest()


def _check_options(layout: str, length: int | None, stride: int | None, nan_policy: str) -> None:
    """Refuses bad values of the options that no file is needed for."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} of source 'csv': use one of {LAYOUTS}")
    if nan_policy not in NAN_POLICIES:
        raise ValueError(f"nan_policy={nan_policy!r} of source 'csv': use one of {NAN_POLICIES}")
    for name, value in (("length", length), ("stride", stride)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} of source 'csv': use 1 or more")
    if layout == "wide" and length is None:
        raise ValueError(
            "source 'csv' with layout='wide' needs the option 'length', steps of a window: set "
            "--config.source.options.length=..."
        )


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
    order = range(len(x)) if roles.sort_by is None else _time_order(table, roles.sort_by)
    groups: dict[str, list[int]] = {}
    if roles.id is None:
        groups[table.path.stem] = list(order)
    else:
        ids = texts(table, roles.id)
        for row in order:
            groups.setdefault(f"{table.path.stem}/{ids[row]}" if prefix else ids[row], []).append(
                row
            )
    return [
        Series(name, x[rows], mask[rows], None if labels is None else [labels[row] for row in rows])
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


def _split_series(all_series: list[Series], split: str, test_share: float) -> list[Series]:
    """Ids of a split, or the part of the only id that belongs to it."""
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share={test_share}: use a share between 0 and 1")
    if len(all_series) == 1:
        (series,) = all_series
        border = round(len(series.x) * (1 - test_share))
        ends = (0, border) if split == "train" else (border, len(series.x))
        return [series.part(*ends)]
    by_name = {series.name: series for series in all_series}
    return [by_name[name] for name in hash_split(list(by_name), split, test_share)]
