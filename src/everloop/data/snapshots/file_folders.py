"""Folders of files (images, texts, sounds) as dataset versions.

Such a snapshot is a table with one row per file: `path`, `size_bytes`, `sha256`. The files themselves are stored as a
tree, with small files packed together, so that a hundred thousand files become a few dozen objects. A cache remembers
the stamps of a folder's files, and files that the file system reports as unchanged are not read again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from everloop.data.snapshots.snapshots import get_snapshot, take_snapshot
from everloop.data.sources.file_states import is_settled
from everloop.data.sources.read_progress import report_progress
from everloop.data.table_inputs import nearest
from everloop.errors import DataError, SourceError
from everloop.records import Snapshot
from everloop.stores.clock import SystemClock, micros
from everloop.stores.objects.manifests import PACK_BYTES, SMALL_BYTES, TreeEntry, encode_tree, walk_files
from everloop.stores.permissions import make_folder, private_opener

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from everloop.records import Run
    from everloop.stores import Store

_CACHE = "folders"
_FILES_PER_REPORT = 1_000
_Stamp = tuple[int, int, int]
_Row = tuple[str, _Stamp, int, int, str, str | None, int]
"""Path, stamp, mode, size, digest, pack and offset of one file."""


class _FolderCache(msgspec.Struct):
    """The files of a folder when it was last stored, and the snapshot of each dataset that lists them."""

    rows: list[_Row]
    snapshots: dict[str, str]


def add_folder(
    folder: Path | str,
    dataset: str,
    store: Store,
    *,
    ignore: Iterable[str] = (".*", "__pycache__"),
    run: Run | str | None = None,
) -> Snapshot:
    """Store a folder as the next version of a dataset, or return the existing version with the same content.

    Args:
        ignore: patterns of file names, or of paths inside the folder, to leave out.

    Raises:
        DataError: the folder has no files.
        SourceError: the folder does not exist, or a file kept changing while it was read.
        UsageError: the folder contains a link, or a file name that cannot be stored.
    """
    top, patterns = Path(folder).absolute(), tuple(ignore)
    if not top.is_dir():
        raise SourceError(f"There is no folder '{folder}'.", help="Pass a folder; to read a table, use el.read.")
    folder_id = hashlib.sha256(f"{top} {store.project}".encode()).hexdigest()[:32]
    path = store.home / "cache" / _CACHE / f"{folder_id}.msgpack"
    cache = _load_cache(path)
    found = sorted(_walk(top, patterns))
    if not found:
        raise DataError(
            f"The folder '{folder}' contains no files.", help=f"These patterns are left out: {', '.join(patterns)}"
        )
    if [(row[0], row[1]) for row in cache.rows] == [(each, stamp) for each, stamp, _ in found]:
        same = store.records.find(Snapshot, ("id", "=", cache.snapshots.get(dataset, "")), limit=1)
        if same and store.objects.has(_tree(same[0], store)):
            report_progress("files", len(found), len(found), "files", str(folder))
            return same[0]
    entries = _stored(top, found, cache, store)
    listing = pl.DataFrame(
        {
            "path": [entry.path for entry in entries],
            "size_bytes": [entry.size_bytes for entry in entries],
            "sha256": [entry.digest.removeprefix("sha256:") for entry in entries],
        },
        schema={"path": pl.String, "size_bytes": pl.Int64, "sha256": pl.String},
    )
    tree = store.objects.add(encode_tree(entries))
    sources = [{"kind": "folder", "spec": {"folder": str(top)}, "state": tree}]
    snapshot = take_snapshot(listing, dataset, store, key="path", run=run, tree=tree, sources=sources)
    _save_cache(path, entries, {each: stamp for each, stamp, _ in found}, {**cache.snapshots, dataset: snapshot.id})
    return snapshot


def is_folder(snapshot: Snapshot) -> bool:
    """Whether a snapshot is of a folder and contains its files."""
    return any("tree" in file for file in snapshot.files)


def export_folder(snapshot: Snapshot | str, store: Store, folder: Path | str) -> Path:
    """Write the files to a folder that does not exist or is empty. On failure nothing is written.

    Raises:
        DataError: the snapshot is of a table.
        UsageError: the folder is not empty.
    """
    return store.objects.restore_tree(_tree(snapshot, store), folder)


def read_files(
    snapshot: Snapshot | str, store: Store, paths: Iterable[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the verified bytes of each file, or of the files in `paths`.

    Raises:
        DataError: the snapshot is of a table, or a file does not exist.
    """
    entries = {entry.path: entry for entry in store.objects.tree(_tree(snapshot, store))}
    for path in entries if paths is None else paths:
        if path not in entries:
            raise DataError(f"The snapshot has no file '{path}'.", help=nearest(path, entries))
        yield path, store.objects.read_entry(entries[path])


def _tree(snapshot: Snapshot | str, store: Store) -> str:
    found = get_snapshot(snapshot, store) if isinstance(snapshot, str) else snapshot
    tree = next((file["tree"] for file in found.files if "tree" in file), None)
    if tree is None:
        raise DataError(
            f"'{found.key}' is a table, not a folder of files.", help=f"See: everloop data show {found.key}"
        )
    return str(tree)


