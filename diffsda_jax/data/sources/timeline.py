"""Hourly series from tables: time stamps, a gapless grid, missing values and cyclic shifts.

Missing values are NaN until `masked` turns them into a mask.
"""

import datetime
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from diffsda_jax.data.sources.tables import Table, numbers

_LOG = logging.getLogger(__name__)

SHIFTS = ("none", "corrected", "reference")
_EPOCH = datetime.datetime(1970, 1, 1)
_HOUR = datetime.timedelta(hours=1)


def hour_number(moment: datetime.datetime) -> int:
    """Full hours from 1970-01-01 00:00 to a time of the same clock."""
    return (moment - _EPOCH) // _HOUR


def hour_text(number: int) -> str:
    """Inverse of `hour_number`, for messages."""
    return (_EPOCH + number * _HOUR).strftime("%Y-%m-%d %H:00")


def need_columns(table: Table, names: Sequence[str]) -> None:
    """Refuses a table without the wanted columns.

    Raises:
        ValueError: the first of `names` that the table has no column for.
    """
    for name in names:
        if name not in table.columns:
            raise ValueError(
                f"file {table.path} has no column {name!r} but {', '.join(table.columns)}: use the "
                f"published file, with the columns {', '.join(names)}"
            )


def hours_from_text(table: Table, column: str) -> Int64[np.ndarray, " N"]:
    """The `hour_number` of every row from a column like 2016-07-01 00:00:00.

    Raises:
        ValueError: no date and time, one with a UTC offset, or not a full hour; with file, line,
            column and value.
    """
    stamps = []
    for line, cell in zip(table.lines, table.columns[column], strict=True):
        place = f"file {table.path}, line {line}, column {column!r}: value {cell!r}"
        try:
            moment = datetime.datetime.fromisoformat(cell)
        except ValueError:
            raise ValueError(
                f"{place} is no date and time: write it like 2016-07-01 00:00:00"
            ) from None
        if moment.tzinfo is not None:
            raise ValueError(f"{place} has a UTC offset: write all times without, on one clock")
        if (moment - _EPOCH) % _HOUR:
            raise ValueError(f"{place} is not a full hour: use the hourly file")
        stamps.append(moment)
    return _hour_numbers(stamps)


def hours_from_parts(table: Table, columns: Sequence[str]) -> Int64[np.ndarray, " N"]:
    """The `hour_number` of every row from the columns of year, month, day and hour.

    Raises:
        ValueError: a row that is no date and hour; with file, line, columns and values.
    """
    stamps = []
    cells = (table.columns[name] for name in columns)
    for line, parts in zip(table.lines, zip(*cells, strict=True), strict=True):
        try:
            year, month, day, hour = map(int, parts)
            stamps.append(datetime.datetime(year, month, day, hour))
        except (ValueError, OverflowError):
            raise ValueError(
                f"file {table.path}, line {line}, columns {', '.join(columns)}: values "
                f"{', '.join(parts)} are no date and hour: correct or remove the line"
            ) from None
    return _hour_numbers(stamps)


def _hour_numbers(moments: list[datetime.datetime]) -> Int64[np.ndarray, " N"]:
    """The `hour_number` of many times."""
    return np.array(moments, "datetime64[h]").astype(np.int64)


