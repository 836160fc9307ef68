"""Keeps segments of a log in a PostgreSQL table, for projects whose records are in PostgreSQL already.

The table `log_segments` is created with the first segment, in the first schema of the connection's search path.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from everloop.errors import (
    InsufficientStorageError,
    MissingExtraError,
    NotFoundError,
    StoreError,
    UnavailableError,
    UsageError,
)
from everloop.prediction_log.segments import PUT_TIMEOUT_S, Segment, checked, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

_TABLE = b"""
CREATE TABLE IF NOT EXISTS log_segments (
    stream TEXT NOT NULL,
    instance TEXT NOT NULL,
    number BIGINT NOT NULL,
    digest TEXT NOT NULL,
    frames BYTEA NOT NULL,
    put_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream, instance, number, digest)
)"""
_WHERE = b" WHERE stream = %s AND instance = %s AND number = %s AND digest = %s"


class PostgresSegments:
    """A `SegmentStore` in the database at `postgresql://user:password@host/name`. One connection, opened when needed.

    Every statement is its own transaction, so a process that dies leaves a segment complete or not at all.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError.of("A log in PostgreSQL", "psycopg", "postgres") from error
        self._psycopg: Any = psycopg
        self._url = url
        self._guard = threading.Lock()
        self._connection: Any = None
        self._process = 0
        self._created = False

    def check(self) -> None:
        self._create_table()

    def put(self, segment: Segment, data: bytes) -> None:
        statement = (
            b"INSERT INTO log_segments (stream, instance, number, digest, frames) VALUES (%s, %s, %s, %s, %s)"
            b" ON CONFLICT DO NOTHING"
        )
        if not self._created:
            self._create_table()
        try:
            self._run(statement, (*_values(segment), data))
        except _NoTableError:
            # The table was dropped meanwhile.
            self._create_table()
            self._run(statement, (*_values(segment), data))

    def find(self, stream: str) -> Sequence[Segment]:
        rows = self._read(b"SELECT instance, number, digest FROM log_segments WHERE stream = %s", (stream,))
        return sorted(Segment(stream, instance, int(number), digest) for instance, number, digest in rows)

    def streams(self) -> Sequence[str]:
        return sorted(stream for (stream,) in self._read(b"SELECT DISTINCT stream FROM log_segments", ()))

    def get(self, segment: Segment) -> bytes:
        rows = self._read(b"SELECT frames FROM log_segments" + _WHERE, _values(segment))
        if not rows:
            raise NotFoundError(f"There is no segment '{segment.key}'.")
        return checked(segment, bytes(rows[0][0]))

    def put_at(self, segment: Segment) -> datetime | None:
        rows: list[tuple[datetime]] = self._read(b"SELECT put_at FROM log_segments" + _WHERE, _values(segment))
        return rows[0][0] if rows else None

    def delete(self, segment: Segment) -> None:
        self._run(b"DELETE FROM log_segments" + _WHERE, _values(segment))

    def close(self) -> None:
        """Disconnect. The next use connects again."""
        with self._guard:
            self._drop()

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the process, the names of this module may be gone; the database sees the end by itself.
        if getattr(self, "_connection", None) is not None and not _ending():
            self._drop()

    def __repr__(self) -> str:
        return f"PostgresSegments({shown(self._url)!r})"

    def _read(self, statement: bytes, values: Sequence[object]) -> list[Any]:
        try:
            return self._run(statement, values)
        except _NoTableError:
            # No segment has been put yet.
            return []

    def _create_table(self) -> None:
        try:
            self._run(_TABLE, ())
        except StoreError:
            # Two processes that create it at once collide in PostgreSQL's catalogue, but then it exists.
            if not self._run(b"SELECT to_regclass('log_segments')", ())[0][0]:
                raise
        self._created = True

    def _run(self, statement: bytes, values: Sequence[object]) -> list[Any]:
        with self._guard:
            fresh = self._open()
            try:
                return self._execute(statement, values)
            except self._psycopg.OperationalError as error:
                lost = self._connection is None or self._connection.closed
                if fresh or not lost:
                    raise self._error_of(error) from error
            except self._psycopg.Error as error:
                raise self._error_of(error) from error
            # The server has disconnected, as it does when it restarts. Every statement can be repeated.
            self._open()
            try:
                return self._execute(statement, values)
            except self._psycopg.Error as error:
                raise self._error_of(error) from error

    def _execute(self, statement: bytes, values: Sequence[object]) -> list[Any]:
        cursor = self._connection.execute(statement, values)
        return list(cursor.fetchall()) if cursor.description is not None else []

    def _open(self) -> bool:
        """Ensure a connection. Returns whether it is new."""
        if self._process != os.getpid():
            # A connection does not survive a fork, and the parent's must not be closed here either.
            self._inherited, self._connection, self._process = self._connection, None, os.getpid()
        if self._connection is not None and not self._connection.closed:
            return False
        try:
            self._connection = self._psycopg.connect(
                self._url,
                autocommit=True,
                application_name="everloop log",
                connect_timeout=int(PUT_TIMEOUT_S),
            )
            self._connection.execute(f"SET statement_timeout = {int(PUT_TIMEOUT_S * 1000)}".encode())
        except self._psycopg.Error as error:
            raise self._error_of(error) from error
        return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            with suppress(Exception):
                connection.close()

    def _error_of(self, error: Exception) -> Exception:
        where = shown(self._url)
        kinds = self._psycopg.errors
        if isinstance(error, kinds.UndefinedTable):
            self._created = False
            return _NoTableError(f"The database '{where}' has no table 'log_segments'.")
        if isinstance(error, kinds.DiskFull):
            return InsufficientStorageError(f"No space left in '{where}'.", help="Free some space on its server.")
        if type(error) is self._psycopg.ProgrammingError:
            # Such as an invalid URL. The library's message may quote it, password included.
            return UsageError(f"The database URL '{where}' is invalid.", help="Use postgresql://USER@HOST/NAME.")
        if isinstance(error, self._psycopg.OperationalError):
            self._drop()
            reason = str(error).partition("\n")[0]
            return UnavailableError(f"The store '{where}' does not answer: {reason}", help="Is its server running?")
        return StoreError(f"The store '{where}' failed: {error}")


class _NoTableError(StoreError):
    """The table does not exist yet."""


def _values(segment: Segment) -> tuple[object, ...]:
    return segment.stream, segment.instance, segment.number, segment.digest


__all__ = ["PostgresSegments"]
