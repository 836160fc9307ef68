"""Checking the rows of the database against their checksums."""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError
from everloop.records import KINDS
from everloop.stores.records.record_codec import decode, decode_value
from everloop.stores.records.row_checksums import SUMS, RowSum, only_sum_differs
from everloop.stores.verify_report import StoreProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.records import Record
    from everloop.stores.records.sql_logs import Database
    from everloop.stores.verify_report import Checked

_PORTION = 5000
REPAIR = "everloop verify --repair"
RESTORE = "everloop restore BACKUP --home NEW"


def iterate_rows(database: Database, check: RowSum, *, unsealed: bool = False) -> Iterator[tuple[Any, int | None, Any]]:
    """Yield number, checksum and columns of every row of a table, or of the rows without a checksum."""
    number = database.row_id if check.number == "rowid" else check.number
    last: object = "" if number == "id" and check.number == "rowid" else -(2**63)
    columns = ", ".join(check.columns)
    only = " AND crc IS NULL" if unsealed else ""
    while rows := database.read_raw(
        f"SELECT {number}, crc, {columns} FROM {check.table} WHERE {number} > ?{only} ORDER BY {number} LIMIT ?",
        (last, _PORTION),
    ):
        for at, crc, *row in rows:
            yield at, crc, row
        following = rows[-1][0]
        if isinstance(last, int) and following <= last:
            # The numbers are out of order, so the table's tree is damaged, and reading on would never end. SQLite's own
            # check, which comes first, has reported it.
            return
        last = following


def check_rows(database: Database, records: list[Record], checked: Checked) -> Iterator[StoreProblem]:
    """Compare every row with its checksum. Intact live records are appended to `records`."""
    for check in SUMS:
        try:
            for at, crc, row in iterate_rows(database, check):
                checked.rows += 1
                texts = 0 if check.table == "points" else sum(len(value) for value in row if isinstance(value, str))
                checked.size_bytes += 8 * len(row) + texts
                yield from _check_row(check, at, crc, row, records, checked)
        except EverloopError as error:
            # The database itself is damaged, so the rest of this table cannot be read.
            yield StoreProblem(kind="records", subject=check.table, message=error.message, repair=RESTORE)


def _check_row(
    check: RowSum, at: Any, crc: int | None, row: list[Any], records: list[Record], checked: Checked
) -> Iterator[StoreProblem]:
    subject = str(row[0]) if check.table == "records" else f"{check.table} {at}"
    kind = "record" if check.table == "records" else "row"
    if crc is None:
        checked.unsealed_rows += 1
    else:
        try:
            expected = check.of(row)
        except (struct.error, TypeError, ValueError) as error:
            yield StoreProblem(kind=kind, subject=subject, message=f"The row cannot be read: {error}.", repair=RESTORE)
            return
        if expected != crc:
            yield _mismatch(check, at, crc, row, expected, kind, subject)
            return
    try:
        if check.table == "events" and row[-1] is not None:
            decode_value(row[-1])
        if check.table not in ("records", "revisions"):
            return
        if row[2] not in KINDS:
            message = f"This version of everloop does not know records of the kind '{row[2]}'."
            yield StoreProblem(kind=kind, subject=subject, message=message)
            return
        record = decode(KINDS[row[2]], row[8])
    except (EverloopError, ValueError) as error:
        message = error.message if isinstance(error, EverloopError) else f"The row cannot be read: {error}."
        yield StoreProblem(kind=kind, subject=subject, message=message, repair=RESTORE)
        return
    if check.table == "records" and row[-1] is None:
        records.append(record)


def _mismatch(
    check: RowSum, at: Any, crc: object, row: list[Any], expected: int, kind: str, subject: str
) -> StoreProblem:
    message = f"A row of the table '{check.table}' differs from its checksum."
    location = f"{check.table} {at}"
    if not isinstance(crc, int):
        # The damage has changed the type of the checksum. The row may be intact, but nothing proves it.
        return StoreProblem(kind=kind, subject=subject, message=message, repair=RESTORE, location=location)
    if only_sum_differs(expected, crc):
        heal = "Write the checksum again: one bit of it was flipped, and the row is intact."
        return StoreProblem(
            kind=kind, subject=subject, message=message, repair=REPAIR, heal=heal, cure="sum", location=location
        )
    if check.repaired(row, crc) is not None:
        heal = "Correct the one flipped bit; the checksum proves which one it is."
        return StoreProblem(
            kind=kind, subject=subject, message=message, repair=REPAIR, heal=heal, cure="row", location=location
        )
    return StoreProblem(kind=kind, subject=subject, message=message, repair=RESTORE, location=location)


def seal_rows(database: Database) -> int:
    """Add a checksum to every row that has none, and return the number of these rows."""
    total = 0
    for check in SUMS:
        number = database.row_id if check.number == "rowid" else check.number
        columns = ", ".join(check.columns)
        numbers = [at for at, _, _ in iterate_rows(database, check, unsealed=True)]
        for start in range(0, len(numbers), _PORTION):
            part = numbers[start : start + _PORTION]
            with database.transaction():
                # Read the rows again, because other processes may have changed them meanwhile.
                rows = database.read(
                    f"SELECT {number}, {columns} FROM {check.table} WHERE crc IS NULL AND {number} BETWEEN ? AND ?",
                    (part[0], part[-1]),
                )
                database.write_many(
                    f"UPDATE {check.table} SET crc = ? WHERE {number} = ?",
                    [(check.of(row), at) for at, *row in rows],
                )
            total += len(rows)
    return total
