"""The log of failed requests: how many an endpoint has answered with an error, by status.

Answers are in the prediction log, but a request that fails has none. Each process of an endpoint counts its responses
and writes a frame about those that failed, at most once a second and only if there were some, so an endpoint without
errors has no such log. Counts of the last second are lost if the process is killed. `fold_failures` moves the frames
into the table `failures/<endpoint>`, whose columns are

    event_at, arrived_at   when the frame was written, at most a second after the requests
    status                 HTTP status, 400 or more
    requests               how many requests were answered with it
    instance               the process that answered, `<host>.<32 digits>`
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from everloop.prediction_log.configured_sink import open_sink
from everloop.prediction_log.journal_folding import StreamFold
from everloop.prediction_log.log_frames import decode_frame
from everloop.prediction_log.prediction_log import stream_name, table_name
from everloop.prediction_log.retention import forget_old
from everloop.stores.clock import micros

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from everloop.prediction_log.log_sinks import LogSink
    from everloop.stores import Store

FAILURES = "failures"
EVERY_S = 1.0

_VERSION = 1


class FailureEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One journal frame: a time in µs since 1970, and the number of requests by status."""

    version: int
    at: int
    counts: dict[int, int]
    instance: str | None = None


class FailureLog:
    """Writes an endpoint's failed requests. Thread-safe. The sink is opened at the first failure."""

    def __init__(self, store: Store, endpoint: str) -> None:
        self._store = store
        self._endpoint = endpoint
        self._sink: LogSink | None = None
        self._written: dict[int, int] = {}
        self._next_at = 0.0
        self._lock = threading.Lock()

    def write(self, totals: Mapping[int, int], *, last: bool = False) -> None:
        """Write what has been added since the last frame, unless that was less than a second ago.

        Args:
            totals: all failed requests of this process so far, by status.
            last: the process is about to stop, so do not wait.

        Raises:
            EverloopError: the log cannot be written. The next call tries again.
        """
        with self._lock:
            if totals == self._written or (monotonic() < self._next_at and not last):
                return
            self._next_at = monotonic() + EVERY_S
            if self._sink is None:
                self._sink = open_sink(self._store, stream_name(self._store, FAILURES, self._endpoint))
            new = {status: count - self._written.get(status, 0) for status, count in totals.items()}
            counts = {status: count for status, count in new.items() if count > 0}
            entry = FailureEntry(_VERSION, micros(self._store.now()), counts, self._sink.instance)
            self._sink.append(msgspec.msgpack.encode(entry), wait=False)
            self._written = dict(totals)

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
    rows = StreamFold(stream_name(store, FAILURES, endpoint), table, _decode, _frame).run(store)
    forget_old(store, endpoint, table)
    return rows


def read_failures(payload: bytes) -> tuple[int, dict[int, int]]:
    """Decode a frame: its time in µs since 1970, and the number of requests by status.

    Raises:
        CorruptionError: the payload is not a frame, or a newer everloop wrote it.
    """
    entry = _decode(payload)
    return entry.at, entry.counts


def _decode(payload: bytes) -> FailureEntry:
    return decode_frame(_DECODER, payload, _VERSION, "the log of failed requests")


_DECODER = msgspec.msgpack.Decoder(FailureEntry)


def _frame(store: Store, table: str, entries: list[FailureEntry]) -> pl.DataFrame:
    import polars as pl

    rows = [(entry.at, status, count, entry.instance) for entry in entries for status, count in entry.counts.items()]
    schema = {"event_at": pl.Int64, "status": pl.Int64, "requests": pl.Int64, "instance": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    moment = pl.col("event_at").cast(pl.Datetime("us", "UTC"))
    return frame.with_columns(moment, moment.alias("arrived_at"))
