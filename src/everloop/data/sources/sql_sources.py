"""Run SQL queries: SQLite through the standard library, PostgreSQL through psycopg, other databases through SQLAlchemy.

`engine=` selects another library: `sqlalchemy`, `adbc` or `connectorx`. Each is imported only when it is used.

The state of a query is a digest over its rows. For SQLite it also contains the stamps of the database files, so that
an unchanged database is not queried again.
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
    """The URL without its password, as it is stored in records. This process remembers the full URL."""
    return url if url.startswith("sqlite:") else remembered(url)


def query_frame(url: str, query: str, engine: str | None = None) -> pl.DataFrame:
    """Run one query and return its rows.

    Args:
        engine: one of `ENGINES`; by default the one that suits the URL.

    Raises:
        SourceError: the database or a table does not exist, the query fails, or a column mixes types.
        MissingExtraError: the library for this database is not installed.
        UsageError: the engine does not exist.
    """
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"There is no engine '{engine}'.", help=f"Use one of: {', '.join(ENGINES)}.")
    if engine in ("adbc", "connectorx"):
        return _by_uri(url, query, engine)
    if engine == "sqlalchemy" or not url.startswith(SCHEMES):
        names, rows = _sqlalchemy(url, query)
    else:
        names, rows = _sqlite(url, query) if url.startswith("sqlite://") else _postgres(url, query)
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise SourceError(
            f"The query returns two columns called '{min(repeated)}'.", help="Rename one of them with AS."
        )
    mixed = find_problem(names, rows)
    if mixed is not None:
        raise SourceError(mixed, help="CAST the column in the query.")
    try:
        return pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise SourceError(f"The rows of the query do not form a table: {error}.") from error


def query_with_state(url: str, query: str, engine: str | None = None) -> tuple[pl.DataFrame, str]:
    """The rows of one query, and their state as `sql_state` would return it."""
    # Take the stamps before the query, so that a write in between is noticed later.
    stamps = _stamps(url)
    frame = query_frame(url, query, engine)
    return frame, f"rows {_digest(frame)} at {stamps}"


def sql_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The state of the current result of a query.

    Args:
        spec: `url` without password, `query`, and `engine` if one was given.
        since: an earlier state, which is returned unchanged if the rows are the same.
    """
    url: str = spec["url"]
    if since is not None:
        stamps = _stamps(url)
        if stamps != "-" and since.partition(" at ")[2] == stamps:
            return since
    _, state = query_with_state(recalled(url), spec["query"], spec.get("engine"))
    return state if since is None or sql_change(since, state) else since


def sql_change(before: str, after: str) -> str:
    """Describe the change between two states; empty if there is none."""
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
                    f"The query failed on '{path}': {error}.", help=nearest(missing[1], tables) if missing else None
                ) from error
            if cursor.description is None:
                raise _no_result()
            return [column[0] for column in cursor.description], cursor.fetchall()
    except sqlite3.Error as error:
        raise SourceError(f"'{path}' cannot be queried: {error}.") from error


def _sqlite_path(url: str) -> Path:
    # As in SQLAlchemy: three slashes before a relative path, four before an absolute one.
    if not url.startswith("sqlite:///"):
        raise UsageError(f"'{url}' does not name a database file.", help="Write sqlite:///folder/file.db.")
    return project_folder() / unquote(url.removeprefix("sqlite:///"))


def _stamps(url: str) -> str:
    """Stamps of the database file and its write-ahead log; `-` if they prove nothing."""
    if not url.startswith("sqlite://"):
        return "-"
    path = _sqlite_path(url)
    # The change time is not used: opening a database for reading sets the owner of its write-ahead log again.
    stamps = [write_stamp(path), write_stamp(path.with_name(f"{path.name}-wal"))]
    return "-" if "-" in stamps else " ".join(stamps)


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
                raise _no_result()
            return [column.name for column in cursor.description], cursor.fetchall()
    except UnavailableError as error:
        raise SourceError(f"The query failed on '{redacted(url)}': {error.message}.", help=error.help) from None
    except psycopg.Error as error:
        raise SourceError(f"The query failed on '{redacted(url)}': {_first_line(error, url)}.") from None


def _sqlalchemy(url: str, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    try:
        import sqlalchemy
    except ImportError as error:
        raise MissingExtraError.of(f"Reading '{redacted(url)}'", "SQLAlchemy", "sql") from error
    try:
        engine = sqlalchemy.create_engine(_absolute(url), poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            result = connection.exec_driver_sql(query)
            if not result.returns_rows:
                raise _no_result()
            return list(result.keys()), [tuple(row) for row in result.fetchall()]
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Reading '{redacted(url)}' needs {error.name}.", help=f"Install it with: pip install {error.name}"
        ) from error
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise MissingExtraError(
            f"SQLAlchemy cannot read '{redacted(url)}': {_first_line(error, url)}.",
            help="Install the dialect with pip install NAME. SQLAlchemy's documentation lists the dialects.",
        ) from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise SourceError(f"The query failed on '{redacted(url)}': {_first_line(cause, url)}.") from None


def _by_uri(url: str, query: str, engine: str) -> pl.DataFrame:
    try:
        if engine == "adbc":
            return pl.read_database_uri(query, _absolute(url), engine="adbc")
        return pl.read_database_uri(query, _absolute(url), engine="connectorx")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Reading '{redacted(url)}' with {engine} needs a driver: {_first_line(error, url)}.",
            help="Install it with: pip install 'everloop[sql]'. ADBC also needs the driver of the database.",
        ) from error
    except Exception as error:  # each driver has its own exceptions
        raise SourceError(f"The query failed on '{redacted(url)}': {_first_line(error, url)}.") from None


def _absolute(url: str) -> str:
    """The URL with an absolute path: SQLite's relative paths start from the project folder."""
    scheme, found, path = url.partition(":///")
    if not found or not scheme.startswith("sqlite") or path.startswith("/"):
        return url
    return f"{scheme}:///{_sqlite_path(f'sqlite:///{path}').absolute()}"


def _no_result() -> SourceError:
    return SourceError("The query does not return rows.", help="Use a SELECT statement.")


def _first_line(error: BaseException, url: str) -> str:
    """The first line of a library's error message, without the secrets of the URL."""
    return mask_text((str(error).splitlines() or [type(error).__name__])[0], url).rstrip(".")
