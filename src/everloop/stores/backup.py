"""One file with everything that a home holds, and a home from such a file.

The file is a tar, compressed where its name ends in `.zst`. Its first member, `everloop-backup.json`, says its
format, and its last, `everloop-backup.end`, how many files lie between, so that a cut is noticed, and the SHA-256 of
each, so that damage is: nothing appears under the home's name before all of them are right. Older backups
have no digests; what is in such a file is checked by `everloop verify` on the home that it becomes. What is copied
first can be behind what is copied later and never before it: journals and segments, then records, then the objects and
tables that the records name. So the copy is whole although others go on writing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast

from everloop.errors import AlreadyExistsError, CorruptionError, NotFoundError, StoreVersionError, UsageError
from everloop.stores.archives import (
    CHUNK,
    ArchiveLimits,
    TarMember,
    UnpackBudget,
    limits_for,
    tar_members,
    zstd_or_plain,
)
from everloop.stores.full_disk import insufficient, is_full, writing
from everloop.stores.gc import LOCK
from everloop.stores.home import open_store, prepare_home
from everloop.stores.objects.byte_stores import TEMPORARY, LocalBytes
from everloop.stores.permissions import PRIVATE_FILE, file_mode, make_folder, make_private
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sqlite import SqliteDatabase
from everloop.stores.sealing import FILE as KEY_FILE
from everloop.stores.tables.table_digests import FOLDER, LOG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores.home import Store

FORMAT = 1
_HEAD = "everloop-backup.json"
_END = "everloop-backup.end"
_RECORDS = "everloop.db"
_SHIPPED = ("spool", "segments")
_TOPS = ("journals/", "objects/", "tables/", "spool/", "segments/")
_MOST_HEAD = 64 << 10
_MOST_END_ENTRY = 4 << 10
"""Bytes that a backup's end may have for each file: its name and its digest."""
# Two tables of a home may differ in case only.
LIMITS = ArchiveLimits(total_bytes=1 << 42, entries=50_000_000, fold_case=False, depth=64)
# A hint at which entry of a table's log to begin with. It may have moved on since the log was copied.
_LEFT_OUT = "_last_checkpoint"


def backup(store: Store, path: Path | str, *, with_key: bool = False) -> Path:
    """Write everything that the home holds, of all projects, into one file, which appears whole or not at all.

    Args:
        path: ends in `.tar` or `.tar.zst`. The file is for its owner's eyes only.
        with_key: also the home's key, which opens the secrets of webhooks. Without it the file alone gives none away.

    Raises:
        UsageError: another ending, or a part of the store that lies outside of the home's machine.
        InsufficientStorageError: no space left for it; then there is no file.
        AlreadyExistsError: there is such a file.
    """
    target = Path(path)
    database = _local(store)
    if not target.name.endswith((".tar", ".tar.zst")):
        raise UsageError(f"'{target.name}' says no format.", help="End the name in .tar or .tar.zst.")
    if target.exists():
        raise AlreadyExistsError(f"There is a file '{target}' already.", help="Name another.")
    with writing(target):
        _write(store, database, target, with_key=with_key)
    return target


