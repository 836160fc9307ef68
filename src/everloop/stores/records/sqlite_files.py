"""What SQLite itself does not notice in its files: flags in the header, and frames that its log has lost.

After a crash SQLite reads the write-ahead log up to the first frame whose checksum is wrong and forgets all behind it,
without a word, because that is what a torn tail looks like. Here such a frame counts as damage where a later frame
follows from it, or where the shared-memory file says that it had been committed.
Source of both formats: https://sqlite.org/fileformat2.html, and https://sqlite.org/walformat.html.
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
_LOOKS = 3
_MAGIC = (0x377F0682, 0x377F0683)


def header_problems(path: Path) -> list[str]:
    """What is wrong with the first bytes of the database file."""
    with path.open("rb") as file:
        head = file.read(100)
    if not head:
        return []
    found = []
    if len(head) < 100 or not head.startswith(_HEADER):
        found.append("The file does not begin as a database does.")
    elif head[18:20] not in (b"\1\1", b"\2\2"):
        found.append("The header does not say whether the database has a write-ahead log.")
    elif head[21:24] != b"\x40\x20\x20" or struct.unpack_from(">I", head, 56)[0] not in (0, 1):
        found.append("The header has values that no SQLite writes.")
    return found


def schema_problems(rows: Iterable[tuple[str, str, str | None]], own_prefix: str) -> list[str]:
    """What differs between a database's tables and indexes and those that its migrations make.

    Args:
        rows: type, name and SQL of each, as `sqlite_master` has them.
        own_prefix: of the names of indexes that are made when needed.
    """
    expected = _expected()
    seen = {(kind, name): sql for kind, name, sql in rows if not name.startswith(own_prefix)}
    found = [f"The {kind} '{name}' is missing." for kind, name in expected.keys() - seen.keys()]
    for (kind, name), sql in seen.items():
        if (kind, name) not in expected:
            if name.startswith("sqlite_"):
                continue
            found.append(f"There is a {kind} '{name}', which no everloop makes.")
        elif sql != expected[kind, name]:
            found.append(f"The {kind} '{name}' is declared differently than everloop declares it.")
    return sorted(found)


@cache
def _expected() -> dict[tuple[str, str], str | None]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for step in migrations("sqlite"):
            connection.executescript(step.script)
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'")
        return {(kind, name): sql for kind, name, sql in rows}


def log_problems(path: Path) -> list[str]:
    """What is wrong with the write-ahead log of the database at `path`; nothing where it has none.

    Others may go on writing meanwhile. Best called before the database is opened: opening it after a crash lets SQLite
    forget what it cannot read.
    """
    found: list[str] = []
    for _ in range(_LOOKS):
        found = _log_problems(path)
        if not found:
            break
        # A writer may have begun the log again while it was read.
        time.sleep(0.02)
    return found


def _log_problems(path: Path) -> list[str]:
    wal = path.with_name(f"{path.name}-wal")
    try:
        # In this order: what was committed when it was read is in the log that is read after it.
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
        # A header that was being written when the process was killed has no frames behind it that count.
        expected = committed is not None and committed[0] > 0
        return [f"The header of '{wal.name}' is damaged; what it holds is lost."] if expected or len(data) > 32 else []
    size = _FRAME_HEADER.size + page
    whole = (len(data) - _WAL_HEADER.size) // size
    sums = (sum_1, sum_2)
    for number in range(whole):
        at = _WAL_HEADER.size + number * size
        frame = _follows(data, at, size, (salt_1, salt_2), sums, order)
        if frame is None:
            later = _later(data, number, whole, size, (salt_1, salt_2), order)
            counted = committed is not None and committed[1:] == (salt_1, salt_2) and committed[0] > number
            if later or counted:
                return [f"Frame {number + 1} of '{wal.name}' is damaged; what was written from there on is lost."]
            return []
        sums = frame
    if committed is not None and committed[1:] == (salt_1, salt_2) and committed[0] > whole:
        return [f"'{wal.name}' has {whole} frames of {committed[0]}; what was written in the others is lost."]
    return []


def _committed(index: bytes) -> tuple[int, int, int] | None:
    """The number of the last frame that was committed, and the log's salts, as the shared-memory file has them."""
    if len(index) < 96 or index[:48] != index[48:96]:
        return None
    last = struct.unpack_from("=I", index, 16)[0]
    # The salts are copied from the log byte by byte.
    salt_1, salt_2 = struct.unpack_from(">2I", index, 32)
    return last, salt_1, salt_2


def _follows(
    data: bytes, at: int, size: int, salts: tuple[int, int], before: tuple[int, int], order: str
) -> tuple[int, int] | None:
    """The checksum of the frame at a position, if it is right behind a frame with the checksum `before`."""
    _, _, salt_1, salt_2, sum_1, sum_2 = _FRAME_HEADER.unpack_from(data, at)
    if (salt_1, salt_2) != salts:
        return None
    found = _sums(data[at : at + 8], before, order)
    found = _sums(data[at + _FRAME_HEADER.size : at + size], found, order)
    return found if found == (sum_1, sum_2) else None


def _later(data: bytes, number: int, whole: int, size: int, salts: tuple[int, int], order: str) -> bool:
    """Whether a frame behind this one follows from the checksum that the frame before it says it has."""
    for one in range(number + 1, min(whole, number + 4)):
        at = _WAL_HEADER.size + one * size
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
