"""Copying all rows of one database of records to another, in their stored form, and comparing them one by one.

Rows keep their ids, numbers, times and checksums, so the history, the order of events and the pages of searches stay
the same. The rows of a table are read in the order of its key, a portion at a time.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, StoreError, UsageError
from everloop.stores.records.row_checksums import SUMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from everloop.stores.records.sql_logs import Database

_PORTION = 5000
_SUMS = {check.table: check for check in SUMS}
_SEARCHED = ("rec", "path", "number", "text", "form")


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """A table of the database, as both dialects have it."""

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    numbered: bool = False
    """Whether the database numbers new rows in the first column of the key."""


TABLES = (
    CopiedTable("records", ("id",), (*_SUMS["records"].columns, "crc")),
    CopiedTable("revisions", ("number",), ("number", *_SUMS["revisions"].columns, "crc"), numbered=True),
    CopiedTable("metrics", ("id",), ("id", *_SUMS["metrics"].columns, "crc"), numbered=True),
    CopiedTable("points", ("seq",), ("seq", *_SUMS["points"].columns, "crc"), numbered=True),
    CopiedTable("events", ("seq",), ("seq", *_SUMS["events"].columns, "crc"), numbered=True),
    CopiedTable("searched_records", ("rec",), ("rec", "id", "project", "kind"), numbered=True),
    CopiedTable("searched_values", ("rec", "path"), _SEARCHED),
    CopiedTable("searched_paths", ("path",), ("path", "project", "kind", "field", "name")),
    CopiedTable("searched_backlog", ("id",), ("id",)),
)

NOT_COPIED = ("leases",)
"""Tables of what is only true for a moment. A store is moved only while no process uses it."""


def is_empty(database: Database) -> bool:
    return not any(database.read(f"SELECT 1 FROM {table.name} LIMIT 1") for table in TABLES)


def clear_rows(database: Database) -> None:
    """Remove all rows. Runs in a transaction."""
    for table in TABLES:
        database.write(f"DELETE FROM {table.name}")


def count_rows(database: Database) -> dict[str, int]:
    return {table.name: database.read(f"SELECT count(*) FROM {table.name}")[0][0] for table in TABLES}


def copy_rows(source: Database, target: Database, progress: Callable[[str, int], None]) -> None:
    """Copy every row. Runs in a transaction of both databases, and the target has no rows.

    Args:
        progress: called with a table and the number of its rows that have been copied.

    Raises:
        CorruptionError: a row differs from its checksum. Nothing damaged is copied.
    """
    for table in TABLES:
        copied = 0
        for rows in _portions(source, table):
            for row in rows:
                _check(table, row)
            target.write_rows(table.name, table.columns, rows)
            copied += len(rows)
            progress(table.name, copied)
        if table.numbered:
            target.continue_numbers(table.name, table.key[0])


def compare_rows(source: Database, target: Database) -> str:
    """Compare every row of two databases.

    Returns:
        The SHA-256 of all rows.

    Raises:
        StoreError: they differ. The message names the first different row.
    """
    total = hashlib.sha256()
    for table in TABLES:
        total.update(table.name.encode())
        for ours, theirs in zip_longest(_rows(source, table), _rows(target, table)):
            if ours != theirs:
                known = ours if ours is not None else theirs
                key = ", ".join(str(known[table.columns.index(column)]) for column in table.key) if known else ""
                raise StoreError(
                    f"The row {key} of the table '{table.name}' differs from its copy.",
                    help="Nothing was switched. Stop all processes that use the store, and move it again.",
                )
            total.update(repr(ours).encode("utf-8", "surrogatepass"))
    return f"sha256:{total.hexdigest()}"


def _rows(database: Database, table: CopiedTable) -> Iterator[tuple[Any, ...]]:
    for rows in _portions(database, table):
        yield from rows


def _portions(database: Database, table: CopiedTable) -> Iterator[list[tuple[Any, ...]]]:
    columns, order = ", ".join(table.columns), ", ".join(table.key)
    marks = ", ".join("?" * len(table.key))
    at = [table.columns.index(column) for column in table.key]
    where, last = "", ()
    while rows := database.read(
        f"SELECT {columns} FROM {table.name}{where} ORDER BY {order} LIMIT ?", (*last, _PORTION)
    ):
        # SQLite does not distinguish -0.0 from 0.0, so both are written as 0.0. Checksums treat them alike.
        yield [tuple(value + 0.0 if type(value) is float else value for value in row) for row in rows]
        last = tuple(rows[-1][position] for position in at)
        where = f" WHERE ({order}) > ({marks})"


def _check(table: CopiedTable, row: tuple[Any, ...]) -> None:
    check, values = _SUMS.get(table.name), dict(zip(table.columns, row, strict=True))
    for value in row:
        if isinstance(value, str) and "\0" in value:
            raise UsageError(
                f"A row of '{table.name}' contains a NUL character, which not every database can store.",
                help="See: everloop verify",
            )
    if check is None or values["crc"] is None:
        return
    try:
        intact = check.of([values[column] for column in check.columns]) == values["crc"]
    except (struct.error, TypeError, ValueError):
        intact = False
    if not intact:
        raise CorruptionError(
            f"A row of '{table.name}' ({table.key[0]} {values[table.key[0]]}) differs from its checksum.",
            help="Repair the store first: everloop verify --repair",
        )
