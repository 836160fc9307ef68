"""Append-only Delta tables, local or remote, with an event time and an arrival time in every row."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
import time
from contextlib import suppress
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from everloop.errors import (
    CorruptionError,
    DataError,
    EverloopError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
)
from everloop.stores.full_disk import insufficient, is_full, writing
from everloop.stores.objects.byte_stores import open_bytes
from everloop.stores.tables.bucket_tables import BucketTables, local_folder, unreadable_log
from everloop.stores.tables.table_changes import DeltaSnapshot, delta_commits
from everloop.stores.tables.table_digests import TableFiles, active_files
from everloop.stores.tables.table_permissions import close_new_files, make_table_folder
from everloop.stores.tables.table_rows import (
    ARRIVED_AT as ARRIVED_AT,
    EVENT_AT as EVENT_AT,
    checked_name,
    stamped_rows,
)
from everloop.stores.tables.table_verification import check_table
from everloop.stores.verify_report import Checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import polars as pl
    from deltalake import DeltaTable

    from everloop.stores.clock import Clock
    from everloop.stores.objects.byte_stores import ByteStore
    from everloop.stores.tables.table_store import TableSnapshot

_log = logging.getLogger("everloop.stores")

_ATTEMPTS = 20
_SETTINGS = {"delta.checkpointInterval": "10"}
"""Opening a table reads all commits since its last checkpoint, which takes about half a millisecond per commit."""
MANY_FILES = 40
_READ_ONLY = re.compile(f"{os.strerror(errno.EROFS)}|{os.strerror(errno.EACCES)}")


class Tables:
    """The tables of a store, with names such as `predictions/delays`. Safe to use from any thread and process."""

    def __init__(self, root: str | Path, clock: Clock, *, as_of: datetime | None = None) -> None:
        self.root = str(root).rstrip("/")
        self.clock = clock
        self._as_of = as_of
        self._open_tables = threading.local()
        self._bytes: ByteStore | None = None
        self._bucket = BucketTables(self.root)

    def as_of(self, moment: datetime) -> Tables:
        """A read-only view of the rows that had arrived by `moment`."""
        return Tables(self.root, self.clock, as_of=moment if self._as_of is None else min(moment, self._as_of))

    def append(
        self,
        name: str,
        frame: Any,
        *,
        batch: tuple[str, int] | None = None,
        progress: Sequence[tuple[str, int, int]] = (),
    ) -> bool:
        """Append rows and return whether they were written. The table is created if it is missing.

        New columns are added to the table and are null in earlier rows. Columns that are missing in the frame are null
        in the new rows.

        Args:
            frame: a Polars frame, or any object with the Arrow C stream interface. It must have the column `event_at`.
                If it has no `arrived_at`, this is the clock's time. Both are stored as UTC with µs.
            batch: `(writer, n)`. The rows are skipped if `n` is not greater than the writer's last batch number. So a
                batch that is sent again after a crash is written only once.
            progress: `(writer, before, after)` for several writers. The rows are written only if the last batch number
                of each writer is `before`, and the number is then set to `after`. So if several processes fold the
                same rows, only one of them writes.

        Raises:
            DataError: `event_at` is missing, a time is null or not a time, or a column has another type than before.
            InsufficientStorageError: no space is left.
        """
        from deltalake import CommitProperties, Transaction, write_deltalake

        self._writable()
        uri = self._uri(name)
        rows = stamped_rows(name, frame, self.clock)
        if rows.is_empty() and batch is None and not progress:
            return False
        marks = [*(() if batch is None else (batch,)), *((writer, after) for writer, _, after in progress)]
        transactions = [Transaction(*mark) for mark in marks] or None
        for attempt in range(_ATTEMPTS):
            # The batch number is read from the same version that the commit builds on. If another process writes the
            # batch meanwhile, the commit fails and the next attempt sees it.
            table = self.find(name)
            make_table_folder(uri)
            if batch is not None and table is not None and _last(table, batch[0]) >= batch[1]:
                return False
            if any((-1 if table is None else _last(table, writer)) != before for writer, before, _ in progress):
                return False
            if table is None:
                # Remove leftovers of a process that was killed while it dropped a table with this name.
                self.files(name).clear()
            # A commit that creates a table must not be retried: deltalake would append it after another process' first
            # commit.
            retries = 0 if table is None else 50
            try:
                write_deltalake(
                    table or uri,
                    rows,
                    mode="error" if table is None else "append",
                    schema_mode=None if table is None else "merge",
                    commit_properties=CommitProperties(app_transactions=transactions, max_commit_retries=retries),
                    configuration=_SETTINGS if table is None else None,
                )
            except Exception as error:
                self._forget(name)
                # Besides its own exceptions deltalake raises others, such as for a failed cast.
                if attempt + 1 == _ATTEMPTS or not _is_race(error):
                    raise _translated(error, name) from error
                time.sleep(0.005 * attempt)
                continue
            close_new_files(uri)
            self._seal(name, 0 if table is None else int(table.version()))
            return True
        raise StoreError(f"Too many processes write to the table '{name}' at the same time.", help="Try again.")

    def scan(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        as_of: datetime | None = None,
        verify: bool = False,
    ) -> pl.LazyFrame:
        """The rows with `since <= event_at < until` that had arrived by `as_of`, in no particular order.

        Args:
            verify: first compare every file of the table with its digest.

        Raises:
            NotFoundError: there is no such table.
            CorruptionError: `verify` found a file that is missing or differs from its digest.
        """
        import polars as pl

        if verify:
            self.prove(name)
        frame = pl.scan_delta(self._open(name))
        if since is not None:
            frame = frame.filter(pl.col(EVENT_AT) >= since)
        if until is not None:
            frame = frame.filter(pl.col(EVENT_AT) < until)
        moments = [moment for moment in (as_of, self._as_of) if moment is not None]
        if moments:
            frame = frame.filter(pl.col(ARRIVED_AT) <= min(moments))
        return frame if columns is None else frame.select(columns)

    def exists(self, name: str) -> bool:
        return self._exists(name, None)

    def names(self, prefix: str = "") -> list[str]:
        """The names of all tables whose names begin with `prefix`, sorted."""
        folder = local_folder(self.root)
        found = self._bucket.names() if folder is None else _local_names(folder)
        return sorted(name for name in found if name.startswith(prefix))

    def find(self, name: str) -> DeltaTable | None:
        """The table in its present version; None if there is no such table.

        Opening a table takes about 15 ms, updating an open one 2 ms; in a bucket, two or three requests. The object
        belongs to this thread, and the next call updates it.
        """
        from deltalake import DeltaTable

        uri = self._uri(name)
        identity = self._bucket.identity(name) if "://" in self.root else _identity(uri)
        cached = self._tables().get(name)
        if cached is not None and cached[0] == identity:
            try:
                cached[1].update_incremental()
            except Exception as error:
                self._forget(name)
                raise unreadable_log(error, name) from error
            return cached[1]
        if not self._exists(name, identity):
            return None
        try:
            table = DeltaTable(uri)
        except Exception as error:
            # deltalake raises half a dozen different exceptions for missing and damaged logs.
            raise unreadable_log(error, name) from error
        if identity is not None:
            self._tables()[name] = (identity, table)
        return table

    def snapshot(self, name: str) -> DeltaSnapshot | None:
        """The present version of a table; None if there is no such table."""
        table = self.find(name)
        return None if table is None else DeltaSnapshot.of(table, name, f"{self.root}/{name}")

    def added_since(self, snapshot: TableSnapshot, after: int) -> list[tuple[int, list[str]]] | None:
        """The files that the commits after a version have added, oldest first, each with its version.

        Returns:
            None if that is not known any more, because log entries or files have been removed meanwhile.
        """
        return delta_commits(self.files(snapshot.name), after, snapshot.version)

    def last_batch(self, name: str, writer: str) -> int:
        """The number of the writer's last batch, or -1 if there is none or the table does not exist."""
        table = self.find(name)
        return -1 if table is None else _last(table, writer)

    def prove(self, name: str) -> None:
        """Compare every file of a table with its digest. Files without a digest are read to the end.

        Raises:
            CorruptionError: a file is missing or damaged.
        """
        self._open(name)
        problem = next(check_table(self.files(name), Checked()), None)
        if problem is not None:
            raise CorruptionError(f"The table '{name}' is damaged: {problem.message}", help="See: everloop verify")

    def files(self, name: str) -> TableFiles:
        """The table's files and their digests."""
        self._uri(name)
        if self._bytes is None:
            self._bytes = open_bytes(self.root)
        return TableFiles(self.root, name, self._bytes)

    def compact(self, name: str) -> None:
        """Merge small files into larger ones. Others can read and write meanwhile.

        Raises:
            CorruptionError: a file differs from its digest. Then nothing is merged, so that the damage can be repaired.
        """
        self._writable()
        table = self._open(name)
        self.files(name).prove(list(active_files(table)))
        try:
            table.optimize.compact()
        except Exception as error:
            self._forget(name)
            raise _translated(error, name) from error
        close_new_files(self._uri(name))
        self._seal(name, int(table.version()))

    def tidy(self, name: str, *, most_files: int = MANY_FILES) -> bool:
        """Compact a table if it has more than `most_files` files, and return whether that was done.

        A damaged table is not compacted; a warning is logged instead.
        """
        if not self.exists(name) or len(self._open(name).file_uris()) <= most_files:
            return False
        try:
            self.compact(name)
        except CorruptionError as error:
            _log.warning("The table '%s' was not compacted: %s", name, error)
            return False
        return True

    def forget(self, name: str, before: datetime) -> int:
        """Delete the rows that arrived before a moment, and return their number.

        Older versions of the table still contain them, until `vacuum` removes their files.

        Raises:
            StoreError: another process wrote to the same files meanwhile.
            CorruptionError: a file that has to be rewritten differs from its digest.
        """
        self._writable()
        table = self._open(name)
        self.files(name).prove(_files_before(table, before))
        try:
            metrics = table.delete(f"{ARRIVED_AT} < {_sql_time(before)}")
        except Exception as error:
            self._forget(name)
            raise _translated(error, name) from error
        close_new_files(self._uri(name))
        self._seal(name, int(table.version()))
        return int(metrics.get("num_deleted_rows") or 0)

    def rewrite(self, name: str, since: datetime, change: Callable[[pl.DataFrame], pl.DataFrame]) -> bool:
        """Replace the rows with `event_at >= since` in one commit, and return whether that was done.

        Nothing is written if another process has changed these rows meanwhile.

        Args:
            change: takes the rows as they are and returns those that replace them. All must be of that time, too.

        Raises:
            CorruptionError: a file of the table differs from its digest.
        """
        import polars as pl
        from deltalake import CommitProperties, write_deltalake
        from deltalake.exceptions import CommitFailedError

        self._writable()
        table = self._open(name)
        self.files(name).prove(list(active_files(table)))
        rows = change(pl.scan_delta(table).filter(pl.col(EVENT_AT) >= since).collect())
        try:
            write_deltalake(
                table,
                rows,
                mode="overwrite",
                predicate=f"{EVENT_AT} >= {_sql_time(since)}",
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except CommitFailedError:
            self._forget(name)
            return False
        except Exception as error:
            self._forget(name)
            raise _translated(error, name) from error
        close_new_files(self._uri(name))
        self._seal(name, int(table.version()))
        return True

    def vacuum(self, name: str, *, keep_hours: int = 168) -> list[str]:
        """Remove files that no version of the last `keep_hours` refers to, and return their names."""
        self._writable()
        table = self._open(name)
        removed = table.vacuum(keep_hours, dry_run=False, enforce_retention_duration=False)
        self._seal(name, int(table.version()))
        files = self.files(name)
        checkpoint = max(files.checkpoints(), default=-1)
        if checkpoint >= 0:
            with suppress(EverloopError, OSError):
                files.join(checkpoint, set(active_files(table)))
        return removed

    def drop(self, name: str) -> None:
        """Permanently delete a table with all its rows.

        Raises:
            NotFoundError: the table does not exist.
        """
        self._writable()
        uri = self._open(name).table_uri
        root = local_folder(self.root)
        if root is not None:
            # The log goes first. Without it the folder is not a table, so readers never see a part of the table.
            folder = root / name
            with writing(folder):
                shutil.rmtree(folder / "_delta_log")
                shutil.rmtree(folder)
            return
        import obstore
        from obstore.store import from_url

        store = from_url(uri)
        files = [entry["path"] for page in obstore.list(store) for entry in page]
        obstore.delete(store, sorted(files, key=lambda path: not path.startswith("_delta_log")))

    def _seal(self, name: str, version: int) -> None:
        """Record the digests of the files of a commit. If that fails, the commit is valid nevertheless."""
        try:
            self.files(name).seal(version)
        except (EverloopError, OSError, ValueError) as error:
            _log.warning("Cannot write the digests of version %d of the table '%s': %s", version, name, error)

    def _open(self, name: str) -> DeltaTable:
        table = self.find(name)
        if table is None:
            known = ", ".join(self.names()[:5]) or "none yet"
            raise NotFoundError(f"There is no table '{name}'.", help=f"Existing tables: {known}")
        return table

    def _tables(self) -> dict[str, tuple[tuple[object, ...], DeltaTable]]:
        """The open tables of this thread. Threads cannot share a DeltaTable, because writing changes it."""
        if getattr(self._open_tables, "pid", None) != os.getpid():
            self._open_tables.pid, self._open_tables.tables = os.getpid(), {}
        tables: dict[str, tuple[tuple[object, ...], DeltaTable]] = self._open_tables.tables
        return tables

    def _forget(self, name: str) -> None:
        self._tables().pop(name, None)

    def _uri(self, name: str) -> str:
        return f"{self.root}/{checked_name(name)}"

    def _exists(self, name: str, identity: tuple[object, ...] | None) -> bool:
        """Whether there is a table whose identity, if known, is this."""
        if "://" not in self.root:
            from deltalake import DeltaTable

            return DeltaTable.is_deltatable(self._uri(name))
        # In a bucket, deltalake's function would stop all threads of the process until the bucket answers.
        return identity is not None or self._bucket.identity(name) is not None or self._bucket.has_checkpoint(name)

    def _writable(self) -> None:
        if self._as_of is not None:
            raise ReadOnlyError(
                f"These tables are open as of {self._as_of.isoformat()} and cannot be changed.",
                help="Open the store without as_of.",
            )


def _local_names(root: Path) -> Iterator[str]:
    for log in root.glob("**/_delta_log"):
        yield log.parent.relative_to(root).as_posix()


def _identity(uri: str) -> tuple[object, ...] | None:
    """Inode and time of a table's first commit. They change if the table is dropped and created again."""
    try:
        found = os.stat(f"{uri}/_delta_log/{0:020}.json")  # noqa: PTH116 - a Path costs more than the call
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _sql_time(moment: datetime) -> str:
    return f"arrow_cast('{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}', 'Timestamp(Microsecond, Some(\"UTC\"))')"


def _files_before(table: DeltaTable, moment: datetime) -> list[str]:
    """The files that may contain rows which arrived before a moment."""
    actions: Any = table.get_add_actions(flatten=True)
    paths = [unquote(path) for path in actions.column("path").to_pylist()]
    if f"min.{ARRIVED_AT}" not in actions.schema.names:
        return paths
    first = actions.column(f"min.{ARRIVED_AT}").to_pylist()
    return [path for path, at in zip(paths, first, strict=True) if at is None or at < moment]


def _last(table: DeltaTable, writer: str) -> int:
    version = table.transaction_version(writer)
    return -1 if version is None else int(version)


def _is_race(error: Exception) -> bool:
    """Whether another writer was faster, so that the commit can be tried again on the new version."""
    from deltalake.exceptions import CommitFailedError

    return isinstance(error, CommitFailedError) or any(
        sign in str(error).lower() for sign in ("already exists", "conflict", "metadata changed", "concurrent")
    )


def _translated(error: Exception, name: str) -> Exception:
    text = str(error)
    if is_full(error):
        return insufficient(f"for the table '{name}'")
    if _READ_ONLY.search(text):
        return ReadOnlyError(
            f"The table '{name}' is read-only for this user, so nothing was written.",
            help="Check who owns its folder (ls -ld) and whether its disk is mounted read-only.",
        )
    if "schema" in text.lower() or "cast" in text.lower() or "type" in text.lower():
        return DataError(f"The rows do not fit the table '{name}': {text}")
    return StoreError(f"Cannot write to the table '{name}': {text}")
