"""Folders as manifests: which file has which bytes, and where those bytes are.

A manifest is a JSON object by digest. Files below 64 KiB are put together into packs, in the order of their paths,
so that a folder of a thousand small files is a handful of objects; larger ones are objects of their own. The same
folder has the same manifest, whoever adds it and wherever.
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
    """Relative, with `/` between its parts."""
    mode: int
    """0o644, or 0o755 where the owner may execute it."""
    size_bytes: int
    digest: str
    """Of the file's own bytes."""
    pack: str | None = None
    """Digest of the pack that holds the bytes; None where they are an object of their own."""
    offset: int = 0
    """Where in the pack they begin."""

    @property
    def holder(self) -> str:
        """Digest of the object that holds the bytes."""
        return self.pack or self.digest


def encode_tree(entries: list[TreeEntry]) -> bytes:
    """The manifest of these files, the same bytes for the same files."""
    rows = [_row(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
    body = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return MAGIC + f'"version":{VERSION},"entries":{body}}}'.encode()


def decode_tree(data: bytes, digest: str) -> list[TreeEntry]:
    """The inverse of `encode_tree`.

    Raises:
        UsageError: the object is no tree.
        StoreVersionError: a newer everloop wrote it.
        CorruptionError: it is a tree, but not a sound one, such as one with a path that leads out of its folder.
    """
    if not data.startswith(MAGIC):
        raise UsageError(f"The object {digest} is no tree.")
    try:
        manifest = json.loads(data)
        if manifest["version"] > VERSION:
            raise StoreVersionError(
                f"The tree {digest} has format {manifest['version']}; this everloop knows {VERSION}.",
                help="Upgrade everloop.",
            )
        entries = [TreeEntry(**row) for row in manifest["entries"]]
        sound = all(_is_sound(entry) for entry in entries) and len({entry.path for entry in entries}) == len(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"The tree {digest} cannot be read: {error}.") from error
    if not sound:
        raise CorruptionError(f"The tree {digest} has entries that no folder can hold.")
    return entries


def safe_path(path: str) -> bool:
    """Whether a path stays within the folder that it is relative to."""
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
    """The relative path and the mode (0o644 or 0o755) of every file of a folder that no pattern ignores.

    Raises:
        UsageError: something that no tree can hold.
    """
    # Read to the end at once, so that no folder stays open while its files are.
    with os.scandir(top / below) as found:
        entries = list(found)
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if any(fnmatch(entry.name, pattern) or fnmatch(path, pattern) for pattern in ignore):
            continue
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UsageError(f"The name {path!r} in '{top}' is no text.", help="Rename it or ignore it.") from None
        if "\\" in entry.name:
            raise UsageError(f"The name '{path}' in '{top}' has a backslash.", help="Rename it or ignore it.")
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


def _is_sound(entry: TreeEntry) -> bool:
    return (
        safe_path(entry.path)
        and entry.mode in (0o644, 0o755)
        and DIGEST.fullmatch(entry.holder) is not None
        and DIGEST.fullmatch(entry.digest) is not None
        and entry.size_bytes >= 0
        and entry.offset >= 0
    )
