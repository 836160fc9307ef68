"""Records in a SQLite file, with the standard library's `sqlite3`.

With write-ahead logging, readers can read while another process writes. Write transactions begin `IMMEDIATE`: they wait
for other writers at their start, so that none has to be aborted in the middle.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from everloop.errors import CorruptionError, ReadOnlyError, StoreError, UnavailableError, UsageError
from everloop.stores.full_disk import insufficient, looks_full, read_only, storage_error, writing
from everloop.stores.locks import file_lock
from everloop.stores.permissions import make_folder, make_private
from everloop.stores.records.condition_sql import LITERAL, Sql
from everloop.stores.records.connections import Connections
from everloop.stores.records.like_patterns import is_like, longest_piece
from everloop.stores.records.migrations import Migration, check_version, migrations
from everloop.stores.records.sql_logs import INSERT_EVENT, INSERT_POINT, MOVED, REFUSED_WRITES
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sqlite_connection import SqliteConnection, decode_surrogates
from everloop.stores.records.sqlite_files import header_problems, log_problems, schema_problems
from everloop.stores.records.sqlite_frozen import UNREADABLE_BESIDE, FrozenReader, can_write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from everloop.stores.clock import Clock

BUSY_TIMEOUT_S = 60.0
POLL_S = 0.05
"""How often a caller that waits for events looks for them, which takes some tens of µs."""
PATIENCE_S = 180.0
"""How long a call retries, over several busy timeouts, before it raises `UnavailableError`."""

INDEX_PREFIX = "search_"
LONGEST_PIECE = 32
"""Up to this length, pieces of a pattern with `_` are matched by SQLite itself."""
MOST_INDEXES = 16
"""Limit for indexes that are created for slow searches, because each index makes every write a little slower."""

_UNCLEAR = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
"""Error codes that SQLite also uses if a quota or the file size limit is used up."""
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_FAILED = (sqlite3.Error, UnicodeDecodeError)
"""Exceptions of `sqlite3`. The second is raised if an error message quotes a damaged declaration that is not UTF-8."""
_UNSUPPORTED = (UnicodeEncodeError, OverflowError)
T = TypeVar("T")


class SqliteRecords(SqlRecords):
    """A `RecordStore` in the file `path`, which is created if needed. Several processes can do so at the same time."""

    def __init__(self, path: Path | str, *, project: str, actor: str, clock: Clock) -> None:
        super().__init__(SqliteDatabase(Path(path)), project=project, actor=actor, clock=clock)


class SqliteDatabase:
    """A `Database` in a SQLite file."""

    row_id = "rowid"

    def __init__(self, path: Path) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreError(
                f"everloop needs SQLite 3.37; this Python has {sqlite3.sqlite_version}.", help="Use a newer Python."
            )
        self.path = path
        self.paths = SqlitePaths()
        self.patterns = SqlitePatterns()
        self._connections = Connections(self._connect)
        self._frozen = FrozenReader(path)
        self._writable = can_write_beside(path)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def read(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        if not self._writable:
            return self._read_frozen(statement, values)
        slot = self._connections.slot()
        connection = slot.connection
        try:
            return connection.fetch(statement, values)
        except _FAILED as error:
            if not slot.depth and getattr(error, "sqlite_errorcode", None) in UNREADABLE_BESIDE:
                return self._read_frozen(statement, values, error)
            if not _is_busy(error):
                raise _translated(error, self.path) from error
        except _UNSUPPORTED as error:
            raise _unsupported_value(error) from error
        return _retry_while_busy(lambda: connection.fetch(statement, values), self.path)

    def read_raw(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        if not self._writable:
            return self._read_frozen(statement, values, text=decode_surrogates)
        slot = self._connections.slot()
        try:
            return slot.connection.fetch_raw(statement, values)
        except _FAILED as error:
            if not slot.depth and getattr(error, "sqlite_errorcode", None) in UNREADABLE_BESIDE:
                return self._read_frozen(statement, values, error, text=decode_surrogates)
            raise _translated(error, self.path) from error

    def _read_frozen(
        self,
        statement: str,
        values: Sequence[object],
        first: sqlite3.Error | UnicodeDecodeError | None = None,
        *,
        text: Callable[[bytes], str] = bytes.decode,
    ) -> list[Any]:
        """Read although no files can be created beside the database.

        Args:
            first: the error of the usual way to read. It is raised if this way fails as well.
            text: converts the bytes of a text to the value that is returned.
        """
        if self.closed:
            raise UsageError("The store is closed.", help="Open it again.")
        try:
            return self._frozen.read(statement, values, text, may_copy=not self._writable)
        except _FAILED as error:
            raise _translated(first or error, self.path) from error
        except OSError as error:
            raise (_translated(first, self.path) if first else storage_error(error, self.path)) from error
        except _UNSUPPORTED as error:
            raise _unsupported_value(error) from error

    def write(self, statement: str, values: Sequence[object] = ()) -> int:
        try:
            return self._connections.slot().connection.execute(statement, values)
        except _FAILED as error:
            raise _translated(error, self.path) from error
        except _UNSUPPORTED as error:
            raise _unsupported_value(error) from error

    def write_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        try:
            self._connections.slot().connection.executemany(statement, rows)
        except _FAILED as error:
            raise _translated(error, self.path) from error
        except _UNSUPPORTED as error:
            raise _unsupported_value(error) from error

    def write_points(self, rows: Sequence[Sequence[Any]]) -> None:
        self.write_many(INSERT_POINT, rows)

    def write_event(self, row: Sequence[object]) -> None:
        self.write(INSERT_EVENT, row)

    def write_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        marks = ", ".join("?" * len(columns))
        self.write_many(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def continue_numbers(self, table: str, column: str) -> None:
        """Does nothing: SQLite takes the greatest number from the table."""

    def refuse_writes(self, message: str | None) -> None:
        for table, verb in REFUSED_WRITES:
            name = f"moved_{table}_{verb.lower()}"
            self.write(f"DROP TRIGGER IF EXISTS {name}")
            if message is not None:
                text = message.replace("'", "''")
                self.write(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, '{text}'); END")

    def wait_for_change(self, project: str, timeout_s: float) -> None:
        """Wait for a moment: SQLite cannot notify other processes."""
        time.sleep(max(0.0, min(timeout_s, POLL_S)))

    @contextmanager
    def transaction(self, project: str | None = None, parts: Sequence[str] = ()) -> Iterator[None]:
        """SQLite has one writer at a time, so this excludes all other transactions."""
        if not self._writable and not can_write_beside(self.path):
            raise read_only(self.path)
        self._writable = True
        slot = self._connections.slot()
        try:
            with slot.transaction(lambda: self._begin(slot.connection)):
                yield
        except _FAILED as error:
            raise _translated(error, self.path) from error

    def _begin(self, connection: SqliteConnection) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except _FAILED as error:
            if not _is_busy(error):
                raise
            _retry_while_busy(lambda: connection.execute("BEGIN IMMEDIATE"), self.path)

    def index(self, value: Sql) -> None:
        if value.values or not self._writable or self._connections.slot().depth:
            return
        name = f"{INDEX_PREFIX}{sha256(value.text.encode()).hexdigest()[:16]}"
        ours = self.read("SELECT name FROM sqlite_master WHERE type = 'index' AND name GLOB ?", (f"{INDEX_PREFIX}*",))
        if len(ours) >= MOST_INDEXES or (name,) in ours:
            return
        with suppress(StoreError, UnavailableError), self.transaction():
            # The search itself has succeeded, so it must not fail because of the index.
            self.write(
                f"CREATE INDEX IF NOT EXISTS {name} ON records (project, kind, {value.text}, id)"
                " WHERE deleted_at IS NULL"
            )

    def problems(self) -> list[str]:
        try:
            rows = self.read("PRAGMA integrity_check(20)")
        except CorruptionError as error:
            return [str(error.__cause__ or error)]
        except StoreError as error:
            return [error.message]
        found = [row[0] for row in rows if row[0] != "ok"]
        found += header_problems(self.path)
        found += log_problems(self.path)
        return found + schema_problems(self.read("SELECT type, name, sql FROM sqlite_master"), INDEX_PREFIX)

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the database. Other processes may write meanwhile."""
        target = sqlite3.connect(path)
        try:
            if self._writable:
                self._connections.slot().connection.backup(target)
            else:
                self._frozen.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        except _FAILED as error:
            raise _translated(error, path) from error
        finally:
            target.close()

    def use_log(self) -> None:
        """Turn on write-ahead logging, which is off in a copy of the database."""
        connection = self._connections.slot().connection
        _retry_while_busy(lambda: connection.fetch("PRAGMA journal_mode = WAL"), self.path)

    @property
    def closed(self) -> bool:
        return self._connections.closed

    def close(self) -> None:
        self._connections.close()
        self._frozen.close()

    def _connect(self) -> SqliteConnection:
        self._make_file()
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            connection.create_function("everloop_like", 3, _like, deterministic=True)
            # With write-ahead logging, NORMAL keeps the file consistent after a power cut, and all commits if the
            # process is killed.
            connection.execute("PRAGMA synchronous = NORMAL")
            # In KiB, allocated as pages are read. Searches in a home with many runs read the same pages repeatedly.
            connection.execute("PRAGMA cache_size = -32768")
            # In pages: 16 MB. A checkpoint waits for the disk, and writes a page that has changed often only once.
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
        except _FAILED as error:
            raise _translated(error, self.path) from error
        return SqliteConnection(connection)

    def _make_file(self) -> None:
        """Create the file before SQLite does, which would use the umask. SQLite gives its log the same mode."""
        with writing(self.path), suppress(FileExistsError, FileNotFoundError):
            os.close(make_private(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))

    def _migrate(self) -> None:
        steps = migrations("sqlite")
        if self._version(steps) == steps[-1].number:
            return
        if not self._writable:
            raise ReadOnlyError(
                f"The store '{self.path}' was written by an older everloop and has to be upgraded, but this user cannot"
                " write to it.",
                help="Open it once as its owner, for example with: everloop runs ls",
            )
        make_folder(self.path.parent)
        with file_lock(self.path.parent / "locks" / f"{self.path.name}.lock"):
            connection = self._connections.slot().connection
            try:
                _retry_while_busy(lambda: connection.fetch("PRAGMA journal_mode = WAL"), self.path)
                for step in steps[self._version(steps) :]:
                    connection.executescript(
                        f"BEGIN IMMEDIATE;\n{step.script}\nPRAGMA user_version = {step.number};\nCOMMIT;"
                    )
            except _FAILED as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise _translated(error, self.path) from error

    def _version(self, steps: Sequence[Migration]) -> int:
        if not self.path.exists():
            return 0
        rows = self.read("PRAGMA user_version")
        return check_version(int(rows[0][0]), steps, str(self.path))


