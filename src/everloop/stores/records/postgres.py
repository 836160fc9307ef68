"""Records in a PostgreSQL database, with `psycopg`.

Writers of different records do not wait for each other. A transaction takes advisory locks at its beginning, which the
server releases at its end, also if the client dies:

- A transaction of whole projects holds their locks alone, so it can read, decide and write without others in between.
- A transaction of parts (single records, or series of points) shares the project's lock and holds those of its parts.
- Checks and repairs hold the lock of the whole schema, which all others share.

Events get their numbers at the end. Between taking a number and the commit, which makes the event visible, a
transaction holds the project's lock for events: lock, insert and commit are one message to the server. PostgreSQL makes
a transaction visible before it releases its locks (`CommitTransaction` in `xact.c`: `ProcArrayEndTransaction`, then
`ResourceOwnerRelease`). So events become visible in the order of their numbers, as `RecordStore.events_since` promises,
and a transaction that takes long, or dies, delays no event of another one.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from everloop.errors import MissingExtraError, ReadOnlyError, StoreError, UnavailableError, UsageError
from everloop.stores.full_disk import insufficient, is_full
from everloop.stores.records.condition_sql import LITERAL, Sql
from everloop.stores.records.migrations import check_version, migrations
from everloop.stores.records.postgres_connections import IDLE_TRANSACTION_S, PostgresConnector, write_at_once
from everloop.stores.records.postgres_events import EventListener, event_statements
from everloop.stores.records.postgres_locks import lock_statements, missing_locks, wanted_locks
from everloop.stores.records.postgres_pool import ConnectionPool, PooledConnection
from everloop.stores.records.sql_logs import MOVED, REFUSED_WRITES
from everloop.stores.records.sql_records import SqlRecords

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from everloop.stores.clock import Clock

INDEX_PREFIX = "search_"
MOST_INDEXES = 16
"""Limit for indexes that are created for slow searches, because each index makes every write a little slower."""
MOST_PARTS = 16
"""A transaction of more parts takes the lock of the project instead, because a server has room for few locks."""
_LARGE = 2**15
"""Statements with longer values are sent as one message, because their several messages may not be sent at once."""
_POINTS = (
    "INSERT INTO points (metric, step, at, written_at, value, crc) SELECT * FROM"
    " unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[], %b::float8[], %b::bigint[])"
)


class PostgresRecords(SqlRecords):
    """A `RecordStore` in the database at `postgresql://user:password@host/name`.

    Tables are created in the first schema of the connection's search path. Several processes can open, and create, it
    at the same time.
    """

    def __init__(self, url: str, *, project: str, actor: str, clock: Clock) -> None:
        super().__init__(PostgresDatabase(url), project=project, actor=actor, clock=clock)


class PostgresDatabase:
    """A `Database` on a PostgreSQL server."""

    row_id = "id"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError.of("PostgreSQL", "psycopg", "postgres") from error
        self._psycopg = psycopg
        self._connector = PostgresConnector(url)
        self.paths = PostgresPaths()
        self.patterns = PostgresPatterns()
        self._pool = ConnectionPool(self._connector.connect_writer)
        self._listener = EventListener(self._connector.connect_writer)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def read(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        with self._pool.connection() as pooled:
            try:
                self._write_events_before(pooled, statement)
                return pooled.connection.execute(_marked(statement), values).fetchall()
            except self._psycopg.OperationalError as error:
                if pooled.depth or not pooled.connection.closed:
                    raise self._translated(error) from error
            except (self._psycopg.Error, UnicodeEncodeError) as error:
                raise self._translated(error) from error
            # The server has closed the connection, for example because it restarts. Outside of a transaction, the query
            # can simply be repeated on a new connection.
            self._pool.replace(pooled)
            try:
                return pooled.connection.execute(_marked(statement), values).fetchall()
            except self._psycopg.Error as error:
                raise self._translated(error) from error

    def read_raw(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        # The server never sends invalid text, so this is the same as `read`.
        return self.read(statement, values)

    def write(self, statement: str, values: Sequence[object] = ()) -> int:
        with self._pool.connection() as pooled:
            try:
                self._write_events_before(pooled, statement)
                if any(isinstance(value, str | bytes) and len(value) > _LARGE for value in values):
                    return write_at_once(pooled.connection, _marked(statement).decode(), [values])
                return pooled.connection.execute(_marked(statement), values).rowcount
            except (self._psycopg.Error, UnicodeEncodeError) as error:
                raise self._translated(error) from error

    def write_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        with self._pool.connection() as pooled:
            try:
                write_at_once(pooled.connection, _marked(statement).decode(), rows)
            except (self._psycopg.Error, UnicodeEncodeError) as error:
                raise self._translated(error) from error

    def write_points(self, rows: Sequence[Sequence[Any]]) -> None:
        if not rows:
            return
        *numbers, values, sums = zip(*rows, strict=True)
        columns = (*numbers, [None if value is None else float(value) for value in values], sums)
        with self._pool.connection() as pooled:
            try:
                # Nearly as fast as COPY, but a single request: see `postgres_connections`.
                pooled.connection.execute(_POINTS, [list(column) for column in columns])
            except self._psycopg.Error as error:
                raise self._translated(error) from error

    def write_event(self, row: Sequence[object]) -> None:
        with self._pool.connection() as pooled:
            pooled.events.append(tuple(row))

    @contextmanager
    def transaction(self, project: str | None = None, parts: Sequence[str] = ()) -> Iterator[None]:
        with self._pool.connection() as pooled:
            try:
                with self._inner(pooled, project, parts) if pooled.depth else self._outer(pooled, project, parts):
                    yield
            except self._psycopg.Error as error:
                raise self._translated(error) from error

    def write_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        # COPY also accepts numbers for columns that the database numbers itself.
        statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN".encode()
        with self._pool.connection() as pooled:
            try:
                with pooled.connection.cursor() as cursor, cursor.copy(statement) as copy:
                    for row in rows:
                        copy.write_row(row)
            except (self._psycopg.Error, UnicodeEncodeError) as error:
                raise self._translated(error) from error

    def continue_numbers(self, table: str, column: str) -> None:
        self.read(
            f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), coalesce(max({column}), 0) + 1, false)"
            f" FROM {table}"
        )

    def refuse_writes(self, message: str | None) -> None:
        for table, verb in REFUSED_WRITES:
            name = f"moved_{table}_{verb.lower()}"
            self.write(f"DROP TRIGGER IF EXISTS {name} ON {table}")
            if message is not None:
                quoted = message.replace("'", "''").replace("%", "%%")
                with self._pool.connection() as pooled:
                    pooled.connection.execute(
                        "CREATE OR REPLACE FUNCTION everloop_moved() RETURNS trigger LANGUAGE plpgsql AS"
                        f" $moved$ BEGIN RAISE EXCEPTION '{quoted}'; END $moved$".encode()
                    )
                self.write(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} EXECUTE FUNCTION everloop_moved()")

    def wait_for_change(self, project: str, timeout_s: float) -> None:
        self._listener.wait(project, timeout_s)

    def index(self, value: Sql) -> None:
        if value.values or self._pool.in_transaction:
            return
        name = f"{INDEX_PREFIX}{sha256(value.text.encode()).hexdigest()[:16]}"
        ours = self.read(
            "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema() AND starts_with(indexname, ?)",
            (INDEX_PREFIX,),
        )
        if len(ours) >= MOST_INDEXES or (name,) in ours:
            return
        with suppress(StoreError, UnavailableError), self.transaction():
            # The search itself has succeeded, so it must not fail because of the index.
            self.write(
                f"CREATE INDEX IF NOT EXISTS {name} ON records (project, kind, ({value.text}), id)"
                " WHERE deleted_at IS NULL"
            )

    def problems(self) -> list[str]:
        """Always empty: checking a server's files needs the rights of the server's administrator."""
        return []

    @property
    def closed(self) -> bool:
        return self._pool.closed

    def close(self) -> None:
        self._listener.close()
        self._pool.close()

    @contextmanager
    def _outer(self, pooled: PooledConnection, project: str | None, parts: Sequence[str]) -> Iterator[None]:
        locks = wanted_locks(project, parts if len(parts) <= MOST_PARTS else ())
        begin = b"BEGIN; " + lock_statements(locks)
        try:
            pooled.connection.execute(begin)
        except self._psycopg.OperationalError:
            if not pooled.connection.closed:
                raise
            # The server has closed the connection. The transaction has not begun yet, so a new connection will do.
            self._pool.replace(pooled)
            pooled.connection.execute(begin)
        pooled.depth, pooled.locks, pooled.events = 1, dict(locks), []
        try:
            yield
            self._commit(pooled)
        except BaseException:
            try:
                pooled.connection.rollback()
            except Exception:
                # The connection is lost. The original error is more useful.
                pooled.connection.close()
            raise
        finally:
            pooled.depth, pooled.locks, pooled.events = 0, {}, []

    @contextmanager
    def _inner(self, pooled: PooledConnection, project: str | None, parts: Sequence[str]) -> Iterator[None]:
        connection = pooled.connection
        missing = missing_locks(pooled.locks, project, parts)
        # Undoing the block releases the locks that were taken inside of it, and removes the events that were written.
        locks, events = dict(pooled.locks), list(pooled.events)
        name = f"inner_{pooled.depth}".encode()
        connection.execute(b"SAVEPOINT " + name + b"".join([b"; ", lock_statements(missing)] if missing else []))
        pooled.locks |= missing
        pooled.depth += 1
        try:
            yield
            connection.execute(b"RELEASE " + name)
        except BaseException:
            pooled.locks, pooled.events = locks, events
            with suppress(Exception):
                # If the connection is lost, the outer transaction fails as well.
                connection.execute(b"ROLLBACK TO " + name)
            raise
        finally:
            pooled.depth -= 1

    def _commit(self, pooled: PooledConnection) -> None:
        connection = pooled.connection
        if connection.info.transaction_status == self._psycopg.pq.TransactionStatus.INERROR:
            # On COMMIT, PostgreSQL would roll back without reporting an error.
            raise StoreError("A statement of this transaction failed, so the transaction was rolled back.")
        if pooled.events:
            connection.execute(event_statements(connection, pooled.events) + b"; COMMIT")
        else:
            connection.commit()

    def _write_events_before(self, pooled: PooledConnection, statement: str) -> None:
        """Write the waiting events before a statement that uses them."""
        if pooled.events and " events" in statement:
            pooled.connection.execute(event_statements(pooled.connection, pooled.events))
            pooled.events = []

    def _migrate(self) -> None:
        steps = migrations("postgres")
        if check_version(self._version(), steps, self._connector.name) == steps[-1].number:
            return
        with self.transaction():
            self.write("CREATE TABLE IF NOT EXISTS everloop_version (number INTEGER NOT NULL)")
            for step in steps[check_version(self._version(), steps, self._connector.name) :]:
                with self._pool.connection() as pooled:
                    pooled.connection.execute(step.script.encode())
                self.write("DELETE FROM everloop_version")
                self.write("INSERT INTO everloop_version VALUES (?)", (step.number,))

    def _version(self) -> int:
        if self.read("SELECT to_regclass('everloop_version')")[0][0] is None:
            return 0
        rows = self.read("SELECT number FROM everloop_version")
        return int(rows[0][0]) if rows else 0

    def _translated(self, error: Exception) -> Exception:
        """The everloop exception for a psycopg error."""
        name = self._connector.name
        if isinstance(error, self._psycopg.errors.DiskFull) or is_full(error):
            return insufficient(f"for the store '{name}', on its server")
        text = self._connector.error_text(error)
        if isinstance(error, self._psycopg.errors.RaiseException) and text.startswith(MOVED):
            return ReadOnlyError(
                text.partition(" CONTEXT: ")[0], help="Restart this process, so that it reads everloop.toml again."
            )
        if isinstance(error, self._psycopg.errors.ReadOnlySqlTransaction):
            return ReadOnlyError(
                f"The store '{name}' is read-only: {text}", help="Is its server a standby? Use the primary's URL."
            )
        if isinstance(error, (self._psycopg.DataError, UnicodeEncodeError)):
            return UsageError(f"PostgreSQL cannot store this value: {text}", help="Use texts without NUL characters.")
        if isinstance(error, self._psycopg.errors.DeadlockDetected):
            return UnavailableError(
                f"Two transactions in the store '{name}' waited for each other, so this one was rolled back.",
                help="Try again.",
            )
        if isinstance(error, self._psycopg.errors.IdleInTransactionSessionTimeout):
            return UnavailableError(
                f"A transaction in the store '{name}' did nothing for {IDLE_TRANSACTION_S} s, so it was rolled back.",
                help="Try again.",
            )
        if isinstance(error, self._psycopg.OperationalError):
            return UnavailableError(f"The store '{name}' does not respond: {text}", help="Is its server running?")
        return StoreError(f"The database of the store '{name}' reported an error: {text}")


class PostgresPaths:
    """A `Paths` over JSONB."""

    column = "doc"

    def number(self, path: Sequence[str]) -> Sql:
        return self._where(path, "number", "(doc #>> ?::text[])::numeric")

    def text(self, path: Sequence[str]) -> Sql:
        return self._where(path, "string", '(doc #>> ?::text[]) COLLATE "C"')

    def boolean(self, path: Sequence[str]) -> Sql:
        return self._where(path, "boolean", "(doc #>> ?::text[])::boolean::int")

    def absent(self, path: Sequence[str]) -> Sql:
        return Sql("coalesce(jsonb_typeof(doc #> ?::text[]), 'null') = 'null'", (list(path),))

    def _where(self, path: Sequence[str], kind: str, value: str) -> Sql:
        test = f"(CASE WHEN jsonb_typeof(doc #> ?::text[]) = '{kind}' THEN {value} END)"
        if LITERAL.fullmatch("".join(path)) and all(path):
            # The path is written into the statement: an expression index is used only for exactly the same expression.
            names = ", ".join(f"'{name}'" for name in path)
            return Sql(test.replace("?", f"ARRAY[{names}]"))
        return Sql(test, (list(path), list(path)))


class PostgresPatterns:
    """A `Patterns`. The columns have the collation "C", so ILIKE ignores the case of ASCII letters only."""

    def like(self, column: str, pattern: str, *, any_case: bool) -> Sql:
        # With an empty escape character, a backslash has no special meaning.
        return Sql(f"{column} {'ILIKE' if any_case else 'LIKE'} ? ESCAPE ''", (pattern,))


@lru_cache(maxsize=1024)
def _marked(statement: str) -> bytes:
    """The statement with psycopg's placeholders. Statements here have no other question marks or percent signs."""
    return statement.replace("?", "%s").encode()
