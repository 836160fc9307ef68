"""Digests of the files of Delta tables, so that damage to them can be detected and repaired.

A table has the folder `_digests` beside its log. For each commit it contains a file with the same number, which has the
SHA-256 and size of every data file that the commit added and of its checkpoint, and a copy of the log entry. It is
written right after the commit. If a writer is killed in between, the next writer adds the missing file. The digests of
all commits up to a checkpoint can be merged into one file, `<number>.all.json`.

A file of digests consists of one line of JSON and a second line with the SHA-256 of the first. Other readers of Delta
tables ignore the folder, because its name begins with an underscore.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from everloop.errors import CorruptionError, NotFoundError
from everloop.stores.objects.byte_stores import open_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.stores.objects.byte_stores import ByteStore

FOLDER = "_digests"
LOG = "_delta_log"
HINT = f"{LOG}/_last_checkpoint"
_CHUNK = 8 << 20
_LOOK_BACK = 50
"""The number of earlier commits without digests for which a writer adds them."""
_LOG_FILE = re.compile(r"(\d{20})\.(json|checkpoint\.parquet)")
_DIGEST_FILE = re.compile(r"(\d{20})(\.all)?\.json")


@dataclass(slots=True)
class Digests:
    """The recorded digests of a table's files."""

    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size in bytes and SHA-256 by path, relative to the table's folder."""
    entries: dict[int, str] = field(default_factory=dict)
    """Copies of the log entries by version."""
    through: int = -1
    """All versions up to this one are covered."""
    versions: set[int] = field(default_factory=set)
    """Later versions that are covered."""
    damaged: list[str] = field(default_factory=list)
    """Files of digests whose content differs from their own digest."""
    count: int = 0
    """Number of files of digests, and their total size."""
    size_bytes: int = 0

    def covers(self, version: int) -> bool:
        return version <= self.through or version in self.versions


