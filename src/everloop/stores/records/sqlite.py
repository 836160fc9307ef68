"""Records in one SQLite file, by the standard library's `sqlite3`.

Write-ahead logging lets readers go on beside a writer; writers begin `IMMEDIATE`, so that each waits at the door
and none has to give up in the middle.
"""

# ruff: noqa: S608 - only names that stand in this room are ever put into SQL; every value is a parameter.

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
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sqlite_files import header_problems, log_problems, schema_problems
from everloop.stores.records.sqlite_frozen import UNREADABLE_BESIDE, FrozenReader, can_write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from everloop.stores.clock import Clock

BUSY_TIMEOUT_S = 60.0
PATIENCE_S = 180.0
"""How long a call tries again, over several busy timeouts, before it says that the store is unavailable."""

INDEX_PREFIX = "search_"
LONGEST_PIECE = 32
"""Characters of a piece of a pattern with `_` that SQLite itself looks for."""
MOST_INDEXES = 16
"""Each costs every write a little."""

_UNCLEAR = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
"""What SQLite says also where a quota or the limit for the size of a file is used up."""
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_FAILED = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite raises. The latter where its message quotes a damaged declaration, which is not text."""
_UNKEEPABLE = (UnicodeEncodeError, OverflowError)
T = TypeVar("T")


class SqliteRecords(SqlRecords):
    """A `RecordStore` in the file `path`, which is made where needed. Safe to open in parallel, also at first."""

    def __init__(self, path: Path | str, *, project: str, actor: str, clock: Clock) -> None:
        super().__init__(SqliteDatabase(Path(path)), project=project, actor=actor, clock=clock)


class SqliteDatabase:
    """A `Database`."""

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
            return connection.execute(statement, values).fetchall()
        except _FAILED as error:
            if not slot.depth and getattr(error, "sqlite_errorcode", None) in UNREADABLE_BESIDE:
                return self._read_frozen(statement, values, error)
            if not _is_busy(error):
                raise _told(error, self.path) from error
        except _UNKEEPABLE as error:
            raise _refused(error) from error
        return _patiently(lambda: connection.execute(statement, values).fetchall(), self.path)

    def read_raw(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        if not self._writable:
            return self._read_frozen(statement, values, text=_odd_text)
        slot = self._connections.slot()
        connection = slot.connection
        try:
            connection.text_factory = _odd_text
            try:
                return connection.execute(statement, values).fetchall()
            finally:
                connection.text_factory = str
        except _FAILED as error:
            if not slot.depth and getattr(error, "sqlite_errorcode", None) in UNREADABLE_BESIDE:
                return self._read_frozen(statement, values, error, text=_odd_text)
            raise _told(error, self.path) from error

    def _read_frozen(
        self,
        statement: str,
        values: Sequence[object],
        first: sqlite3.Error | UnicodeDecodeError | None = None,
        *,
        text: Callable[[bytes], str] = bytes.decode,
    ) -> list[Any]:
        """Read although nothing can be written beside the database.

        Args:
            first: why the usual way failed, which says more than that this one fails as well.
            text: from the bytes of a text to what is returned for it.
        """
        if self.closed:
            raise UsageError("The store is closed.", help="Open it again.")
        try:
            return self._frozen.read(statement, values, text, may_copy=not self._writable)
        except _FAILED as error:
            raise _told(first or error, self.path) from error
        except OSError as error:
            raise (_told(first, self.path) if first else storage_error(error, self.path)) from error
        except _UNKEEPABLE as error:
            raise _refused(error) from error

    def write(self, statement: str, values: Sequence[object] = ()) -> int:
        try:
            return self._connections.slot().connection.execute(statement, values).rowcount
        except _FAILED as error:
            raise _told(error, self.path) from error
        except _UNKEEPABLE as error:
            raise _refused(error) from error

    def write_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        try:
            self._connections.slot().connection.executemany(statement, rows)
        except _FAILED as error:
            raise _told(error, self.path) from error
        except _UNKEEPABLE as error:
            raise _refused(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if not self._writable and not can_write_beside(self.path):
            raise read_only(self.path)
        self._writable = True
        slot = self._connections.slot()
        try:
            with slot.transaction(lambda: self._begin(slot.connection)):
                yield
        except _FAILED as error:
            raise _told(error, self.path) from error

    def _begin(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except _FAILED as error:
            if not _is_busy(error):
                raise
            _patiently(lambda: connection.execute("BEGIN IMMEDIATE"), self.path)

    def index(self, value: Sql) -> None:
        if value.values or not self._writable or self._connections.slot().depth:
            return
        name = f"{INDEX_PREFIX}{sha256(value.text.encode()).hexdigest()[:16]}"
        ours = self.read("SELECT name FROM sqlite_master WHERE type = 'index' AND name GLOB ?", (f"{INDEX_PREFIX}*",))
        if len(ours) >= MOST_INDEXES or (name,) in ours:
            return
        with suppress(StoreError, UnavailableError), self.transaction():
            # A quicker search is no reason to fail one that has succeeded.
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
        """Write a consistent copy of the database while others go on writing."""
        target = sqlite3.connect(path)
        try:
            if self._writable:
                self._connections.slot().connection.backup(target)
            else:
                self._frozen.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        except _FAILED as error:
            raise _told(error, path) from error
        finally:
            target.close()

    def use_log(self) -> None:
        """Let the database have a write-ahead log again, which a copy of it has not."""
        connection = self._connections.slot().connection
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchall(), self.path)

    @property
    def closed(self) -> bool:
        return self._connections.closed

    def close(self) -> None:
        self._connections.close()
        self._frozen.close()

    def _connect(self) -> sqlite3.Connection:
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
            # Under write-ahead logging NORMAL keeps the file consistent through a power cut and every commit
            # through a killed process.
            connection.execute("PRAGMA synchronous = NORMAL")
            # In KiB; taken as pages are read. Searches in a home of many runs meet the same pages again and again.
            connection.execute("PRAGMA cache_size = -32768")
            # In pages: 16 MB. Writing the log back waits for the disk, and pages that many runs change go once.
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
        except _FAILED as error:
            raise _told(error, self.path) from error
        return connection

    def _make_file(self) -> None:
        """Make the file before SQLite does, which would go by the umask. Its log follows the file's mode."""
        with writing(self.path), suppress(FileExistsError, FileNotFoundError):
            os.close(make_private(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))

    def _migrate(self) -> None:
        steps = migrations("sqlite")
        if self._version(steps) == steps[-1].number:
            return
        if not self._writable:
            raise ReadOnlyError(
                f"The store '{self.path}' was written by an older everloop, must be upgraded, and is read-only here.",
                help="Open it once as its owner, such as with: everloop runs ls",
            )
        make_folder(self.path.parent)
        with file_lock(self.path.parent / "locks" / f"{self.path.name}.lock"):
            connection = self._connections.slot().connection
            try:
                _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchall(), self.path)
                for step in steps[self._version(steps) :]:
                    connection.executescript(
                        f"BEGIN IMMEDIATE;\n{step.script}\nPRAGMA user_version = {step.number};\nCOMMIT;"
                    )
            except _FAILED as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise _told(error, self.path) from error

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
            # Spelled out, because an index over an expression serves only the very same expression.
            at = f"'{_pointer(path)}'"
            return Sql(f"CASE WHEN json_type(body, {at}) IN ({types}) THEN json_extract(body, {at}) END")
        if _plain(path):
            at = _pointer(path)
            return Sql(f"CASE WHEN json_type(body, ?) IN ({types}) THEN json_extract(body, ?) END", (at, at))
        return self._search(path, "e.value", f"e.type IN ({types})")

    def _search(self, path: Sequence[str], wanted: str, test: str) -> Sql:
        """For names that a JSON path cannot spell: walk the objects and compare names as texts."""
        within = "body"
        for _ in path[:-1]:
            within = f"(SELECT e.value FROM json_each({within}) e WHERE e.key = ? AND e.type = 'object')"
        return Sql(f"(SELECT {wanted} FROM json_each({within}) e WHERE e.key = ? AND {test})", tuple(path))


