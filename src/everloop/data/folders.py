"""Folders of files (images, texts, sounds) as dataset versions.

Such a snapshot is a table that lists the files, one row each: `path`, `size_bytes`, `sha256`. The files themselves lie
in a tree, small ones packed together, so that a hundred thousand of them are a few dozen objects. What a folder held
last time is remembered with the stamps of its files: those that the file system says are unchanged are not read again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from everloop.data.file_states import settled_stamp
from everloop.data.progress import tell
from everloop.data.snapshots import get_snapshot, take_snapshot
from everloop.errors import DataError, SourceError
from everloop.stores.trees import PACK_BYTES, SMALL_BYTES, TreeEntry, encode_tree, walk_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from everloop.records import Run, Snapshot
    from everloop.stores import Store

_MEMORY = "folders"
_TOLD_EVERY = 1_000
_Stamp = tuple[int, int, int]
_Known = tuple[_Stamp, dict[str, Any]]


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
    top = Path(folder).absolute()
    if not top.is_dir():
        raise SourceError(f"There is no folder '{folder}'.", help="Give a folder; tables are read with el.read.")
    memory = store.home / "cache" / _MEMORY / f"{hashlib.sha256(str(top).encode()).hexdigest()[:32]}.msgpack"
    known = _remembered(memory, store)
    packer = _Packer(store)
    stamps: dict[str, _Stamp | None] = {}
    found = sorted(walk_files(top, tuple(ignore)))
    if not found:
        raise DataError(f"The folder '{folder}' holds no files.", help=f"These were left out: {', '.join(ignore)}")
    for number, (path, mode) in enumerate(found):
        stamp = settled_stamp(top / path)
        stamps[path] = stamp
        before = known.get(path)
        if before is not None and stamp is not None and before[0] == stamp:
            packer.take(replace(TreeEntry(**before[1]), mode=mode))
        else:
            packer.read(top / path, path, mode)
        if number % _TOLD_EVERY == 0:
            tell("files", number, len(found), "files", str(folder))
    entries = packer.finish()
    tell("files", len(found), len(found), "files", str(folder))
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
    _remember(memory, entries, stamps)
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
            before = source.stat()
            if before.st_size < SMALL_BYTES:
                data = source.read_bytes()
                size, digest = len(data), f"sha256:{hashlib.sha256(data).hexdigest()}"
            else:
                data, digest = None, objects.add_file(source)
                size = objects.size(digest) or 0
            after = source.stat()
        except OSError as error:
            raise SourceError(f"'{source}' cannot be read: {error.strerror}.") from error
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and size == after.st_size:
            return size, digest, data
    raise SourceError(f"'{source}' keeps changing while it is read.", help="Try again when its writer is done.")


def _remembered(memory: Path, store: Store) -> dict[str, _Known]:
    """What the folder held last time, as far as the store still has it."""
    try:
        rows = msgspec.msgpack.decode(memory.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    there: dict[str, bool] = {}
    known: dict[str, _Known] = {}
    for path, stamp, size, digest, pack, offset in rows:
        holder = pack or digest
        if holder not in there:
            there[holder] = store.objects.has(holder)
        if there[holder]:
            entry = {"path": path, "mode": 0o644, "size_bytes": size, "digest": digest, "pack": pack, "offset": offset}
            known[path] = (tuple(stamp), entry)
    return known


def _remember(memory: Path, entries: list[TreeEntry], stamps: dict[str, _Stamp | None]) -> None:
    rows = [
        (entry.path, stamps[entry.path], entry.size_bytes, entry.digest, entry.pack, entry.offset)
        for entry in entries
        if stamps[entry.path] is not None
    ]
    memory.parent.mkdir(parents=True, exist_ok=True)
    part = memory.with_suffix(".part")
    part.write_bytes(msgspec.msgpack.encode(rows))
    part.replace(memory)
