"""Records in a PostgreSQL database, with `psycopg`.

An advisory lock per database schema allows only one writer at a time, as in SQLite. So events become visible in the
order of their numbers, as `RecordStore.events_since` promises.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from everloop.errors import MissingExtraError, ReadOnlyError, StoreError, UnavailableError, UsageError
from everloop.stores.full_disk import insufficient, is_full
from everloop.stores.records.condition_sql import LITERAL, Sql
from everloop.stores.records.connections import Connections, Slot
from everloop.stores.records.migrations import check_version, migrations
from everloop.stores.records.postgres_connections import PostgresConnector
from everloop.stores.records.sql_records import SqlRecords

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg

    from everloop.stores.clock import Clock

INDEX_PREFIX = "search_"
MOST_INDEXES = 16
"""Limit for indexes that are created for slow searches, because each index makes every write a little slower."""

# Two statements in one message. The lock's key consists of "ever" and the number of the schema.
_BEGIN = b"BEGIN; SELECT pg_advisory_xact_lock(1702258034, current_schema()::regnamespace::oid::bigint::int)"


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
        self._connections: Connections[psycopg.Connection[Any]] = Connections(self._connect)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def read(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        slot = self._connections.slot()
        try:
            return slot.connection.execute(_marked(statement), values).fetchall()
        except self._psycopg.OperationalError as error:
            if slot.depth or not slot.connection.closed:
                raise self._translated(error) from error
        except (self._psycopg.Error, UnicodeEncodeError) as error:
            raise self._translated(error) from error
        # The server has closed the connection, for example because it restarts. Outside of a transaction, the query can
        # simply be repeated on a new connection.
        self._connections.drop()
        try:
            return self._connections.slot().connection.execute(_marked(statement), values).fetchall()
        except self._psycopg.Error as error:
            raise self._translated(error) from error

    def read_raw(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        # The server never sends invalid text, so this is the same as `read`.
        return self.read(statement, values)

    def write(self, statement: str, values: Sequence[object] = ()) -> int:
        try:
            return self._connections.slot().connection.execute(_marked(statement), values).rowcount
        except (self._psycopg.Error, UnicodeEncodeError) as error:
            raise self._translated(error) from error

    def write_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        try:
            with self._connections.slot().connection.cursor() as cursor:
                cursor.executemany(_marked(statement), rows)
        except (self._psycopg.Error, UnicodeEncodeError) as error:
            raise self._translated(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        slot = self._connections.slot()
        if not slot.depth and slot.connection.closed:
            self._connections.drop()
            slot = self._connections.slot()
        try:
            with slot.transaction(lambda: self._begin(slot)):
                yield
                if slot.connection.info.transaction_status == self._psycopg.pq.TransactionStatus.INERROR:
                    # On COMMIT, PostgreSQL would roll back without reporting an error.
                    raise StoreError("A statement of this transaction failed, so the transaction was rolled back.")
        except self._psycopg.Error as error:
            raise self._translated(error) from error

    def index(self, value: Sql) -> None:
        if value.values or self._connections.slot().depth:
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
        return self._connections.closed

    def close(self) -> None:
        self._connections.close()

    def _begin(self, slot: Slot[psycopg.Connection[Any]]) -> None:
        try:
            slot.connection.execute(_BEGIN)
        except self._psycopg.OperationalError:
            if not slot.connection.closed:
                raise
            # The server has closed the connection. The transaction has not begun yet, so a new connection will do.
            slot.connection = self._connect()
            slot.connection.execute(_BEGIN)

    def _connect(self) -> psycopg.Connection[Any]:
        return self._connector.connect(autocommit=True, application_name="everloop")

    def _migrate(self) -> None:
        steps = migrations("postgres")
        if check_version(self._version(), steps, self._connector.name) == steps[-1].number:
            return
        with self.transaction():
            connection = self._connections.slot().connection
            connection.execute("CREATE TABLE IF NOT EXISTS everloop_version (number INTEGER NOT NULL)")
            for step in steps[check_version(self._version(), steps, self._connector.name) :]:
                connection.execute(step.script.encode())
                connection.execute("DELETE FROM everloop_version")
                connection.execute("INSERT INTO everloop_version VALUES (%s)", (step.number,))

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
        if isinstance(error, self._psycopg.errors.ReadOnlySqlTransaction):
            return ReadOnlyError(
                f"The store '{name}' is read-only: {text}", help="Is its server a standby? Use the primary's URL."
            )
        if isinstance(error, (self._psycopg.DataError, UnicodeEncodeError)):
            return UsageError(f"PostgreSQL cannot store this value: {text}", help="Use texts without NUL characters.")
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


def _marked(statement: str) -> bytes:
    """The statement with psycopg's placeholders. Statements here have no other question marks or percent signs."""
    return statement.replace("?", "%s").encode()
