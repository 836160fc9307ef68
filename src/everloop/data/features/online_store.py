"""Online stores: the latest features of each entity for serving, as one blob per entity and view.

A row replaces another only if its event is later, or if the event is the same and the row became known later. So rows
may be written in any order, and more than once. The online store can always be rebuilt from the view's table.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from everloop.data.features.feature_codec import decode_row, encode_rows, entity_key
from everloop.data.features.internal_columns import KNOWN_AT
from everloop.errors import MissingExtraError, UsageError
from everloop.stores.permissions import make_private
from everloop.stores.records.postgres_connections import PostgresConnector, write_at_once
from everloop.stores.records.sqlite_connection import SqliteConnection
from everloop.stores.store_urls import check_url, mask_url
from everloop.stores.tables.delta_tables import EVENT_AT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """The latest published row of an entity."""

    values: dict[str, Any]
    event_at: datetime
    known_at: datetime


class OnlineStore(Protocol):
    """A store that is safe to use from any thread and process."""

    def put(self, view: str, rows: pl.DataFrame, entity: Sequence[str], features: Sequence[str]) -> int:
        """Publish each entity's latest row, by `event_at` and `known_at`. Return how many rows are new or changed."""

    def get(self, view: str, entity: Mapping[str, Any]) -> OnlineRow | None:
        """The row of an entity, given as column names and values; None if none was published."""

    def drop(self, view: str) -> None:
        """Delete all rows of a view."""

    def close(self) -> None: ...


def open_online(address: str | Path) -> OnlineStore:
    """Open an online store: the path of a SQLite file, `postgresql://…` or `redis://…`.

    Raises:
        MissingExtraError: the client library is not installed.
        UsageError: the URL scheme is not supported.
    """
    text = str(address)
    if text.startswith(("postgresql://", "postgres://")):
        return PostgresOnline(text)
    if text.startswith(("redis://", "rediss://", "unix://")):
        return RedisOnline(text)
    if "://" in text:
        raise UsageError(
            f"'{mask_url(text)}' is not an online store that everloop supports.",
            help="Use the path of a SQLite file, postgresql://… or redis://…",
        )
    return SqliteOnline(text)


class SqliteOnline:
    """An online store in one SQLite file. A read takes about ten microseconds."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._local = threading.local()
        self._all: list[SqliteConnection] = []
        self._connection().execute(
            "CREATE TABLE IF NOT EXISTS online (view TEXT, entity BLOB, event_at INTEGER, known_at INTEGER, "
            "row BLOB, PRIMARY KEY (view, entity)) WITHOUT ROWID"
        )

    def put(self, view: str, rows: pl.DataFrame, entity: Sequence[str], features: Sequence[str]) -> int:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            before = connection.total_changes
            connection.executemany(
                "INSERT INTO online VALUES (?, ?, ?, ?, ?) ON CONFLICT (view, entity) DO UPDATE SET "
                "event_at = excluded.event_at, known_at = excluded.known_at, row = excluded.row "
                "WHERE (excluded.event_at, excluded.known_at) > (online.event_at, online.known_at)",
                ((view, *encoded) for encoded in _encoded(rows, entity, features)),
            )
            changed = connection.total_changes - before
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        return changed

    def get(self, view: str, entity: Mapping[str, Any]) -> OnlineRow | None:
        found = self._connection().fetch(
            "SELECT event_at, known_at, row FROM online WHERE view = ? AND entity = ?", (view, _key(entity))
        )
        return _decoded(found[0] if found else None)

    def drop(self, view: str) -> None:
        self._connection().execute("DELETE FROM online WHERE view = ?", (view,))

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def _connection(self) -> SqliteConnection:
        connection: SqliteConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            with suppress(FileExistsError):
                # Create the file first. SQLite would create it with the permissions of the umask.
                os.close(make_private(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            opened = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            opened.execute("PRAGMA journal_mode=WAL")
            opened.execute("PRAGMA synchronous=NORMAL")
            connection = self._local.connection = SqliteConnection(opened)
            self._all.append(connection)
        return connection


class PostgresOnline:
    """An online store in one table of an existing PostgreSQL database."""

    def __init__(self, url: str) -> None:
        self._guard = threading.Lock()
        self._connection = PostgresConnector(url, needed_by="An online store on PostgreSQL").connect_writer()
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS everloop_online (view TEXT, entity BYTEA, event_at BIGINT, known_at BIGINT, "
            "row BYTEA, PRIMARY KEY (view, entity))"
        )

    def put(self, view: str, rows: pl.DataFrame, entity: Sequence[str], features: Sequence[str]) -> int:
        # Always write in the same order, so that two writers cannot deadlock.
        encoded = sorted(_encoded(rows, entity, features))
        with self._guard, self._connection.transaction():
            return write_at_once(
                self._connection,
                "INSERT INTO everloop_online VALUES (%s, %s, %s, %s, %s) ON CONFLICT (view, entity) DO UPDATE SET "
                "event_at = excluded.event_at, known_at = excluded.known_at, row = excluded.row WHERE "
                "(excluded.event_at, excluded.known_at) > (everloop_online.event_at, everloop_online.known_at)",
                ((view, *one) for one in encoded),
            )

    def get(self, view: str, entity: Mapping[str, Any]) -> OnlineRow | None:
        with self._guard:
            found = self._connection.execute(
                "SELECT event_at, known_at, row FROM everloop_online WHERE view = %s AND entity = %s",
                (view, _key(entity)),
            ).fetchone()
        return _decoded(found)

    def drop(self, view: str) -> None:
        with self._guard:
            self._connection.execute("DELETE FROM everloop_online WHERE view = %s", (view,))

    def close(self) -> None:
        self._connection.close()


_REPLACE = """
local changed = 0
for i = 1, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  local new = ARGV[i + 1]
  -- The first 16 bytes are the two times as big-endian integers, which compare like strings.
  if not old or string.sub(new, 1, 16) > string.sub(old, 1, 16) then
    redis.call('HSET', KEYS[1], ARGV[i], new)
    changed = changed + 1
  end
