"""An endpoint whose version has a baseline of 60 days, and its days as monitoring sees them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import polars as pl
from tests.monitoring.conftest import SIGNATURE, Airport

from everloop.monitoring import Baseline, build_baseline, check_drift, check_performance, keep_baseline
from everloop.monitoring.incidents.incident_engine import ongoing_incidents, update_incidents
from everloop.records import EndpointRecord, ModelVersion
from everloop.stores import SharedClock, Store, open_store

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from everloop.records import Finding, FindingKind, Incident

DAY = timedelta(days=1)
VERSION = "delays@1"


class WatchedAirport:
    """The store, the endpoint's traffic, and checks of its days. The clock is at the end of what was checked last."""

    def __init__(self, home: Path) -> None:
        self.airport = Airport()
        self.start = self.airport.start
        self.store: Store = open_store(home, project="default", actor="user:test")
        self.store.simulate(self.start)
        version = self.store.new(ModelVersion, model="delays", version=1, package="none", signature=SIGNATURE)
        self.store.records.put(self.store.new(EndpointRecord, name="delays", model="delays"), version)
        before = self.airport.flights(12_000, 1, start=self.start - 60 * DAY, span=60 * DAY)
        inputs = before.select(self.airport.features)
        held_out = before.select("event_at", "score", pl.col("late").cast(pl.Float64).alias("actual"))
        self.baseline: Baseline = build_baseline(
            before.select("event_at", *inputs.columns),
            inputs.columns,
            time="event_at",
            scored=held_out,
            scored_inputs=inputs,
            metric="roc_auc",
        )
        keep_baseline(self.store, VERSION, self.baseline)

    def log(self, day: int, rows: int = 600, **shift: float) -> datetime:
        """Log a day of flights, whose labels arrive half a day later; return its start."""
        since = self.start + day * DAY
        flights = self.airport.flights(rows, 100 + day, start=since, **shift)
        self.airport.log(self.store, flights, version=VERSION)
        self.airport.label(self.store, flights, after=DAY / 2)
        return since

    def watch_drift(self, since: datetime) -> list[Finding]:
        self._go(since + DAY)
        found = check_drift(self.store, "delays", VERSION, since, since + DAY)
        update_incidents(self.store, "delays", found, watch="drift", since=since, until=since + DAY)
        return found

    def watch_performance(self, since: datetime) -> list[Finding]:
        self._go(since + 2 * DAY)
        found = check_performance(self.store, "delays", None, since, since + DAY, version=VERSION)
        update_incidents(self.store, "delays", found, watch="performance", since=since, until=since + DAY)
        return found

    def ongoing(self, kind: FindingKind) -> list[Incident]:
        return ongoing_incidents(self.store, "delays", kind)

    def _go(self, moment: datetime) -> None:
        assert isinstance(self.store.clock, SharedClock)
        self.store.clock.set(max(moment, self.store.now()))
