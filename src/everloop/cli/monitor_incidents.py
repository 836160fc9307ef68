"""`everloop monitor ls|show|ack|mute|unmute|accept|resolve`: look at incidents and act on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from everloop.cli.monitor_run import app as app
from everloop.cli.output import AsJson, Home, OnlyEndpoint, console, emit, facts, opened, say, table, unique_prefixes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.records import Incident
    from everloop.stores import Store

IncidentRef = Annotated[
    str, typer.Argument(metavar="INCIDENT", help="Id of the incident, or a unique part from its beginning or end.")
]
Because = Annotated[str, typer.Option("--reason", help="Reason, recorded in the incident's history.")]


@app.command()
def ls(
    endpoint: OnlyEndpoint = None,
    severity: Annotated[
        str | None, typer.Option(help="Show only this severity: notice or alarm. Default: all.")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(help="Show only this state: open, acknowledged, muted, accepted or resolved."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show incidents that are over, too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of incidents to show.")] = 30,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List incidents, newest first."""
    from everloop.errors import UsageError
    from everloop.monitoring.incidents.incident_actions import list_incidents
    from everloop.records import EndpointRecord, Incident, IncidentSeverity, IncidentState

    for name, value, choices in (
        ("severity", severity, get_args(IncidentSeverity)),
        ("state", state, get_args(IncidentState)),
    ):
        if value is not None and value not in choices:
            raise UsageError(f"--{name} '{value}' is unknown.", help=f"Choose one of: {', '.join(choices)}")
    with opened(home) as store:
        # An endpoint that is served elsewhere has incidents, but no record.
        if endpoint is not None and not store.records.find(Incident, ("endpoint", "=", endpoint), limit=1):
            store.records.get(EndpointRecord, endpoint)
        found = list_incidents(store, endpoint=endpoint, severity=severity, state=state, closed=all_, limit=limit)
        ids = _short_ids(store, found)
    rows = [(ids[one.id], one.began_at, one.endpoint, one.severity, one.state, one.title) for one in found]
    columns = ("id", "since", "endpoint", "severity", "state", "what")
    empty = "No incidents." if all_ else "No open incidents. To see those that are over, add --all."
    emit(found, json, lambda: table("Incidents, times in UTC", columns, rows, empty=empty, spare=("endpoint",)))


@app.command()
def show(incident: IncidentRef, home: Home = None, json: AsJson = False) -> None:
    """Show an incident: what has changed, what it means, and its history."""
    from everloop.monitoring.incidents.incident_actions import get_incident

    with opened(home) as store:
        found = get_incident(store, incident)
    emit(found, json, lambda: _draw(found))


@app.command()
def ack(incident: IncidentRef, reason: Because = "", home: Home = None, json: AsJson = False) -> None:
    """Acknowledge an incident: you look after it."""
    from everloop.monitoring.incidents.incident_actions import acknowledge

    with opened(home) as store:
        changed = acknowledge(store, incident, reason)
    emit(changed, json, lambda: say(f"Acknowledged: {changed.title}"))


@app.command()
def mute(
    incident: IncidentRef,
    for_: Annotated[
        str | None, typer.Option("--for", help="How long, such as 12h or 3d. Default: until it is unmuted.")
    ] = None,
    reason: Because = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Send no messages about an incident. It is still updated, and resolved when it is over."""
    from everloop.monitoring.incidents.incident_actions import mute as mute_incident
    from everloop.stores.durations import parse_duration

    span = None if for_ is None else parse_duration(for_)
    with opened(home) as store:
        until = None if span is None else store.now() + span
        changed = mute_incident(store, incident, until, reason)
    when = "it is unmuted" if until is None else f"{until:%Y-%m-%d %H:%M} UTC"
    emit(changed, json, lambda: say(f"Muted until {when}: {changed.title}"))


@app.command()
def unmute(incident: IncidentRef, reason: Because = "", home: Home = None, json: AsJson = False) -> None:
    """Send messages about a muted incident again."""
    from everloop.monitoring.incidents.incident_actions import unmute as unmute_incident

    with opened(home) as store:
        changed = unmute_incident(store, incident, reason)
    emit(changed, json, lambda: say(f"Unmuted: {changed.title}"))


@app.command()
def accept(incident: IncidentRef, reason: Because = "", home: Home = None, json: AsJson = False) -> None:
    """Accept what has changed as the new normal. This closes the incident.

    Later windows are compared with the windows of the incident. A new `everloop monitor baseline` undoes that.
    """
    from everloop.monitoring.incidents.incident_actions import accept as accept_incident
    from everloop.records import Artifact

    with opened(home) as store:
        changed = accept_incident(store, incident, reason)
        kept = store.records.find(Artifact, ("name", "=", "baseline"), ("meta.accepted.incident", "=", changed.id))
    versions = ", ".join(str(one.meta["version"]) for one in kept)
    more = f" Later windows of {versions} are compared with it." if versions else ""
    emit(changed, json, lambda: say(f"Accepted as the new normal: {changed.title}{more}"))


@app.command()
def resolve(incident: IncidentRef, reason: Because = "", home: Home = None, json: AsJson = False) -> None:
    """Close an incident by hand. Without this, it closes when the deviation is over."""
    from everloop.monitoring.incidents.incident_actions import resolve as resolve_incident

    with opened(home) as store:
        changed = resolve_incident(store, incident, reason)
    emit(changed, json, lambda: say(f"Resolved: {changed.title}"))


def _short_ids(store: Store, shown: Sequence[Incident]) -> dict[str, str]:
    """Shorten the ids of incidents so that they stay unique among all incidents, also among those not shown."""
    from everloop.records import Incident

    shortened = unique_prefixes([one.id for one in store.records.find(Incident)])
    return {one.id: shortened.get(one.id, one.id) for one in shown}


def _draw(incident: Incident) -> None:
    facts(
        incident.title,
        [
            ("endpoint", incident.endpoint),
            ("severity", incident.severity),
            ("state", incident.state),
            ("since", incident.began_at),
            ("last seen", incident.seen_at),
            ("muted until", incident.muted_until),
            ("over since", incident.resolved_at),
            ("concerns", incident.subjects),
            ("versions", incident.versions),
            ("id", incident.id),
        ],
    )
    if incident.message:
        console().print()
        say(incident.message)
    rows = [(one.at, one.action, one.actor or "monitoring", one.text) for one in incident.history]
    table("History, times in UTC", ("at", "action", "by", "what"), rows, empty="No history.")
