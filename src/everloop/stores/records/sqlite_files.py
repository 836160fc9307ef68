"""Finding damage to SQLite's files that SQLite itself does not report: in the header, the schema and the log.

After a crash, SQLite reads the write-ahead log up to the first frame with a wrong checksum and silently discards the
rest, because a torn last frame looks the same. Here, such a frame counts as damage if a later frame continues its
checksum, or if the shared-memory file shows that it was committed.
Source of the formats: https://sqlite.org/fileformat2.html and https://sqlite.org/walformat.html.
"""

from __future__ import annotations

import sqlite3
import struct
import time
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING

from everloop.stores.records.migrations import migrations

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_HEADER = b"SQLite format 3\0"
_WAL_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_ATTEMPTS = 3
_MAGIC = (0x377F0682, 0x377F0683)


def header_problems(path: Path) -> list[str]:
    """The problems of the database file's header."""
    with path.open("rb") as file:
        head = file.read(100)
    if not head:
        return []
    found = []
    if len(head) < 100 or not head.startswith(_HEADER):
        found.append("The file does not begin with the header of a SQLite database.")
    elif head[18:20] not in (b"\1\1", b"\2\2"):
        found.append("The header has an invalid journal mode.")
    elif head[21:24] != b"\x40\x20\x20" or struct.unpack_from(">I", head, 56)[0] not in (0, 1):
        found.append("The header has values that SQLite never writes.")
    return found


def schema_problems(rows: Iterable[tuple[str, str, str | None]], search_prefix: str) -> list[str]:
    """Compare a database's tables and indexes with those that the migrations create.

    Args:
        rows: type, name and SQL of each, as in `sqlite_master`.
        search_prefix: prefix of indexes that are created for slow searches, which are ignored.
    """
    expected = _expected()
    seen = {(kind, name): sql for kind, name, sql in rows if not name.startswith(search_prefix)}
    found = [f"The {kind} '{name}' is missing." for kind, name in expected.keys() - seen.keys()]
    for (kind, name), sql in seen.items():
        if (kind, name) not in expected:
            if name.startswith("sqlite_"):
                continue
            found.append(f"The {kind} '{name}' was not created by everloop.")
        elif sql != expected[kind, name]:
            found.append(f"The declaration of the {kind} '{name}' differs from everloop's.")
    return sorted(found)


@cache
def _expected() -> dict[tuple[str, str], str | None]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for step in migrations("sqlite"):
            connection.executescript(step.script)
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'")
        return {(kind, name): sql for kind, name, sql in rows}


def log_problems(path: Path) -> list[str]:
    """The problems of the write-ahead log of the database at `path`, if it has a log.

    Other processes may write meanwhile. Call this before the database is opened: when SQLite opens a database after a
    crash, it discards what it cannot read.
    """
    found: list[str] = []
    for _ in range(_ATTEMPTS):
        found = _log_problems(path)
        if not found:
            break
        # A writer may have restarted the log while it was read.
        time.sleep(0.02)
    return found


def _log_problems(path: Path) -> list[str]:
    wal = path.with_name(f"{path.name}-wal")
    try:
        # In this order: the log is read later, so it contains everything that the index shows as committed.
        shared = path.with_name(f"{path.name}-shm")
        index = shared.read_bytes()[: 2 * 48] if shared.exists() else b""
        data = wal.read_bytes()
    except OSError:
        return []
    if len(data) < _WAL_HEADER.size:
        return []
    magic, _, page, _, salt_1, salt_2, sum_1, sum_2 = _WAL_HEADER.unpack_from(data)
    committed = _committed(index)
    order = "<" if magic == _MAGIC[0] else ">"
    if magic not in _MAGIC or _sums(data[:24], (0, 0), order) != (sum_1, sum_2):
        # If the process was killed while it wrote the header, no committed frames follow it.
        expected = committed is not None and committed[0] > 0
        lost = expected or len(data) > 32
        return [f"The header of '{wal.name}' is damaged, so the writes in this log are lost."] if lost else []
    size = _FRAME_HEADER.size + page
    complete = (len(data) - _WAL_HEADER.size) // size
    sums = (sum_1, sum_2)
    for number in range(complete):
        at = _WAL_HEADER.size + number * size
        frame = _follows(data, at, size, (salt_1, salt_2), sums, order)
        if frame is None:
            later = _later(data, number, complete, size, (salt_1, salt_2), order)
            counted = committed is not None and committed[1:] == (salt_1, salt_2) and committed[0] > number
            if later or counted:
                return [f"Frame {number + 1} of '{wal.name}' is damaged, so it and all later writes are lost."]
            return []
        sums = frame
    if committed is not None and committed[1:] == (salt_1, salt_2) and committed[0] > complete:
        return [f"'{wal.name}' has only {complete} of {committed[0]} frames, so the writes in the others are lost."]
    return []


def _committed(index: bytes) -> tuple[int, int, int] | None:
    """The number of the last committed frame and the log's salts, from the shared-memory file."""
    if len(index) < 96 or index[:48] != index[48:96]:
        return None
    last = struct.unpack_from("=I", index, 16)[0]
    # The salts are copied from the log byte by byte.
    salt_1, salt_2 = struct.unpack_from(">2I", index, 32)
    return last, salt_1, salt_2


def _follows(
    data: bytes, at: int, size: int, salts: tuple[int, int], before: tuple[int, int], order: str
) -> tuple[int, int] | None:
    """The checksum of the frame at a position, if it correctly continues a frame with the checksum `before`."""
    _, _, salt_1, salt_2, sum_1, sum_2 = _FRAME_HEADER.unpack_from(data, at)
    if (salt_1, salt_2) != salts:
        return None
    found = _sums(data[at : at + 8], before, order)
    found = _sums(data[at + _FRAME_HEADER.size : at + size], found, order)
    return found if found == (sum_1, sum_2) else None


def _later(data: bytes, number: int, complete: int, size: int, salts: tuple[int, int], order: str) -> bool:
    """Whether a later frame ends a transaction and correctly continues the checksum stored in the frame before it.

    A transaction that failed, for example because the disk was full, leaves frames behind, but none that ends it.
    """
    for one in range(number + 1, complete):
        at = _WAL_HEADER.size + one * size
        if _FRAME_HEADER.unpack_from(data, at)[1] == 0:
            continue
        before = _FRAME_HEADER.unpack_from(data, at - size)[4:6]
        if _follows(data, at, size, salts, before, order) is not None:
            return True
    return False


def _sums(data: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for index in range(0, len(words), 2):
        first = (first + words[index] + second) & 0xFFFFFFFF
        second = (second + words[index + 1] + first) & 0xFFFFFFFF
    return first, second
