"""The metrics for Prometheus: readable by its own parser, right, and bounded in number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.monitoring.incidents.incident_records import put_incident

from everloop.monitoring.incidents.incident_actions import acknowledge, mute, resolve
from everloop.monitoring.reports.monitoring_metrics import MOST_ENDPOINTS, MOST_SUBJECTS, monitoring_metrics
from everloop.records import EndpointRecord, Finding
from everloop.stores import open_store

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


def samples(store):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(monitoring_metrics(store))
        for sample in family.samples
    }


def put_window(store, kind, until, **fields):
    since = until - timedelta(days=1)
    values = {"severity": "info", "subject": "window", "message": "m", "endpoint": "delays", **fields}
    store.records.put(store.new(Finding, kind=kind, window_from=since, window_to=until, **values))


def test_an_empty_project_has_no_samples(store):
    assert samples(store) == {}


def test_incidents_are_counted_by_severity_and_state(store):
    store.records.put(store.new(EndpointRecord, name="quiet", model="quiet"))
    first, second, third = (put_incident(store) for _ in range(3))
    put_incident(store, severity="notice")
    acknowledge(store, first.id)
    mute(store, second.id)
    resolve(store, third.id)
    found = samples(store)
    ongoing = {key[1:]: value for key, value in found.items() if key[0] == "everloop_incidents_ongoing"}
    assert {key for key, value in ongoing.items() if value} == {
        ("delays", "alarm", "acknowledged"),
        ("delays", "alarm", "muted"),
        ("delays", "notice", "open"),
    }
    assert len(ongoing) == 2 * 2 * 3


def test_the_newest_window_counts(store):
    name = 'od"d\\\nname'
    store.records.put(store.new(EndpointRecord, name="delays", model="delays"))
    put_window(store, "drift", NOON, evidence={"subjects": {"age": {"psi": 9.0, "strength": 3.0, "verdict": "alarm"}}})
    subjects = {
        "age": {"psi": 0.3, "strength": 0.1, "verdict": "alarm"},
        name: {"psi": 0.01, "strength": None, "verdict": "quiet"},
        "broken": {"psi": None, "verdict": "quiet"},
    }
    put_window(store, "drift", NOON + timedelta(days=1), evidence={"subjects": subjects})
    put_window(store, "drift", NOON + timedelta(days=2))
    evidence = {"subjects": {}, "metric": "roc_auc", "low": 0.6, "high": None}
    put_window(store, "performance", NOON, value=0.7, evidence=evidence)
    found = samples(store)
    assert found["everloop_drift_psi", "delays", "age"] == 0.3
    assert found["everloop_drift_psi", "delays", name] == 0.01
    assert ("everloop_drift_strength", "delays", name) not in found
    assert found["everloop_drift_subjects", "delays", "quiet"] == 2
    assert found["everloop_drift_window_end_seconds", "delays"] == (NOON + timedelta(days=1)).timestamp()
    assert found["everloop_performance", "delays", "roc_auc"] == 0.7
    assert found["everloop_performance_low", "delays", "roc_auc"] == 0.6
    assert ("everloop_performance_high", "delays", "roc_auc") not in found


def test_the_number_of_series_is_bounded(store):
    for number in range(MOST_ENDPOINTS + 20):
        put_incident(store, endpoint=f"e{number:03d}")
    subjects = {f"x{number:03d}": {"psi": number / 1000, "strength": 0.1, "verdict": "quiet"} for number in range(500)}
    put_window(store, "drift", NOON, endpoint="e000", evidence={"subjects": subjects})
    found = samples(store)
    assert len({key[1] for key in found}) == MOST_ENDPOINTS
    shown = {key[2] for key in found if key[0] == "everloop_drift_psi"}
    assert shown == {f"x{number:03d}" for number in range(500 - MOST_SUBJECTS, 500)}


def test_the_control_plane_serves_them(store, serve):
    put_incident(store)
    with serve(store) as control:
        answer = control.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'everloop_incidents_ongoing{endpoint="delays",severity="alarm",state="open"} 1.0' in answer.body.decode()


def test_findings_of_earlier_versions_of_everloop_are_measured(store):
    states = {"age": {"psi": 0.3, "p_value": 0.0, "limit": 0.1, "verdict": "alarm"}, "city": {"limit": 0.1}}
    store.records.put(store.new(EndpointRecord, name="delays", model="delays"))
    put_window(store, "drift", NOON, evidence={"subjects": states, "limit": 0.1})
    found = samples(store)
    assert found["everloop_drift_psi", "delays", "age"] == 0.3
    assert found["everloop_drift_subjects", "delays", "alarm"] == 1
    assert not any(name[0] == "everloop_drift_strength" for name in found)
