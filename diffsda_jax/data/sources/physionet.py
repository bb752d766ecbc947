"""PhysioNet 2012: the first 48 hours of intensive care stays.

Silva et al. (2012), PhysioNet/Computing in Cardiology Challenge 2012, set A (4,000 stays), ODC-BY:
`set-a/<record>.txt` with the lines `Time,Parameter,Value` (00:07,HR,73) and `Outcomes-a.txt` with
RecordID, SAPS-I, SOFA, Length_of_stay, Survival, In-hospital_death; -1 stands for missing.

Published: sequences of 80 steps by ten features; records with over 60 % missing or under 40 steps
are dropped; the type of the unit is read from the static code, mortality from both codes by an
LSTM of 32 with a layer of 16, scored by AUPRC and AUROC. Own readings, where the paper leaves it
open: `steps="bins"` takes 80 equal bins of 36 minutes and the mean of the values in a bin,
`steps="stamps"` the first 80 distinct times at which a feature was measured; the number of steps
of a record is that of its bins (times) with any value, and its missing share is taken over these,
because what is measured once an hour leaves two fifths of the 80 bins empty at best; a fifth of the
records, by a hash of their ids, is for testing; the probe of the unit has 32 hidden units.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from diffsda_jax.data.sources.base import ElementSpec, Source, hash_split
from diffsda_jax.data.sources.tables import is_missing, read_table
from diffsda_jax.data.sources.tasks import Task
from diffsda_jax.data.sources.timeline import (
    check_options,
    masked,
    need_columns,
    observed_mean,
    shift_cyclically,
    too_much_missing,
)

_LOG = logging.getLogger(__name__)

FEATURES = (
    "DiasABP",
    "GCS",
    "HCT",
    "MAP",
    "NIDiasABP",
    "NIMAP",
    "NISysABP",
    "RespRate",
    "SysABP",
    "Temp",
)
UNITS = (
    "Coronary Care Unit",
    "Cardiac Surgery Recovery Unit",
    "Medical ICU",
    "Surgical ICU",
)
SEQUENCE_STEPS = 80
STEPS = ("bins", "stamps")
_DURATION = 48 * 60  # minutes
_MISSING = -1.0
_COLUMNS = ("Time", "Parameter", "Value")
_DEATH = "In-hospital_death"


class PhysioNet(Source):
    """Stays: `x` `[80, 10]`, `static_label` (type of the unit) and `target_mortality` (0 or 1).

    Units: mmHg (pressures), degrees Celsius (Temp), percent (HCT), breaths a minute (RespRate), 3
    to 15 (GCS). What was not measured is masked; `x` is the feature's mean there. Values are taken
    as they are but for -1, implausible ones too.

    What the protocol drops is counted in the log and kept in `dropped`, {record: reason}, and not
    held against `max_skipped_share`; records that cannot be read, have no unit or outcome, or are
    listed among the outcomes without a file, are skipped.

    Args:
        split: "train" or "test".
        root: the folder of `set-a/` and `Outcomes-a.txt`.
        steps: "bins" or "stamps", see the top of this file.
        test_share: share of the records for testing.
        max_missing_share: records with a larger share of missing values are dropped.
        min_steps: records with fewer steps are dropped.
        cyclic_shift: augmentation of the training split, see `timeline.shift_cyclically`.
        max_skipped_share: see `Source`.

    Raises:
        FileNotFoundError: no such folder, or no outcomes.
        ValueError: a bad option, a bad file of outcomes, too much to skip, or nothing left.
    """

    name, kind = "physionet", "series"
    tasks = (
        Task("icu_type", "static_label", "classes", "static", 4, "mlp", (32,), ("accuracy",)),
        Task(
            "mortality",
            "target_mortality",
            "binary",
            "both",
            2,
            "lstm",
            (32, 16),
            ("auprc", "auroc"),
        ),
    )

    def __init__(
        self,
        split: str,
        root: str,
        steps: str = "bins",
        test_share: float = 0.2,
        max_missing_share: float = 0.6,
        min_steps: int = 40,
        cyclic_shift: str = "none",
        max_skipped_share: float = 0.05,
    ):
        """Reads the records of the split; see the class."""
        super().__init__(split, max_skipped_share)
        check_options(self.name, cyclic_shift, max_missing_share=max_missing_share)
        if steps not in STEPS:
            raise ValueError(f"steps={steps!r} of source 'physionet': use one of {STEPS}")
        if not 1 <= min_steps <= SEQUENCE_STEPS:
            raise ValueError(
                f"min_steps={min_steps} of source 'physionet': use 1 to {SEQUENCE_STEPS}"
            )
        self._cyclic_shift = cyclic_shift if split == "train" else "none"
        self.spec = ElementSpec(
            kind="series",
            shape=(len(FEATURES),),
            static_names=UNITS,
            feature_names=FEATURES,
            masked=True,
        )
        self._limits = (max_missing_share, min_steps)
        self.dropped: dict[str, str] = {}
        folder, deaths = _find(root)
        files = {file.stem: file for file in folder.glob("*.txt")}
        wanted = hash_split(sorted(files.keys() | deaths.keys()), split, test_share)
        self._num_records = len(wanted)
        self._records, self._labels, values = [], [], []
        for record in wanted:
            try:
                grid, unit = _read_record(folder / f"{record}.txt", record, steps)
                if record not in deaths:
                    raise ValueError("not among the outcomes")
            except ValueError as error:
                self.skip(record, str(error), check=False)
                continue
            if self._keeps(record, grid):
                self._records.append(record)
                self._labels.append((unit, deaths[record]))
                values.append(grid)
        self.check_skipped()
        self._log_dropped()
        self._values = np.array(values).reshape(-1, SEQUENCE_STEPS, len(FEATURES))
        self._fill = observed_mean(self._values)

    def _keeps(self, record: str, grid: Float64[np.ndarray, "V F"]) -> bool:
        """Whether the protocol keeps a record; if not, it is noted why."""
        max_missing_share, min_steps = self._limits
        measured = grid[~np.isnan(grid).all(axis=-1)]
        if len(measured) < min_steps:
            self.dropped[record] = f"{len(measured)} steps, under min_steps={min_steps}"
            return False
        reason = too_much_missing(measured, max_missing_share)
        if reason is not None:
            self.dropped[record] = reason
        return reason is None

    def _log_dropped(self) -> None:
        """Counts what the protocol dropped; speaks up when that is everything."""
        short = sum("min_steps" in reason for reason in self.dropped.values())
        text = (
            f"{len(self.dropped)} of {self._num_records} records dropped by the protocol: {short} "
            f"under min_steps={self._limits[1]}, {len(self.dropped) - short} over "
            f"max_missing_share={self._limits[0]:g}"
        )
        if not self._records:
            raise ValueError(f"{self.name}/{self.split}: no record is left, {text}: loosen these")
        if self.dropped:
            _LOG.info("%s/%s: %s", self.name, self.split, text)

    def __len__(self) -> int:
        """Number of records that are kept."""
        return len(self._records)

    def num_items(self) -> int:
        """Number of records in the split, the dropped and skipped ones too."""
        return self._num_records

    def lengths(self) -> np.ndarray:
        """80 for every record."""
        return np.full(len(self), SEQUENCE_STEPS)

    def item_name(self, index: int) -> str:
        """Id of a record."""
        return f"{self.name}/{self.split} record {self._records[index]}"

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Record `index`; draws from `rng` for the cyclic shift alone."""
        unit, death = self._labels[index]
        element = masked(self._values[index], self._fill)
        element = shift_cyclically(element, self._cyclic_shift, rng)
        return {**element, "static_label": unit, "target_mortality": death}

    def _identity(self) -> Any:
        digest = hashlib.sha256(self._values.tobytes()).hexdigest()
        return [digest, self._records, self._labels, self._cyclic_shift]


