from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.monitoring.incidents.watched_airport import DAY, VERSION, WatchedAirport

from everloop.data.sketches.column_sketches import sketch_frame
from everloop.data.sketches.pair_correlations import pairs_of
from everloop.monitoring import Baseline, keep_baseline, load_baseline
from everloop.monitoring.accepted_subjects import AcceptedPair, AcceptedSubject
from everloop.monitoring.drift_judge import judge_for
from everloop.monitoring.incidents.incident_actions import accept
from everloop.monitoring.noise.noise_model import pair_subject
from everloop.monitoring.noise.reference_seasons import seconds_of
from everloop.monitoring.window_counts import centres_of
from everloop.prediction_log.aggregates.version_bins import find_version_bins
from everloop.records import Artifact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.records import Incident


@pytest.fixture
def delays(tmp_path: Path) -> Iterator[WatchedAirport]:
    watched = WatchedAirport(tmp_path / "home")
    with watched.store:
        yield watched


def drifted(delays: WatchedAirport, **shift: float) -> Incident:
    """An ongoing incident of four days."""
    for day in range(4):
        delays.watch_drift(delays.log(day, **shift))
    (incident,) = delays.ongoing("drift")
    return incident


@pytest.mark.slow
def test_later_windows_are_judged_against_what_was_accepted(delays: WatchedAirport) -> None:
    incident = drifted(delays, distance=0.8)
    assert "distance" in incident.subjects
    bins = find_version_bins(delays.store, "delays", VERSION).digest
    closed = accept(delays.store, incident.id, "The new airport is open.")
    assert closed.state == "accepted"

    accepted = load_baseline(delays.store, VERSION)
    assert set(accepted.accepted) | set(accepted.accepted_pairs) >= set(incident.subjects)
    assert set(accepted.accepted) <= set(incident.subjects)
    assert accepted.features == delays.baseline.features
    assert accepted.accepted["distance"].sketch.rows == 4 * 600
    assert Baseline.from_json(accepted.to_json()) == accepted
    # Hourly aggregates are keyed by the digest of the bins, which stay.
    assert find_version_bins(delays.store, "delays", VERSION).digest == bins

    for day in range(4, 8):
        summary = delays.watch_drift(delays.log(day, distance=0.8))[-1]
        assert summary.evidence["opens"] == []
        assert summary.evidence["subjects"]["distance"]["psi"] < 0.2
    assert delays.ongoing("drift") == []
    # What was normal before is drift now.
    assert "distance" in delays.watch_drift(delays.log(8))[-1].evidence["opens"]


@pytest.mark.slow
def test_other_subjects_are_judged_as_before(delays: WatchedAirport) -> None:
    accept(delays.store, drifted(delays, distance=0.8).id)
    opens = delays.watch_drift(delays.log(4, distance=0.8, new_carrier=0.3))[-1].evidence["opens"]
    assert "carrier" in opens
    assert "distance" not in opens


@pytest.mark.slow
def test_the_artifact_and_one_event_name_the_incident_and_its_windows(delays: WatchedAirport) -> None:
    incident = drifted(delays, distance=0.8)
    accept(delays.store, incident.id)
    records = delays.store.records
    artifacts = records.find(Artifact, ("name", "=", "baseline"), order="-id")
    assert len(artifacts) == 2
    assert records.find(Artifact, ("meta.accepted.incident", "=", incident.id)) == artifacts[:1]
    known = artifacts[0].meta["accepted"]
    assert known["since"] == delays.start.isoformat()
    assert known["until"] == (delays.start + 4 * DAY).isoformat()
    assert "distance" in known["subjects"]
    told = [event for event in records.events_since(0) if event.verb == "accepted"]
    assert [event.data["baselines"] for event in told] == [{VERSION: artifacts[0].id}]
    # Building the baseline again undoes it.
    keep_baseline(delays.store, VERSION, delays.baseline)
    assert load_baseline(delays.store, VERSION).accepted == {}


@pytest.mark.slow
def test_an_incident_without_baseline_or_predictions_is_only_closed(delays: WatchedAirport) -> None:
    incident = drifted(delays, distance=0.8)
    early = {"began_at": delays.start - 9 * DAY, "seen_at": delays.start - 8 * DAY}
    delays.store.records.update(replace(incident, versions=("delays@2", VERSION), **early))
    assert accept(delays.store, incident.id).state == "accepted"
    assert len(delays.store.records.find(Artifact, ("name", "=", "baseline"))) == 1


