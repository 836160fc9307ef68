"""Reading untrusted zip and tar archives, with limits on what they unpack to.

An archive of a megabyte can unpack to a gigabyte, contain paths that lead out of the target folder, contain a name
twice, or declare wrong sizes. So all archives are read with this module. It checks names, file types and declared sizes
before it unpacks anything, and counts content against the limits while it reads it piece by piece. It never allocates
memory because of a declared size, and it does not open archives inside of archives.
"""

from __future__ import annotations

import struct
import tarfile
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

from everloop.errors import CorruptionError
from everloop.stores.objects.manifests import safe_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 1 << 20
_BLOCK = 512
_MOST_HEADER = 64 << 10
"""Limit for a tar's extended header, in bytes. Those that everloop writes contain a long name and a time."""
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP_MEMBER = 46
_ZIP_LOCAL = 30
_PLAIN_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UTF8 = 0x800
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_MORE_BYTES = "If you trust the archive, raise the limit: --max-bytes BYTES"
_EXPORT_AGAIN = "Download or export it again."


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """Limits for the content of an archive."""

    total_bytes: int
    """Limit of the unpacked size, whatever the size of the archive."""
    ratio: float | None = 100.0
    """Unpacked bytes allowed per byte of the archive, or None for no limit. Below `free_bytes`, all is allowed."""
    free_bytes: int = 64 << 20
    entry_bytes: int | None = None
    """Limit for a single file; None for only the limit of the total."""
    entries: int = 1_000_000
    fold_case: bool = True
    """Refuse names that differ only in case or Unicode normalization, which are the same file on some file systems."""
    depth: int = 32
    """Number of parts that a path may have."""
    name_bytes: int = 1024

    def for_archive(self, size_bytes: int) -> int:
        """Number of bytes that an archive of this size may unpack to."""
        if self.ratio is None:
            return self.total_bytes
        return min(self.total_bytes, max(self.free_bytes, int(size_bytes * self.ratio)))


