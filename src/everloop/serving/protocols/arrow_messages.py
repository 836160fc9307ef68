"""Checks the size of an Arrow IPC stream or file from its metadata, before anything is decoded.

A stream is a sequence of messages: a schema, then dictionaries and record batches. A file has a list of their positions
at its end. Each message begins with a small flatbuffer that states the number of rows and how the buffers are
compressed; a compressed buffer states its decompressed length in its first eight bytes. A reader that trusts these
numbers allocates as much memory as they say. So they are added up first.
Source: Arrow columnar format, "Serialization and Interprocess Communication"; format/Message.fbs, format/Schema.fbs,
format/File.fbs.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

from everloop.errors import RequestError
from everloop.serving.protocols.unpacked_limits import check_cells, check_rows, check_unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.serving.endpoint_settings import EndpointSettings

MOST_COLUMNS = 5_000
MOST_MESSAGES = 5_000
FILE_MARK = b"ARROW1"
_CONTINUES = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_NAMES = (
    "none", "null", "int", "float", "binary", "string", "bool", "decimal", "date", "time", "timestamp", "interval",
    "list", "struct", "union", "fixed size binary", "fixed size list", "map", "duration", "large binary",
    "large string", "large list", "run end encoded", "binary view", "string view", "list view", "large list view",
)  # fmt: skip
_TAKEN = frozenset(
    {"null", "int", "float", "string", "bool", "decimal", "date", "time", "timestamp", "duration", "large string",
     "string view"}
)  # fmt: skip


def check_messages(body: bytes, limits: EndpointSettings) -> None:
    """Refuse a stream or a file that would become too large, or has columns of unsupported types.

    Raises:
        RequestError: it is damaged, has too many rows or columns, or a column of an unsupported type.
        TooLargeError: it has too many values, or is too large when decompressed.
    """
    view = memoryview(body)
    rows = columns = size = 0
    try:
        found = _of_file(view) if body[: len(FILE_MARK)] == FILE_MARK else _of_stream(view)
        for kind, table, content in found:
            if kind == _SCHEMA:
                columns = _check_schema(table)
                continue
            batch = table
            if kind == _DICTIONARY:
                if table.flag(2):
                    raise RequestError(
                        "A dictionary is sent in several parts.", help="Send each dictionary in one message."
                    )
                batch = table.get_table(1)
                check_cells(_positive(batch.int64(0)), limits)
            else:
                rows += _positive(batch.int64(0))
                check_rows(rows, limits)
                check_cells(rows * columns, limits)
            size += _unpacked(batch, content)
            check_unpacked(size, limits)
    except (struct.error, IndexError, ValueError):
        raise RequestError("Cannot read the table in the body: its messages are damaged.") from None


class _Table:
    """A table of a flatbuffer, which finds its fields by number."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._at = at
        self._list = at - _int32(data, at)
        if not 0 <= self._list < len(data):
            raise ValueError("outside")
        self._count = (_uint16(data, self._list) - 4) // 2

    def _position(self, field: int) -> int:
        """The position of a field; 0: it is missing."""
        if field >= self._count:
            return 0
        offset = _uint16(self._data, self._list + 4 + 2 * field)
        return self._at + offset if offset else 0

    def int64(self, field: int) -> int:
        position = self._position(field)
        return _int64(self._data, position) if position else 0

    def byte(self, field: int) -> int:
        position = self._position(field)
        return self._data[position] if position else 0

    def flag(self, field: int) -> bool:
        return self.byte(field) != 0

    def has(self, field: int) -> bool:
        return self._position(field) != 0

    def get_table(self, field: int) -> _Table:
        position = self._position(field)
        if not position:
            raise ValueError("absent")
        return _Table(self._data, position + _uint32(self._data, position))

    def vector(self, field: int) -> tuple[int, int]:
        """The position of a vector's first item, and the number of items."""
        position = self._position(field)
        if not position:
            return 0, 0
        begins = position + _uint32(self._data, position)
        return begins + 4, _uint32(self._data, begins)

    def tables(self, field: int, most: int) -> Iterator[_Table]:
        begins, count = self.vector(field)
        for position in range(begins, begins + 4 * min(count, most), 4):
            yield _Table(self._data, position + _uint32(self._data, position))

    def text(self, field: int) -> str:
        begins, size = self.vector(field)
        return bytes(self._data[begins : begins + min(size, 200)]).decode("utf-8", "replace")

    def structs(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """The structs in a vector."""
        begins, count = self.vector(field)
        ends = begins + struct.calcsize(form) * count
        if ends > len(self._data):
            raise ValueError("outside")
        yield from struct.iter_unpack(form, self._data[begins:ends])


def _of_stream(view: memoryview) -> Iterator[tuple[int, _Table, memoryview]]:
    """Kind, header and body of each message of a stream."""
    at = 0
    for number in itertools.count():
        # Some writers omit the end marker.
        if at + 8 > len(view) or (view[at : at + 4] == _CONTINUES and _int32(view, at + 4) == 0):
            return
        _check_count(number)
        kind, header, begins, length = _message(view, at, None)
        if (kind == _SCHEMA) != (number == 0):
            raise ValueError("order")
        at = begins + length
        yield kind, header, view[begins:at]


def _of_file(view: memoryview) -> Iterator[tuple[int, _Table, memoryview]]:
    """The same for a file: the messages that its footer lists, in that order, repetitions included."""
    size = _int32(view, len(view) - len(FILE_MARK) - 4)
    ends = len(view) - len(FILE_MARK) - 4
    if bytes(view[-len(FILE_MARK) :]) != FILE_MARK or not 0 < size <= ends:
        raise ValueError("footer")
    data = view[ends - size : ends]
    footer = _Table(data, _uint32(data, 0))
    yield _SCHEMA, footer.get_table(1), view[:0]
    number = 0
    for field, wanted in ((2, _DICTIONARY), (3, _BATCH)):
        for offset, before, length in footer.structs(field, "<qi4xq"):
            number += 1
            _check_count(number)
            kind, header, begins, found = _message(view, offset, before)
            if kind != wanted or length < 0:
                raise ValueError("kind")
            yield kind, header, view[begins : begins + found]


def _message(view: memoryview, at: int, before: int | None) -> tuple[int, _Table, int, int]:
    """Kind and header of the message at this position, and the position and length of its body.

    Args:
        before: the number of bytes before the body; None: as many as the message says.
    """
    if at < 0 or view[at : at + 4] != _CONTINUES:
        raise RequestError("Cannot read the table in the body: it is not Arrow IPC in the current format.")
    size = _int32(view, at + 4)
    if size <= 0 or at + 8 + size > len(view) or (before is not None and before < 8 + size):
        raise ValueError("outside")
    data = view[at + 8 : at + 8 + size]
    message = _Table(data, _uint32(data, 0))
    begins, length = at + (8 + size if before is None else before), _positive(message.int64(3))
    kind = message.byte(1)
    if kind not in (_SCHEMA, _DICTIONARY, _BATCH) or begins + length > len(view):
        raise ValueError("message")
    return kind, message.get_table(2), begins, length


def _check_count(number: int) -> None:
    if number > MOST_MESSAGES:
        raise RequestError(f"The table has more than {MOST_MESSAGES} parts.", help="Send larger record batches.")


def _check_schema(schema: _Table) -> int:
    """Refuse columns of unsupported types. Returns the number of columns."""
    count = schema.vector(1)[1]
    if count > MOST_COLUMNS:
        raise RequestError(f"The table has {count} columns; the limit is {MOST_COLUMNS}.")
    for field in schema.tables(1, MOST_COLUMNS):
        number = field.byte(2)
        kind = _NAMES[number] if number < len(_NAMES) else str(number)
        if kind not in _TAKEN or field.vector(5)[1]:
            raise RequestError(f"{field.text(0)[:100]}: values of type {kind} cannot be inputs.")
    return count


def _unpacked(batch: _Table, body: memoryview) -> int:
    """The decompressed size of a batch's compressed buffers. Other buffers are read in place."""
    packed = batch.has(3)
    total = 0
    for offset, length in batch.structs(2, "<qq"):
        if offset < 0 or length < 0 or offset + length > len(body):
            raise ValueError("outside")
        if packed and length:
            size = _int64(body, offset)
            if size < -1:
                raise ValueError("negative")
            total += max(size, 0)
    return total


def _positive(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return number


def _number(data: memoryview, at: int, size: int, *, signed: bool) -> int:
    if at < 0 or at + size > len(data):
        raise ValueError("outside")
    return int.from_bytes(data[at : at + size], "little", signed=signed)


def _uint16(data: memoryview, at: int) -> int:
    return _number(data, at, 2, signed=False)


def _uint32(data: memoryview, at: int) -> int:
    return _number(data, at, 4, signed=False)


def _int32(data: memoryview, at: int) -> int:
    return _number(data, at, 4, signed=True)


def _int64(data: memoryview, at: int) -> int:
    return _number(data, at, 8, signed=True)


__all__ = ["FILE_MARK", "check_messages"]
