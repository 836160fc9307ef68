"""Tables that grow: Delta tables, local or remote, with event time and arrival time in every row."""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from everloop.errors import (
    CorruptionError,
    DataError,
    EverloopError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
    UsageError,
)
from everloop.stores.full_disk import insufficient, is_full, writing
from everloop.stores.objects.byte_stores import open_bytes
from everloop.stores.tables.foreign_frames import read_frame
from everloop.stores.tables.table_digests import TableFiles, active_files
from everloop.stores.tables.table_permissions import close_new_files, make_table_folder
from everloop.stores.tables.table_verification import check_table
from everloop.stores.verify_report import Checked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import polars as pl
    from deltalake import DeltaTable

    from everloop.stores.clock import Clock
    from everloop.stores.objects.byte_stores import ByteStore

_log = logging.getLogger("everloop.stores")

EVENT_AT = "event_at"
ARRIVED_AT = "arrived_at"
_NAME = re.compile(r"[A-Za-z0-9_@=+-][A-Za-z0-9_.@=+-]*(?:/[A-Za-z0-9_@=+-][A-Za-z0-9_.@=+-]*)*")
_ATTEMPTS = 20
_SETTINGS = {"delta.checkpointInterval": "10"}
"""Opening a table reads every commit since its last checkpoint, at about half a millisecond each."""
MANY_FILES = 40
_READ_ONLY = re.compile(f"{os.strerror(errno.EROFS)}|{os.strerror(errno.EACCES)}")