@pytest.mark.slow
def test_a_worse_metric_becomes_the_expectation(delays: WatchedAirport) -> None:
    for day in range(5):
        delays.watch_performance(delays.log(day, fog=0.8))
    (incident,) = delays.ongoing("performance")
    accept(delays.store, incident.id)
    accepted, before = load_baseline(delays.store, VERSION).metric, delays.baseline.metric
    assert accepted is not None
    assert before is not None
    assert accepted.value < before.value - 0.05
    assert accepted.between_block_std == before.between_block_std
    found = delays.watch_performance(delays.log(6, fog=0.8))
    assert [one.severity for one in found] == ["info"]
    # The labels of the accepted windows are the new reference of the test of concept drift.
    assert found[-1].evidence["concept"]["looks"] == 1
    assert not found[-1].evidence["concept"]["drifted"]


@pytest.mark.slow
def test_the_noise_is_that_of_the_reference(delays: WatchedAirport) -> None:
    until = delays.start + 4 * DAY
    moved = delays.airport.flights(2400, 50, start=delays.start, span=4 * DAY, distance=1.0)
    sketch = sketch_frame(moved, delays.baseline.bins)["distance"]
    accepted = replace(delays.baseline, accepted={"distance": AcceptedSubject(sketch, delays.start, until, "i")})
    assert centres_of(accepted)["distance"] == sketch
    assert centres_of(accepted)["wind"] == delays.baseline.features.sketches["wind"]
    first, second = (judge_for(one, DAY, 600, 0.03) for one in (delays.baseline, accepted))
    assert first.limit == second.limit
    assert first.model.levels is second.model.levels
    assert second.model.names == first.model.names
    # The accepted windows themselves do not deviate.
    index = first.model.names.index(("distance", "location"))
    counts, starts = {"distance": sketch.array()[None, :]}, np.array([seconds_of(delays.start)])
    values, _ = second.model.deviations(counts, starts)
    before, _ = first.model.deviations(counts, starts)
    assert abs(values[0, index]) < 0.05
    assert before[0, index] == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
def test_nearly_all_rows_in_one_cell_can_be_accepted(delays: WatchedAirport) -> None:
    for shift in ({"distance": 9.0}, {"wind_missing": 1.0}, {"new_carrier": 1.0}):
        moved = delays.airport.flights(500, 51, **shift)
        sketches = sketch_frame(moved, delays.baseline.bins)
        accepted = {
            name: AcceptedSubject(sketch, delays.start, delays.start + DAY, "i") for name, sketch in sketches.items()
        }
        model = judge_for(replace(delays.baseline, accepted=accepted), DAY, 600, 0.03).model
        counts = {name: sketch.array()[None, :] for name, sketch in sketches.items()}
        values, variances = model.deviations(counts, np.array([seconds_of(delays.start)]))
        assert np.isfinite(values).all()
        assert model.strongest(values, variances)[0].max() < 3


@pytest.mark.slow
def test_a_new_correlation_can_be_accepted(delays: WatchedAirport) -> None:
    pairs = delays.baseline.pairs
    assert pairs is not None
    pair = pair_subject("distance", "wind")
    accepted = AcceptedPair(0.8, 2000, delays.start, delays.start + 4 * DAY, "i")
    rebased = replace(delays.baseline, accepted_pairs={pair: accepted})
    assert Baseline.from_json(rebased.to_json()) == rebased
    index = pairs_of(pairs.names).index(("distance", "wind"))
    live = np.array(pairs.values)
    live[index] = 0.8
    flights = delays.airport.flights(600, 9)
    counts = {name: one.array()[None, :] for name, one in sketch_frame(flights, delays.baseline.bins).items()}
    surprises = []
    for baseline in (delays.baseline, rebased):
        model = judge_for(baseline, DAY, 600, 0.03).model
        deviations = model.deviations(counts, np.array([seconds_of(delays.start)]), live[None, :], np.array([600.0]))
        at = model.names.index((pair, "correlation"))
        surprises.append(float(model.strongest(*deviations)[0][0, at]))
    assert surprises[0] > 8
    assert surprises[1] < 2