def _find(root: str) -> tuple[Path, dict[str, int]]:
    """The folder of records, and who died in hospital (1) and who did not (0)."""
    place = Path(root).expanduser()
    folder, outcomes = place / "set-a", place / "Outcomes-a.txt"
    advice = "set root to the folder that holds set-a/ and Outcomes-a.txt of PhysioNet 2012"
    if not str(root) or not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} of source 'physionet' is missing: {advice}")
    if not outcomes.is_file():
        raise FileNotFoundError(f"file {outcomes} of source 'physionet' is missing: {advice}")
    table = read_table(outcomes)
    need_columns(table, ("RecordID", _DEATH))
    deaths: dict[str, int] = {}
    for line, record, cell in zip(
        table.lines, table.columns["RecordID"], table.columns[_DEATH], strict=True
    ):
        if cell not in ("0", "1") or record in deaths:
            problem = (
                "is listed twice" if record in deaths else f"has {_DEATH} {cell!r}, not 0 or 1"
            )
            raise ValueError(
                f"file {outcomes}, line {line}: record {record!r} {problem}: correct the line"
            )
        deaths[record] = int(cell)
    return folder, deaths


def _read_record(file: Path, record: str, steps: str) -> tuple[Float64[np.ndarray, "V F"], int]:
    """The steps of a record, NaN where missing, and its unit from 0.

    Raises:
        ValueError: the record cannot be used; with the reason.
    """
    if not file.is_file():
        raise ValueError("listed among the outcomes, but has no file")
    table = read_table(file)
    need_columns(table, _COLUMNS)
    minutes, features, values, unit, named = [], [], [], None, None
    for line, time, parameter, cell in zip(
        table.lines, *(table.columns[name] for name in _COLUMNS), strict=True
    ):
        if parameter == "ICUType":
            unit = cell
        elif parameter == "RecordID":
            named = cell
        elif parameter in FEATURES and not is_missing(cell):
            value = _value(line, parameter, cell)
            if value != _MISSING:
                minutes.append(_minutes(line, time))
                features.append(FEATURES.index(parameter))
                values.append(value)
    if named is not None and named != record:
        raise ValueError(f"holds record {named}")
    if unit is None or unit not in map(str, range(1, len(UNITS) + 1)):
        raise ValueError(f"ICUType {unit!r}, not 1 to {len(UNITS)}")
    return _steps(np.array(minutes), np.array(features, int), np.array(values), steps), int(
        unit
    ) - 1


