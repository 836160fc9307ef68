"""The log of failed requests: how many an endpoint has answered with an error, by status.

Answers are in the prediction log, but a request that fails has none. Each process of an endpoint counts its responses
and writes a frame about those that failed, at most once a second and only if there were some, so an endpoint without
errors has no such log. Counts of the last second are lost if the process is killed. `fold_failures` moves the frames
into the table `failures/<endpoint>`, whose columns are

    event_at, arrived_at   when the frame was written, at most a second after the requests
    status                 HTTP status, 400 or more
    requests               how many requests were answered with it
    version, role          the version that failed to score them, and its role. Empty if none did, for example because
                           the request could not be read or the endpoint was busy. Tables that were written before
                           versions were logged have no such columns
    instance               the process that answered, `<host>.<32 digits>`

A shadow's failures have the role `shadow` and the status 500, although no client got it; `client_failures` leaves them
out.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import msgspec

from everloop.prediction_log.configured_sink import open_sink
from everloop.prediction_log.journal_folding import StreamFold
from everloop.prediction_log.log_frames import decode_frame
from everloop.prediction_log.prediction_log import stream_name, table_name
from everloop.prediction_log.retention import forget_old
from everloop.stores.clock import micros

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import polars as pl

    from everloop.prediction_log.log_sinks import LogSink
    from everloop.stores import Store

FAILURES = "failures"
EVERY_S = 1.0

_VERSION = 1
Key = TypeVar("Key")


VersionFailure = tuple[str, str, int]
"""The version that failed, its role, and the status of the response."""


class FailureEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One journal frame: a time in µs since 1970, and the number of requests by status.

    Attributes:
        versions: those of the requests that a version failed to score, as (version, role, status, requests). Those with
            the role `shadow` are not among `counts`. Frames of earlier releases of everloop have none.
    """

    version: int
    at: int
    counts: dict[int, int]
    instance: str | None = None
    versions: list[tuple[str, str, int, int]] = msgspec.field(default_factory=list)


class FailureLog:
    """Writes an endpoint's failed requests. Thread-safe. The sink is opened at the first failure."""

    def __init__(self, store: Store, endpoint: str) -> None:
        self._store = store
        self._endpoint = endpoint
        self._sink: LogSink | None = None
        self._written: dict[int, int] = {}
        self._written_versions: dict[VersionFailure, int] = {}
        self._next_at = 0.0
        self._lock = threading.Lock()

    def write(
        self, totals: Mapping[int, int], versions: Mapping[VersionFailure, int] | None = None, *, last: bool = False
    ) -> None:
        """Write what has been added since the last frame, unless that was less than a second ago.

        Args:
            totals: all failed requests of this process so far, by status.
            versions: those of them that a version failed to score, and the failures of shadows.
            last: the process is about to stop, so do not wait.

        Raises:
            EverloopError: the log cannot be written. The next call tries again.
        """
        with self._lock:
            versions = versions or {}
            is_new = totals != self._written or versions != self._written_versions
            if not is_new or (monotonic() < self._next_at and not last):
                return
            self._next_at = monotonic() + EVERY_S
            if self._sink is None:
                self._sink = open_sink(self._store, stream_name(self._store, FAILURES, self._endpoint))
            counts = _grown(totals, self._written)
            blamed = [(*key, count) for key, count in _grown(versions, self._written_versions).items()]
            entry = FailureEntry(_VERSION, micros(self._store.now()), counts, self._sink.instance, blamed)
            self._sink.append(msgspec.msgpack.encode(entry), wait=False)
            self._written, self._written_versions = dict(totals), dict(versions)

    def close(self, until: float | None = None) -> None:
        with self._lock:
            if self._sink is not None:
                self._sink.close(until)


def fold_failures(store: Store, endpoint: str) -> int:
    """Move the appended frames into the endpoint's table, exactly once, and return the number of rows.

    Raises:
        CorruptionError: a journal is damaged in its middle; everything else has been moved.
    """
    table = table_name(store, FAILURES, endpoint)
    rows = StreamFold(stream_name(store, FAILURES, endpoint), table, read_failures, _frame).run(store)
    forget_old(store, endpoint, table)
    return rows


def client_failures(
    store: Store, endpoint: str, *, since: datetime | None = None, until: datetime | None = None
) -> pl.LazyFrame | None:
    """The table of the failed requests of clients, without the failures of shadows; None if there is no table."""
    import polars as pl

    table = table_name(store, FAILURES, endpoint)
    if not store.tables.exists(table):
        return None
    rows = store.tables.scan(table, since=since, until=until)
    if "role" not in rows.collect_schema():
        return rows
    return rows.filter(pl.col("role").fill_null("") != "shadow")


def read_failures(payload: bytes) -> FailureEntry:
    """Decode a frame.

    Raises:
        CorruptionError: the payload is not a frame, or a newer everloop wrote it.
    """
    return decode_frame(_DECODER, payload, _VERSION, "the log of failed requests")


def _grown(totals: Mapping[Key, int], before: Mapping[Key, int]) -> dict[Key, int]:
    return {key: count - before.get(key, 0) for key, count in totals.items() if count > before.get(key, 0)}


_DECODER = msgspec.msgpack.Decoder(FailureEntry)


def _frame(store: Store, table: str, entries: list[FailureEntry]) -> pl.DataFrame:
    import polars as pl

    rows: list[tuple[int, int, int, str | None, str | None, str | None]] = []
    for entry in entries:
        others = dict(entry.counts)
        for version, role, status, count in entry.versions:
            rows.append((entry.at, status, count, version, role, entry.instance))
            if role != "shadow":
                others[status] = others.get(status, 0) - count
        # A request may be counted for its version in one frame and by its status in the next. The sum is right.
        rows += [(entry.at, status, count, None, None, entry.instance) for status, count in others.items() if count]
    schema = {
        "event_at": pl.Int64,
        "status": pl.Int64,
        "requests": pl.Int64,
        "version": pl.String,
        "role": pl.String,
        "instance": pl.String,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    moment = pl.col("event_at").cast(pl.Datetime("us", "UTC"))
    return frame.with_columns(moment, moment.alias("arrived_at"))
