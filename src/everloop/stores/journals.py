"""Append-only files that survive the death of the process that writes them.

A journal is written by a single process. It has a header of 8 bytes (`EVJL`, format version as u16, two zero bytes),
followed by frames. A frame consists of the payload's length (u32), a CRC-32 over that length and the payload (u32), and
the payload; all little-endian. Each append is one `write`, so a killed process leaves complete frames and at most one
torn frame at the end. The checksum covers the length as well. Otherwise the zero bytes that some file systems leave at
the end after a power cut would be valid frames.
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
    """A journal open for writing. Safe to use from several threads. A forked child continues in a new file.

    The file stays locked while its writer lives, so that other processes can detect an orphan (`writer_alive`).
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
        """Start the file `<stream>.<random id>.journal` in `folder`, which is created if needed.

        Raises:
            UsageError: the stream's name cannot be used as a file name.
        """
        if not _STREAM.fullmatch(stream):
            raise UsageError(
                f"'{stream}' is not a valid name for a journal.", help="Use only letters, digits and -_@=+,."
            )
        return cls(Path(folder), stream)

    def append(self, payload: bytes) -> int:
        """Write one frame and return the offset of its end. On return, the operating system has the bytes.

        Raises:
            InsufficientStorageError: the disk is full. No part of the frame stays in the file.
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

    def close(self) -> None:
        """Close the file. Appending afterwards is an error; closing twice is not."""
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
        # It gets its name only when it is locked, so readers never see a journal without its writer's lock.
        draft = self.folder / f".{self.stream}.{secrets.token_hex(8)}"
        try:
            descriptor = make_private(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        except OSError as error:
            raise storage_error(error, self.folder) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                complete = os.write(descriptor, HEADER) == len(HEADER)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                complete = False
            if not complete:
                raise insufficient(f"to create a journal in '{self.folder}'")
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
        # The lock belongs to the open file, which the child shares. So the child must close its copy: otherwise the
        # parent would seem to be alive for as long as the child lives.
        self._guard = threading.Lock()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _close_inherited() -> None:
    for journal in list(_open):
        journal._forked()


os.register_at_fork(after_in_child=_close_inherited)


def stream_of(path: Path) -> str:
    """The name of a journal's stream."""
    return path.name.removesuffix(SUFFIX).rpartition(".")[0]


def list_journals(folder: Path, stream: str | None = None) -> list[Path]:
    """The journals in a folder, of one stream or of all, sorted by file name."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.endswith(SUFFIX) and not path.name.startswith("."))
    return sorted(path for path in found if stream is None or stream_of(path) == stream)


def writer_alive(path: Path | str) -> bool:
    """Whether the process that writes the journal is still running. False if the file no longer exists."""
    return is_locked(Path(path))


def read_journal(path: Path | str, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield the payload of each complete frame and the offset of its end, where a later call can continue.

    A torn frame at the end is ignored, so it does not matter whether the writer is running or was killed.

    Raises:
        NotFoundError: the file does not exist.
        CorruptionError: a damaged frame is followed by intact ones, or the file is not a journal.
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
    """Split a section of a journal that begins and ends between frames: each frame's payload and the offset of its end.

    Raises:
        CorruptionError: the bytes are not a sequence of intact frames up to the last byte.
    """
    found = _intact_frames(data, 0)
    at = found[-1][1] if found else 0
    if at < len(data):
        raise CorruptionError(f"There is no intact frame at byte {at} of {len(data)}.")
    return found


def check_tail(path: Path | str) -> None:
    """Check that the last intact frame is followed only by an incomplete frame or zeros, as a killed writer leaves.

    `read_journal` stops at these bytes in any case, because a writer may be in the middle of a frame. Call this before
    a journal is removed and when looking for damage.

    Raises:
        CorruptionError: the last frame has its full length but is damaged.
    """
    source = Path(path)
    for last_attempt in (False, True):
        end = 0
        for _, end in read_journal(source):  # noqa: B007 - only the last one counts
            pass
        with source.open("rb") as file:
            file.seek(end or len(HEADER))
            rest = file.read()
        if not _is_damaged(rest):
            return
        if not last_attempt:
            time.sleep(0.01)
    raise CorruptionError(
        f"The last frame of the journal '{path}' is damaged, at byte {end or len(HEADER)}.", help="See: everloop verify"
    )


def repaired_journal(path: Path | str) -> bytes | None:
    """The content of a journal with one flipped bit corrected, if checksums prove which bit it was; else None."""
    data = Path(path).read_bytes()
    intact = _intact_frames(data, len(HEADER))
    at = intact[-1][1] if intact else len(HEADER)
    if data[: len(HEADER)] != HEADER:
        return HEADER + data[len(HEADER) :] if intact and len(data) == at else None
    for frame in _possible_originals(data[at:]):
        candidate = data[:at] + frame + data[at + len(frame) :]
        found = _intact_frames(candidate, at)
        if found and not _is_damaged(candidate[found[-1][1] :]) and not _has_frame_after(candidate, found[-1][1]):
            return candidate
    return None


def intact_part(path: Path | str) -> bytes:
    """The journal's header and the intact frames that follow it."""
    data = Path(path).read_bytes()
    found = _intact_frames(data, len(HEADER))
    return data[: found[-1][1] if found else len(HEADER)]


