"""Checksums of database rows, and locating a flipped bit with them.

Each row of records, revisions, events, points and metrics has a CRC-32 of its columns, because SQLite has no page
checksums and a server may run without them. The low 32 bits of a record's checksum cover everything except the time of
its deletion or replacement. The bits above cover that time, so that it can be set without reading the body.

A CRC-32 detects every flipped bit and every burst of damage up to 32 bits. It misses other damage once in four billion
times. It protects against failing disks and memory, not against people who change the file on purpose.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Row = tuple[Any, ...]

_NONE = "\1"
_NUMBERS = struct.Struct("<qqq")
_POINT = struct.Struct("<qqqqd")
_TIME = struct.Struct("<q")
_NAN = struct.unpack("<d", b"\0\0\0\0\0\0\xf8\x7f")[0]
_HIGH = 1 << 32
_HALF = 1 << 31
_ENDING = frozenset({"records", "revisions"})
"""Tables whose last column is the time when a row was deleted or replaced."""
_MOST_BYTES = 1 << 20
"""In longer rows, other damage is too likely to look like one flipped bit."""
_pack_point = _POINT.pack


def record_sum(
    identity: str,
    project: str,
    kind: str,
    key: str,
    state: str | None,
    created_at: int,
    revision: int,
    written_at: int,
    body: str,
) -> int:
    """The checksum of a live record."""
    return crc32(_record_message((identity, project, kind, key, state, created_at, revision, written_at, body)))


def ended_part(moment: int | None) -> int:
    """The summand that the time of a deletion or replacement adds to a record's checksum."""
    return 0 if moment is None else (crc32(_TIME.pack(moment)) & 0x7FFFFFFF) * _HIGH


def event_sum(project: str, at: int, actor: str, verb: str, kind: str, subject: str, key: str, data: str | None) -> int:
    return crc32(_event_message((project, at, actor, verb, kind, subject, key, data)))


def metric_sum(project: str, series: str, key: str) -> int:
    return crc32(_metric_message((project, series, key)))


def point_sum(metric: int, step: int, at: int, written_at: int, value: float | None) -> int:
    """The checksum of one point, as a signed 32-bit number to save space."""
    # Adding zero turns -0.0 into 0.0, because SQLite does not distinguish them.
    return crc32(_pack_point(metric, step, at, written_at, _NAN if value is None else value + 0.0)) - _HALF


def sum_points(
    metrics: dict[str, int], rows: Sequence[tuple[str, int, int, float]], now: int
) -> list[tuple[int, int, int, int, float | None, int]]:
    """The rows for the table of points, with the same checksums as `point_sum`. Runs for every logged point.

    Args:
        metrics: the number of each metric by its key.
        rows: key, step, µs since 1970 and value of each point.

    Raises:
        struct.error: a number is too large for the database, or is not an integer.
    """
    pack, crc = _pack_point, crc32
    # Not every database can store NaN. A point always has a value, so NULL can stand for NaN.
    return [
        (metric := metrics[key], step, at, now, value, crc(pack(metric, step, at, now, value + 0.0)) - _HALF)
        if value == value
        else (metric := metrics[key], step, at, now, None, crc(pack(metric, step, at, now, _NAN)) - _HALF)
        for key, step, at, value in rows
    ]


class RowSum:
    """The checksum of one table's rows: the columns that it covers, and how it is computed."""

    def __init__(
        self,
        table: str,
        number: str,
        columns: tuple[str, ...],
        message: Callable[[Row], bytes],
        row: Callable[[bytes], Row],
    ) -> None:
        self.table = table
        self.number = number
        """The column that identifies rows; `rowid` if the table has no increasing column."""
        self.columns = columns
        self._message = message
        self._row = row

    def of(self, row: Sequence[Any]) -> int:
        """The checksum that a row with these columns must have.

        Raises:
            struct.error, TypeError: a value does not have the type of its column.
        """
        if self.table == "points":
            return point_sum(*row)
        if self.table in _ENDING:
            return crc32(self._message(tuple(row[:-1]))) + ended_part(row[-1])
        return crc32(self._message(tuple(row)))

    def repaired(self, row: Sequence[Any], stored: int) -> Row | None:
        """The row with one flipped bit corrected, if its checksum proves which bit it was; else None."""
        try:
            if len(self._message(tuple(row[: -1 if self.table in _ENDING else None]))) > _MOST_BYTES:
                return None
            if self.table in _ENDING:
                return self._repaired_record(row, stored)
            if self.table == "points" and row[-1] is not None:
                row = (*row[:-1], row[-1] + 0.0)
            message = self._message(tuple(row))
            at = flipped_bit(message, (stored + (_HALF if self.table == "points" else 0)) & 0xFFFFFFFF)
            return None if at is None else self._row(_flip(message, at))
        except (struct.error, TypeError, ValueError):
            return None

    def _repaired_record(self, row: Sequence[Any], stored: int) -> Row | None:
        message, ended = self._message(tuple(row[:-1])), row[-1]
        if crc32(message) == stored & 0xFFFFFFFF:
            # The damage is in the time of deletion or replacement.
            for bit in range(64 if ended is not None else 0):
                other = _TIME.unpack(_flip(_TIME.pack(ended), bit))[0]
                if ended_part(other) == stored - (stored & 0xFFFFFFFF):
                    return (*row[:-1], other)
            return None
        if ended_part(ended) != stored - (stored & 0xFFFFFFFF):
            return None
        at = flipped_bit(message, stored & 0xFFFFFFFF)
        return None if at is None else (*self._row(_flip(message, at)), ended)