def limits_for(default: ArchiveLimits, most_bytes: int | None) -> ArchiveLimits:
    """The limits if the user has set how much an archive may unpack to: that size, at any ratio."""
    if most_bytes is None:
        return default
    return ArchiveLimits(
        total_bytes=most_bytes,
        ratio=None,
        entry_bytes=None,
        entries=max(default.entries, most_bytes // _BLOCK),
        fold_case=default.fold_case,
        depth=default.depth,
        name_bytes=default.name_bytes,
    )


class UnpackBudget:
    """What remains of an archive's limits while it is read."""

    def __init__(self, limits: ArchiveLimits, size_bytes: int, archive: Path) -> None:
        self.limits = limits
        self.archive = archive
        self._most = self._left = limits.for_archive(size_bytes)
        self._entries = 0
        self._names: set[str] = set()

    def spend(self, size_bytes: int) -> None:
        """Count unpacked bytes.

        Raises:
            CorruptionError: the archive unpacks to more than it may.
        """
        self._left -= size_bytes
        if self._left < 0:
            raise CorruptionError(
                f"'{self.archive}' unpacks to more than {self._most} bytes, which is the limit.", help=_MORE_BYTES
            )

    def admit(self, name: str, size_bytes: int) -> None:
        """Check one file before it is read: its name, its declared size, and that the name is new.

        Raises:
            CorruptionError: it is refused.
        """
        limits = self.limits
        self._entries += 1
        if self._entries > limits.entries:
            raise CorruptionError(f"'{self.archive}' contains more than {limits.entries} files.")
        if not is_safe_name(name) or name.count("/") >= limits.depth:
            raise CorruptionError(f"'{self.archive}' contains a file with an unsafe path: {name[:200]!r}.")
        if len(name.encode("utf-8", "surrogatepass")) > limits.name_bytes:
            raise CorruptionError(
                f"'{self.archive}' contains a name of {len(name)} characters, more than the limit of"
                f" {limits.name_bytes} bytes."
            )
        folded = unicodedata.normalize("NFC", name).casefold() if limits.fold_case else name
        if folded in self._names:
            raise CorruptionError(f"'{self.archive}' contains {name} twice.")
        self._names.add(folded)
        most = self._left if limits.entry_bytes is None else min(limits.entry_bytes, self._left)
        if not 0 <= size_bytes <= most:
            raise CorruptionError(
                f"'{self.archive}' unpacks to more than {self._most} bytes, which is the limit:"
                f" {name} alone has {size_bytes} bytes.",
                help=_MORE_BYTES,
            )


def is_safe_name(name: str) -> bool:
    """Whether a name stays inside the target folder on every file system."""
    return (
        safe_path(name)
        and name.isprintable()
        and not any(part.endswith((" ", ".")) or ":" in part for part in name.split("/"))
    )


@contextmanager
def open_zip(path: Path, limits: ArchiveLimits) -> Iterator[SafeZip]:
    """Open a zip and check its names and declared sizes.

    Raises:
        CorruptionError: it is not a zip, or is damaged or refused.
    """
    try:
        with path.open("rb") as raw:
            _check_directory(raw, path, limits)
            with _zip(raw, path) as archive:
                yield SafeZip(archive, path, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise CorruptionError(f"'{path}' is not a complete zip: {error}.", help=_EXPORT_AGAIN) from error


class SafeZip:
    """The files of a zip, read by name."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, limits: ArchiveLimits) -> None:
        self._archive = archive
        self._budget = UnpackBudget(limits, path.stat().st_size, path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        declared = 0
        for member in archive.infolist():
            self._budget.admit(member.filename, member.file_size)
            kind = member.external_attr >> 16 & 0o170000
            if member.is_dir() or kind not in (0, 0o100000):
                raise CorruptionError(f"'{path}' contains {member.filename}, which is not a regular file.")
            if member.flag_bits & _ENCRYPTED or member.compress_type not in _PLAIN_ZIP:
                raise CorruptionError(
                    f"'{path}' contains {member.filename}, which is encrypted or uses an unsupported compression."
                )
            declared += member.file_size
            self._members[member.filename] = member
        # `zipfile` refuses to read more than the declared sizes, so their sum is the final size.
        self._budget.spend(declared)
        self._check_overlap(path)

    @property
    def trusted(self) -> bool:
        """Whether the user has set how much it may unpack to."""
        return self._budget.limits.ratio is None

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """The declared unpacked size of a file in bytes. Reading never returns more."""
        return self._members[name].file_size

    def packed_size(self, name: str) -> int:
        return self._members[name].compress_size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            file = self._archive.open(self._members[name])
        except UnicodeDecodeError as error:
            raise _bad_name(self._budget.archive, error) from error
        with file:
            yield file

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def _check_overlap(self, path: Path) -> None:
        """Refuse files that share bytes, the trick by which a small zip unpacks to petabytes without nesting."""
        end = 0
        for member in sorted(self._members.values(), key=lambda one: one.header_offset):
            if member.header_offset < end:
                raise CorruptionError(f"'{path}' contains files that overlap: {member.filename}.")
            # The length of the encoded name: zipfile decodes names without the UTF-8 flag as code page 437.
            name = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437")
            end = member.header_offset + _ZIP_LOCAL + len(name) + member.compress_size
        if end > self._archive.start_dir:
            raise CorruptionError(f"'{path}' contains files that overlap its list of files.")


def _zip(raw: IO[bytes], path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except UnicodeDecodeError as error:
        raise _bad_name(path, error) from error


def _bad_name(path: Path, error: UnicodeDecodeError) -> CorruptionError:
    return CorruptionError(f"'{path}' contains a name that is not UTF-8: {error}.", help=_EXPORT_AGAIN)


def _check_directory(raw: IO[bytes], path: Path, limits: ArchiveLimits) -> None:
    """Refuse a list of files that is longer than the limit before it is read into memory."""
    size = raw.seek(0, 2)
    raw.seek(max(0, size - (1 << 16) - _ZIP_END.size))
    tail = raw.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _ZIP_END.size:
        raise CorruptionError(f"'{path}' is not a complete zip: it has no list of files.", help=_EXPORT_AGAIN)
    fields = _ZIP_END.unpack_from(tail, at)
    entries, length = fields[4], fields[5]
    locator = at - _ZIP64_LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
        # An offset after the end of the file cannot be read, and may be too large for `seek`.
        raw.seek(min(_ZIP64_LOCATOR.unpack_from(tail, locator)[2], size))
        end = raw.read(_ZIP64_END.size)
        if len(end) == _ZIP64_END.size and end[:4] == b"PK\6\6":
            entries, length = max(entries, _ZIP64_END.unpack(end)[7]), max(length, _ZIP64_END.unpack(end)[8])
    raw.seek(0)
    most = limits.entries * (_ZIP_MEMBER + 128)
    if length > min(size, most) or (entries > limits.entries and entries != 0xFFFF):
        raise CorruptionError(f"'{path}' contains, or claims to contain, more than {limits.entries} files.")


# --- tar --------------------------------------------------------------------------------------------------------


class TarMember:
    """One file of a tar: its name, its size, and its content, which can be read once and in order."""

    def __init__(self, name: str, size_bytes: int, stream: _Stream) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self._stream = stream
        self._left = size_bytes

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        pieces = []
        while wanted:
            piece = self._stream.take(min(wanted, CHUNK))
            pieces.append(piece)
            wanted -= len(piece)
            self._left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip(self) -> None:
        while self._left:
            self.read(CHUNK)
        self._stream.take(-self.size_bytes % _BLOCK)


class _Stream:
    """The bytes of a tar, counted while they are read."""

    def __init__(self, raw: _Readable, budget: UnpackBudget) -> None:
        self._raw = raw
        self._budget = budget

    def take(self, size: int) -> bytes:
        """Read exactly `size` bytes.

        Raises:
            CorruptionError: fewer bytes are left, or the archive unpacks to more than it may.
        """
        data = self.up_to(size)
        if len(data) != size:
            raise CorruptionError(f"'{self._budget.archive}' ends in the middle of a file.")
        return data

    def up_to(self, size: int) -> bytes:
        """Read `size` bytes, or fewer at the end of the tar."""
        pieces = []
        while size > 0 and (piece := self._raw.read(size)):
            self._budget.spend(len(piece))
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def tar_members(raw: _Readable, budget: UnpackBudget) -> Iterator[TarMember]:
    """Yield the files of a tar in order, each after it was checked. Content that the caller does not read is skipped.

    Only regular files are accepted: links, devices, folders, sparse files and global headers are refused. A tar ends
    with two blocks of zeros, but a truncated one is not detected here. So callers must check that nothing is missing.

    Raises:
        CorruptionError: it is damaged or refused.
    """
    stream = _Stream(raw, budget)
    long_name: str | None = None
    long_size: int | None = None
    while block := stream.up_to(_BLOCK):
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            if not block.strip(b"\0"):
                return
            raise CorruptionError(f"'{budget.archive}' is not a complete tar: {error}.") from error
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if not 0 <= info.size <= _MOST_HEADER:
                raise CorruptionError(f"'{budget.archive}' has a header of {info.size} bytes.")
            data = stream.take(info.size)
            stream.take(-info.size % _BLOCK)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            else:
                long_name, long_size = _extended(data, budget)
            continue
        name, size = long_name or info.name, info.size if long_size is None else long_size
        long_name = long_size = None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or name.endswith("/"):
            raise CorruptionError(f"'{budget.archive}' contains {name[:200]}, which is not a regular file.")
        budget.admit(name, size)
        member = TarMember(name, size, stream)
        yield member
        member.skip()


def _extended(data: bytes, budget: UnpackBudget) -> tuple[str | None, int | None]:
    """The name and size in an extended header. Other records are refused, except for a few harmless ones."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits = data[at : at + 8].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() and len(digits) < 7 else 0
        key, equals, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if length <= len(digits) + 2 or not equals or at + length > len(data):
            raise CorruptionError(f"'{budget.archive}' has a damaged header.")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += length
    unknown = sorted(set(found) - {"path", "size", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname"})
    size = found.get("size")
    if unknown or (size is not None and not (size.isascii() and size.isdigit() and len(size) < 20)):
        raise CorruptionError(f"'{budget.archive}' has an unsupported header: {unknown or size}.")
    return found.get("path"), None if size is None else int(size)


@contextmanager
def zstd_or_plain(path: Path) -> Iterator[Any]:
    """Open a file for reading. If it is compressed with Zstandard, it is decompressed on the fly."""
    with path.open("rb") as file:
        compressed = file.read(4) == b"\x28\xb5\x2f\xfd"
        file.seek(0)
        if not compressed:
            yield file
            return
        # pyarrow includes Zstandard; the standard library has it only from Python 3.14 on.
        import pyarrow as pa

        with pa.CompressedInputStream(file, "zstd") as stream:
            yield stream
