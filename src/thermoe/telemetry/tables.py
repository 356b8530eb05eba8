"""Reads small recorded tables, CSV or Parquet, with errors a user can act on."""

import csv
from pathlib import Path
from typing import Any

from thermoe.errors import DataError

Row = dict[str, Any]

_DELIMITERS = ",;\t"


def read_table(path: Path) -> list[Row]:
    """Rows of a CSV or Parquet file by column name; an empty CSV cell is `None`.

    Raises:
        DataError: If the file is missing, empty, truncated or neither of both.
    """
    if not path.is_file():
        raise DataError(f"no file {path}: needed a recorded log, .parquet or .csv")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: needed a recorded log with a header and at least one row")
    rows = _read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
    if not rows:
        raise DataError(f"{path} has no rows: needed at least one")
    return rows


def read_csv(path: Path) -> list[Row]:
    """Rows of a delimited text file; header and cells are stripped, short rows are filled with `None`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}): needed CSV with a header line") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty: needed a header line and at least one row")
    delimiter = max(_DELIMITERS, key=lines[0].count)
    try:
        header, *body = csv.reader(lines, delimiter=delimiter)
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV ({error}): needed cells of ordinary length") from None
    names = [name.strip() for name in header]
    rows: list[Row] = []
    for cells in body:
        values = [cell.strip() or None for cell in cells]
        rows.append(dict(zip(names, values + [None] * (len(names) - len(values)), strict=False)))
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a whole Parquet file ({first_line}): record it again") from None
    rows: list[Row] = table.to_pylist()
    return rows
