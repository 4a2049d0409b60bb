"""CSV files of measurements, a row each, and Markdown tables of them."""

import csv
import datetime
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from common.errors import InputError
from common.files import replacing
from machine.provenance import PROJECT

RESULTS = PROJECT / "benchmarks" / "results"


def read_rows(file: Path, *columns: str, text: Collection[str] = ()) -> pd.DataFrame:
    """All rows of a file, oldest first; none where there is no file yet.

    Args:
        file: The CSV file.
        columns: Some that it must have.
        text: Columns that stay as they are written; of others, numbers are numbers.

    Raises:
        InputError: It is something else.
    """
    cells = _read_cells(file, columns)
    if not cells[0]:
        return pd.DataFrame(columns=[*columns])
    kinds = dict.fromkeys(text, "str")
    clean = io.StringIO()
    csv.writer(clean).writerows(cells)
    clean.seek(0)
    return pd.read_csv(
        clean,
        dtype=kinds,
        keep_default_na=False,  # "none" and the like are values
        na_values=[""],
    )


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Add a row to a file, which is made when it is not there.

    It may have columns that the rows before it do not have, and the other way round;
    such cells stay empty. Several processes may add rows at the same time.

    Raises:
        InputError: The file is something else; it stays as it is.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    new = {name: "" if cell is None else str(cell) for name, cell in row.items()}
    with FileLock(file.with_name(f".{file.name}.lock")):
        header, *cells = _read_cells(file, ())
        old = pd.DataFrame(cells, columns=header, dtype="str")
        rows = pd.concat([old, pd.DataFrame([new], dtype="str")]).fillna("")
        with replacing(file, "w") as opened:
            rows.to_csv(opened, index=False, lineterminator="\n")


def check_writable(file: Path) -> None:
    """See before the work whether rows can be added to a file.

    Raises:
        OSError: They cannot.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        pass


def check_shape(done: pd.DataFrame, shape: dict[str, Any], where: str) -> None:
    """Refuse to add to measurements of another length, width or images.

    Args:
        done: The rows that others are to go beside.
        shape: What those share, by the names of the columns.
        where: What has the rows, as the message begins.

    Raises:
        InputError: They are of another shape.
    """
    for column, value in shape.items():
        known = done[column].dropna() if column in done else ()  # older rows say less
        if others := {*known} - {value}:
            raise InputError(
                f"{where} with {column} {others.pop()}, not {value}; give another, or "
                "the same value"
            )


def _read_cells(file: Path, columns: Sequence[str]) -> list[list[str]]:
    """Header and rows as text; an empty header where there is no file.

    By hand, for pandas fills up short rows without a word, and of long ones it takes
    the first cell for an index.
    """
    if not file.exists():
        return [[]]
    try:
        # Spreadsheets put a mark before UTF-8, and leave rows of commas only.
        with file.open(newline="", encoding="utf-8-sig") as opened:
            found = [cells for cells in csv.reader(opened) if any(cells)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no CSV file ({error}); give another") from None
    header, *rows = found or [[]]
    if len({*header}) < len(header):
        raise InputError(
            f"{file} has two columns of the same name; mend it, or give another file"
        )
    for column in columns:
        if column not in header:
            raise InputError(
                f"{file} has no column {column!r}, so it is no record of these "
                "measurements; give another file"
            )
    for number, cells in enumerate(rows, 1):
        if len(cells) != len(header):
            raise InputError(
                f"{file}: row {number} does not have the {len(header)} cells of the "
                "header; mend it, or give another file"
            )
    return [header, *rows]


def today() -> str:
    """The date, as in every row."""
    return datetime.date.today().isoformat()


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its floats to four digits."""
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in row.items()
    }


def markdown(table: pd.DataFrame) -> str:
    """A table whose cells are text, in Markdown."""
    return table.to_markdown(index=False, disable_numparse=True)


def summary(values: Sequence[float], digits: int) -> str:
    """Median and range, such as "0.99 (0.97-1.01)"."""
    middle, low, high = np.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
