"""The pages about incidents: the list, and one incident with the findings that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.records import Finding, Incident

if TYPE_CHECKING:
    from everloop.stores import Store

_MOST_FINDINGS = 300


@dataclass(frozen=True, slots=True)
class IncidentDetail:
    """An incident and its findings, oldest window first."""

    incident: Incident
    findings: list[Finding]
    commands: dict[str, str]
    """The command for each action that a person may take now."""


def read_incidents(store: Store, endpoint: str | None = None, limit: int = 200) -> list[Incident]:
    """Return incidents, ongoing ones first, then the newest."""
    from everloop.monitoring.incidents.incident_actions import CLOSED

    where = [("endpoint", "=", endpoint)] if endpoint else []
    found = store.records.find(Incident, *where, order="-id", limit=limit)  # type: ignore[arg-type]
    return sorted(found, key=lambda one: one.state in CLOSED)


def read_incident(store: Store, ref: str) -> IncidentDetail:
    """Return one incident, by its id or the beginning of it.

    Raises:
        NotFoundError: the incident does not exist.
    """
    from everloop.monitoring.incidents.incident_actions import CLOSED, get_incident

    incident = get_incident(store, ref)
    findings = store.records.get_many(Finding, list(incident.findings[-_MOST_FINDINGS:]))
    verbs = () if incident.state in CLOSED else ("ack", "mute", "accept", "resolve")
    commands = {verb: f"everloop monitor {verb} {incident.id}" for verb in verbs}
    return IncidentDetail(incident, sorted(findings, key=lambda one: one.window_from), commands)