def _value(line: int, parameter: str, cell: str) -> float:
    """A finite number."""
    try:
        value = float(cell)
    except ValueError:
        value = np.inf
    if not np.isfinite(value):
        raise ValueError(f"line {line}: {parameter} {cell!r} is no finite number")
    return value


def _minutes(line: int, time: str) -> int:
    """Minutes since admission of a time like 00:07."""
    hours, _, rest = time.partition(":")
    if hours.isdecimal() and rest.isdecimal() and len(rest) == 2 and int(rest) < 60:
        minutes = 60 * int(hours) + int(rest)
        if minutes <= _DURATION:
            return minutes
    raise ValueError(f"line {line}: time {time!r} is not one of 00:00 to 48:00")


def _steps(
    minutes: np.ndarray, features: np.ndarray, values: np.ndarray, steps: str
) -> Float64[np.ndarray, "V F"]:
    """Mean of the values of every step and feature, NaN where there are none."""
    if steps == "bins":
        # The last minute, 48:00, belongs to the last bin.
        place = np.minimum(minutes * SEQUENCE_STEPS // _DURATION, SEQUENCE_STEPS - 1).astype(int)
    else:
        place = np.unique(minutes, return_inverse=True)[1]
    kept = place < SEQUENCE_STEPS
    where = (place[kept], features[kept])
    total, count = (np.zeros((SEQUENCE_STEPS, len(FEATURES))) for _ in range(2))
    np.add.at(total, where, values[kept])
    np.add.at(count, where, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
