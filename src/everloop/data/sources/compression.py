"""Compressed files: `.gz`, `.bz2`, `.xz`, `.zst`, and `.zip` with one file in it.

They are unpacked as a stream into the store's cache, so memory holds a piece at a time, and no more than a bound: a
small archive must not fill the disk.
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
_LOOKED_EVERY = 64
"""So many pieces lie between two looks at the room on the disk."""


def is_compressed(name: str | Path) -> bool:
    return PurePath(name).suffix.lower() in SUFFIXES


def plain_name(name: str, path: Path | None = None) -> str:
    """The name without the suffix of the compression; of a zip archive that can be opened, the name of its file."""
    pure = PurePath(name)
    if not is_compressed(name):
        return name
    stem = str(pure.with_suffix(""))
    if pure.suffix.lower() == ".zip" and path is not None and not PurePath(stem).suffix:
        return _member(path, name)
    return stem


def unpacked(file: DataFile) -> DataFile:
    """The file, unpacked into a copy in the store's cache where it is compressed.

    Raises:
        SourceError: it is damaged, cut short, encrypted, holds several files, or unpacks to more than can be expected.
    """
    if not is_compressed(file.path):
        return file
    suffix = PurePath(plain_name(file.path.name, file.path)).suffix
    return file.at(copied(file.path, f"unpacked {suffix}", suffix, lambda: _pieces(file)))


def _pieces(file: DataFile) -> Iterator[bytes]:
    import lzma
    import zipfile
    import zlib

    size = file.path.stat().st_size
    most = max(_ALWAYS_BYTES, size * _MOST_RATIO)
    done = number = 0
    try:
        with _opened(file) as stream:
            while piece := stream.read(_CHUNK):
                done += len(piece)
                if done > most:
                    raise SourceError(
                        f"'{file}' has {size:,} bytes and unpacks to more than {most:,}.",
                        help="If that is right, unpack it by hand and read the file.",
                    )
                if number % _LOOKED_EVERY == 0 and shutil.disk_usage(file.path.parent).free < _FREE_BYTES:
                    raise SourceError(f"There is no room on the disk to unpack '{file}'.", help="Make room.")
                number += 1
                yield bytes(piece)
    except EOFError as error:
        raise SourceError(f"'{file}' ends before its last byte.", help="Copy or download it again.") from error
    except (OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        said = str(error).rstrip(".")
        raise SourceError(f"'{file}' cannot be unpacked: {said}.", help="Copy or download it again.") from error


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
    """The one file in an archive; what macOS puts beside it does not count."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = [one.filename for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"'{shown}' cannot be unpacked: {error}.", help="Copy or download it again.") from error
    names = [name for name in names if not name.startswith("__MACOSX/") and PurePath(name).name != ".DS_Store"]
    if len(names) != 1:
        held = (
            "no file" if not names else f"{len(names)} files ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        )
        raise SourceError(f"'{shown}' holds {held}, and one is read.", help="Unpack it and read its folder or a glob.")
    return names[0]
