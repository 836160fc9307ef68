from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from tests.monitoring.conftest import SIGNATURE, Airport

from everloop.data.sketches.column_sketches import sketch_frame
from everloop.monitoring import (
    Baseline,
    build_baseline,
    check_drift,
    check_performance,
    keep_baseline,
    load_baseline,
)
from everloop.monitoring.accepted_subjects import AcceptedSubject
from everloop.monitoring.drift_judge import judge_for
from everloop.monitoring.incidents.incident_actions import accept
from everloop.monitoring.incidents.incident_engine import ongoing_incidents, update_incidents
from everloop.monitoring.noise.reference_seasons import seconds_of
from everloop.monitoring.window_counts import centres_of
from everloop.prediction_log.aggregates.version_bins import find_version_bins
from everloop.records import Artifact, EndpointRecord, ModelVersion
from everloop.stores import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from everloop.records import Finding, Incident

DAY = timedelta(days=1)
FEATURES = ("distance", "carrier", "wind")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with the endpoint `delays`, whose clock the tests set."""
    with open_store(tmp_path / "home", project="default", actor="user:test") as opened:
        opened.simulate(Airport.start)
        version = opened.new(ModelVersion, model="delays", version=1, package="none", signature=SIGNATURE)
        opened.records.put(opened.new(EndpointRecord, name="delays", model="delays"), version)
        yield opened


@pytest.fixture
def baseline(store: Store, airport: Airport) -> Baseline:
    """A reference of 60 days before the endpoint opens, with held-out rows."""
    before = airport.flights(12_000, 1, start=airport.start - 60 * DAY, span=60 * DAY)
    held_out = before.select("event_at", "score", pl.col("late").cast(pl.Float64).alias("actual"))
    built = build_baseline(
        before,
        FEATURES,
        time="event_at",
        scored=held_out,
        scored_inputs=before.select(FEATURES),
        metric="roc_auc",
    )
    keep_baseline(store, "delays@1", built)
    return built


def live(store: Store, airport: Airport, day: int, rows: int = 600, **shift: float) -> datetime:
    """Log a day of flights; returns its start."""
    since = airport.start + day * DAY
    flights = airport.flights(rows, 100 + day, start=since, **shift)
    airport.log(store, flights)
    airport.label(store, flights, after=DAY / 2)
    return since


def watch(store: Store, since: datetime) -> list[Finding]:
    found = check_drift(store, "delays", "delays@1", since, since + DAY)
    update_incidents(store, "delays", found, watch="drift", since=since, until=since + DAY)
    return found


def drifted(store: Store, airport: Airport, at: Callable[[datetime], None], days: int = 4, **shift: float) -> Incident:
    """An ongoing incident of several days; the clock is at their end."""
    for day in range(days):
        since = live(store, airport, day, **shift)
        at(since + DAY)
        watch(store, since)
    (incident,) = ongoing_incidents(store, "delays", "drift")
    return incident


def test_later_windows_are_judged_against_what_was_accepted(
    store: Store, airport: Airport, at: Callable[[datetime], None], baseline: Baseline
) -> None:
    incident = drifted(store, airport, at, distance=0.8)
    assert "distance" in incident.subjects
    bins = find_version_bins(store, "delays", "delays@1").digest
    closed = accept(store, incident.id, "The new airport is open.")
    assert closed.state == "accepted"

    accepted = load_baseline(store, "delays@1")
    assert set(accepted.accepted) == set(incident.subjects)
    assert accepted.features == baseline.features
    assert accepted.accepted["distance"].sketch.rows == 4 * 600
    assert Baseline.from_json(accepted.to_json()) == accepted
    # Hourly aggregates are keyed by the digest of the bins, which stay.
    assert find_version_bins(store, "delays", "delays@1").digest == bins

    for day in range(4, 8):
        since = live(store, airport, day, distance=0.8)
        at(since + DAY)
        assert watch(store, since)[-1].evidence["opens"] == []
    assert ongoing_incidents(store, "delays", "drift") == []
    # Back where the reference was is drift now, and so is anything else.
    since = live(store, airport, 8)
    at(since + DAY)
    assert "distance" in watch(store, since)[-1].evidence["opens"]


def test_other_subjects_are_judged_as_before(
    store: Store, airport: Airport, at: Callable[[datetime], None], baseline: Baseline
) -> None:
    incident = drifted(store, airport, at, distance=0.8)
    accept(store, incident.id)
    since = live(store, airport, 4, distance=0.8, new_carrier=0.3)
    at(since + DAY)
    opens = watch(store, since)[-1].evidence["opens"]
    assert "carrier" in opens
    assert "distance" not in opens


def test_the_artifact_and_one_event_name_the_incident_and_its_windows(
    store: Store, airport: Airport, at: Callable[[datetime], None], baseline: Baseline
) -> None:
    incident = drifted(store, airport, at, distance=0.8)
    accept(store, incident.id)
    artifacts = store.records.find(Artifact, ("name", "=", "baseline"), order="-id")
    assert len(artifacts) == 2
    assert store.records.find(Artifact, ("meta.accepted.incident", "=", incident.id)) == artifacts[:1]
    known = artifacts[0].meta["accepted"]
    assert known["incident"] == incident.id
    assert known["since"] == airport.start.isoformat()
    assert known["until"] == (airport.start + 4 * DAY).isoformat()
    assert "distance" in known["subjects"]
    told = [event for event in store.records.events_since(0) if event.verb == "accepted"]
    assert len(told) == 1
    assert told[0].data["baselines"] == {"delays@1": artifacts[0].id}
    # Building the baseline again undoes it.
    keep_baseline(store, "delays@1", baseline)
    assert load_baseline(store, "delays@1").accepted == {}


def test_an_incident_without_baseline_or_predictions_is_only_closed(
    store: Store, airport: Airport, at: Callable[[datetime], None], baseline: Baseline
) -> None:
    incident = drifted(store, airport, at, distance=0.8)
    elsewhere = replace(
        incident,
        versions=("delays@2", "delays@1"),
        began_at=airport.start - 9 * DAY,
        seen_at=airport.start - 8 * DAY,
    )
    store.records.update(elsewhere)
    assert accept(store, incident.id).state == "accepted"
    assert len(store.records.find(Artifact, ("name", "=", "baseline"))) == 1


def test_a_worse_metric_becomes_the_expectation(
    store: Store, airport: Airport, at: Callable[[datetime], None], baseline: Baseline
) -> None:
    for day in range(5):
        since = live(store, airport, day, fog=0.8)
        at(since + 2 * DAY)
        found = check_performance(store, "delays", None, since, since + DAY, version="delays@1")
        update_incidents(store, "delays", found, watch="performance", since=since, until=since + DAY)
    (incident,) = ongoing_incidents(store, "delays", "performance")
    accept(store, incident.id)
    accepted = load_baseline(store, "delays@1")
    assert baseline.metric is not None
    assert accepted.metric is not None
    assert accepted.metric.value < baseline.metric.value - 0.05
    assert accepted.metric.between_block_std == baseline.metric.between_block_std
    assert accepted.packed_expectations != baseline.packed_expectations
    since = live(store, airport, 6, fog=0.8)
    at(since + 2 * DAY)
    found = check_performance(store, "delays", None, since, since + DAY, version="delays@1")
    assert [one.severity for one in found] == ["info"]


def test_the_noise_is_that_of_the_reference(airport: Airport, baseline: Baseline) -> None:
    moved = airport.flights(2400, 50, start=airport.start, span=4 * DAY, distance=1.0)
    sketch = sketch_frame(moved, baseline.bins)["distance"]
    accepted = replace(
        baseline, accepted={"distance": AcceptedSubject(sketch, airport.start, airport.start + 4 * DAY, "i")}
    )
    assert centres_of(accepted)["distance"] == sketch
    assert centres_of(accepted)["wind"] == baseline.features.sketches["wind"]
    first, second = (judge_for(one, DAY, 600, 0.03) for one in (baseline, accepted))
    assert first.limit == second.limit
    assert first.model.levels is second.model.levels
    assert second.model.names == first.model.names
    # The accepted windows themselves do not deviate in location, in units of the accepted spread.
    index = first.model.names.index(("distance", "location"))
    counts = {"distance": sketch.array()[None, :]}
    starts = np.array([seconds_of(airport.start)])
    values, _ = second.model.deviations(counts, starts)
    before, _ = first.model.deviations(counts, starts)
    assert abs(values[0, index]) < 0.05
    assert before[0, index] == pytest.approx(1.0, abs=0.2)
