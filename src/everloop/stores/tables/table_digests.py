"""Digests of the files of growing tables, so that damage to them can be noticed and undone.

Beside a table's log lies the folder `_digests`, in which each commit has a file of the same number: the SHA-256 and
size of every data file that the commit added and of its checkpoint, and a copy of the log's entry. It is written
right after the commit. What the commit of a killed writer left without is noted by the next writer. The digests of
all commits up to a checkpoint can be joined into one file, `<number>.all.json`.

A file of digests is one line of JSON and a second line with the SHA-256 of the first. Readers of Delta tables other
than everloop ignore the folder, because its name begins with an underscore.
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
"""How many commits of writers that were killed in between one writer notes."""
_LOG_FILE = re.compile(r"(\d{20})\.(json|checkpoint\.parquet)")
_DIGEST_FILE = re.compile(r"(\d{20})(\.all)?\.json")


@dataclass(slots=True)
class Digests:
    """What is known of a table's files."""

    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size in bytes and SHA-256 by path, relative to the table."""
    entries: dict[int, str] = field(default_factory=dict)
    """Copies of the log's entries by version."""
    through: int = -1
    """All versions up to this one are covered."""
    versions: set[int] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)
    """Files of digests that are not what their own digest says."""
    count: int = 0
    size_bytes: int = 0

    def covers(self, version: int) -> bool:
        return version <= self.through or version in self.versions


class TableFiles:
    """The files of one table, and their digests."""

    def __init__(self, root: str, name: str, store: ByteStore | None = None) -> None:
        self.name = name
        self._store = open_bytes(root) if store is None else store

    def seal(self, version: int, *, look_back: int = _LOOK_BACK) -> None:
        """Note the digests of a commit, and of those right before it that have none.

        Older commits are left alone: a table of an earlier version of everloop is sealed as a whole, by `verify`.
        """
        for number in range(version, max(version - look_back, -1), -1):
            if number != version and self.size(_digest_path(number)) is not None:
                return
            if number != version and self.size(_digest_path(number, ".all")) is not None:
                return
            if not self._seal(number):
                return

    def seal_all(self) -> int:
        """Note the digests of everything that has none, and return how many files that were."""
        known = self.load()
        before = len(known.files)
        for version in sorted(self.log_versions()):
            if not known.covers(version):
                self._seal(version)
        known = self.load()
        # Checkpoints that came later than their commit was noted, and files whose commits are gone from the log.
        loose = {path for path, _ in self._list("") if _LOG_FILE.fullmatch(path.removeprefix(f"{LOG}/"))}
        loose |= set(self.active())
        loose = {path for path in loose if path not in known.files and self.size(path) is not None}
        if loose:
            newest = max(self.log_versions())
            self._write(newest, {path: self.digest(path) for path in sorted(loose)} | self._own(newest), newest)
        return len(self.load().files) - before

    def load(self) -> Digests:
        """Everything that has been noted."""
        found = Digests()
        for path, size in self._list(FOLDER):
            named = _DIGEST_FILE.fullmatch(path.removeprefix(f"{FOLDER}/"))
            if named is None:
                continue
            try:
                data = self.read(path)
            except NotFoundError:
                # Joined with others since it was listed.
                continue
            found.count += 1
            found.size_bytes += size
            noted = _parse(data)
            version = int(named[1])
            if noted is None or noted["version"] != version:
                found.damaged.append(path)
                continue
            found.files |= {name: (int(length), str(digest)) for name, (length, digest) in noted["files"].items()}
            if named[2]:
                found.through = max(found.through, version)
            else:
                found.versions.add(version)
                found.entries[version] = noted["entry"]
        return found

    def join(self, checkpoint: int, active: set[str]) -> None:
        """Join the digests of all commits up to a checkpoint, without those of files that are gone."""
        known = self.load()
        if known.damaged or not all(known.covers(version) for version in range(checkpoint + 1)):
            return
        there = {path for path, _ in self._list(LOG)} | active
        kept = {path: noted for path, noted in known.files.items() if path in there}
        self._put(_digest_path(checkpoint, ".all"), {"version": checkpoint, "files": kept})
        for path, _ in list(self._list(FOLDER)):
            named = _DIGEST_FILE.fullmatch(path.removeprefix(f"{FOLDER}/"))
            if named and int(named[1]) <= checkpoint and (not named[2] or int(named[1]) < checkpoint):
                self._store.delete(self._key(path))

    def clear(self) -> None:
        """Remove all digests, of a table that is about to begin."""
        for path, _ in list(self._list(FOLDER)):
            self._store.delete(self._key(path))

    def check(self, path: str, noted: tuple[int, str]) -> str | None:
        """What is wrong with a file; None when it is as noted."""
        size = self.size(path)
        if size is None:
            return f"The file '{path}' of the table '{self.name}' is missing."
        if size != noted[0]:
            return f"The file '{path}' of the table '{self.name}' has {size} bytes, not {noted[0]}."
        try:
            found = self.digest(path)[1]
        except NotFoundError:
            return f"The file '{path}' of the table '{self.name}' is missing."
        return None if found == noted[1] else f"The file '{path}' of the table '{self.name}' differs from its digest."

    def prove(self, paths: list[str]) -> None:
        """Compare files with their digests; those that have none are passed over.

        Raises:
            CorruptionError: one differs, or is missing.
        """
        known = self.load()
        for path in paths:
            problem = self.check(path, known.files[path]) if path in known.files else None
            if problem is not None:
                raise CorruptionError(problem, help="See: everloop verify")

    def log_versions(self) -> dict[int, str]:
        """The log's entries on disk: path by version."""
        found = {}
        for path, _ in self._list(LOG):
            named = _LOG_FILE.fullmatch(path.removeprefix(f"{LOG}/"))
            if named and named[2] == "json":
                found[int(named[1])] = path
        return found

    def checkpoints(self) -> dict[int, str]:
        found = {}
        for path, _ in self._list(LOG):
            named = _LOG_FILE.fullmatch(path.removeprefix(f"{LOG}/"))
            if named and named[2] != "json":
                found[int(named[1])] = path
        return found

    def active(self) -> dict[str, int]:
        """The data files of the table as its log has it now, with their sizes."""
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
        """Where the file is on this machine; None for a bucket."""
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
        """Note the digests of one commit; returns whether its entry was there."""
        try:
            entry = self.read(_log_path(version))
        except NotFoundError:
            return False
        files = {}
        for path in [*_added(entry), f"{LOG}/{version:020}.checkpoint.parquet"]:
            try:
                files[path] = self.digest(path)
            except NotFoundError:
                # Most commits have no checkpoint; and a data file may have been compacted and removed since.
                continue
        files[_log_path(version)] = (len(entry), hashlib.sha256(entry).hexdigest())
        self._write(version, files, version, entry)
        return True

    def _own(self, version: int) -> dict[str, tuple[int, str]]:
        try:
            noted = _parse(self.read(_digest_path(version)))
        except NotFoundError:
            return {}
        return {} if noted is None else {path: tuple(one) for path, one in noted["files"].items()}

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
    """The data files that a Delta table consists of, with their sizes in bytes."""
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
    noted: dict[str, Any] = json.loads(line)
    return noted


def _log_path(version: int) -> str:
    return f"{LOG}/{version:020}.json"


def _digest_path(version: int, kind: str = "") -> str:
    return f"{FOLDER}/{version:020}{kind}.json"
