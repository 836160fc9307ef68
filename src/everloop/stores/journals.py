"""Append-only files that survive the death of their writer.

A journal is one file of one writing process: a header of 8 bytes (`EVJL`, format version as u16, two bytes of
zero), then frames. A frame is the payload's length (u32), a CRC-32 over that length and the payload (u32), and
the payload; all little-endian. Each append is one `write`, so what a killed process leaves is whole frames and at
most one torn tail. The length is under the checksum so that a tail of zero bytes, which some file systems leave
after a power cut, is no frame.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import struct
import threading
import time
import weakref
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from everloop.errors import CorruptionError, NotFoundError, StoreVersionError, UsageError
from everloop.stores.full_disk import FULL, insufficient, storage_error
from everloop.stores.locks import is_locked
from everloop.stores.permissions import make_folder, make_private
from everloop.stores.records.row_checksums import flipped_bit

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".journal"
VERSION = 1
HEADER = struct.pack("<4sHH", b"EVJL", VERSION, 0)
_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_STREAM = re.compile(r"[A-Za-z0-9_@=+,-][A-Za-z0-9_@=+,.-]{0,127}")
_CHUNK = 1 << 20

_open: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """The writing end. Safe to use from several threads; a forked child continues in a file of its own.

    The file is locked while its writer lives, so that others can tell an orphan (`writer_alive`).
    """

    def __init__(self, folder: Path, stream: str) -> None:
        self.folder = folder
        self.stream = stream
        self._guard = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self._closed = False
        self.path = folder
        self._begin()
        _open.add(self)

    @classmethod
    def create(cls, folder: Path | str, stream: str) -> Journal:
        """Start the file `<stream>.<random id>.journal` in `folder`, which is made where needed.

        Raises:
            UsageError: the stream's name does not make a file name.
        """
        if not _STREAM.fullmatch(stream):
            raise UsageError(f"'{stream}' is no name for a journal.", help="Use letters, digits and -_@=+,. only.")
        return cls(Path(folder), stream)

    def append(self, payload: bytes) -> int:
        """Write one frame and return the offset behind it. The bytes are with the operating system on return.

        Raises:
            InsufficientStorageError: the disk is full; nothing of the frame stays in the file.
        """
        length = len(payload)
        frame = _FRAME.pack(length, zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length)))) + payload
        with self._guard:
            descriptor = self._begin() if self._descriptor is None else self._descriptor
            try:
                written = os.write(descriptor, frame)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                written = 0
            if written != len(frame):
                os.ftruncate(descriptor, self._size)
                raise insufficient(f"to append to '{self.path}'")
            self._size += written
            return self._size

    def sync(self) -> None:
        """Return when everything appended is on the device itself, safe against a power cut."""
        with self._guard:
            if self._descriptor is not None:
                os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the file up. Appending afterwards is an error; closing twice is not."""
        with self._guard:
            self._closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def _begin(self) -> int:
        if self._closed:
            raise UsageError(f"The journal '{self.path.name}' is closed.")
        make_folder(self.folder)
        # Locked under a name that no reader looks for: a journal is never seen without its writer's lock.
        draft = self.folder / f".{self.stream}.{secrets.token_hex(8)}"
        try:
            descriptor = make_private(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        except OSError as error:
            raise storage_error(error, self.folder) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                whole = os.write(descriptor, HEADER) == len(HEADER)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                whole = False
            if not whole:
                raise insufficient(f"to begin a journal in '{self.folder}'")
            path = self.folder / f"{draft.name[1:]}{SUFFIX}"
            draft.rename(path)
        except BaseException as error:
            os.close(descriptor)
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise storage_error(error, self.folder) from error
            raise
        self.path = path
        self._descriptor = descriptor
        self._size = len(HEADER)
        return descriptor

    def _forked(self) -> None:
        # The lock belongs to the open file, which the child shares: unless the child lets go of its copy,
        # the parent would seem to live for as long as the child does.
        self._guard = threading.Lock()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _leave_to_parent() -> None:
    for journal in list(_open):
        journal._forked()


os.register_at_fork(after_in_child=_leave_to_parent)


def stream_of(path: Path) -> str:
    """The stream whose frames the file holds."""
    return path.name.removesuffix(SUFFIX).rpartition(".")[0]


def list_journals(folder: Path, stream: str | None = None) -> list[Path]:
    """The journals of a folder, of one stream or of all, oldest first by the file's name and stream."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.endswith(SUFFIX) and not path.name.startswith("."))
    return sorted(path for path in found if stream is None or stream_of(path) == stream)


def writer_alive(path: Path | str) -> bool:
    """Whether the process that writes the journal still lives; False also for a file that is gone."""
    return is_locked(Path(path))


def read_journal(path: Path | str, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield each whole frame's payload and the offset behind it, which a later call can start from.

    Stops quietly at a torn tail, so the file of a living or a killed writer reads alike.

    Raises:
        NotFoundError: there is no such file.
        CorruptionError: a damaged frame with whole frames behind it, or no journal at all.
        StoreVersionError: a newer everloop wrote the file.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            if offset < len(HEADER):
                if not _check_header(source, file.read(len(HEADER))):
                    return
                offset = len(HEADER)
            yield from _frames(source, file, offset)
    except FileNotFoundError:
        raise NotFoundError(f"There is no journal '{path}'.") from None


def split_frames(data: bytes) -> list[tuple[bytes, int]]:
    """Each frame's payload and the offset behind it, of bytes cut out of a journal between two frames.

    Raises:
        CorruptionError: they are not whole and sound frames to the last byte.
    """
    found = _whole(data, 0)
    at = found[-1][1] if found else 0
    if at < len(data):
        raise CorruptionError(f"There is no whole frame at byte {at} of {len(data)}.")
    return found


def check_tail(path: Path | str) -> None:
    """Return if what stands behind the last whole frame may be what a killed writer left: a part of a frame, or zeros.

    `read_journal` stops there either way, because the writer may be in the middle of it. Before a journal is removed,
    and where damage is looked for, the two must be told apart.

    Raises:
        CorruptionError: the last frame is there in full length, and damaged.
    """
    source = Path(path)
    for last_look in (False, True):
        end = 0
        for _, end in read_journal(source):  # noqa: B007 - only the last one counts
            pass
        with source.open("rb") as file:
            file.seek(end or len(HEADER))
            rest = file.read()
        if not _is_damaged(rest):
            return
        if not last_look:
            time.sleep(0.01)
    raise CorruptionError(
        f"The last frame of the journal '{path}' is damaged, at byte {end or len(HEADER)}.", help="See: everloop verify"
    )


def mended(path: Path | str) -> bytes | None:
    """The journal as it was before a single bit of it was flipped, if checksums prove that; else None."""
    data = Path(path).read_bytes()
    whole = _whole(data, len(HEADER))
    at = whole[-1][1] if whole else len(HEADER)
    if data[: len(HEADER)] != HEADER:
        return HEADER + data[len(HEADER) :] if whole and len(data) == at else None
    for frame in _other_frames(data[at:]):
        candidate = data[:at] + frame + data[at + len(frame) :]
        found = _whole(candidate, at)
        if found and not _is_damaged(candidate[found[-1][1] :]) and not _behind(candidate, found[-1][1]):
            return candidate
    return None


def whole_part(path: Path | str) -> bytes:
    """The journal's header and the whole frames that follow it."""
    data = Path(path).read_bytes()
    found = _whole(data, len(HEADER))
    return data[: found[-1][1] if found else len(HEADER)]


def _is_damaged(rest: bytes) -> bool:
    """Whether bytes behind the last whole frame are a whole frame with damage in it."""
    if len(rest) < _FRAME.size or not rest.strip(b"\0"):
        return False
    length, check = _FRAME.unpack_from(rest)
    if length <= len(rest) - _FRAME.size:
        return True
    # Torn, unless it is the length that is wrong.
    body = rest[_FRAME.size :]
    return zlib.crc32(body, zlib.crc32(_LENGTH.pack(len(body)))) == int(check)


def _other_frames(rest: bytes) -> Iterator[bytes]:
    """What the frame at the beginning of these bytes may have been before one of its bits was flipped."""
    if len(rest) < _FRAME.size:
        return
    length, check = _FRAME.unpack_from(rest)
    for bit in range(32):
        other = length ^ (1 << bit)
        body = rest[_FRAME.size : _FRAME.size + other]
        if len(body) == other and zlib.crc32(body, zlib.crc32(_LENGTH.pack(other))) == check:
            yield _FRAME.pack(other, check) + body
    body = rest[_FRAME.size : _FRAME.size + length]
    if len(body) != length:
        return
    found = zlib.crc32(body, zlib.crc32(_LENGTH.pack(length)))
    if (found ^ check).bit_count() == 1:
        yield _FRAME.pack(length, found) + body
        return
    at = flipped_bit(_LENGTH.pack(length) + body, check)
    if at is not None and at >= 8 * _LENGTH.size:
        changed = bytearray(body)
        at -= 8 * _LENGTH.size
        changed[at >> 3] ^= 1 << (at & 7)
        yield _FRAME.pack(length, check) + bytes(changed)


def _behind(data: bytes, at: int) -> bool:
    """Whether a whole frame follows somewhere behind a position."""
    return any(_whole(data, start, 1) for start in range(at + 1, len(data) - _FRAME.size + 1))


def _frames(path: Path, file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int]]:
    # What looks damaged is looked at twice: a writer who finds the device full takes half a frame back, and a reader
    # may have seen that half.
    for last_look in (False, True):
        file.seek(offset)
        buffer, at = b"", 0
        while True:
            base = offset - at
            for payload, end in _whole(buffer, at):
                offset, at = base + end, end
                yield payload, offset
            more = file.read(max(_CHUNK, len(buffer) - at))
            if not more:
                break
            buffer, at = buffer[at:] + more, 0
        # A whole frame further on is the difference between damage and a torn tail.
        if not any(_whole(buffer, start, 1) for start in range(at + 1, len(buffer) - _FRAME.size + 1)):
            return
        if last_look:
            raise CorruptionError(
                f"The journal '{path}' is damaged at byte {offset}; frames behind it are whole.",
                help="See: everloop verify",
            )


