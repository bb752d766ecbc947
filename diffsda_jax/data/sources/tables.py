"""Reading CSV files into columns of text and numbers, with errors that name the place."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float64

MISSING = ("", "na", "n/a", "nan", "null", "none")


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file as text.

    Attributes:
        path: the file.
        columns: cells by column name, in the order of the header.
        lines: line number in the file of every row.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]


def read_table(path: Path, delimiter: str = ",") -> Table:
    """Reads a CSV file whose first line names the columns; blank lines are passed over.

    Raises:
        ValueError: no header, no rows, repeated names, a row of another width, or bytes that are
            not UTF-8; with file and line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)  # no quote left open
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"file {path} is not UTF-8 text ({error.reason}): save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise ValueError(f"file {path} is not a CSV file ({error}): mend or remove it") from None
    if len(rows) < 2:
        raise ValueError(f"file {path} has no rows: expected a line of column names, then data")
    header = rows.pop(0)[1]
    _check_header(path, header, delimiter)
    for line, row in rows:
        if "\0" in "".join(row):
            raise ValueError(
                f"file {path}, line {line}: bytes of zero, as of a damaged disk: mend it"
            )
        if len(row) != len(header):
            raise ValueError(
                f"file {path}, line {line}: {len(row)} cells, but the header names {len(header)} "
                "columns: mend the line"
            )
    cells = zip(*(row for _, row in rows), strict=True)
    columns = {name: list(column) for name, column in zip(header, cells, strict=True)}
    return Table(path, columns, [line for line, _ in rows])


def _check_header(path: Path, header: list[str], delimiter: str) -> None:
    """Refuses repeated names, a header of numbers, and what looks like another delimiter."""
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"file {path}: column {repeated[0]!r} occurs twice: rename one of them")
    if all(is_number(name) for name in header):
        raise ValueError(
            f"file {path} starts with numbers ({', '.join(header[:3])}...): put a line of column "
            "names before them"
        )
    other = next((mark for mark in (";", "\t", ",") if mark in header[0]), None)
    if len(header) == 1 and other:
        raise ValueError(
            f"file {path} has one column {header[0]!r} with delimiter {delimiter!r}: set "
            f"delimiter={other!r}"
        )


def is_missing(cell: str) -> bool:
    """Whether a cell stands for a missing value: empty or one of `MISSING` in any case."""
    return cell.lower() in MISSING


def is_number(cell: str) -> bool:
    """Whether a cell that is not missing reads as a number (infinity included)."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def number_share(tables: list[Table], column: str) -> float:
    """Share of numbers among the cells of a column that are not missing; 0 when all are."""
    counts = {True: 0, False: 0}
    for table in tables:
        for cell in table.columns[column]:
            if not is_missing(cell):
                counts[is_number(cell)] += 1
    return counts[True] / max(1, sum(counts.values()))


def numbers(table: Table, column: str, allow_missing: bool) -> Float64[np.ndarray, " N"]:
    """A column as numbers, NaN where missing.

    Raises:
        ValueError: text, infinity, a number beyond float32, or (unless allowed) a missing value;
            with file, line and column.
    """
    cells = table.columns[column]
    filled = np.array(["nan" if is_missing(cell) else cell for cell in cells])
    try:
        values = filled.astype(np.float64)
    except ValueError:
        row = next(i for i, cell in enumerate(filled) if not is_number(cell))
        raise _cell_error(
            table,
            column,
            row,
            "is no number: correct it, empty the cell if it is missing, or leave "
            "the column out of features",
        ) from None
    unbounded = np.abs(values) > np.finfo(np.float32).max
    if unbounded.any():
        problem = "is not a finite float32 number: correct it, or empty the cell if it is missing"
        raise _cell_error(table, column, int(np.argmax(unbounded)), problem)
    if not allow_missing and np.isnan(values).any():
        problem = "is missing (NaN): fill it in, or set nan_policy='mask' to mask missing values"
        raise _cell_error(table, column, int(np.argmax(np.isnan(values))), problem)
    return values


def texts(table: Table, column: str) -> list[str]:
    """A column of ids or labels as text.

    Raises:
        ValueError: a missing value; with file, line and column.
    """
    cells = table.columns[column]
    for row, cell in enumerate(cells):
        if is_missing(cell):
            raise _cell_error(table, column, row, "is missing: every row needs one, fill it in")
    return cells


def _cell_error(table: Table, column: str, row: int, problem: str) -> ValueError:
    """Names file, line, column and value."""
    value = table.columns[column][row]
    return ValueError(
        f"file {table.path}, line {table.lines[row]}, column {column!r}: value {value!r} {problem}"
    )
