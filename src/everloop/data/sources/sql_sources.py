"""Queries: SQLite by the standard library, PostgreSQL by psycopg, and everything else by SQLAlchemy.

`engine=` chooses another way: `sqlalchemy`, `adbc` or `connectorx`, each of which is imported only then.

The state of a query is a digest over its rows. For SQLite the stamps of the database's files stand beside it, so
that a database that nobody has written to is not queried again.
"""

from __future__ import annotations

import hashlib
import io
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import polars as pl

from everloop.data.sources.file_states import project_folder, write_stamp
from everloop.data.sources.row_values import find_problem
from everloop.data.table_inputs import nearest
from everloop.errors import MissingExtraError, SourceError, UnavailableError, UsageError
from everloop.stores.records.postgres_connections import PostgresConnector
from everloop.stores.store_urls import mask_text, recalled, remembered

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.records import Json

SCHEMES = ("sqlite://", "postgresql://", "postgres://")
ENGINES = ("sqlalchemy", "adbc", "connectorx")
_OTHERS = re.compile(
    r"(mysql|mariadb|mssql|oracle|duckdb|snowflake|redshift|bigquery|clickhouse|trino|cockroachdb)://|[a-z0-9]+\+[a-z0-9_]+://"
)


def is_sql(source: str) -> bool:
    return source.startswith(SCHEMES) or _OTHERS.match(source) is not None


def redacted(url: str) -> str:
    """The address without its password, as records hold it. This process may look again with what it was given."""
    return url if url.startswith("sqlite:") else remembered(url)


def query_frame(url: str, query: str, engine: str | None = None) -> pl.DataFrame:
    """Run one query and return its rows.

    Args:
        engine: of `ENGINES`; without it, what suits the address.

    Raises:
        SourceError: the database or a table is missing, the query fails, or a column mixes types.
        MissingExtraError: the library behind it is not installed.
        UsageError: there is no such engine.
    """
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"There is no engine '{engine}'.", help=f"There are: {', '.join(ENGINES)}.")
    if engine in ("adbc", "connectorx"):
        return _by_uri(url, query, engine)
    if engine == "sqlalchemy" or not url.startswith(SCHEMES):
        names, rows = _sqlalchemy(url, query)
    else:
        names, rows = _sqlite(url, query) if url.startswith("sqlite://") else _postgres(url, query)
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise SourceError(f"The query gives two columns '{min(doubled)}'.", help="Name one with AS.")
    mixed = find_problem(names, rows)
    if mixed is not None:
        raise SourceError(mixed, help="CAST the column in the query.")
    try:
        return pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise SourceError(f"The rows of the query are no table: {error}.") from error


def query_with_state(url: str, query: str, engine: str | None = None) -> tuple[pl.DataFrame, str]:
    """The rows of one query and their state, which is as `sql_state` would see it."""
    # Before the query: what is written in between is then seen as a change.
    stamps = _stamps(url)
    frame = query_frame(url, query, engine)
    return frame, f"rows {_digest(frame)} at {stamps}"


def sql_state(spec: dict[str, Json], since: str | None = None) -> str:
    """What the query of `spec` gives now.

    Args:
        spec: `url`, without password, `query`, and `engine` where one was named.
        since: an earlier state; returned as it is where the rows are the same.
    """
    url: str = spec["url"]
    if since is not None:
        stamps = _stamps(url)
        if stamps != "-" and since.partition(" at ")[2] == stamps:
            return since
    _, state = query_with_state(recalled(url), spec["query"], spec.get("engine"))
    return state if since is None or sql_change(since, state) else since


def sql_change(before: str, after: str) -> str:
    """What happened between two states, in words."""
    return "" if before.partition(" at ")[0] == after.partition(" at ")[0] else "other rows"


