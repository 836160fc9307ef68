"""Events of incidents reach webhooks, except that webhooks without verbs are spared those of every window."""

from __future__ import annotations

import json

import pytest
from tests.monitoring.incidents.incident_records import change, put_incident

from everloop.monitoring.incidents.incident_actions import acknowledge
from everloop.records import Webhook
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
