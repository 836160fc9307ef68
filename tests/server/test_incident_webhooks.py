"""Events of incidents reach webhooks, except that webhooks without verbs are spared those of every window."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from tests.monitoring.incidents.incident_records import change, put_incident

from everloop.monitoring.incidents.incident_actions import acknowledge
from everloop.monitoring.incidents.incident_engine import update_incidents
from everloop.monitoring.noise.incident_rate import CALM_WINDOWS
from everloop.records import Finding, Webhook
from everloop.server.webhooks.webhook_delivery import KINDS
from everloop.server.webhooks.webhook_payloads import messages_of


@pytest.mark.parametrize(
    ("verbs", "expected"),
    [
        ((), ["incident.opened", "incident.acknowledged"]),
        (("incident.joined",), ["incident.joined"]),
        (("alias.alias_set",), []),
    ],
)
def test_incidents_reach_a_webhook(store, verbs, expected):
    incident = put_incident(store, "'age' has risen.")
    change(store, incident, verb="joined")
    acknowledge(store, incident.id, "on it")
    hook = store.new(Webhook, name="chat", url="https://x/", for_project="p", secret="s", verbs=verbs)
    events = store.records.events_since(0, kinds=["incident"])
    assert "incident" in KINDS
    messages = [message for event in events for message in messages_of(store, hook, event)]
    assert [message.name for message in messages] == expected
    for message in messages:
        if message.name == "incident.acknowledged":
            data = json.loads(message.body)["event"]["data"]
            assert (data["title"], data["state"], data["reason"]) == ("'age' has risen.", "acknowledged", "on it")


def test_a_webhook_receives_each_change_that_monitoring_makes(store):
    """From the first window to the last calm one, and nothing of the windows between."""

    def window(day, *subjects, severity="warning"):
        since = store.now() + timedelta(days=day)
        until = since + timedelta(days=1)
        findings = [
            store.new(Finding, endpoint="e", kind="drift", severity=severity, subject=subject, window_from=since,
                      window_to=until, message=f"'{subject}' has risen.", evidence={"opens": list(subjects)})
            for subject in subjects
        ]  # fmt: skip
        update_incidents(store, "e", findings, watch="drift", since=since, until=until)

    window(0, "age")
    window(1, "age")
    window(2, "city")
    window(3, "age", severity="alarm")
    for day in range(4, 4 + CALM_WINDOWS):
        window(day)
    verbs = tuple(f"incident.{verb}" for verb in ("opened", "joined", "escalated", "resolved"))
    hook = store.new(Webhook, name="chat", url="https://x/", for_project="p", secret="s", verbs=verbs)
    events = store.records.events_since(0, kinds=["incident"])
    messages = [message for event in events for message in messages_of(store, hook, event)]
    assert [message.name for message in messages] == list(verbs)
    told = [json.loads(message.body)["event"]["data"] for message in messages]
    assert [one["severity"] for one in told] == ["notice", "notice", "alarm", "alarm"]
    assert [one["state"] for one in told] == ["open", "open", "open", "resolved"]
