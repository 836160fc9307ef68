"""Data of the web page, read from the records with a few queries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from everloop.records import Alias, EndpointRecord, Event, Finding, Incident, ModelVersion, Release, Run
from everloop.tracking import recover_journals

if TYPE_CHECKING:
    from everloop.stores import Store

_EVENT_KINDS = ("alias", "release", "run", "snapshot", "model_version")
_INCIDENTS = 20


@dataclass(frozen=True, slots=True)
class Status:
    """The state of one project.

    Lists are newest first, except `performance`, which is a time series, oldest first, and `incidents`, where those
    that are over come after the ongoing ones.
    """

    project: str
    now: datetime
    simulated: bool
    endpoints: list[EndpointRecord]
    aliases: list[Alias]
    releases: list[Release]
    versions: list[ModelVersion]
    incidents: list[Incident]
    performance: list[Finding]
    performance_alarms: list[Finding]
    runs: list[Run]
    events: list[Event]


def read_status(store: Store) -> Status:
    """Read the status. A few indexed queries, so it takes milliseconds whatever the store's size."""
    recover_journals(store)
    records = store.records
    performance = records.find(Finding, ("kind", "=", "performance"), ("severity", "=", "info"), order="-id", limit=60)
    last = records.last_event()
    return Status(
        project=store.project,
        now=store.now(),
        simulated=store.clock.simulated,
        endpoints=records.find(EndpointRecord, order="name"),
        aliases=records.find(Alias, order="-id", limit=50),
        releases=records.find(Release, order="-id", limit=20),
        versions=records.find(ModelVersion, order="-id", limit=20),
        incidents=_incidents(store),
        performance=performance[::-1],
        performance_alarms=records.find(
            Finding, ("kind", "=", "performance"), ("severity", "=", "alarm"), order="-id", limit=60
        ),
        runs=records.find(Run, order="-id", limit=10),
        events=records.events_since(max(0, last - 2000), kinds=_EVENT_KINDS, limit=2000)[-20:][::-1],
    )


def _incidents(store: Store) -> list[Incident]:
    from everloop.monitoring.incidents.incident_actions import CLOSED, list_incidents

    ongoing = list_incidents(store, limit=_INCIDENTS)
    over = store.records.find(Incident, ("state", "in", CLOSED), order="-id", limit=_INCIDENTS)
    return [*ongoing, *over][:_INCIDENTS]