class Tables:
    """The growing tables below one root, by names such as `predictions/delays`. Safe from any thread and process."""

    def __init__(self, root: str | Path, clock: Clock, *, as_of: datetime | None = None) -> None:
        self.root = str(root).rstrip("/")
        self.clock = clock
        self._as_of = as_of
        self._kept = threading.local()
        self._bytes: ByteStore | None = None

    def as_of(self, moment: datetime) -> Tables:
        """A read-only view that shows only rows which had arrived by `moment`."""
        return Tables(self.root, self.clock, as_of=moment if self._as_of is None else min(moment, self._as_of))

    def append(
        self,
        name: str,
        frame: Any,
        *,
        batch: tuple[str, int] | None = None,
        progress: Sequence[tuple[str, int, int]] = (),
    ) -> bool:
        """Append rows, making the table where there is none, and return whether they were written.

        A column that the table does not have yet is added, and is null in the rows before; one that is missing
        here is null in these rows.

        Args:
            frame: a Polars frame, or anything that speaks the Arrow C stream interface. Has the column `event_at`;
                `arrived_at` is the clock's time where the column is missing. Both are kept as UTC with µs.
            batch: `(writer, n)`: rows with an `n` not above the writer's last are skipped, so that a batch that
                is sent again after a crash is written once.
            progress: `(writer, before, after)` of several writers: the rows are written only where the last batch of
                each is `before`, and it is `after` then. So of several who fold the same rows, one does.

        Raises:
            DataError: no `event_at`, or a time that is null or no time, or a column of another type than before.
            InsufficientStorageError: no space left.
        """
        from deltalake import CommitProperties, Transaction, write_deltalake

        self._writable()
        uri = self._uri(name)
        rows = self._stamped(name, frame)
        if rows.is_empty() and batch is None and not progress:
            return False
        marks = [*(() if batch is None else (batch,)), *((writer, after) for writer, _, after in progress)]
        transactions = [Transaction(*mark) for mark in marks] or None
        for attempt in range(_ATTEMPTS):
            # The batch is looked for in the very version that the commit builds on: if another writes it meanwhile,
            # the commit fails, and the next look finds it.
            table = self._find(name)
            make_table_folder(uri)
            if batch is not None and table is not None and _last(table, batch[0]) >= batch[1]:
                return False
            if any((-1 if table is None else _last(table, writer)) != before for writer, before, _ in progress):
                return False
            if table is None:
                # What a process that was killed while it dropped a table of this name may have left.
                self.files(name).clear()
            # A commit that makes a table must not be retried: deltalake would put it behind another's as a second one.
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
                # Besides its own errors deltalake raises bare ones, such as for a cast that fails.
                if attempt + 1 == _ATTEMPTS or not _is_race(error):
                    raise _told(error, name) from error
                time.sleep(0.005 * attempt)
                continue
            close_new_files(uri)
            self._seal(name, 0 if table is None else int(table.version()))
            return True
        raise StoreError(f"The table '{name}' was written to by too many at once.", help="Try again.")

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
        """The rows with `since <= event_at < until` that had arrived by `as_of`; in no particular order.

        Args:
            verify: compare every file of the table with its digest first.

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
        from deltalake import DeltaTable

        return DeltaTable.is_deltatable(self._uri(name))

    def names(self, prefix: str = "") -> list[str]:
        """The names of all tables that begin with `prefix`, sorted."""
        found = self._local_names() if "://" not in self.root else self._remote_names()
        return sorted(name for name in found if name.startswith(prefix))

    def last_batch(self, name: str, writer: str) -> int:
        """The number of the writer's last batch; -1 before its first, also where there is no table."""
        table = self._find(name)
        return -1 if table is None else _last(table, writer)

    def prove(self, name: str) -> None:
        """Compare every file of a table with its digest; read to the end what has none.

        Raises:
            CorruptionError: a file of it is missing or damaged.
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
        """Join small files into larger ones. Readers and writers go on meanwhile.

        Raises:
            CorruptionError: one of them differs from its digest. Nothing is joined then, so that the damage shows.
        """
        self._writable()
        table = self._open(name)
        self.files(name).prove(list(active_files(table)))
        try:
            table.optimize.compact()
        except Exception as error:
            self._forget(name)
            raise _told(error, name) from error
        close_new_files(self._uri(name))
        self._seal(name, int(table.version()))

    def tidy(self, name: str, *, most_files: int = MANY_FILES) -> bool:
        """Compact a table that has come to more than `most_files` files; returns whether it was done.

        One that is damaged is left as it is, with a warning.
        """
        if not self.exists(name) or len(self._open(name).file_uris()) <= most_files:
            return False
        try:
            self.compact(name)
        except CorruptionError as error:
            _log.warning("The table '%s' is not compacted: %s", name, error)
            return False
        return True

    def forget(self, name: str, before: datetime) -> int:
        """Remove the rows that arrived before a moment, and return how many went. Older versions keep them: `vacuum`.

        Raises:
            StoreError: somebody else wrote to the same files meanwhile.
            CorruptionError: a file that would be written again differs from its digest.
        """
        self._writable()
        table = self._open(name)
        self.files(name).prove(_files_before(table, before))
        try:
            moment = f"'{before.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}'"
            told = table.delete(f"{ARRIVED_AT} < arrow_cast({moment}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
        except Exception as error:
            self._forget(name)
            raise _told(error, name) from error
        close_new_files(self._uri(name))
        self._seal(name, int(table.version()))
        return int(told.get("num_deleted_rows") or 0)

    def vacuum(self, name: str, *, keep_hours: int = 168) -> list[str]:
        """Remove files that no version of the last `keep_hours` refers to, and return their names."""
        self._writable()
        table = self._open(name)
        gone = table.vacuum(keep_hours, dry_run=False, enforce_retention_duration=False)
        self._seal(name, int(table.version()))
        files = self.files(name)
        checkpoint = max(files.checkpoints(), default=-1)
        if checkpoint >= 0:
            with suppress(EverloopError, OSError):
                files.join(checkpoint, set(active_files(table)))
        return gone

    def drop(self, name: str) -> None:
        """Remove a table with all its rows, for good.

        Raises:
            NotFoundError: there is no such table.
        """
        self._writable()
        uri = self._open(name).table_uri
        if "://" not in self.root:
            # Without its log a folder is no table any more: readers see it whole or not at all.
            folder = Path(self.root) / name
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
        """Note the digests of what a commit has written. The commit stands, whatever becomes of them."""
        try:
            self.files(name).seal(version)
        except (EverloopError, OSError, ValueError) as error:
            _log.warning("The table '%s' has no digests of its version %d: %s", name, version, error)

    def _open(self, name: str) -> DeltaTable:
        table = self._find(name)
        if table is None:
            known = ", ".join(self.names()[:5]) or "none yet"
            raise NotFoundError(f"There is no table '{name}'.", help=f"There are: {known}")
        return table

    def _find(self, name: str) -> DeltaTable | None:
        """The table as it is now. Opening one costs some 15 ms, reading on in a log that is open, 2 ms."""
        from deltalake import DeltaTable

        uri = self._uri(name)
        birth = None if "://" in self.root else _birth(uri)
        kept = self._tables().get(name)
        if kept is not None and kept[0] == birth:
            kept[1].update_incremental()
            return kept[1]
        if not DeltaTable.is_deltatable(uri):
            return None
        try:
            table = DeltaTable(uri)
        except Exception as error:
            # deltalake tells of missing and of damaged logs by half a dozen kinds of error.
            raise _unreadable(error, name) from error
        if birth is not None:
            self._tables()[name] = (birth, table)
        return table

    def _tables(self) -> dict[str, tuple[tuple[int, int], DeltaTable]]:
        """This thread's open tables: an object of deltalake changes when it is written to."""
        if getattr(self._kept, "pid", None) != os.getpid():
            self._kept.pid, self._kept.tables = os.getpid(), {}
        tables: dict[str, tuple[tuple[int, int], DeltaTable]] = self._kept.tables
        return tables

    def _forget(self, name: str) -> None:
        self._tables().pop(name, None)

    def _uri(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{name}' is no name of a table.", help="Names are words joined by '/'.")
        return f"{self.root}/{name}"

    def _stamped(self, name: str, frame: Any) -> pl.DataFrame:
        import polars as pl

        rows = read_frame(frame)
        if rows is None:
            raise DataError(f"A {type(frame).__name__} is not a table of rows.", help="Use a frame or Arrow data.")
        if EVENT_AT not in rows.columns:
            raise DataError(f"Rows for '{name}' have no column '{EVENT_AT}'.", help="Say when each of them happened.")
        if ARRIVED_AT not in rows.columns:
            rows = rows.with_columns(pl.lit(self.clock.now()).alias(ARRIVED_AT))
        return rows.with_columns(_as_time(rows, name, column) for column in (EVENT_AT, ARRIVED_AT))

    def _local_names(self) -> Iterator[str]:
        root = Path(self.root)
        for log in root.glob("**/_delta_log"):
            yield log.parent.relative_to(root).as_posix()

    def _remote_names(self) -> Iterator[str]:
        import obstore
        from obstore.store import from_url

        seen = set()
        for page in obstore.list(from_url(self.root)):
            for entry in page:
                head, found, _ = entry["path"].partition("/_delta_log/")
                if found:
                    seen.add(head)
        yield from seen

    def _writable(self) -> None:
        if self._as_of is not None:
            raise ReadOnlyError(f"These tables are open as of {self._as_of.isoformat()} and take no writes.")


def _birth(uri: str) -> tuple[int, int] | None:
    """What a table that was dropped and made anew does not share with the one before: its first commit."""
    try:
        found = os.stat(f"{uri}/_delta_log/{0:020}.json")  # noqa: PTH116 - a Path costs more than the call
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _unreadable(error: Exception, name: str) -> StoreError:
    text = str(error).partition("\n")[0]
    if "ermission denied" in text:
        return StoreError(f"The table '{name}' may not be read: {text}")
    return CorruptionError(f"The log of the table '{name}' cannot be read: {text}", help="See: everloop verify")


def _files_before(table: DeltaTable, moment: datetime) -> list[str]:
    """The files that may hold rows which arrived before a moment."""
    actions: Any = table.get_add_actions(flatten=True)
    paths = [unquote(path) for path in actions.column("path").to_pylist()]
    if f"min.{ARRIVED_AT}" not in actions.schema.names:
        return paths
    first = actions.column(f"min.{ARRIVED_AT}").to_pylist()
    return [path for path, at in zip(paths, first, strict=True) if at is None or at < moment]


def _last(table: DeltaTable, writer: str) -> int:
    version = table.transaction_version(writer)
    return -1 if version is None else int(version)


def _as_time(rows: pl.DataFrame, name: str, column: str) -> pl.Expr:
    import polars as pl

    kind = rows.schema[column]
    if rows[column].null_count():
        raise DataError(f"{rows[column].null_count()} rows for '{name}' have no '{column}'.")
    match kind:
        case pl.Datetime(time_zone=None):
            return pl.col(column).dt.cast_time_unit("us").dt.replace_time_zone("UTC")
        case pl.Datetime():
            return pl.col(column).dt.cast_time_unit("us").dt.convert_time_zone("UTC")
        case pl.Date:
            return pl.col(column).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    raise DataError(f"'{column}' of rows for '{name}' is {kind}, not a time.", help="Cast it to a datetime in UTC.")


def _is_race(error: Exception) -> bool:
    """Whether another writer was faster, so that the commit can be tried on what stands now."""
    from deltalake.exceptions import CommitFailedError

    return isinstance(error, CommitFailedError) or any(
        sign in str(error).lower() for sign in ("already exists", "conflict", "metadata changed", "concurrent")
    )


def _told(error: Exception, name: str) -> Exception:
    text = str(error)
    if is_full(error):
        return insufficient(f"for the table '{name}'")
    if _READ_ONLY.search(text):
        return ReadOnlyError(
            f"The table '{name}' is read-only for this user, so nothing was written.",
            help="Check who owns its folder (ls -ld) and whether its disk is mounted read-only.",
        )
    if "schema" in text.lower() or "cast" in text.lower() or "type" in text.lower():
        return DataError(f"Rows do not fit the table '{name}': {text}")
    return StoreError(f"The table '{name}' cannot be written: {text}")
