"""Unpack compressed files: `.gz`, `.bz2`, `.xz`, `.zst`, and `.zip` with a single file.

Files are unpacked as a stream into the store's cache, so memory holds only one chunk at a time. The unpacked size is
limited, because a small archive must not fill the disk.
"""

from __future__ import annotations

import shutil
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any

from everloop.data.sources.file_copies import copied
from everloop.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.data.sources.data_files import DataFile

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
_CHUNK = 1 << 20
_ALWAYS_BYTES = 1 << 30
_MOST_RATIO = 1_000
_FREE_BYTES = 1 << 29
_CHUNKS_PER_DISK_CHECK = 64
"""Free disk space is checked once per this many chunks."""


def is_compressed(name: str | Path) -> bool:
    return PurePath(name).suffix.lower() in SUFFIXES


def plain_name(name: str, path: Path | None = None) -> str:
    """The name without the suffix of the compression; for a zip archive at `path`, the name of the file inside."""
    pure = PurePath(name)
    if not is_compressed(name):
        return name
    stem = str(pure.with_suffix(""))
    if pure.suffix.lower() == ".zip" and path is not None and not PurePath(stem).suffix:
        return _member(path, name)
    return stem


def unpacked(file: DataFile) -> DataFile:
    """The file itself, or if it is compressed, an unpacked copy in the store's cache.

    Raises:
        SourceError: it is damaged, truncated, encrypted, contains several files, or unpacks to an implausible size.
    """
    if not is_compressed(file.path):
        return file
    suffix = PurePath(plain_name(file.path.name, file.path)).suffix
    return file.at(copied(file.path, f"unpacked {suffix}", suffix, lambda: _chunks(file)))


def _chunks(file: DataFile) -> Iterator[bytes]:
    import lzma
    import zipfile
    import zlib

    size = file.path.stat().st_size
    most = max(_ALWAYS_BYTES, size * _MOST_RATIO)
    done = number = 0
    try:
        with _opened(file) as stream:
            while chunk := stream.read(_CHUNK):
                done += len(chunk)
                if done > most:
                    raise SourceError(
                        f"'{file}' has {size:,} bytes but unpacks to more than {most:,}, which is suspicious.",
                        help="If the size is right, unpack the file by hand and read the result.",
                    )
                if number % _CHUNKS_PER_DISK_CHECK == 0 and shutil.disk_usage(file.path.parent).free < _FREE_BYTES:
                    raise SourceError(
                        f"The disk does not have enough free space to unpack '{file}'.", help="Free some space."
                    )
                number += 1
                yield bytes(chunk)
    except EOFError as error:
        raise SourceError(
            f"'{file}' is truncated: its compressed data ends too early.", help="Copy or download it again."
        ) from error
    except (OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        reason = str(error).rstrip(".")
        raise SourceError(f"'{file}' cannot be unpacked: {reason}.", help="Copy or download it again.") from error


def _opened(file: DataFile) -> IO[bytes] | Any:
    import bz2
    import gzip
    import lzma
    import zipfile

    path = file.path
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            import pyarrow as pa

            return pa.input_stream(str(path), compression="zstd")
    return zipfile.ZipFile(path).open(_member(path, str(file)))


def _member(path: Path, shown: str) -> str:
    """The name of the one file in a zip archive. Files that macOS adds do not count."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = [one.filename for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"'{shown}' cannot be unpacked: {error}.", help="Copy or download it again.") from error
    names = [name for name in names if not name.startswith("__MACOSX/") and PurePath(name).name != ".DS_Store"]
    if len(names) != 1:
        content = (
            "no file" if not names else f"{len(names)} files ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        )
        raise SourceError(
            f"'{shown}' contains {content}, but must contain exactly one.",
            help="Unpack it, and read the folder or a glob.",
        )
    return names[0]