class SqlitePaths:
    """A `Paths` over SQLite's JSON functions."""

    column = "body"

    def number(self, path: Sequence[str]) -> Sql:
        return self._where(path, "'integer', 'real'")

    def text(self, path: Sequence[str]) -> Sql:
        return self._where(path, "'text'")

    def boolean(self, path: Sequence[str]) -> Sql:
        return self._where(path, "'true', 'false'")

    def absent(self, path: Sequence[str]) -> Sql:
        if _plain(path):
            return Sql("json_type(body, ?) IS NULL OR json_type(body, ?) = 'null'", (_pointer(path),) * 2)
        found = self._search(path, "1", "e.type <> 'null'")
        return Sql(f"{found.text} IS NULL", found.values)

    def _where(self, path: Sequence[str], types: str) -> Sql:
        if LITERAL.fullmatch("".join(path)) and all(path):
            # The path is written into the statement: an expression index is used only for exactly the same expression.
            at = f"'{_pointer(path)}'"
            return Sql(f"CASE WHEN json_type(body, {at}) IN ({types}) THEN json_extract(body, {at}) END")
        if _plain(path):
            at = _pointer(path)
            return Sql(f"CASE WHEN json_type(body, ?) IN ({types}) THEN json_extract(body, ?) END", (at, at))
        return self._search(path, "e.value", f"e.type IN ({types})")

    def _search(self, path: Sequence[str], wanted: str, test: str) -> Sql:
        """For names that a JSON path cannot express: iterate over the objects and compare the names as texts."""
        within = "body"
        for _ in path[:-1]:
            within = f"(SELECT e.value FROM json_each({within}) e WHERE e.key = ? AND e.type = 'object')"
        return Sql(f"(SELECT {wanted} FROM json_each({within}) e WHERE e.key = ? AND {test})", tuple(path))


