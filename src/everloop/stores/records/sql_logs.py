"""Metric points and events, the append-only logs, in an SQL database.

A `Database` runs statements and transactions and reads JSON in its SQL dialect. The methods of `RecordStore` are
implemented once for all databases: here, in `sql_search` and in `sql_records`. Times are stored as µs since 1970.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

import copy
import struct
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, Self

from everloop.errors import ReadOnlyError
from everloop.records import Event, Json, Point
from everloop.stores.clock import Clock, micros, moment_of
from everloop.stores.records.record_codec import decode_value, encode_value
from everloop.stores.records.row_checksums import event_sum, metric_sum, sum_points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from everloop.stores.records.condition_sql import Paths, Sql
    from everloop.stores.records.expression_sql import Patterns


INSERT_POINT = "INSERT INTO points (metric, step, at, written_at, value, crc) VALUES (?, ?, ?, ?, ?, ?)"
INSERT_EVENT = (
    "INSERT INTO events (project, at, actor, verb, kind, subject, key, data, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
REFUSED_WRITES = (("records", "INSERT"), ("records", "UPDATE"), ("points", "INSERT"), ("events", "INSERT"))
"""The writes that `Database.refuse_writes` lets fail. Every write of a record also writes an event."""
MOVED = "This store was moved to "
"""The beginning of the message of a database that refuses writes."""
_BATCH = 500


class Database(Protocol):
    """The operations that each SQL dialect implements. Parameters of statements are marked by `?`."""

    @property
    def paths(self) -> Paths: ...

    @property
    def patterns(self) -> Patterns: ...

    @property
    def row_id(self) -> str:
        """A column that identifies rows even if the ids of records are damaged."""

    def read_raw(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """As `read`, for checks: in texts that are not valid UTF-8, the invalid bytes become lone surrogates."""

    def read(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows of the result as tuples."""

    def write(self, statement: str, values: Sequence[object] = ()) -> int:
        """Run one statement inside a transaction, and return the number of rows that it has changed."""

    def write_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None: ...

    def write_points(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write points (metric, step, at, written_at, value, crc), with the database's fastest way."""

    def write_event(self, row: Sequence[object]) -> None:
        """Write an event (project, at, actor, verb, kind, subject, key, data, crc).

        It may get its number only at the end of the transaction. Reading events sees it in any case.
        """

    def transaction(self, project: str | None = None, parts: Sequence[str] = ()) -> AbstractContextManager[None]:
        """As `RecordStore.transaction`.

        Args:
            project: excludes other transactions of this project. Default: of all projects.
            parts: exclude only transactions of the same parts, and those of whole projects.
        """

    def write_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write rows with their numbers, as another database has them."""

    def continue_numbers(self, table: str, column: str) -> None:
        """Let a column's next number follow the greatest one in the table."""

    def refuse_writes(self, message: str | None) -> None:
        """Let every write of records, points and events fail with a message, also of other processes; None ends it."""

    def wait_for_change(self, project: str, timeout_s: float) -> None:
        """Return when events of a project may have been added, and at the latest after the timeout."""

    def index(self, value: Sql) -> None:
        """Create an index that speeds up sorting by this value, if possible. Does nothing inside a transaction."""

    def problems(self) -> list[str]:
        """As `RecordStore.problems`."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...


class SqlLogs:
    """Points and events of one project, with the clock for their times and the actor for the events."""

    def __init__(self, database: Database, *, project: str, actor: str, clock: Clock) -> None:
        self.database = database
        self.project = project
        self.actor = actor
        self.clock = clock
        self._moment: int | None = None
        # Shared by all views of a store: paths known to be in `searched_paths`, and whether all records have entries.
        self._known_paths: set[int] = set()
        self._caught_up = [False]

    def for_project(self, project: str) -> Self:
        other = copy.copy(self)
        other.project = project
        return other

    def as_actor(self, actor: str) -> Self:
        other = copy.copy(self)
        other.actor = actor
        return other

    def with_clock(self, clock: Clock) -> Self:
        other = copy.copy(self)
        other.clock = clock
        return other

    def as_of(self, moment: datetime) -> Self:
        other = copy.copy(self)
        other._moment = micros(moment) if self._moment is None else min(micros(moment), self._moment)
        return other

    @property
    def closed(self) -> bool:
        return self.database.closed

    def close(self) -> None:
        self.database.close()

    def transaction(self, *parts: str) -> AbstractContextManager[None]:
        if self._moment is not None:
            raise ReadOnlyError(
                f"This store is open as of {moment_of(self._moment).isoformat()} and cannot be changed.",
                help="Open it without as_of.",
            )
        return self.database.transaction(self.project, parts)

    def append_points(self, series: str, points: Sequence[Point]) -> None:
        self.append_rows(series, [(p.key, p.step, micros(p.at), float(p.value)) for p in points])

    def append_rows(self, series: str, rows: Sequence[tuple[str, int, int, float]]) -> None:
        with self.transaction(series):
            now = self._now()
            metrics: dict[str, int] = {}
            keys = list(dict.fromkeys(row[0] for row in rows))
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                self.database.write_many(
                    "INSERT INTO metrics (project, series, key, crc) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    [(self.project, series, key, metric_sum(self.project, series, key)) for key in part],
                )
                metrics |= self.database.read(
                    "SELECT key, id FROM metrics WHERE project = ? AND series = ?"
                    f" AND key IN ({', '.join('?' * len(part))})",
                    (self.project, series, *part),
                )
            summed: Sequence[Sequence[object]]
            try:
                summed = sum_points(metrics, rows, now)
            except struct.error:
                # A number is too large. The database will raise an error with a better message.
                summed = [(metrics[row[0]], *row[1:3], now, None if row[3] != row[3] else row[3], None) for row in rows]
            self.database.write_points(summed)

    def read_points(
        self, series: str, key: str | None = None, *, since_step: int | None = None, limit: int | None = None
    ) -> list[Point]:
        where = ["m.project = ?", "m.series = ?", "p.written_at <= ?"]
        values: list[object] = [self.project, series, self._limit()]
        if key is not None:
            where.append("m.key = ?")
            values.append(key)
        if since_step is not None:
            where.append("p.step >= ?")
            values.append(since_step)
        tail = ""
        if limit is not None:
            tail = " LIMIT ?"
            values.append(max(limit, 0))
        rows = self.database.read(
            "SELECT m.key, p.value, p.step, p.at FROM metrics m JOIN points p ON p.metric = m.id"
            f" WHERE {' AND '.join(where)} ORDER BY m.key, p.step, p.seq{tail}",
            values,
        )
        nan = float("nan")
        return [
            Point(key=name, value=nan if value is None else value, step=step, at=moment_of(at))
            for name, value, step, at in rows
        ]

    def read_columns(self, series: str, key: str, *, after: int = 0) -> list[tuple[int, int, int, float]]:
        # The rows after a number are the table's last ones. Without the `+`, SQLite would use the index of the metric
        # and read all of its rows.
        rows = self.database.read(
            f"SELECT p.seq, p.step, p.at, p.value FROM points p WHERE {'+' if after else ''}p.metric ="
            " (SELECT id FROM metrics WHERE project = ? AND series = ? AND key = ?)"
            " AND p.seq > ? AND p.written_at <= ? ORDER BY p.seq",
            (self.project, series, key, after, self._limit()),
        )
        nan = float("nan")
        return [row if row[3] is not None else (*row[:3], nan) for row in rows]

    def sample_points(
        self, series: Sequence[str], keys: Sequence[str], count: int
    ) -> dict[tuple[str, str], list[tuple[int, float]]]:
        if not series or not keys:
            return {}
        values: list[object] = [self.project, *series, *keys]
        first = (
            "(SELECT p.step FROM points p WHERE p.metric = m.id AND p.written_at <= ? ORDER BY p.step {order} LIMIT 1)"
        )
        # Without it, the index alone finds a point, and its row is read only once.
        known = "" if self._moment is None else f" AND q.written_at <= {self._moment}"
        # Names, order and repetitions are left to Python: for SQL they are a fifth of the time.
        rows = self.database.read(
            "WITH RECURSIVE places(place) AS (SELECT 0 UNION ALL SELECT place + 1 FROM places WHERE place < ?),"
            f" ranges AS MATERIALIZED (SELECT m.id, {first.format(order='ASC')} AS low,"
            f" {first.format(order='DESC')} AS high FROM metrics m WHERE m.project = ?"
            f" AND m.series IN ({', '.join('?' * len(series))}) AND m.key IN ({', '.join('?' * len(keys))}))"
            " SELECT r.id, p.step, p.seq, p.value FROM ranges r CROSS JOIN places"
            " JOIN points p ON p.seq = (SELECT q.seq FROM points q WHERE q.metric = r.id"
            " AND q.step >= r.low + CAST((r.high - r.low) * (place * 1.0 / ?) AS BIGINT)"
            f"{known} ORDER BY q.step, q.seq LIMIT 1)",
            (count - 1, self._limit(), self._limit(), *values, count - 1),
        )
        chosen: dict[int, list[tuple[int, int, float | None]]] = {}
        for number, step, seq, value in rows:
            chosen.setdefault(number, []).append((step, seq, value))
        names = {
            number: (name, key)
            for number, name, key in self.database.read(
                "SELECT m.id, m.series, m.key FROM metrics m WHERE m.project = ?"
                f" AND m.series IN ({', '.join('?' * len(series))}) AND m.key IN ({', '.join('?' * len(keys))})",
                values,
            )
        }
        nan = float("nan")
        return {
            names[number]: [(step, nan if value is None else value) for step, _, value in sorted(set(points))]
            for number, points in chosen.items()
        }

    def greatest_steps(self, series: str) -> dict[str, int]:
        rows = self.database.read(
            "SELECT m.key, (SELECT p.step FROM points p WHERE p.metric = m.id AND p.written_at <= ?"
            " ORDER BY p.step DESC LIMIT 1) FROM metrics m WHERE m.project = ? AND m.series = ?",
            (self._limit(), self.project, series),
        )
        return {key: step for key, step in rows if step is not None}

    def append_event(
        self, verb: str, kind: str, subject: str, key: str = "", data: Mapping[str, Json] | None = None
    ) -> Event:
        with self.transaction(f"event:{kind}:{subject}"):
            now = self._now()
            self._write_event(now, verb, kind, subject, key, data)
            seq = self.last_event()
        return Event(
            seq=seq,
            at=moment_of(now),
            actor=self.actor,
            verb=verb,
            kind=kind,
            subject=subject,
            key=key,
            data=dict(data or {}),
        )

    def events_since(
        self, seq: int, *, kinds: Sequence[str] = (), subject: str | None = None, limit: int = 1000
    ) -> list[Event]:
        where = ["project = ?", "seq > ?"]
        values: list[object] = [self.project, seq]
        if kinds:
            where.append(f"kind IN ({', '.join('?' * len(kinds))})")
            values.extend(kinds)
        if subject is not None:
            where.append("subject = ?")
            values.append(subject)
        if self._moment is not None:
            where.append("at <= ?")
            values.append(self._moment)
        rows = self.database.read(
            "SELECT seq, at, actor, verb, kind, subject, key, data FROM events"
            f" WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?",
            (*values, max(limit, 0)),
        )
        return [
            Event(
                seq=number,
                at=moment_of(at),
                actor=actor,
                verb=verb,
                kind=kind,
                subject=about,
                key=key,
                data=decode_value(data) if data else {},
            )
            for number, at, actor, verb, kind, about, key, data in rows
        ]

    def last_event(self) -> int:
        if self._moment is None:
            rows = self.database.read("SELECT max(seq) FROM events WHERE project = ?", (self.project,))
        else:
            rows = self.database.read(
                "SELECT seq FROM events WHERE project = ? AND at <= ? ORDER BY seq DESC LIMIT 1",
                (self.project, self._moment),
            )
        return (rows[0][0] or 0) if rows else 0

    def wait_for_event(self, since: int, timeout_s: float) -> int:
        deadline = monotonic() + timeout_s
        while (last := self.last_event()) <= since and self._moment is None and not self.closed:
            left = deadline - monotonic()
            if left <= 0:
                break
            self.database.wait_for_change(self.project, left)
        return last

    def _now(self) -> int:
        return micros(self.clock.now())

    def _limit(self) -> int:
        return 2**63 - 1 if self._moment is None else self._moment

    def _write_event(
        self, now: int, verb: str, kind: str, subject: str, key: str, data: Mapping[str, Json] | None
    ) -> None:
        text = encode_value(dict(data), f"An event about '{key or subject}'") if data else None
        row = (self.project, now, self.actor, verb, kind, subject, key, text)
        self.database.write_event((*row, event_sum(*row)))
