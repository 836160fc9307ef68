"""Whether the rows of the database are what was written: each is compared with its checksum."""

# ruff: noqa: S608 - only names that stand in this room are ever put into SQL; every value is a parameter.

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


def walk(database: Database, check: RowSum, *, unsealed: bool = False) -> Iterator[tuple[Any, int | None, Any]]:
    """Every row of a table, or every one without a checksum: its number, its checksum and its columns."""
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
        last = rows[-1][0]


def check_rows(database: Database, records: list[Record], checked: Checked) -> Iterator[StoreProblem]:
    """Compare every row with its checksum; the live records that are whole are added to `records`."""
    for check in SUMS:
        try:
            for at, crc, row in walk(database, check):
                checked.rows += 1
                texts = 0 if check.table == "points" else sum(len(value) for value in row if isinstance(value, str))
                checked.size_bytes += 8 * len(row) + texts
                yield from _check_row(check, at, crc, row, records, checked)
        except EverloopError as error:
            # The database itself is damaged from here on.
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
            yield StoreProblem(kind=kind, subject=subject, message=f"It cannot be read: {error}.", repair=RESTORE)
            return
        if expected != crc:
            yield _differing(check, at, crc, row, expected, kind, subject)
            return
    try:
        if check.table == "events" and row[-1] is not None:
            decode_value(row[-1])
        if check.table not in ("records", "revisions"):
            return
        if row[2] not in KINDS:
            yield StoreProblem(kind=kind, subject=subject, message=f"It is of the kind '{row[2]}', unknown here.")
            return
        record = decode(KINDS[row[2]], row[8])
    except (EverloopError, ValueError) as error:
        message = error.message if isinstance(error, EverloopError) else f"It cannot be read: {error}."
        yield StoreProblem(kind=kind, subject=subject, message=message, repair=RESTORE)
        return
    if check.table == "records" and row[-1] is None:
        records.append(record)


def _differing(
    check: RowSum, at: Any, crc: object, row: list[Any], expected: int, kind: str, subject: str
) -> StoreProblem:
    message = f"It differs from its checksum, in the table '{check.table}'."
    place = f"{check.table} {at}"
    if not isinstance(crc, int):
        # What was damaged is the type of the checksum's value: the row itself may be as it was, and nothing proves it.
        return StoreProblem(kind=kind, subject=subject, message=message, repair=RESTORE, place=place)
    if only_sum_differs(expected, crc):
        heal = "Write the checksum again: a single bit of it was flipped, and the row is as it was."
        return StoreProblem(
            kind=kind, subject=subject, message=message, repair=REPAIR, heal=heal, cure="sum", place=place
        )
    if check.mended(row, crc) is not None:
        heal = "Flip back the single bit that was flipped, which the checksum proves."
        return StoreProblem(
            kind=kind, subject=subject, message=message, repair=REPAIR, heal=heal, cure="row", place=place
        )
    return StoreProblem(kind=kind, subject=subject, message=message, repair=RESTORE, place=place)


def seal_rows(database: Database) -> int:
    """Give every row without a checksum one, and return how many there were."""
    total = 0
    for check in SUMS:
        number = database.row_id if check.number == "rowid" else check.number
        columns = ", ".join(check.columns)
        numbers = [at for at, _, _ in walk(database, check, unsealed=True)]
        for start in range(0, len(numbers), _PORTION):
            part = numbers[start : start + _PORTION]
            with database.transaction():
                # Read again, because others may have written meanwhile.
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
