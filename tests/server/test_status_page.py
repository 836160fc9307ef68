"""The data of the web page: incidents, ongoing ones first, also of a store that has none yet."""

from __future__ import annotations

from datetime import timedelta

from tests.monitoring.incidents.incident_records import put_incident

from everloop.monitoring.incidents.incident_actions import accept, acknowledge, mute, resolve
from everloop.records import Finding
from everloop.server.status_page import read_status


def test_ongoing_incidents_come_first(store):
    names = ("resolved", "open", "acknowledged", "accepted", "muted")
    made = {name: put_incident(store, f"'{name}' has risen.", endpoint=name) for name in names}
    for change, name in ((resolve, "resolved"), (acknowledge, "acknowledged"), (accept, "accepted"), (mute, "muted")):
        change(store, made[name].id)
    shown = [(one.endpoint, one.state) for one in read_status(store).incidents]
    assert shown == [(name, name) for name in ("muted", "acknowledged", "open", "accepted", "resolved")]


def test_incidents_that_are_over_do_not_push_out_ongoing_ones(store):
    ongoing = put_incident(store)
    for _ in range(30):
        resolve(store, put_incident(store).id)
    incidents = read_status(store).incidents
    assert len(incidents) == 20
    assert incidents[0].id == ongoing.id


def test_alarms_of_earlier_versions_of_everloop_are_findings_only(store):
    now = store.now()
    window = {"endpoint": "e", "window_from": now - timedelta(days=1), "window_to": now}
    store.records.put(
        store.new(Finding, kind="drift", severity="alarm", subject="age", message="PSI 0.3 above 0.1.", value=0.3,
                  threshold=0.1, evidence={"limit": 0.1}, **window),
        store.new(Finding, kind="performance", severity="alarm", subject="roc_auc", message="It fell.", **window),
        store.new(Finding, kind="performance", severity="info", subject="window", message="0.7", value=0.7, **window),
    )  # fmt: skip
    status = read_status(store)
    assert status.incidents == []
    assert [one.subject for one in status.performance_alarms] == ["roc_auc"], "a dot of the chart"
    assert [one.value for one in status.performance] == [0.7]
