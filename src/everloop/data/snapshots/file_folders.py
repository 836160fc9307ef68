"""Folders of files (images, texts, sounds) as dataset versions.

Such a snapshot is a table that lists the files, one row each: `path`, `size_bytes`, `sha256`. The files themselves lie
in a tree, small ones packed together, so that a hundred thousand of them are a few dozen objects. What a folder held
last time is remembered with the stamps of its files: those that the file system says are unchanged are not read again.
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
from everloop.errors import DataError, SourceError
from everloop.records import Snapshot
from everloop.stores.clock import SystemClock, micros
from everloop.stores.objects.manifests import PACK_BYTES, SMALL_BYTES, TreeEntry, encode_tree, walk_files
from everloop.stores.permissions import make_folder, private_opener

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from everloop.records import Run
    from everloop.stores import Store

_MEMORY = "folders"
_TOLD_EVERY = 1_000
_Stamp = tuple[int, int, int]
_Row = tuple[str, _Stamp, int, int, str, str | None, int]
"""Path, stamp, mode, size, digest, pack and offset of one file."""


class _Memory(msgspec.Struct):
    """What a folder held last time, and which snapshot of each dataset lists it."""

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
    """Keep a folder as the next version of a dataset, or return the version that holds the same already.

    Args:
        ignore: patterns of names, or of paths in the folder, to leave out.

    Raises:
        DataError: no file is left.
        SourceError: there is no such folder, or a file kept changing while it was read.
        UsageError: a link, or a name that no tree can hold.
    """
    top, patterns = Path(folder).absolute(), tuple(ignore)
    if not top.is_dir():
        raise SourceError(f"There is no folder '{folder}'.", help="Give a folder; tables are read with el.read.")
    place = hashlib.sha256(f"{top} {store.project}".encode()).hexdigest()[:32]
    path = store.home / "cache" / _MEMORY / f"{place}.msgpack"
    memory = _remembered(path)
    found = sorted(_walk(top, patterns))
    if not found:
        raise DataError(f"The folder '{folder}' holds no files.", help=f"These were left out: {', '.join(patterns)}")
    if [(row[0], row[1]) for row in memory.rows] == [(each, stamp) for each, stamp, _ in found]:
        same = store.records.find(Snapshot, ("id", "=", memory.snapshots.get(dataset, "")), limit=1)
        if same and store.objects.has(_tree(same[0], store)):
            report_progress("files", len(found), len(found), "files", str(folder))
            return same[0]
    entries = _kept(top, found, memory, store)
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
    _remember(path, entries, {each: stamp for each, stamp, _ in found}, {**memory.snapshots, dataset: snapshot.id})
    return snapshot


def is_folder(snapshot: Snapshot) -> bool:
    """Whether a snapshot lists the files of a folder, which it holds too."""
    return any("tree" in file for file in snapshot.files)


def export_folder(snapshot: Snapshot | str, store: Store, folder: Path | str) -> Path:
    """Write the files into a folder that is absent or empty; it appears whole or not at all.

    Raises:
        DataError: the snapshot is of a table.
        UsageError: the folder holds something.
    """
    return store.objects.restore_tree(_tree(snapshot, store), folder)


def read_files(
    snapshot: Snapshot | str, store: Store, paths: Iterable[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Path and proved bytes of each file, one at a time; of these paths only, where some are given.

    Raises:
        DataError: the snapshot is of a table, or has no such file.
    """
    entries = {entry.path: entry for entry in store.objects.tree(_tree(snapshot, store))}
    for path in entries if paths is None else paths:
        if path not in entries:
            raise DataError(f"The snapshot has no file '{path}'.")
        yield path, store.objects.read_entry(entries[path])


def _tree(snapshot: Snapshot | str, store: Store) -> str:
    found = get_snapshot(snapshot, store) if isinstance(snapshot, str) else snapshot
    tree = next((file["tree"] for file in found.files if "tree" in file), None)
    if tree is None:
        raise DataError(f"'{found.key}' is a table and holds no files.", help=f"See: everloop data show {found.key}")
    return str(tree)


