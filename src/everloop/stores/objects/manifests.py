"""Manifests of folders: the paths, digests and locations of all files.

A manifest is stored as a JSON object by its digest. Files below 64 KiB are combined into packs, in the order of their
paths, so that a folder with a thousand small files needs only a few objects. Each larger file is an object. The same
folder always has the same manifest, on every machine.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, StoreVersionError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b'{"everloop":"tree",'
VERSION = 1
SMALL_BYTES = 64 * 1024
PACK_BYTES = 8 * 1024 * 1024
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """One file of a tree."""

    path: str
    """Relative path with `/` as separator."""
    mode: int
    """0o644, or 0o755 if the owner may execute the file."""
    size_bytes: int
    digest: str
    """Digest of the file's bytes."""
    pack: str | None = None
    """Digest of the pack that contains the bytes. None if the file is an object by itself."""
    offset: int = 0
    """Offset of the bytes in the pack."""

    @property
    def holder(self) -> str:
        """Digest of the object that contains the bytes."""
        return self.pack or self.digest


def encode_tree(entries: list[TreeEntry]) -> bytes:
    """Encode the manifest of these files. The same files give the same bytes."""
    rows = [_row(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
    body = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return MAGIC + f'"version":{VERSION},"entries":{body}}}'.encode()


def decode_tree(data: bytes, digest: str) -> list[TreeEntry]:
    """The inverse of `encode_tree`.

    Raises:
        UsageError: the object is not a tree.
        StoreVersionError: a newer everloop wrote it.
        CorruptionError: the tree is invalid. For example, it has a path that leads out of the folder.
    """
    if not data.startswith(MAGIC):
        raise UsageError(f"The object {digest} is not a tree.")
    try:
        manifest = json.loads(data)
        if manifest["version"] > VERSION:
            raise StoreVersionError(
                f"The tree {digest} has format {manifest['version']}, but this everloop reads formats up to {VERSION}.",
                help="Upgrade everloop.",
            )
        entries = [TreeEntry(**row) for row in manifest["entries"]]
        valid = all(_is_valid(entry) for entry in entries) and len({entry.path for entry in entries}) == len(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"Cannot read the tree {digest}: {error}.", help="See: everloop verify") from error
    if not valid:
        raise CorruptionError(f"The tree {digest} has invalid entries.", help="See: everloop verify")
    return entries


def safe_path(path: str) -> bool:
    """Whether a relative path stays inside its folder."""
    pure = PurePosixPath(path)
    return (
        bool(path)
        and str(pure) == path
        and path != "."
        and not pure.is_absolute()
        and ".." not in pure.parts
        and "\0" not in path
        and "\\" not in path
    )


def walk_files(top: Path, ignore: tuple[str, ...], below: str = "") -> Iterator[tuple[str, int]]:
    """The relative path and the mode (0o644 or 0o755) of every file in a folder that no pattern ignores.

    Raises:
        UsageError: the folder has an entry that a tree cannot contain.
    """
    # The list is read completely first, so that no folder stays open while the caller reads its files.
    with os.scandir(top / below) as found:
        entries = list(found)
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if any(fnmatch(entry.name, pattern) or fnmatch(path, pattern) for pattern in ignore):
            continue
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UsageError(f"The name {path!r} in '{top}' is not valid text.", help="Rename or ignore it.") from None
        if "\\" in entry.name:
            raise UsageError(f"The name '{path}' in '{top}' contains a backslash.", help="Rename or ignore it.")
        if entry.is_symlink():
            raise UsageError(f"'{path}' in '{top}' is a symbolic link.", help="Copy the file or ignore the link.")
        if entry.is_dir():
            yield from walk_files(top, ignore, path)
        elif entry.is_file():
            yield path, 0o755 if entry.stat().st_mode & stat.S_IXUSR else 0o644
        else:
            raise UsageError(f"'{path}' in '{top}' is neither a file nor a folder.", help="Ignore it.")


def _row(entry: TreeEntry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": entry.path,
        "mode": entry.mode,
        "size_bytes": entry.size_bytes,
        "digest": entry.digest,
    }
    if entry.pack is not None:
        row |= {"pack": entry.pack, "offset": entry.offset}
    return row


def _is_valid(entry: TreeEntry) -> bool:
    return (
        safe_path(entry.path)
        and entry.mode in (0o644, 0o755)
        and DIGEST.fullmatch(entry.holder) is not None
        and DIGEST.fullmatch(entry.digest) is not None
        and entry.size_bytes >= 0
        and entry.offset >= 0
    )