def _whole(buffer: bytes, at: int, most: int | None = None) -> list[tuple[bytes, int]]:
    """The payloads of the whole and sound frames that follow each other from a position, each with its end."""
    found: list[tuple[bytes, int]] = []
    # A journal can have millions: what the loop needs is at hand, and nothing is called that need not be.
    unpack, crc, head, last = _FRAME.unpack_from, zlib.crc32, _FRAME.size, len(buffer) - _FRAME.size
    while at <= last and len(found) != most:
        length, check = unpack(buffer, at)
        start = at + head
        end = start + length
        payload = buffer[start:end]
        if len(payload) != length or crc(payload, crc(buffer[at : at + 4])) != check:
            break
        found.append((payload, end))
        at = end
    return found


def _check_header(path: Path, header: bytes) -> bool:
    """Whether frames may follow. A header that is not whole yet is an empty journal."""
    if len(header) < len(HEADER) and HEADER.startswith(header):
        return False
    magic, version, _ = struct.unpack("<4sHH", header.ljust(8, b"\0"))
    if magic != HEADER[:4]:
        raise CorruptionError(f"'{path}' is no journal.", help="See: everloop verify")
    if version > VERSION:
        raise StoreVersionError(
            f"The journal '{path}' has format {version}; this everloop knows {VERSION}.", help="Upgrade everloop."
        )
    return True
