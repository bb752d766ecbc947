"""Beijing Multi-Site Air Quality: a month of hourly measurements at one of twelve stations.

Zhang et al. (2017), UCI Machine Learning Repository 501, CC BY 4.0: twelve files
`PRSA_Data_<station>_20130301-20170228.csv` with the columns No, year, month, day, hour, PM2.5,
PM10, SO2, NO2, CO, O3, TEMP, PRES, DEWP, RAIN, wd, WSPM, station, NA where missing.

Published: sequences of 672 hours by ten features, twelve classes of months read from the static
code, 2016 for testing, the rest 85/15 for training and validation. Own readings, where the paper
leaves it open: a sequence is the first 672 hours of a calendar month (months have 672 to 744), all
twelve stations are used, training and validation are told apart by a hash of station and month, a
month with over half of its values missing is left out, and the probe has 64 hidden units.
"""

import calendar
import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from diffsda_jax.data.sources.base import ElementSpec, Source, hash_split, unknown_name_message
from diffsda_jax.data.sources.tables import read_table
from diffsda_jax.data.sources.tasks import Task
from diffsda_jax.data.sources.timeline import (
    check_options,
    hour_number,
    hours_from_parts,
    masked,
    need_columns,
    observed_mean,
    read_hourly,
    shift_cyclically,
    too_much_missing,
)

STATIONS = (
    "Aotizhongxin",
    "Changping",
    "Dingling",
    "Dongsi",
    "Guanyuan",
    "Gucheng",
    "Huairou",
    "Nongzhanguan",
    "Shunyi",
    "Tiantan",
    "Wanliu",
    "Wanshouxigong",
)
FEATURES = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "WSPM")
SEQUENCE_HOURS = 672
_STAMP = ("year", "month", "day", "hour")
_FOLDER = "PRSA_Data_20130301-20170228"
_FIRST, _END = datetime.datetime(2013, 3, 1), datetime.datetime(2017, 3, 1)
_MONTHS = tuple(
    (year, month)
    for year in range(_FIRST.year, _END.year + 1)
    for month in range(1, 13)
    if _FIRST <= datetime.datetime(year, month, 1) < _END
)


