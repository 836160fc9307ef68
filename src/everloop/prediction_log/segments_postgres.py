"""Segments of a log in a table of PostgreSQL, for those who keep their records there already.

The table `log_segments` comes to be with the first segment, in the first schema of the connection's search path.
"""

from __future__ import annotations

import os
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
    from collections.abc import Sequence
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

    Every statement stands for itself, so whatever dies leaves a segment whole or not at all.
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
        self._made = False

    def check(self) -> None:
        self._make()

    def put(self, segment: Segment, data: bytes) -> None:
        statement = (
            b"INSERT INTO log_segments (stream, instance, number, digest, frames) VALUES (%s, %s, %s, %s, %s)"
            b" ON CONFLICT DO NOTHING"
        )
        if not self._made:
            self._make()
        try:
            self._run(statement, (*_values(segment), data))
        except _NoTableError:
            # Somebody has dropped it since.
            self._make()
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
        """Hang up. The next use connects again."""
        with self._guard:
            self._drop()

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            self._drop()

    def __repr__(self) -> str:
        return f"PostgresSegments({shown(self._url)!r})"

    def _read(self, statement: bytes, values: Sequence[object]) -> list[Any]:
        try:
            return self._run(statement, values)
        except _NoTableError:
            # Nothing has been put yet.
            return []

    def _make(self) -> None:
        try:
            self._run(_TABLE, ())
        except StoreError:
            # Two who make it at the same moment collide in PostgreSQL's catalogue; then it is there.
            if not self._run(b"SELECT to_regclass('log_segments')", ())[0][0]:
                raise
        self._made = True

    def _run(self, statement: bytes, values: Sequence[object]) -> list[Any]:
        with self._guard:
            fresh = self._open()
            try:
                return self._execute(statement, values)
            except self._psycopg.OperationalError as error:
                lost = self._connection is None or self._connection.closed
                if fresh or not lost:
                    raise self._told(error) from error
            except self._psycopg.Error as error:
                raise self._told(error) from error
            # The server has hung up, as it does when it restarts. Each statement may be run again.
            self._open()
            try:
                return self._execute(statement, values)
            except self._psycopg.Error as error:
                raise self._told(error) from error

    def _execute(self, statement: bytes, values: Sequence[object]) -> list[Any]:
        cursor = self._connection.execute(statement, values)
        return list(cursor.fetchall()) if cursor.description is not None else []

    def _open(self) -> bool:
        """Have a connection; whether it is a new one."""
        if self._process != os.getpid():
            # A connection does not survive a fork; what the parent has must not be closed here either.
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
            raise self._told(error) from error
        return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            with suppress(Exception):
                connection.close()

    def _told(self, error: Exception) -> Exception:
        where = shown(self._url)
        kinds = self._psycopg.errors
        if isinstance(error, kinds.UndefinedTable):
            self._made = False
            return _NoTableError(f"The database '{where}' has no table 'log_segments'.")
        if isinstance(error, kinds.DiskFull):
            return InsufficientStorageError(f"No space left in '{where}'.", help="Free some space on its server.")
        if type(error) is self._psycopg.ProgrammingError:
            # Such as a URL that cannot be read. The library's words may repeat it, password included.
            return UsageError(f"The database URL '{where}' cannot be used.", help="postgresql://USER@HOST/NAME")
        if isinstance(error, self._psycopg.OperationalError):
            self._drop()
            told = str(error).partition("\n")[0]
            return UnavailableError(f"The store '{where}' does not answer: {told}", help="Is its server running?")
        return StoreError(f"The store '{where}' failed: {error}")


class _NoTableError(StoreError):
    """Nothing has been put yet."""


def _values(segment: Segment) -> tuple[object, ...]:
    return segment.stream, segment.instance, segment.number, segment.digest


__all__ = ["PostgresSegments"]
