"""Buffer of the latest value of each metric, before it is written to the run's record.

A logged point is in the store when its request is answered. The run's record, which has the latest value of each
metric, is updated within a second and before any response that shows it. So a thousand points do not rewrite the record
a thousand times. If the process dies in between, the next process reads the latest values of a running run from its
points.

Not thread-safe: everything here runs in the single thread of short handlers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, EverloopError, NotFoundError, StoreError, UnavailableError
from everloop.records import Point, Run
from everloop.tracking.journal.last_points import Latest, merge, rows_of, series_of, with_latest

if TYPE_CHECKING:
    from everloop.stores import Store

FOLD_AFTER_S = 1.0
_REMEMBERED = 20_000
_RUNS = 10_000
_ATTEMPTS = 5
_log = logging.getLogger("everloop.server")

Mark = tuple[str, str, int, datetime, float | str]


class MetricBuffer:
    """Metrics that were logged through this process and are not yet in the runs' records."""

    def __init__(self, later: Callable[[float, Callable[[], object]], None] | None = None) -> None:
        """Create an empty buffer.

        Args:
            later: runs a function after a number of seconds. None: each point is written to the record at once.
        """
        self._later = later
        self._latest: dict[tuple[str, str], tuple[Store, Latest]] = {}
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._seen: OrderedDict[Mark, None] = OrderedDict()
        self._scheduled = False

    def fresh(self, run: str, points: Iterable[Point]) -> list[Point]:
        """Return the points that were not logged recently. A client that got no response repeats its request."""
        found, seen = [], self._seen
        for point in points:
            mark = _mark(run, point)
            if mark not in seen:
                seen[mark] = None
                found.append(point)
        while len(seen) > _REMEMBERED:
            seen.popitem(last=False)
        return found

    def forget(self, run: str, points: Iterable[Point]) -> None:
        """Undo `fresh`, if the points could not be stored."""
        for point in points:
            self._seen.pop(_mark(run, point), None)

    def add(self, store: Store, run: Run, points: Iterable[Point]) -> None:
        """Add points that were appended to a run's series."""
        at = (store.project, run.id)
        _, latest = self._latest.setdefault(at, (store, {}))
        merge(latest, rows_of(points))
        if self._later is None:
            self.fold_all()
        elif not self._scheduled:
            self._scheduled = True
            self._later(FOLD_AFTER_S, self._fold_timed)

    def started(self, store: Store, run: str) -> None:
        """Note that a run started in this process, which therefore knows all of its points."""
        self._known[(store.project, run)] = None
        while len(self._known) > _RUNS:
            self._known.popitem(last=False)

    def merged(self, store: Store, run: Run) -> Run:
        """Return the run with its latest metrics, without storing it, and remove them from the buffer."""
        at = (store.project, run.id)
        _, latest = self._latest.get(at, (store, {}))
        if at not in self._known:
            self.started(store, run.id)
            if run.state == "running" and run.artifacts_at is not None:
                merge(latest, rows_of(store.records.read_points(series_of(run.id))))
        self._latest.pop(at, None)
        return with_latest(store, run, latest)

    def current(self, store: Store, run_id: str) -> Run:
        """Return the run's record after writing its latest metrics to it.

        Raises:
            NotFoundError: there is no such run.
        """
        run = store.records.get(Run, run_id)
        at = (store.project, run.id)
        if at in self._known and at not in self._latest:
            return run
        for _ in range(_ATTEMPTS):
            held = self._latest.get(at)
            merged = self.merged(store, run)
            if merged is run:
                return run
            try:
                return store.records.update(merged, verb="logged")[0]
            except (StoreError, UnavailableError) as error:
                # Reading works even if the disk is full or the store is busy; the record is written later.
                self._put_back(at, held)
                self._known.pop(at, None)
                _log.warning("Cannot write the latest metrics of the run %s yet: %s", run.id, error)
                return merged
            except ConflictError:
                self._put_back(at, held)
                self._known.pop(at, None)
                run = store.records.get(Run, run_id)
        return run

    def fold_all(self) -> None:
        """Write all metrics to the runs' records, except of runs that were deleted."""
        for (_, run), (store, latest) in list(self._latest.items()):
            try:
                self.current(store, run)
            except NotFoundError:
                self._latest.pop((store.project, run), None)
            except EverloopError as error:
                self._put_back((store.project, run), (store, latest))
                _log.warning("Cannot write the latest metrics of the run %s yet: %s", run, error)

    def _put_back(self, at: tuple[str, str], held: tuple[Store, Latest] | None) -> None:
        if held is not None and at not in self._latest:
            self._latest[at] = held

    def _fold_timed(self) -> None:
        self._scheduled = False
        self.fold_all()


def _mark(run: str, point: Point) -> Mark:
    value = point.value
    return run, point.key, point.step, point.at, value if value == value else "NaN"
