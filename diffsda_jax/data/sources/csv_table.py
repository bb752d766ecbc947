"""Time series from CSV files: wide (time x feature) or long (id, time, feature...)."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffsda_jax.data.sources.base import ElementSpec, Source, hash_split, label_ids
from diffsda_jax.data.sources.csv_series import Series, load_series

LAYOUTS = ("wide", "long")
NAN_POLICIES = ("mask", "error")


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
        time_column: None for a column named like `csv_series.TIME_NAMES`, if any (wide), or the
            second column (long).
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
        file = load_series(
            path,
            layout=layout,
            id_column=id_column,
            time_column=time_column,
            features=features,
            static_label_column=static_label_column,
            nan_policy=nan_policy,
            delimiter=delimiter,
        )
        all_series = file.series
        self._names: dict[str, int] | None = None
        if static_label_column is not None:
            self._names = label_ids(label for series in all_series for label in series.labels or ())
        self.spec = ElementSpec(
            kind="series",
            shape=(len(file.features),),
            static_names=None if self._names is None else tuple(self._names),
            feature_names=file.features,
            masked=file.masked,
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
        element: dict[str, Any] = {"x": window.x.copy(), "mask": window.mask.copy()}
        if self._names is not None:
            assert window.labels is not None  # all series have the label column, or none
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