def _is_damaged(rest: bytes) -> bool:
    """Whether the bytes after the last intact frame are a complete but damaged frame."""
    if len(rest) < _FRAME.size or not rest.strip(b"\0"):
        return False
    length, check = _FRAME.unpack_from(rest)
    if length <= len(rest) - _FRAME.size:
        return True
    # The frame is incomplete, unless only its length is wrong.
    body = rest[_FRAME.size :]
    return zlib.crc32(body, zlib.crc32(_LENGTH.pack(len(body)))) == int(check)


def _possible_originals(rest: bytes) -> Iterator[bytes]:
    """The frames that these bytes may have begun with before one bit was flipped."""
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


def _has_frame_after(data: bytes, at: int) -> bool:
    """Whether an intact frame begins anywhere after a position."""
    return any(_intact_frames(data, start, 1) for start in range(at + 1, len(data) - _FRAME.size + 1))


def _frames(path: Path, file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int]]:
    # Apparent damage is read a second time: a writer on a full device removes half a frame again, and a reader may have
    # seen that half.
    for last_attempt in (False, True):
        file.seek(offset)
        buffer, at = b"", 0
        while True:
            base = offset - at
            for payload, end in _intact_frames(buffer, at):
                offset, at = base + end, end
                yield payload, offset
            more = file.read(max(_CHUNK, len(buffer) - at))
            if not more:
                break
            buffer, at = buffer[at:] + more, 0
        # An intact frame further on means damage. Without one, this is the torn end of the file.
        if not _has_frame_after(buffer, at):
            return
        if last_attempt:
            raise CorruptionError(
                f"The journal '{path}' is damaged at byte {offset}, and intact frames follow.",
                help="See: everloop verify",
            )


def _intact_frames(buffer: bytes, at: int, most: int | None = None) -> list[tuple[bytes, int]]:
    """The intact frames from a position on, up to the first that is not: each payload and the offset of its end."""
    found: list[tuple[bytes, int]] = []
    # A journal can have millions of frames, so the loop uses local names and as few calls as possible.
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
    """Whether frames may follow. A journal with an incomplete header is empty."""
    if len(header) < len(HEADER) and HEADER.startswith(header):
        return False
    magic, version, _ = struct.unpack("<4sHH", header.ljust(8, b"\0"))
    if magic != HEADER[:4]:
        raise CorruptionError(f"'{path}' is not a journal.", help="See: everloop verify")
    if version > VERSION:
        raise StoreVersionError(
            f"The journal '{path}' has format {version}, but this everloop reads formats up to {VERSION}.",
            help="Upgrade everloop.",
        )
    if header != HEADER:
        # An older version, or bytes that are always zero.
        raise CorruptionError(f"The header of the journal '{path}' is damaged.", help="See: everloop verify")
    return True