def only_sum_differs(expected: int, stored: int) -> bool:
    """Whether exactly one bit of the checksum itself was flipped.

    A flipped bit in the row always changes more than one bit of its checksum.
    """
    return ((expected ^ stored) & (_HIGH * _HIGH - 1)).bit_count() == 1


def flipped_bit(message: bytes, stored: int) -> int | None:
    """The bit that has to be flipped so that the message has this CRC-32, counted from the first byte's lowest bit."""
    wanted = crc32(message) ^ stored
    # The change caused by a flip does not depend on the other bits. One byte further from the end, it is one step of
    # the CRC further.
    steps = _steps()
    changes = [crc32(bytes([1 << bit])) ^ crc32(b"\0") for bit in range(8)]
    for position in range(len(message) - 1, -1, -1):
        if wanted in changes:
            return position * 8 + changes.index(wanted)
        changes = [(change >> 8) ^ steps[change & 0xFF] for change in changes]
    return None


@cache
def _steps() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _flip(message: bytes, at: int) -> bytes:
    changed = bytearray(message)
    changed[at >> 3] ^= 1 << (at & 7)
    return bytes(changed)


def _texts(*texts: str | None) -> bytes:
    # Stored texts contain no NUL. In damaged ones, bytes that are not valid UTF-8 have become surrogates.
    joined = "\0".join([_NONE if text is None else text for text in texts])
    for errors in ("strict", "surrogateescape"):
        try:
            return joined.encode("utf-8", errors)
        except UnicodeEncodeError:
            continue
    # The database will refuse such a text, with a better message.
    return joined.encode("utf-8", "surrogatepass")


def _parts(message: bytes, count: int) -> list[str | None]:
    texts = message.decode().split("\0", count - 1)
    if len(texts) != count:
        raise ValueError("A separator was flipped.")
    return [None if text == _NONE else text for text in texts]


def _record_message(row: Row) -> bytes:
    identity, project, kind, key, state, created_at, revision, written_at, body = row
    return _NUMBERS.pack(created_at, revision, written_at) + _texts(identity, project, kind, key, state, body)


def _record_row(message: bytes) -> Row:
    identity, project, kind, key, state, body = _parts(message[_NUMBERS.size :], 6)
    return (identity, project, kind, key, state, *_NUMBERS.unpack_from(message), body)


def _event_message(row: Row) -> bytes:
    project, at, *texts = row
    return _TIME.pack(at) + _texts(project, *texts)


def _event_row(message: bytes) -> Row:
    project, *texts = _parts(message[_TIME.size :], 7)
    return (project, *_TIME.unpack_from(message), *texts)


def _metric_message(row: Row) -> bytes:
    return _texts(*row)


def _metric_row(message: bytes) -> Row:
    return tuple(_parts(message, 3))


def _point_message(row: Row) -> bytes:
    *numbers, value = row
    return _POINT.pack(*numbers, _NAN if value is None else value)


def _point_row(message: bytes) -> Row:
    *numbers, value = _POINT.unpack(message)
    return (*numbers, None if value != value else value)


_RECORD = ("id", "project", "kind", "key", "state", "created_at", "revision", "written_at", "body")

SUMS = (
    RowSum("records", "rowid", (*_RECORD, "deleted_at"), _record_message, _record_row),
    RowSum("revisions", "number", (*_RECORD, "until"), _record_message, _record_row),
    RowSum(
        "events",
        "seq",
        ("project", "at", "actor", "verb", "kind", "subject", "key", "data"),
        _event_message,
        _event_row,
    ),
    RowSum("metrics", "id", ("project", "series", "key"), _metric_message, _metric_row),
    RowSum("points", "seq", ("metric", "step", "at", "written_at", "value"), _point_message, _point_row),
)
"""Every table whose rows carry a checksum."""
