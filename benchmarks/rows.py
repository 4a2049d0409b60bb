"""CSV files of measurements, a row each: what has been measured stays on record."""

import csv
import itertools
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import replacing

Row = dict[str, str]


def read_rows(file: Path, *columns: str) -> list[Row]:
    """All rows of a file, oldest first; none where there is no file yet.

    Args:
        file: The CSV file.
        columns: Some that it must have.

    Raises:
        InputError: It is something else.
    """
    if not file.exists():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened)
            rows, header = list(reader), reader.fieldnames or ()
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no CSV file ({error}); give another") from None
    for column in columns:
        if column not in header:
            raise InputError(
                f"{file} has no column {column!r}, so it is no record of these "
                "measurements; give another file"
            )
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise InputError(
                f"{file}: row {number} does not have the {len(header)} cells of the "
                "header; mend it, or give another file"
            )
    return rows


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Add a row to a file, which is made when it is not there.

    It may have columns that the rows before it do not have, and the other way round;
    such cells stay empty.

    Raises:
        InputError: The file is something else; it stays as it is.
    """
    rows = [*read_rows(file), row]
    columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, "w") as opened:
        writer = csv.DictWriter(opened, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