def _walk(top: Path, ignore: tuple[str, ...]) -> Iterator[tuple[str, _Stamp | None, int]]:
    """Path, stamp and mode of every file. The stamp is None while it proves nothing yet.

    Raises:
        UsageError: a file cannot be stored in a tree, see `walk_files`.
    """
    ignored = re.compile("|".join(fnmatch.translate(pattern) for pattern in ignore) or r"(?!)")
    # Take the time before looking at the files, so that a file written from now on counts as unsettled.
    now_ns = micros(SystemClock().now()) * 1000

    def below(folder: str, prefix: str) -> Iterator[tuple[str, _Stamp | None, int]]:
        with os.scandir(folder) as scanned:
            entries = list(scanned)
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if ignored.fullmatch(entry.name) or (prefix and ignored.fullmatch(path)):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from below(entry.path, f"{path}/")
                continue
            if not entry.is_file(follow_symlinks=False) or not path.isprintable() or "\\" in entry.name:
                list(walk_files(top, ignore))  # raises the error, if the file cannot be stored
            seen = entry.stat(follow_symlinks=False)
            last_ns = max(seen.st_mtime_ns, seen.st_ctime_ns)
            stamp = (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns) if is_settled(last_ns, now_ns) else None
            yield path, stamp, 0o755 if seen.st_mode & stat.S_IXUSR else 0o644

    return below(str(top), "")


def _stored(
    top: Path, found: list[tuple[str, _Stamp | None, int]], cache: _FolderCache, store: Store
) -> list[TreeEntry]:
    """Store every file. Files with the same stamp as last time are reused from the store, others are read."""
    known = {row[0]: row for row in cache.rows}
    exists: dict[str, bool] = {}
    packer = _Packer(store)
    for number, (path, stamp, mode) in enumerate(found):
        row = known.get(path)
        if row is not None and stamp is not None and row[1] == stamp:
            digest = row[5] or row[4]
            if digest not in exists:
                exists[digest] = store.objects.has(digest)
            if exists[digest]:
                packer.reuse(
                    TreeEntry(path=path, mode=mode, size_bytes=row[3], digest=row[4], pack=row[5], offset=row[6])
                )
                continue
        packer.read(top / path, path, mode)
        if number % _FILES_PER_REPORT == 0:
            report_progress("files", number, len(found), "files", str(top))
    report_progress("files", len(found), len(found), "files", str(top))
    return packer.finish()


class _Packer:
    """Writes files to the store in the given order, and packs small ones together."""

    def __init__(self, store: Store) -> None:
        self._objects = store.objects
        self._entries: list[TreeEntry] = []
        self._waiting: list[tuple[TreeEntry, bytes]] = []
        self._waiting_bytes = 0

    def reuse(self, entry: TreeEntry) -> None:
        """Add a file that is in the store already."""
        self._entries.append(entry)

    def read(self, source: Path, path: str, mode: int) -> None:
        size, digest, data = _read_unchanged(source, self._objects)
        entry = TreeEntry(path=path, mode=mode, size_bytes=size, digest=digest)
        if data is None:
            self._entries.append(entry)
            return
        self._waiting.append((entry, data))
        self._waiting_bytes += size
        if self._waiting_bytes >= PACK_BYTES:
            self._pack()

    def finish(self) -> list[TreeEntry]:
        self._pack()
        return sorted(self._entries, key=lambda entry: entry.path)

    def _pack(self) -> None:
        if not self._waiting:
            return
        pack = self._objects.add(b"".join(data for _, data in self._waiting))
        offset = 0
        for entry, data in self._waiting:
            self._entries.append(replace(entry, pack=pack, offset=offset))
            offset += len(data)
        self._waiting, self._waiting_bytes = [], 0


def _read_unchanged(source: Path, objects: Any) -> tuple[int, str, bytes | None]:
    """Size, digest and, for a small file, the bytes. Repeated if the file changes meanwhile."""
    for _ in range(3):
        try:
            before = os.stat(source)  # noqa: PTH116 - there may be a hundred thousand
            if before.st_size < SMALL_BYTES:
                data = _read(source)
                size, digest = len(data), f"sha256:{hashlib.sha256(data).hexdigest()}"
            else:
                data, digest = None, objects.add_file(source)
                size = objects.size(digest) or 0
            after = os.stat(source)  # noqa: PTH116
        except OSError as error:
            raise SourceError(f"'{source}' cannot be read: {error.strerror}.") from error
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and size == after.st_size:
            return size, digest, data
    raise SourceError(
        f"'{source}' keeps changing while it is read.", help="Try again when the program that writes it is done."
    )


def _read(source: Path) -> bytes:
    with open(source, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def _load_cache(path: Path) -> _FolderCache:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=_FolderCache)
    except (FileNotFoundError, msgspec.MsgspecError):
        return _FolderCache([], {})


def _save_cache(
    path: Path, entries: list[TreeEntry], stamps: dict[str, _Stamp | None], snapshots: dict[str, str]
) -> None:
    rows: list[_Row] = []
    for entry in entries:
        stamp = stamps[entry.path]
        if stamp is not None:
            row = (entry.path, stamp, entry.mode, entry.size_bytes, entry.digest, entry.pack, entry.offset)
            rows.append(row)
    make_folder(path.parent)
    part = path.with_suffix(".part")
    with open(part, "wb", opener=private_opener) as file:
        file.write(msgspec.msgpack.encode(_FolderCache(rows, snapshots)))
    part.replace(path)