def _write(store: Store, database: SqliteDatabase, target: Path, *, with_key: bool) -> None:
    """Write the backup beside its place, and name it when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".everloop-backup-", dir=target.parent) as scratch, store.lock(LOCK):
        draft = Path(scratch) / "backup"
        digests: dict[str, str] = {}
        with _tar_writer(draft, compressed=target.name.endswith(".zst")) as tar:
            head = {"format": FORMAT, "created_at": store.now().isoformat(), "project": store.project}
            _add_bytes(tar, _HEAD, json.dumps(head).encode())
            # What instances elsewhere have shipped here, in the order of its way.
            for name in _SHIPPED:
                _add_folder(tar, store.home / name, name, digests)
            _add_folder(tar, store.journals, "journals", digests)
            copy = Path(scratch) / _RECORDS
            database.copy_to(copy)
            _add_file(tar, copy, _RECORDS, digests)
            copy.unlink()
            _add_folder(tar, Path(store.places.objects), "objects", digests)
            _add_folder(tar, Path(store.places.tables), "tables", digests)
            if (store.home / "clock").exists():
                _add_file(tar, store.home / "clock", "clock", digests)
            if with_key and (store.home / KEY_FILE).exists():
                _add_file(tar, store.home / KEY_FILE, KEY_FILE, digests)
            _add_bytes(tar, _END, _end(digests))
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.chmod(0o600)
        draft.rename(target)


def restore(path: Path | str, home: Path | str, *, max_bytes: int | None = None) -> Path:
    """Make a home of a backup. It appears whole or not at all; the backup's names cannot lead out of it.

    Args:
        home: absent or empty.
        max_bytes: how much the backup may unpack to, at any ratio; default: a hundred times its own size.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the home holds something.
        CorruptionError: the file is no backup, or damaged.
        StoreVersionError: a newer everloop wrote it.
    """
    source, target = Path(path), Path(home).absolute()
    if not source.is_file():
        raise NotFoundError(f"There is no backup '{source}'.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{target}' is not empty.", help="Name a new folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".everloop-restore-", dir=target.parent) as scratch:
        draft = Path(scratch) / "home"
        make_folder(draft, shared=False)
        try:
            with zstd_or_plain(source) as stream:
                budget = UnpackBudget(limits_for(LIMITS, max_bytes), source.stat().st_size, source)
                _unpack(_members(tar_members(stream, budget)), source, draft)
        except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
            if is_full(error):
                raise insufficient(f"to restore '{target}'") from error
            raise CorruptionError(f"'{source}' is no whole backup: {error}.") from error
        prepare_home(draft)
        # Opening proves that this everloop can read the records, before anything shows.
        with open_store(draft, create=False) as opened:
            _local(opened).use_log()
        if target.exists():
            target.rmdir()
        draft.rename(target)
    return target


def members(path: Path | str, names: set[str], *, max_bytes: int | None = None) -> Iterator[tuple[str, bytes]]:
    """The files of these names in a backup, with what they hold. They are not compared with their digests.

    Args:
        max_bytes: how much the backup may unpack to, at any ratio; default: a hundred times its own size.

    Raises:
        NotFoundError: there is no such backup.
        CorruptionError: it cannot be read to its end.
    """
    source = Path(path)
    if not source.is_file():
        raise NotFoundError(f"There is no backup '{source}'.")
    try:
        with zstd_or_plain(source) as stream:
            budget = UnpackBudget(limits_for(LIMITS, max_bytes), source.stat().st_size, source)
            for member in _members(tar_members(stream, budget)):
                if member.name in names:
                    yield member.name, member.read()
    except (OSError, EOFError, ValueError) as error:
        raise CorruptionError(f"'{source}' is no whole backup: {error}.") from error


def _local(store: Store) -> SqliteDatabase:
    """The database of a home all of whose parts are on this machine."""
    records = store.records
    if not isinstance(records, SqlRecords) or not isinstance(records.database, SqliteDatabase):
        raise UsageError("A backup holds no records from a server.", help="Use the server's own tool, such as pg_dump.")
    if not isinstance(store.objects.bytes_store, LocalBytes) or "://" in store.places.tables:
        raise UsageError("A backup holds nothing from a bucket.", help="Use the bucket's own versions or copies.")
    return records.database


@contextmanager
def _tar_writer(path: Path, *, compressed: bool) -> Iterator[tarfile.TarFile]:
    with path.open("wb") as file:
        if not compressed:
            with tarfile.open(fileobj=file, mode="w|") as tar:
                yield tar
            return
        # Zstandard comes with pyarrow; the standard library has it from Python 3.14 on.
        import pyarrow as pa

        with pa.CompressedOutputStream(file, "zstd") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            yield tar


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = PRIVATE_FILE
    tar.addfile(info, io.BytesIO(data))


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Summed:
    """A file that is read once, and the SHA-256 of what was read."""

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sum.update(data)
        return data


def _end(digests: dict[str, str]) -> bytes:
    """The last member. Its own digest comes first, because nothing else covers it."""
    body = json.dumps({"files": len(digests), "digests": digests})
    return json.dumps({"files": len(digests), "body": body, "sha256": _digest(body.encode())}).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _add_file(tar: tarfile.TarFile, path: Path, name: str, digests: dict[str, str]) -> None:
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        info = tarfile.TarInfo(name)
        # A journal may grow under our hands: exactly so much is copied, and a torn tail is its readers' daily bread.
        info.size, info.mtime, info.mode = stat.st_size, stat.st_mtime, PRIVATE_FILE
        summed = _Summed(file)
        tar.addfile(info, cast("IO[bytes]", summed))
        digests[name] = summed.sum.hexdigest()


def _add_folder(tar: tarfile.TarFile, folder: Path, top: str, digests: dict[str, str]) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    # The digests of a table before its log, which may be ahead of them and never behind; and its log before its files:
    # what the log names has been written by then, and is not removed for days.
    for path in sorted(files, key=lambda path: (FOLDER not in path.parts, LOG not in path.parts)):
        below = path.relative_to(folder)
        if TEMPORARY in below.parts or below.name.startswith(".") or below.name == _LEFT_OUT:
            continue
        try:
            _add_file(tar, path, f"{top}/{below.as_posix()}", digests)
        except FileNotFoundError:
            # A journal that has just been folded: its points are in the records, which are copied after it.
            continue


def _members(members: Iterator[TarMember]) -> Iterator[TarMember]:
    try:
        yield from members
    except CorruptionError as error:
        raise CorruptionError(f"{error.message.rstrip('.')}, which no backup does.", help=error.help) from error


def _unpack(members: Iterator[TarMember], source: Path, home: Path) -> None:
    first = next(members, None)
    if first is None or first.name != _HEAD:
        raise CorruptionError(f"'{source}' is no everloop backup.")
    version = json.loads(_small(first))["format"]
    if version > FORMAT:
        raise StoreVersionError(
            f"The backup '{source}' has format {version}; this everloop knows {FORMAT}.", help="Upgrade everloop."
        )
    names: dict[str, str] = {}
    while (member := next(members, None)) is not None and member.name != _END:
        if not (member.name in (_RECORDS, "clock", KEY_FILE) or member.name.startswith(_TOPS)):
            raise CorruptionError(f"'{source}' holds '{member.name}', which no backup does.")
        path = home / member.name
        make_folder(path.parent)
        with os.fdopen(make_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            summed = _Summed(member)
            shutil.copyfileobj(summed, file, CHUNK)
        names[member.name] = summed.sum.hexdigest()
        path.chmod(file_mode(path.parent, read_only=member.name.startswith("objects/")))
    end = {} if member is None else json.loads(_small(member, _MOST_HEAD + len(names) * _MOST_END_ENTRY))
    if not end or end["files"] != len(names) or _RECORDS not in names:
        raise CorruptionError(f"'{source}' is a backup without its end.")
    if "body" not in end:
        return
    if _digest(end["body"].encode()) != end["sha256"]:
        raise CorruptionError(f"The end of the backup '{source}' is damaged.", help="Use another backup.")
    digests = json.loads(end["body"])["digests"]
    different = sorted(name for name in digests.keys() | names.keys() if digests.get(name) != names.get(name))
    if different:
        more = f" and {len(different) - 1} others" if len(different) > 1 else ""
        raise CorruptionError(
            f"The backup '{source}' is damaged: '{different[0]}'{more} differ from their digests.",
            help="Use another backup.",
        )


def _small(member: TarMember, most: int = _MOST_HEAD) -> bytes:
    if member.size_bytes > most:
        raise CorruptionError(f"The backup's '{member.name}' has {member.size_bytes} bytes.")
    return member.read()
