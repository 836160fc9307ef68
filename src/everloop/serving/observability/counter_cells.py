"""Counters in memory that can be a mapped file, so that they survive the process that counts.

A file consists of cells of 256 bytes. A cell holds the value (8 bytes, signed), the length of the name (8 bytes) and
the name (a JSON array of texts); a long name takes several cells. Numbers are in the machine's byte order. A length of
0 marks a free cell. The operating system keeps what was written to a mapped page also after `kill -9`. The process that
counts holds an exclusive `flock` on its file, so others can tell whether it is alive.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import sys
import threading
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("everloop.serving")

Name = tuple[str, ...]

_CELL_BYTES = 256
_HEAD_BYTES = 16
_BLOCK_BYTES = 64 << 10
"""A file grows by this much. It is a multiple of every system's page size."""


class Counter:
    """One integer in a cell. Written by one thread; readable by any."""

    __slots__ = ("_index", "_memory")

    def __init__(self, memory: memoryview, index: int) -> None:
        self._memory = memory
        self._index = index

    def add(self, amount: int = 1) -> None:
        self._memory[self._index] += amount

    def set(self, value: int) -> None:
        self._memory[self._index] = value

    @property
    def value(self) -> int:
        found: int = self._memory[self._index]
        return found


class CounterCells:
    """The counters of one process by name. Thread-safe, except that each counter has one writer."""

    def __init__(self, path: Path | None = None) -> None:
        """Create the file and lock it.

        Args:
            path: must not exist yet. None: the counters live in this process only. That is also what happens if the
                disk is full, with a warning.
        """
        self._counters: dict[Name, Counter] = {}
        self._adding = threading.Lock()
        self._block = bytearray()
        self._memory = memoryview(self._block)
        self._free = 0
        self._file = -1 if path is None else self._open(path)

    def counter(self, *name: str) -> Counter:
        """The counter of this name; created with 0 at its first use."""
        with self._adding:
            found = self._counters.get(name)
            if found is None:
                found = self._counters[name] = self._create(msgspec.json.encode(name))
            return found

    def totals(self) -> dict[Name, int]:
        with self._adding:
            return {name: counter.value for name, counter in self._counters.items()}

    def close(self) -> None:
        """Unlock the file: from now on others take this process for ended. The counters stay usable."""
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = -1

    def _open(self, path: Path) -> int:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            logger.warning("Cannot create '%s', so other workers do not see this one's counters: %s", path, error)
            return -1
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def _create(self, name: bytes) -> Counter:
        needed = _cell_bytes(len(name))
        if self._free + needed > len(self._memory):
            self._memory = self._next_block()
            self._free = 0
        start = self._free
        self._free += needed
        numbers = self._memory.cast("q")
        self._memory[start + _HEAD_BYTES : start + _HEAD_BYTES + len(name)] = name
        # The length comes last: a reader in another process takes the cell for free until then.
        numbers[start // 8 + 1] = len(name)
        return Counter(numbers, start // 8)

    def _next_block(self) -> memoryview:
        if self._file >= 0:
            try:
                size = os.fstat(self._file).st_size
                # Zeros are written, because a page that has no space on the disk would kill the process when touched.
                if os.pwrite(self._file, bytes(_BLOCK_BYTES), size) == _BLOCK_BYTES:
                    return memoryview(mmap.mmap(self._file, _BLOCK_BYTES, offset=size))
                os.ftruncate(self._file, size)
            except OSError as error:
                logger.warning("Other workers do not see some of this one's counters: %s", error)
        return memoryview(bytearray(_BLOCK_BYTES))


def read_counters(path: Path) -> tuple[dict[Name, int], bool]:
    """The counters in another process's file, and whether that process is alive.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not consist of cells.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            alive = True
        else:
            alive = False
        data = file.read()
    found: dict[Name, int] = {}
    for block in range(0, len(data), _BLOCK_BYTES):
        start, end = block, min(block + _BLOCK_BYTES, len(data))
        while start + _CELL_BYTES <= end:
            length = int.from_bytes(data[start + 8 : start + 16], sys.byteorder, signed=True)
            if length == 0:
                break
            if not 0 < length <= end - start - _HEAD_BYTES:
                raise ValueError(f"'{path}' has a name of {length} bytes at byte {start}.")
            name = data[start + _HEAD_BYTES : start + _HEAD_BYTES + length]
            value = int.from_bytes(data[start : start + 8], sys.byteorder, signed=True)
            found[msgspec.json.decode(name, type=Name)] = value
            start += _cell_bytes(length)
    return found, alive


def _cell_bytes(name_length: int) -> int:
    """The size of a cell with its name, in whole cells."""
    return -(-(_HEAD_BYTES + name_length) // _CELL_BYTES) * _CELL_BYTES


__all__ = ["Counter", "CounterCells", "read_counters"]