end
return changed
"""
_SHIFT = 1 << 63
_LUA_ARGUMENTS = 1_000


class RedisOnline:
    """An online store in Redis, with one hash per view."""

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingExtraError.of("An online store on Redis", "redis", "redis") from error
        check_url(url, "The URL of the online store", ("redis", "rediss", "unix"))
        self._redis = redis.Redis.from_url(url)
        self._redis.ping()
        self._replace = self._redis.register_script(_REPLACE)

    def put(self, view: str, rows: pl.DataFrame, entity: Sequence[str], features: Sequence[str]) -> int:
        changed = 0
        for batch in _batches(_encoded(rows, entity, features), _LUA_ARGUMENTS):
            given: list[bytes] = []
            for key, event_at, known_at, row in batch:
                given += [key, _big_endian(event_at) + _big_endian(known_at) + row]
            changed += int(self._replace(keys=[f"everloop:{view}"], args=given))
        return changed

    def get(self, view: str, entity: Mapping[str, Any]) -> OnlineRow | None:
        blob: Any = self._redis.hget(f"everloop:{view}", _key(entity))
        if blob is None:
            return None
        times = (int.from_bytes(blob[start : start + 8], "big") - _SHIFT for start in (0, 8))
        return _decoded((*times, blob[16:]))

    def drop(self, view: str) -> None:
        self._redis.delete(f"everloop:{view}")

    def close(self) -> None:
        self._redis.close()


def _big_endian(micros: int) -> bytes:
    return (micros + _SHIFT).to_bytes(8, "big")


def _key(entity: Mapping[str, Any]) -> bytes:
    # Sort by name, so that a caller need not know the order of the declaration.
    return entity_key([entity[name] for name in sorted(entity)])


def _encoded(
    rows: pl.DataFrame, entity: Sequence[str], features: Sequence[str]
) -> Iterator[tuple[bytes, int, int, bytes]]:
    """Yield the key, the times and the values of each entity's latest row; of rows with the same times, the first."""
    newest_first = rows.sort(EVENT_AT, KNOWN_AT, descending=True, maintain_order=True)
    rows = newest_first.unique(list(entity), keep="first", maintain_order=True)
    keys = rows.select(sorted(entity)).iter_rows()
    times = (rows[name].dt.cast_time_unit("us").cast(pl.Int64).to_list() for name in (EVENT_AT, KNOWN_AT))
    for key, event_at, known_at, row in zip(keys, *times, encode_rows(rows.select(features)), strict=True):
        yield entity_key(key), event_at, known_at, row


def _decoded(found: Any) -> OnlineRow | None:
    if found is None:
        return None
    event_at, known_at, row = found
    return OnlineRow(decode_row(row), _moment(event_at), _moment(known_at))


def _moment(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def _batches(rows: Any, size: int = _BATCH) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