def _digest(frame: pl.DataFrame) -> str:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="uncompressed")
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _sqlite(url: str, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    path = _sqlite_path(url)
    if not path.is_file():
        found = sorted(item.name for item in path.parent.glob("*")) if path.parent.is_dir() else []
        raise SourceError(f"There is no database '{path}'.", help=nearest(path.name, found))
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            try:
                cursor = connection.execute(query)
            except sqlite3.OperationalError as error:
                missing = re.search(r"no such table: (?:\w+\.)?(.+)", str(error))
                tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type != 'index'")]
                raise SourceError(
                    f"The query fails on '{path}': {error}.", help=nearest(missing[1], tables) if missing else None
                ) from error
            if cursor.description is None:
                raise SourceError("The query gives no rows.", help="Write a SELECT.")
            return [column[0] for column in cursor.description], cursor.fetchall()
    except sqlite3.Error as error:
        raise SourceError(f"'{path}' cannot be queried: {error}.") from error


def _sqlite_path(url: str) -> Path:
    # As SQLAlchemy has it: three slashes and a relative path, four and an absolute one.
    if not url.startswith("sqlite:///"):
        raise UsageError(f"'{url}' names no database file.", help="Write sqlite:///folder/file.db")
    return project_folder() / unquote(url.removeprefix("sqlite:///"))


def _stamps(url: str) -> str:
    """Stamps of the database and of its write-ahead log, `-` where they prove nothing."""
    if not url.startswith("sqlite://"):
        return "-"
    path = _sqlite_path(url)
    # Not the change time: whoever opens a database for reading sets the owner of its write-ahead log anew.
    texts = [write_stamp(path), write_stamp(path.with_name(f"{path.name}-wal"))]
    return "-" if "-" in texts else " ".join(texts)


def _postgres(url: str, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError.of("Reading PostgreSQL", "psycopg", "postgres") from error
    try:
        with PostgresConnector(url).connect() as connection, connection.cursor() as cursor:
            connection.read_only = True
            cursor.execute(query.encode())
            if cursor.description is None:
                raise SourceError("The query gives no rows.", help="Write a SELECT.")
            return [column.name for column in cursor.description], cursor.fetchall()
    except UnavailableError as error:
        raise SourceError(f"The query fails on '{redacted(url)}': {error.message}.", help=error.help) from None
    except psycopg.Error as error:
        raise SourceError(f"The query fails on '{redacted(url)}': {_first(error, url)}.") from None


def _sqlalchemy(url: str, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    try:
        import sqlalchemy
    except ImportError as error:
        raise MissingExtraError.of(f"Reading '{redacted(url)}'", "SQLAlchemy", "sql") from error
    address = _absolute(url)
    try:
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            result = connection.exec_driver_sql(query)
            if not result.returns_rows:
                raise SourceError("The query gives no rows.", help="Write a SELECT.")
            return list(result.keys()), [tuple(row) for row in result.fetchall()]
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Reading '{redacted(url)}' needs {error.name}.", help=f"Install it with: pip install {error.name}"
        ) from error
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise MissingExtraError(
            f"SQLAlchemy cannot read '{redacted(url)}': {_first(error, url)}.",
            help="Install the dialect: pip install NAME, see the list in SQLAlchemy's documentation.",
        ) from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise SourceError(f"The query fails on '{redacted(url)}': {_first(cause, url)}.") from None


def _by_uri(url: str, query: str, engine: str) -> pl.DataFrame:
    try:
        if engine == "adbc":
            return pl.read_database_uri(query, _absolute(url), engine="adbc")
        return pl.read_database_uri(query, _absolute(url), engine="connectorx")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Reading '{redacted(url)}' by {engine} needs a driver: {_first(error, url)}.",
            help="Install it with: pip install 'everloop[sql]', and for ADBC the driver of the database.",
        ) from error
    except Exception as error:  # each driver raises classes of its own
        raise SourceError(f"The query fails on '{redacted(url)}': {_first(error, url)}.") from None


def _absolute(url: str) -> str:
    """SQLite's relative paths start in the project's folder."""
    scheme, found, path = url.partition(":///")
    if not found or not scheme.startswith("sqlite") or path.startswith("/"):
        return url
    return f"{scheme}:///{_sqlite_path(f'sqlite:///{path}').absolute()}"


def _first(error: BaseException, url: str) -> str:
    """The first line of what a library says, without what is secret in the address that it was given."""
    return mask_text((str(error).splitlines() or [type(error).__name__])[0], url).rstrip(".")