class SqlitePatterns:
    """A `Patterns`: GLOB is case-sensitive, and LIKE ignores the case of ASCII letters.

    Both compare a piece with `_` separately at each position of a text. So patterns with long pieces are matched in
    Python, in linear time.
    """

    def like(self, column: str, pattern: str, *, any_case: bool) -> Sql:
        if longest_piece(pattern) > LONGEST_PIECE:
            return Sql(f"everloop_like({column}, ?, ?)", (pattern, any_case))
        if any_case:
            return Sql(f"{column} LIKE ?", (pattern,))
        signs = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
        return Sql(f"{column} GLOB ?", ("".join(signs.get(sign, sign) for sign in pattern),))


def _like(text: object, pattern: str, any_case: int) -> bool | None:
    return is_like(text, pattern, any_case=bool(any_case)) if isinstance(text, str) else None


def _plain(path: Sequence[str]) -> bool:
    return all(name and not any(sign in '"\\[]' or sign < " " for sign in name) for name in path)


def _pointer(path: Sequence[str]) -> str:
    return "$" + "".join(f'."{name}"' for name in path)


def _is_busy(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _BUSY


def _retry_while_busy(attempt: Callable[[], T], path: Path) -> T:
    """Repeat a call while the database is busy.

    Usually SQLite itself waits, but not while another process recovers the log or changes the journal mode.
    """
    deadline = time.monotonic() + PATIENCE_S
    pause = 0.002
    while True:
        try:
            return attempt()
        except _FAILED as error:
            if not _is_busy(error):
                raise _translated(error, path) from error
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"The store '{path}' has been locked by another process for {PATIENCE_S:.0f} s.",
                    help="Look for a process with a long transaction.",
                ) from error
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _unsupported_value(error: Exception) -> UsageError:
    return UsageError(
        f"SQLite cannot store this value: {error}.", help="Use valid Unicode texts and integers of up to 64 bits."
    )


def _translated(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> Exception:
    """The everloop exception for an error of SQLite."""
    if isinstance(error, UnicodeDecodeError):
        return CorruptionError(
            f"The store '{path}' is damaged: a declaration is not text.", help="See: everloop verify"
        )
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code in _UNCLEAR and looks_full(path)):
        return insufficient(f"for the store '{path}'")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptionError(f"The store '{path}' is damaged: {error}.", help="See: everloop verify")
    if code == sqlite3.SQLITE_READONLY:
        return read_only(path)
    if code == sqlite3.SQLITE_INTERRUPT:
        return UsageError("The store is closed.", help="Open it again.")
    if code in _BUSY:
        return UnavailableError(f"The store '{path}' is locked by another process: {error}.", help="Try again.")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"Cannot open the store '{path}': {error}.", help="Check that its folder exists, and its permissions."
        )
    if str(error).startswith(MOVED):
        return ReadOnlyError(str(error), help="Restart this process, so that it reads everloop.toml again.")
    if isinstance(error, sqlite3.OperationalError):
        return StoreError(f"The database of the store '{path}' reported an error: {error}.")
    return error