class SqlitePatterns:
    """A `Patterns`: GLOB tells small letters from capitals, and LIKE does not, within ASCII.

    Both try a piece with `_` at each place of a text, so one with long pieces runs in Python, a step per character.
    """

    def like(self, column: str, pattern: str, *, any_case: bool) -> Sql:
        if longest_piece(pattern) > LONGEST_PIECE:
            return Sql(f"everloop_like({column}, ?, ?)", (pattern, any_case))
        if any_case:
            return Sql(f"{column} LIKE ?", (pattern,))
        signs = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
        return Sql(f"{column} GLOB ?", ("".join(signs.get(sign, sign) for sign in pattern),))


def _odd_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _like(text: object, pattern: str, any_case: int) -> bool | None:
    return is_like(text, pattern, any_case=bool(any_case)) if isinstance(text, str) else None


def _plain(path: Sequence[str]) -> bool:
    return all(name and not any(sign in '"\\[]' or sign < " " for sign in name) for name in path)


def _pointer(path: Sequence[str]) -> str:
    return "$" + "".join(f'."{name}"' for name in path)


def _is_busy(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _BUSY


def _patiently(attempt: Callable[[], T], path: Path) -> T:
    """Repeat what found the database busy. SQLite waits by itself nearly always; it does not while another process
    recovers the log, or changes the journal's mode."""
    deadline = time.monotonic() + PATIENCE_S
    pause = 0.002
    while True:
        try:
            return attempt()
        except _FAILED as error:
            if not _is_busy(error):
                raise _told(error, path) from error
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"The store '{path}' has been busy for {PATIENCE_S:.0f} s.",
                    help="Look for a process that holds a long transaction.",
                ) from error
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _refused(error: Exception) -> UsageError:
    return UsageError(f"SQLite cannot hold that value: {error}.", help="Use whole texts, and integers of 64 bits.")


def _told(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> Exception:
    """What a caller can do something about."""
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
    if code in _BUSY:
        return UnavailableError(f"The store '{path}' is busy: {error}.")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(f"The store '{path}' cannot be opened: {error}.", help="Check its folder and rights.")
    if isinstance(error, sqlite3.OperationalError):
        return StoreError(f"The store '{path}' failed: {error}.")
    return error
