"""Backing up a whole home into one file, and restoring it.

The file is a tar, compressed if its name ends in `.zst`. Its first member, `everloop-backup.json`, has the format. Its
last member, `everloop-backup.end`, has the number of files, which shows truncation, and the SHA-256 of each file, which
shows damage. A restored home appears only after all of them were checked. Older backups have no digests; run
`everloop verify` on the home that was restored from one.

Other processes may write during a backup. The order of copying keeps it consistent: journals and segments first, then
records, then the objects and tables that the records refer to. What is copied later may be newer, but never older.
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
"""Largest size of one entry of the last member, with a file's name and digest."""
# `fold_case` is off because the names of two tables may differ only in case.
LIMITS = ArchiveLimits(total_bytes=1 << 42, entries=50_000_000, fold_case=False, depth=64)
# Delta's hint at the newest checkpoint. It may be newer than the copy of the log.
_LEFT_OUT = "_last_checkpoint"


def backup(store: Store, path: Path | str, *, with_key: bool = False) -> Path:
    """Write the whole home, with all projects, into one file. The file appears only when it is complete.

    Args:
        path: ends in `.tar` or `.tar.zst`. Only the file's owner can read it.
        with_key: include the home's key, which decrypts the secrets of webhooks. Without the key, the file reveals
            none of them.

    Raises:
        UsageError: the file name has another ending, or a part of the store is not on this machine.
        InsufficientStorageError: no space is left. No file is written.
        AlreadyExistsError: the file exists already.
    """
    target = Path(path)
    database = _local(store)
    if not target.name.endswith((".tar", ".tar.zst")):
        raise UsageError(
            f"The backup file '{target.name}' has an unknown ending.", help="Use a name that ends in .tar or .tar.zst."
        )
    if target.exists():
        raise AlreadyExistsError(f"The file '{target}' already exists.", help="Use another name.")
    with writing(target):
        _write(store, database, target, with_key=with_key)
    return target


