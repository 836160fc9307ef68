"""Incidents for tests."""

from __future__ import annotations

from dataclasses import replace

from everloop.monitoring.incidents.incident_actions import EVENT_VERBS, incident_facts
from everloop.records import Incident, IncidentChange


def put_incident(store, title="'age' has risen from 40 to 55.", *, endpoint="delays", severity="alarm", **fields):
    """Open an incident as monitoring does."""
    now = store.now()
    opened = IncidentChange(at=now, action="open", text=title)
    values = {"kind": "drift", "subjects": ("age",), "began_at": now, "seen_at": now, "history": (opened,), **fields}
    incident = store.new(Incident, endpoint=endpoint, severity=severity, title=title, **values)
    store.records.put(incident, verb=EVENT_VERBS["open"], data=incident_facts(incident))
    return incident


def change(store, incident, verb="updated", **fields):
    """Change an incident as monitoring does."""
    current = store.records.get(Incident, incident.id)
    return store.records.update(replace(current, **fields), verb=verb)[0]