def read_hourly(
    table: Table, features: Sequence[str], stamps: Int64[np.ndarray, " N"], start: int, hours: int
) -> Float64[np.ndarray, "hours F"]:
    """Puts the rows of a table on a grid with one step an hour.

    Rows may be in any order. Of rows with the same stamp (an hour that a change from daylight
    saving time repeats, or a line copied twice) the first in the file is kept. Both these and the
    hours without a row are counted in the log.

    Args:
        table: see `tables.read_table`.
        features: columns to read, F of them.
        stamps: the `hour_number` of every row, in hours.
        start: the `hour_number` of the first step.
        hours: number of steps.

    Returns:
        The values, NaN where missing.

    Raises:
        ValueError: a row outside the grid, or a cell that `tables.numbers` refuses.
    """
    outside = (stamps < start) | (stamps >= start + hours)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"file {table.path}, line {table.lines[row]}: {hour_text(int(stamps[row]))} is outside "
            f"{hour_text(start)} to {hour_text(start + hours - 1)}: correct or remove the line"
        )
    kept_stamps, kept = np.unique(stamps, return_index=True)  # gives first occurrences
    repeated = np.setdiff1d(np.arange(len(stamps)), kept)
    if len(repeated):
        _LOG.warning(
            "file %s: %d rows repeat the time of an earlier one and are left out, first line %d",
            table.path,
            len(repeated),
            table.lines[int(repeated[0])],
        )
    grid = np.full((hours, len(features)), np.nan)
    places = kept_stamps - start
    for number, name in enumerate(features):
        grid[places, number] = numbers(table, name, allow_missing=True)[kept]
    if len(kept) < hours:
        absent = np.setdiff1d(np.arange(hours), places)
        _LOG.warning(
            "file %s: %d of %d hours have no row and are masked, first %s",
            table.path,
            len(absent),
            hours,
            hour_text(start + int(absent[0])),
        )
    return grid


def observed_mean(values: Float[np.ndarray, "... F"]) -> Float64[np.ndarray, " F"]:
    """Mean of every feature over all that is not NaN; 0 for one that always is."""
    flat = values.reshape(-1, values.shape[-1])
    count = np.isfinite(flat).sum(0)
    return np.nan_to_num(flat, nan=0.0).sum(0) / np.maximum(count, 1)


def masked(
    values: Float64[np.ndarray, "V F"], fill: Float64[np.ndarray, " F"]
) -> dict[str, np.ndarray]:
    """`x` float32 and `mask` of an element, `[V, F]`; `x` is `fill` where a value is missing.

    With `observed_mean` as `fill`, a place that the reference shift uncovers holds an average
    value, 0 after z-scoring, and not an outlier.
    """
    mask = np.isfinite(values)
    return {"x": np.where(mask, values, fill).astype(np.float32), "mask": mask}


def missing_share(values: Float[np.ndarray, "..."]) -> float:
    """Share of NaN."""
    return float(np.isnan(values).mean())


def too_much_missing(values: Float[np.ndarray, "..."], limit: float) -> str | None:
    """Why a sequence is left out for its share of NaN, or None when that is at most `limit`."""
    share = missing_share(values)
    return f"{share:.0%} missing, over max_missing_share={limit:g}" if share > limit else None


def check_options(source: str, cyclic_shift: str, **shares: float) -> None:
    """Refuses options of a source.

    Raises:
        ValueError: an unknown cyclic shift, or a share outside [0, 1].
    """
    if cyclic_shift not in SHIFTS:
        raise ValueError(f"cyclic_shift={cyclic_shift!r} of source {source!r}: use one of {SHIFTS}")
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name}={share} of source {source!r}: use a share in [0, 1]")


def shift_cyclically(
    element: dict[str, Any],
    mode: str,
    rng: np.random.Generator,
    per_step: Sequence[str] = (),
) -> dict[str, Any]:
    """Rolls a sequence by a random number of steps; its end comes before its start.

    Args:
        element: `x` `[V, F]`, `mask` `[V, F]` and more.
        mode: "none"; "corrected" moves `x`, `mask` and `per_step` together; "reference" moves `x`
            alone, as the released code does, so that mask and labels no longer fit it.
        rng: of the number of steps, 0 to V - 1; nothing is drawn for "none".
        per_step: further keys with one value a step.

    Returns:
        The element with the moved arrays.
    """
    if mode == "none":
        return element
    shift = int(rng.integers(len(element["x"])))
    moved = ("x",) if mode == "reference" else ("x", "mask", *per_step)
    return {**element, **{key: np.roll(element[key], shift, axis=0) for key in moved}}