def _write(store: Store, database: SqliteDatabase, target: Path, *, with_key: bool) -> None:
    """Write the backup to a temporary folder beside the target, and move it when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".everloop-backup-", dir=target.parent) as scratch, store.lock(LOCK):
        draft = Path(scratch) / "backup"
        digests: dict[str, str] = {}
        with _tar_writer(draft, compressed=target.name.endswith(".zst")) as tar:
            head = {"format": FORMAT, "created_at": store.now().isoformat(), "project": store.project}
            _add_bytes(tar, _HEAD, json.dumps(head).encode())
            # Data that instances on other machines have shipped here, in the order in which it moves.
            for name in _SHIPPED:
                _add_folder(tar, store.home / name, name, digests)
            _add_folder(tar, store.journals, "journals", digests)
            copy = Path(scratch) / _RECORDS
            database.copy_to(copy)
            _add_file(tar, copy, _RECORDS, digests)
            copy.unlink()
            _add_folder(tar, Path(store.urls.objects), "objects", digests)
            _add_folder(tar, Path(store.urls.tables), "tables", digests)
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
    """Restore a backup to a new home. The home appears only when it is complete, and no file is written outside of it.

    Args:
        home: a folder that does not exist or is empty.
        max_bytes: limit of the unpacked size. Default: a hundred times the size of the backup.

    Raises:
        NotFoundError: the file does not exist.
        UsageError: the home is not empty.
        CorruptionError: the file is not a backup, or is damaged.
        StoreVersionError: a newer everloop wrote it.
    """
    source, target = Path(path), Path(home).absolute()
    if not source.is_file():
        raise NotFoundError(f"There is no backup '{source}'.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"The folder '{target}' is not empty.", help="Use a new folder.")
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
            message = f"'{source}' is not a complete backup: {error}."
            raise CorruptionError(message, help="Use another backup.") from error
        prepare_home(draft)
        # Opening the store proves that this everloop can read the records, before the home appears.
        with open_store(draft, create=False) as opened:
            _local(opened).use_log()
        if target.exists():
            target.rmdir()
        draft.rename(target)
    return target


def members(path: Path | str, names: set[str], *, max_bytes: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files in a backup that have these names. Digests are not checked.

    Args:
        max_bytes: limit of the unpacked size. Default: a hundred times the size of the backup.

    Raises:
        NotFoundError: the backup does not exist.
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
        raise CorruptionError(f"'{source}' is not a complete backup: {error}.", help="Use another backup.") from error


def _local(store: Store) -> SqliteDatabase:
    """Return the database if all parts of the store are on this machine, else raise UsageError."""
    records = store.records
    if not isinstance(records, SqlRecords) or not isinstance(records.database, SqliteDatabase):
        raise UsageError(
            "The records of this store are on a database server, which everloop cannot back up.",
            help="Use the server's own tool, such as pg_dump.",
        )
    if not isinstance(store.objects.bytes_store, LocalBytes) or "://" in store.urls.tables:
        raise UsageError(
            "The objects or tables of this store are in a bucket, which everloop cannot back up.",
            help="Use the bucket's own versioning or copies.",
        )
    return records.database


@contextmanager
def _tar_writer(path: Path, *, compressed: bool) -> Iterator[tarfile.TarFile]:
    with path.open("wb") as file:
        if not compressed:
            with tarfile.open(fileobj=file, mode="w|") as tar:
                yield tar
            return
        # pyarrow includes Zstandard; the standard library has it only from Python 3.14 on.
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


class _HashingReader:
    """Computes the SHA-256 of a file while it is read."""

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sum.update(data)
        return data


def _end(digests: dict[str, str]) -> bytes:
    """The content of the last member. It carries its own digest, because no other one covers it."""
    body = json.dumps({"files": len(digests), "digests": digests})
    return json.dumps({"files": len(digests), "body": body, "sha256": _digest(body.encode())}).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _add_file(tar: tarfile.TarFile, path: Path, name: str, digests: dict[str, str]) -> None:
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        info = tarfile.TarInfo(name)
        # A journal may grow meanwhile. Only its present size is copied; its readers can handle a torn last frame.
        info.size, info.mtime, info.mode = stat.st_size, stat.st_mtime, PRIVATE_FILE
        reader = _HashingReader(file)
        tar.addfile(info, cast("IO[bytes]", reader))
        digests[name] = reader.sum.hexdigest()


def _add_folder(tar: tarfile.TarFile, folder: Path, top: str, digests: dict[str, str]) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    # A table's digests before its log, because the log may be newer than the digests but not older. The log before the
    # data files: all files that it names have been written by then, and are not removed for days.
    for path in sorted(files, key=lambda path: (FOLDER not in path.parts, LOG not in path.parts)):
        below = path.relative_to(folder)
        if TEMPORARY in below.parts or below.name.startswith(".") or below.name == _LEFT_OUT:
            continue
        try:
            _add_file(tar, path, f"{top}/{below.as_posix()}", digests)
        except FileNotFoundError:
            # This journal was just folded. Its points are in the records, which are copied later.
            continue


def _members(members: Iterator[TarMember]) -> Iterator[TarMember]:
    try:
        yield from members
    except CorruptionError as error:
        raise CorruptionError(f"The backup is refused: {error.message}", help=error.help) from error


def _unpack(members: Iterator[TarMember], source: Path, home: Path) -> None:
    first = next(members, None)
    if first is None or first.name != _HEAD:
        raise CorruptionError(
            f"'{source}' is not a backup of everloop.", help="Use a file that `everloop backup` wrote."
        )
    version = json.loads(_small(first))["format"]
    if version > FORMAT:
        raise StoreVersionError(
            f"The backup '{source}' has format {version}, but this everloop reads formats up to {FORMAT}.",
            help="Upgrade everloop.",
        )
    names: dict[str, str] = {}
    while (member := next(members, None)) is not None and member.name != _END:
        if not (member.name in (_RECORDS, "clock", KEY_FILE) or member.name.startswith(_TOPS)):
            raise CorruptionError(
                f"The backup is refused: '{source}' contains '{member.name}', which does not belong there."
            )
        path = home / member.name
        make_folder(path.parent)
        with os.fdopen(make_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            reader = _HashingReader(member)
            shutil.copyfileobj(reader, file, CHUNK)
        names[member.name] = reader.sum.hexdigest()
        path.chmod(file_mode(path.parent, read_only=member.name.startswith("objects/")))
    end = {} if member is None else json.loads(_small(member, _MOST_HEAD + len(names) * _MOST_END_ENTRY))
    if not end or end["files"] != len(names) or _RECORDS not in names:
        raise CorruptionError(f"The backup '{source}' is incomplete: its end is missing.", help="Use another backup.")
    if "body" not in end:
        return
    if _digest(end["body"].encode()) != end["sha256"]:
        raise CorruptionError(f"The end of the backup '{source}' is damaged.", help="Use another backup.")
    digests = json.loads(end["body"])["digests"]
    different = sorted(name for name in digests.keys() | names.keys() if digests.get(name) != names.get(name))
    if different:
        what = f"'{different[0]}' differs from its digest"
        if len(different) > 1:
            what = f"{len(different)} files differ from their digests, among them '{different[0]}'"
        raise CorruptionError(f"The backup '{source}' is damaged: {what}.", help="Use another backup.")


def _small(member: TarMember, most: int = _MOST_HEAD) -> bytes:
    if member.size_bytes > most:
        raise CorruptionError(
            f"The backup is refused: its '{member.name}' has {member.size_bytes} bytes, more than the limit of {most}."
        )
    return member.read()