class TableFiles:
    """The files of one table and their digests."""

    def __init__(self, root: str, name: str, store: ByteStore | None = None) -> None:
        self.name = name
        self._store = open_bytes(root) if store is None else store

    def seal(self, version: int, *, look_back: int = _LOOK_BACK) -> None:
        """Record the digests of a commit, and of the commits right before it that have none.

        Older commits are left alone. Tables that were written by an earlier version of everloop are sealed by `verify`.
        """
        for number in range(version, max(version - look_back, -1), -1):
            if number != version and self.size(_digest_path(number)) is not None:
                return
            if number != version and self.size(_digest_path(number, ".all")) is not None:
                return
            if not self._seal(number):
                return

    def seal_all(self) -> int:
        """Record the digests of all files that have none, and return the number of these files."""
        known = self.load()
        before = len(known.files)
        for version in sorted(self.log_versions()):
            if not known.covers(version):
                self._seal(version)
        known = self.load()
        # Also checkpoints that were written later than the digests of their commit, and files whose log entries are
        # gone.
        missing = {path for path, _ in self._list("") if _LOG_FILE.fullmatch(path.removeprefix(f"{LOG}/"))}
        missing |= set(self.active())
        missing = {path for path in missing if path not in known.files and self.size(path) is not None}
        if missing:
            newest = max(self.log_versions())
            digests = {path: self.digest(path) for path in sorted(missing)}
            self._write(newest, digests | self._recorded(newest), newest)
        return len(self.load().files) - before

    def load(self) -> Digests:
        """Read all recorded digests."""
        found = Digests()
        for path, size in self._list(FOLDER):
            match = _DIGEST_FILE.fullmatch(path.removeprefix(f"{FOLDER}/"))
            if match is None:
                continue
            try:
                data = self.read(path)
            except NotFoundError:
                # It was merged with others since it was listed.
                continue
            found.count += 1
            found.size_bytes += size
            content = _parse(data)
            version = int(match[1])
            if content is None or content["version"] != version:
                found.damaged.append(path)
                continue
            found.files |= {name: (int(length), str(digest)) for name, (length, digest) in content["files"].items()}
            if match[2]:
                found.through = max(found.through, version)
            else:
                found.versions.add(version)
                found.entries[version] = content["entry"]
        return found

    def join(self, checkpoint: int, active: set[str]) -> None:
        """Merge the digests of all commits up to a checkpoint into one file, without those of removed files."""
        known = self.load()
        if known.damaged or not all(known.covers(version) for version in range(checkpoint + 1)):
            return
        existing = {path for path, _ in self._list(LOG)} | active
        files = {path: recorded for path, recorded in known.files.items() if path in existing}
        self._put(_digest_path(checkpoint, ".all"), {"version": checkpoint, "files": files})
        for path, _ in list(self._list(FOLDER)):
            match = _DIGEST_FILE.fullmatch(path.removeprefix(f"{FOLDER}/"))
            if match and int(match[1]) <= checkpoint and (not match[2] or int(match[1]) < checkpoint):
                self._store.delete(self._key(path))

    def clear(self) -> None:
        """Remove all digests, before a new table is created."""
        for path, _ in list(self._list(FOLDER)):
            self._store.delete(self._key(path))

    def check(self, path: str, recorded: tuple[int, str]) -> str | None:
        """The problem of a file, or None if it has the recorded size and digest."""
        size = self.size(path)
        if size is None:
            return f"The file '{path}' of the table '{self.name}' is missing."
        if size != recorded[0]:
            return f"The file '{path}' of the table '{self.name}' has {size} bytes, not {recorded[0]}."
        try:
            found = self.digest(path)[1]
        except NotFoundError:
            return f"The file '{path}' of the table '{self.name}' is missing."
        if found == recorded[1]:
            return None
        return f"The file '{path}' of the table '{self.name}' differs from its digest."

    def prove(self, paths: list[str]) -> None:
        """Compare files with their digests. Files without a digest are skipped.

        Raises:
            CorruptionError: a file differs from its digest, or is missing.
        """
        known = self.load()
        for path in paths:
            problem = self.check(path, known.files[path]) if path in known.files else None
            if problem is not None:
                raise CorruptionError(problem, help="See: everloop verify")

    def log_versions(self) -> dict[int, str]:
        """The existing log entries: path by version."""
        found = {}
        for path, _ in self._list(LOG):
            match = _LOG_FILE.fullmatch(path.removeprefix(f"{LOG}/"))
            if match and match[2] == "json":
                found[int(match[1])] = path
        return found

    def checkpoints(self) -> dict[int, str]:
        found = {}
        for path, _ in self._list(LOG):
            match = _LOG_FILE.fullmatch(path.removeprefix(f"{LOG}/"))
            if match and match[2] != "json":
                found[int(match[1])] = path
        return found

    def active(self) -> dict[str, int]:
        """The data files of the table's present version, with their sizes in bytes."""
        from deltalake import DeltaTable

        table = DeltaTable(f"{self._root()}/{self.name}")
        return active_files(table)

    def digest(self, path: str) -> tuple[int, str]:
        hasher = hashlib.sha256()
        total = 0
        while chunk := self._store.get(self._key(path), total, _CHUNK):
            hasher.update(chunk)
            total += len(chunk)
            if len(chunk) < _CHUNK:
                break
        return total, hasher.hexdigest()

    def size(self, path: str) -> int | None:
        return self._store.size(self._key(path))

    def read(self, path: str) -> bytes:
        return self._store.get(self._key(path))

    def local(self, path: str) -> Path | None:
        """The path of the file on this machine, or None for a bucket."""
        from everloop.stores.objects.byte_stores import LocalBytes

        return self._store.path(self._key(path)) if isinstance(self._store, LocalBytes) else None

    def replace(self, path: str, data: bytes | Path) -> None:
        self._store.put(self._key(path), data, if_absent=False)

    def remove(self, path: str) -> None:
        self._store.delete(self._key(path))

    def _root(self) -> str:
        from everloop.stores.objects.byte_stores import LocalBytes

        return str(self._store.folder) if isinstance(self._store, LocalBytes) else str(getattr(self._store, "url", ""))

    def _seal(self, version: int) -> bool:
        """Record the digests of one commit, and return whether its log entry exists."""
        try:
            entry = self.read(_log_path(version))
        except NotFoundError:
            return False
        files = {}
        for path in [*_added(entry), f"{LOG}/{version:020}.checkpoint.parquet"]:
            try:
                files[path] = self.digest(path)
            except NotFoundError:
                # Most commits have no checkpoint, and a data file may have been removed after a compaction.
                continue
        files[_log_path(version)] = (len(entry), hashlib.sha256(entry).hexdigest())
        self._write(version, files, version, entry)
        return True

    def _recorded(self, version: int) -> dict[str, tuple[int, str]]:
        """The digests in the file of one commit."""
        try:
            content = _parse(self.read(_digest_path(version)))
        except NotFoundError:
            return {}
        return {} if content is None else {path: tuple(one) for path, one in content["files"].items()}

    def _write(self, version: int, files: dict[str, tuple[int, str]], log: int, entry: bytes | None = None) -> None:
        text = self.read(_log_path(log)) if entry is None else entry
        self._put(_digest_path(version), {"version": version, "entry": text.decode(), "files": files})

    def _put(self, path: str, content: dict[str, Any]) -> None:
        line = json.dumps(content, separators=(",", ":")).encode()
        data = line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"
        self._store.put(self._key(path), data, if_absent=False)

    def _list(self, prefix: str) -> Iterator[tuple[str, int]]:
        below = f"{self.name}/{prefix}" if prefix else self.name
        for key, size in self._store.list(below):
            yield key.removeprefix(f"{self.name}/"), size

    def _key(self, path: str) -> str:
        return f"{self.name}/{path}"


def active_files(table: Any) -> dict[str, int]:
    """The data files of a Delta table, with their sizes in bytes."""
    actions = table.get_add_actions()
    paths, sizes = (actions.column(name).to_pylist() for name in ("path", "size_bytes"))
    return {unquote(path): int(size) for path, size in zip(paths, sizes, strict=True)}


def _added(entry: bytes) -> list[str]:
    paths = []
    for line in entry.splitlines():
        action = json.loads(line)
        if "add" in action:
            paths.append(unquote(action["add"]["path"]))
    return paths


def _parse(data: bytes) -> dict[str, Any] | None:
    line, _, rest = data.partition(b"\n")
    if rest != hashlib.sha256(line).hexdigest().encode() + b"\n":
        return None
    content: dict[str, Any] = json.loads(line)
    return content


def _log_path(version: int) -> str:
    return f"{LOG}/{version:020}.json"


def _digest_path(version: int, kind: str = "") -> str:
    return f"{FOLDER}/{version:020}{kind}.json"