class AirQuality(Source):
    """Months of one station: `x` `[672, 10]`, `static_label` (month), `static_id` (station).

    Units: micrograms per cubic metre (PM2.5 to O3), degrees Celsius (TEMP, DEWP), hPa (PRES), m/s
    (WSPM). Hours without a row and NA are masked; `x` is the feature's mean there.

    Args:
        split: "train" or "test".
        root: the folder of the twelve files, or the one that holds it.
        stations: some of `STATIONS`; None for all.
        test_years: years of the test split.
        include_validation: keep the validation share in the training split.
        validation_share: of the months that are not for testing.
        split_seed: of the choice of validation months.
        max_missing_share: a month with a larger share of missing values is skipped.
        cyclic_shift: augmentation of the training split, see `timeline.shift_cyclically`.
        max_skipped_share: see `Source`.

    Raises:
        FileNotFoundError: no such folder, or the file of a station is not there.
        ValueError: a bad option or a bad file; with file, line, column and value.
    """

    name, kind = "air_quality", "series"
    tasks = (Task("month", "static_label", "classes", "static", 12, "mlp", (64,), ("accuracy",)),)

    def __init__(
        self,
        split: str,
        root: str,
        stations: Sequence[str] | None = None,
        test_years: Sequence[int] = (2016,),
        include_validation: bool = False,
        validation_share: float = 0.15,
        split_seed: int = 0,
        max_missing_share: float = 0.5,
        cyclic_shift: str = "none",
        max_skipped_share: float = 0.05,
    ):
        """Reads the files and cuts the months; see the class."""
        super().__init__(split, max_skipped_share)
        check_options(self.name, cyclic_shift, max_missing_share=max_missing_share)
        self._cyclic_shift = cyclic_shift if split == "train" else "none"
        self.spec = ElementSpec(
            kind="series",
            shape=(len(FEATURES),),
            static_names=tuple(calendar.month_name[1:]),
            feature_names=FEATURES,
            masked=True,
        )
        files = _station_files(root, stations)
        parts = ("train", "validation") if include_validation and split == "train" else (split,)
        wanted = _months_of(parts, tuple(files), test_years, validation_share, split_seed)
        self._num_months = len(wanted)
        self._months, values = [], []
        for station, file in files.items():
            grid = _read_station(file, station)
            for year, month in _MONTHS:
                if (station, year, month) not in wanted:
                    continue
                start = hour_number(datetime.datetime(year, month, 1)) - hour_number(_FIRST)
                part = grid[start : start + SEQUENCE_HOURS]
                reason = too_much_missing(part, max_missing_share)
                if reason is None:
                    self._months.append((station, year, month))
                    values.append(part)
                else:
                    self.skip(f"{station} {year}-{month:02d}", reason, check=False)
        self.check_skipped()
        self._values = np.array(values).reshape(-1, SEQUENCE_HOURS, len(FEATURES))
        self._fill = observed_mean(self._values)

    def __len__(self) -> int:
        """Number of months over all stations."""
        return len(self._months)

    def num_items(self) -> int:
        """Number of months in the split, the skipped ones too."""
        return self._num_months

    def lengths(self) -> np.ndarray:
        """672 for every month."""
        return np.full(len(self), SEQUENCE_HOURS)

    def item_name(self, index: int) -> str:
        """Station and month."""
        station, year, month = self._months[index]
        return f"{self.name}/{self.split} {station} {year}-{month:02d}"

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Month `index`; draws from `rng` for the cyclic shift alone."""
        station, _, month = self._months[index]
        element = masked(self._values[index], self._fill)
        element = shift_cyclically(element, self._cyclic_shift, rng)
        return {**element, "static_label": month - 1, "static_id": STATIONS.index(station)}

    def _identity(self) -> Any:
        digest = hashlib.sha256(self._values.tobytes()).hexdigest()
        return [digest, self._months, self._cyclic_shift]


def _station_files(root: str, stations: Sequence[str] | None) -> dict[str, Path]:
    """The file of every wanted station, in the order of `STATIONS`."""
    for name in stations or ():
        if name not in STATIONS:
            raise ValueError(
                unknown_name_message("station of source 'air_quality':", name, STATIONS)
            )
    folder = Path(root).expanduser()
    if not str(root) or not folder.is_dir():
        raise FileNotFoundError(
            f"root {str(root)!r} of source 'air_quality' is no folder: set it to the folder of the "
            "unpacked PRSA_Data_*.csv files (UCI data set 501, Beijing Multi-Site Air Quality)"
        )
    if (folder / _FOLDER).is_dir():
        folder = folder / _FOLDER
    wanted = [name for name in STATIONS if not stations or name in stations]
    files = {name: folder / f"PRSA_Data_{name}_20130301-20170228.csv" for name in wanted}
    absent = [file for file in files.values() if not file.is_file()]
    if absent:
        raise FileNotFoundError(
            f"file {absent[0]} is missing ({len(absent)} of {len(files)} stations): unpack all of "
            "UCI data set 501 there, or name the stations that you have by stations=[...]"
        )
    return files


def _months_of(
    parts: Sequence[str],
    stations: Sequence[str],
    test_years: Sequence[int],
    validation_share: float,
    split_seed: int,
) -> set[tuple[str, int, int]]:
    """Station, year and month of all that belongs to the parts "train", "validation", "test"."""
    years = sorted({year for year, _ in _MONTHS})
    if not test_years or not set(test_years) < set(years):
        raise ValueError(
            f"test_years={tuple(test_years)} of source 'air_quality': use some of {years}, not all"
        )
    every = {
        f"{split_seed}/{station}/{year}-{month}": (station, year, month)
        for station in stations
        for year, month in _MONTHS
    }
    test = {key for key, item in every.items() if item[1] in test_years}
    rest = [key for key in every if key not in test]
    validation = set(hash_split(rest, "test", validation_share))
    keys = {"train": set(rest) - validation, "validation": validation, "test": test}
    return {every[key] for part in parts for key in keys[part]}


def _read_station(file: Path, station: str) -> Float64[np.ndarray, "N F"]:
    """The whole period of a station hour by hour, NaN where missing."""
    table = read_table(file)
    need_columns(table, (*_STAMP, *FEATURES, "station"))
    for line, cell in zip(table.lines, table.columns["station"], strict=True):
        if cell != station:
            raise ValueError(
                f"file {file}, line {line}, column 'station': value {cell!r} is not the station of "
                f"the file's name, {station}: give the file its published name"
            )
    start = hour_number(_FIRST)
    stamps = hours_from_parts(table, _STAMP)
    return read_hourly(table, FEATURES, stamps, start, hour_number(_END) - start)
