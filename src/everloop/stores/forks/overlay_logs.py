"""Points and events of a fork: those of its origin, followed by its own."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.stores.clock import moment_of
from everloop.stores.forks.record_layers import OriginLayer
from everloop.stores.records.sql_records import SqlRecords

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime
    from typing import Self

    from everloop.records import Event, Json, Point
    from everloop.stores.clock import Clock
    from everloop.stores.forks.record_layers import RecordLayer
    from everloop.stores.records.record_store import RecordStore
    from everloop.stores.records.sql_logs import Database

LAST_MOMENT = moment_of(2**53)
"""Later than any time that a clock shows, in the year 2255."""
_LEVEL = 1 << 44
"""Own points are numbered from this on, so that they follow those of the origin: more than a store can hold."""


class OverlayLogs(SqlRecords):
    """The part of `OverlayRecords` with points, events and the layers below."""

    def __init__(
        self,
        database: Database,
        layers: list[RecordLayer],
        *,
        moment: datetime,
        depth: int,
        project: str,
        actor: str,
        clock: Clock,
        family: Sequence[Database] = (),
    ) -> None:
        """
        Args:
            moment: what the origin holds from after this moment is not visible.
            depth: 1 for a fork of a store, 2 for a fork of such a fork, and so on.
            family: the databases of this fork and of those with which it shares step results. It may grow.
        """
        super().__init__(database, project=project, actor=actor, clock=clock)
        self.depth = depth
        self.forked_at = moment
        self.layers = layers
        self._family = family
        self._ended = [False]

    @property
    def closed(self) -> bool:
        return self._ended[0] or self.database.closed

    def close(self) -> None:
        # The fork closes the database, when no sibling needs its step results any more.
        self._ended[0] = True

    def as_of(self, moment: datetime) -> Self:
        self._check_open()
        return super().as_of(moment)

    def transaction(self, *parts: str) -> AbstractContextManager[None]:
        self._check_open()
        return super().transaction(*parts)

    def read_points(
        self, series: str, key: str | None = None, *, since_step: int | None = None, limit: int | None = None
    ) -> list[Point]:
        own = super().read_points(series, key, since_step=since_step, limit=limit)
        base = self._origin_of(series)
        if base is None:
            return own
        both = base.read_points(series, key, since_step=since_step, limit=limit) + own
        # The sort is stable, so points of one step stay in the order of their arrival.
        both.sort(key=lambda point: (point.key, point.step))
        return both if limit is None else both[: max(limit, 0)]

    def read_columns(self, series: str, key: str, *, after: int = 0) -> list[tuple[int, int, int, float]]:
        first = self.depth * _LEVEL
        base = self._origin_of(series)
        found = [] if base is None or after >= first else base.read_columns(series, key, after=after)
        own = super().read_columns(series, key, after=max(after - first, 0))
        return found + [(number + first, step, at, value) for number, step, at, value in own]

    def sample_points(
        self, series: Sequence[str], keys: Sequence[str], count: int
    ) -> dict[tuple[str, str], list[tuple[int, float]]]:
        found = {}
        for name in series:
            for key in keys:
                points = self.read_points(name, key)
                if points:
                    low, high = points[0].step, points[-1].step
                    wanted = [low + int((high - low) * (place / (count - 1))) for place in range(count)]
                    chosen = dict.fromkeys(bisect_left(points, step, key=lambda point: point.step) for step in wanted)
                    found[name, key] = [(points[at].step, points[at].value) for at in chosen]
        return found

    def greatest_steps(self, series: str) -> dict[str, int]:
        own = super().greatest_steps(series)
        base = self._origin_of(series)
        if base is None:
            return own
        found = base.greatest_steps(series)
        return found | {key: max(step, found.get(key, step)) for key, step in own.items()}

    def events_since(
        self, seq: int, *, kinds: Sequence[str] = (), subject: str | None = None, limit: int = 1000
    ) -> list[Event]:
        limit = max(limit, 0)
        found: list[Event] = []
        base = self._origin()
        if base is not None and seq < self._floor():
            found = base.events_since(seq, kinds=kinds, subject=subject, limit=limit)
        if len(found) >= limit:
            return found
        return found + super().events_since(seq, kinds=kinds, subject=subject, limit=limit - len(found))

    def last_event(self) -> int:
        own = super().last_event()
        base = self._origin()
        return own if own or base is None else base.last_event()

    def _write_event(
        self, now: int, verb: str, kind: str, subject: str, key: str, data: Mapping[str, Json] | None
    ) -> None:
        floor = self._floor()
        if floor:
            self.database.write(
                "INSERT INTO sqlite_sequence (name, seq) SELECT 'events', 0"
                " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'events')"
            )
            self.database.write("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events' AND seq < ?", (floor, floor))
        super()._write_event(now, verb, kind, subject, key, data)

    def _floor(self) -> int:
        """The last event of the origin in this project. Own events follow it."""
        for layer in self.layers:
            if isinstance(layer, OriginLayer):
                return layer.last_event(self.project, self.forked_at)
        return 0

    def _origin(self) -> RecordStore | None:
        """The origin in this project, as of this view's moment."""
        self._check_open()
        for layer in self.layers:
            if layer.is_origin:
                return layer.records(self.project, self._cut(self.forked_at))
        return None

    def _origin_of(self, series: str) -> RecordStore | None:
        """The origin, if it shows points of a series here."""
        base = self._origin()
        hidden = base is not None and self.database.read(
            "SELECT 1 FROM hidden_series WHERE project = ? AND series = ?", (self.project, series)
        )
        return None if hidden else base

    def _hide_points(self, series: str, *, copy: bool) -> None:
        """Show no points of a series from the origin any more. Runs in a transaction.

        Args:
            copy: make them own points.
        """
        base = self._origin_of(series)
        if base is None:
            return
        if copy:
            # They get this moment as the time of their arrival; when they really arrived cannot be read. Own points
            # are written again behind them, to stay in the order of their arrival.
            for key in base.greatest_steps(series):
                rows = [(key, *row[1:]) for row in self.read_columns(series, key)]
                self.database.write(
                    "DELETE FROM points WHERE metric IN"
                    " (SELECT id FROM metrics WHERE project = ? AND series = ? AND key = ?)",
                    (self.project, series, key),
                )
                super().append_rows(series, rows)
        self.database.write(
            "INSERT INTO hidden_series (project, series) VALUES (?, ?) ON CONFLICT DO NOTHING", (self.project, series)
        )

    def _cut(self, moment: datetime) -> datetime:
        return moment if self._moment is None else min(moment, moment_of(self._moment))

    def _check_open(self) -> None:
        if self.closed:
            raise UsageError("The store is closed.", help="Open it again.")