def _walk(top: Path, ignore: tuple[str, ...]) -> Iterator[tuple[str, _Stamp | None, int]]:
    """Path, stamp and mode of every file; no stamp while one proves nothing.

    Raises:
        UsageError: what no tree can hold, told as `walk_files` does.
    """
    left_out = re.compile("|".join(fnmatch.translate(pattern) for pattern in ignore) or r"(?!)")
    # Taken before the files are looked at, so that what is written from now on counts as unsettled.
    now_ns = micros(SystemClock().now()) * 1000

    def below(folder: str, prefix: str) -> Iterator[tuple[str, _Stamp | None, int]]:
        with os.scandir(folder) as scanned:
            entries = list(scanned)
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if left_out.fullmatch(entry.name) or (prefix and left_out.fullmatch(path)):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from below(entry.path, f"{path}/")
                continue
            if not entry.is_file(follow_symlinks=False) or not path.isprintable() or "\\" in entry.name:
                list(walk_files(top, ignore))  # says what is wrong with it, if anything is
            seen = entry.stat(follow_symlinks=False)
            last_ns = max(seen.st_mtime_ns, seen.st_ctime_ns)
            stamp = (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns) if is_settled(last_ns, now_ns) else None
            yield path, stamp, 0o755 if seen.st_mode & stat.S_IXUSR else 0o644

    return below(str(top), "")


def _kept(top: Path, found: list[tuple[str, _Stamp | None, int]], memory: _Memory, store: Store) -> list[TreeEntry]:
    """Every file in the store: those with the stamps of last time as they are there, the others read."""
    known = {row[0]: row for row in memory.rows}
    there: dict[str, bool] = {}
    packer = _Packer(store)
    for number, (path, stamp, mode) in enumerate(found):
        row = known.get(path)
        if row is not None and stamp is not None and row[1] == stamp:
            holder = row[5] or row[4]
            if holder not in there:
                there[holder] = store.objects.has(holder)
            if there[holder]:
                packer.take(
                    TreeEntry(path=path, mode=mode, size_bytes=row[3], digest=row[4], pack=row[5], offset=row[6])
                )
                continue
        packer.read(top / path, path, mode)
        if number % _TOLD_EVERY == 0:
            report_progress("files", number, len(found), "files", str(top))
    report_progress("files", len(found), len(found), "files", str(top))
    return packer.finish()


class _Packer:
    """Puts files into the store, small ones together, in the order in which they come."""

    def __init__(self, store: Store) -> None:
        self._objects = store.objects
        self._entries: list[TreeEntry] = []
        self._waiting: list[tuple[TreeEntry, bytes]] = []
        self._held = 0

    def take(self, entry: TreeEntry) -> None:
        """What is in the store already."""
        self._entries.append(entry)

    def read(self, source: Path, path: str, mode: int) -> None:
        size, digest, data = _steady(source, self._objects)
        entry = TreeEntry(path=path, mode=mode, size_bytes=size, digest=digest)
        if data is None:
            self._entries.append(entry)
            return
        self._waiting.append((entry, data))
        self._held += size
        if self._held >= PACK_BYTES:
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
        self._waiting, self._held = [], 0


def _steady(source: Path, objects: Any) -> tuple[int, str, bytes | None]:
    """Size, digest and, where it is small, the bytes of a file that did not change meanwhile."""
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
    raise SourceError(f"'{source}' keeps changing while it is read.", help="Try again when its writer is done.")


def _read(source: Path) -> bytes:
    with open(source, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def _remembered(path: Path) -> _Memory:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=_Memory)
    except (FileNotFoundError, msgspec.MsgspecError):
        return _Memory([], {})


def _remember(
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
        file.write(msgspec.msgpack.encode(_Memory(rows, snapshots)))
    part.replace(path)
