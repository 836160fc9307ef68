"""What people do with incidents: acknowledge, mute, accept and resolve them.

    open ──> acknowledged     a person looks after it
    open, acknowledged ──> muted ──> open, acknowledged     no messages for a while, or until it is unmuted
    open, acknowledged, muted ──> accepted                  the change is the new normal
    open, acknowledged, muted ──> resolved                  it is over

Monitoring itself opens, joins, escalates and reopens incidents, and resolves them when they are over. Each change is
one update of the record, with one more entry in its history, and one event with the fields of `incident_facts`. An
update is refused if another process has changed the record meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import Incident, IncidentAction, IncidentChange, IncidentState, Json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from everloop.stores import Condition, Store

CLOSED: tuple[IncidentState, ...] = ("accepted", "resolved")
ONGOING: tuple[IncidentState, ...] = ("open", "acknowledged", "muted")

EVENT_VERBS: Mapping[IncidentAction, str] = {
    "open": "opened",
    "join": "joined",
    "escalate": "escalated",
    "acknowledge": "acknowledged",
    "mute": "muted",
    "unmute": "unmuted",
    "accept": "accepted",
    "resolve": "resolved",
    "reopen": "reopened",
}
"""The verb of each change's event. Webhooks subscribe to `incident.opened` and so on."""


def list_incidents(
    store: Store,
    *,
    endpoint: str | None = None,
    severity: str | None = None,
    state: str | None = None,
    closed: bool = False,
    limit: int | None = None,
) -> list[Incident]:
    """Return incidents, newest first.

    Args:
        state: only incidents in this state.
        closed: also return accepted and resolved ones. Without it, and without `state`, only ongoing ones.
        limit: maximum number of incidents.
    """
    fields = (("endpoint", endpoint), ("severity", severity), ("state", state))
    where: list[Condition] = [(name, "=", value) for name, value in fields if value is not None]
    if state is None and not closed:
        where.append(("state", "in", ONGOING))
    return store.records.find(Incident, *where, order="-id", limit=limit)


def get_incident(store: Store, ref: str) -> Incident:
    """Return the incident with this id, or the only one whose id begins or ends with it.

    Raises:
        NotFoundError: no id matches, or several do. The message lists the nearest ones.
    """
    known = store.records.find(Incident, ("id", "prefix", ref), limit=6) if ref else []
    if ref and not known:
        # Ids begin with the time, so those of one moment differ only in their last characters.
        known = [one for one in store.records.find(Incident, order="-id") if one.id.endswith(ref)][:6]
    if len(known) == 1:
        return known[0]
    problem = f"{'More than 5' if len(known) > 5 else len(known)} incidents match '{ref}'."
    if not known:
        problem = f"There is no incident '{ref}'."
        known = _nearest(store, ref)
    listed = "; ".join(f"{one.id} ({one.title})" for one in known[:5])
    start = f"{'Nearest' if 'no incident' in problem else 'They are'}: {listed}. " if listed else ""
    raise NotFoundError(problem, help=f"{start}See: everloop monitor ls --all")


def acknowledge(store: Store, ref: str, reason: str = "") -> Incident:
    """Record that a person, the store's actor, looks after an incident.

    Raises:
        NotFoundError: the incident does not exist.
        ConflictError: it is not open, or another process changed it at the same time.
    """
    return _change(store, ref, "acknowledge", ("open",), "acknowledged", reason)


def mute(store: Store, ref: str, until: datetime | None = None, reason: str = "") -> Incident:
    """Send no messages about an incident until a moment, or until it is unmuted. It is still updated and resolved.

    A muted incident can be muted again with another `until`.

    Raises:
        NotFoundError: the incident does not exist.
        UsageError: `until` has no time zone, or is not in the future.
        ConflictError: the incident is closed, or another process changed it at the same time.
    """
    if until is not None:
        if until.tzinfo is None:
            raise UsageError(f"The time {until.isoformat()} has no time zone.", help="Pass a time in UTC.")
        if until <= store.now():
            raise UsageError(
                f"An incident cannot be muted until {until:%Y-%m-%d %H:%M} UTC, which is past.",
                help="Pass a later moment.",
                option_help="Pass a duration, such as --for 3d, or a later moment.",
            )
    return _change(store, ref, "mute", ONGOING, "muted", reason, muted_until=until)


def unmute(store: Store, ref: str, reason: str = "") -> Incident:
    """Send messages about an incident again. If it was acknowledged before, it is again.

    Raises:
        NotFoundError: the incident does not exist.
        ConflictError: it is not muted, or another process changed it at the same time.
    """
    with store.records.transaction():
        before = _state_before_mute(get_incident(store, ref))
        return _change(store, ref, "unmute", ("muted",), before, reason, muted_until=None)


def accept(store: Store, ref: str, reason: str = "") -> Incident:
    """Accept what has changed as the new normal. This closes the incident.

    Each version that answered meanwhile gets a new baseline: later windows are compared with the distributions, or the
    metric, of the incident's windows. Building the version's baseline again undoes that.

    Raises:
        NotFoundError: the incident does not exist.
        ConflictError: it is closed already, or another process changed it at the same time.
    """
    from everloop.monitoring.incidents.acceptance import keep_rebased, rebase

    incident = get_incident(store, ref)
    rebased = rebase(store, incident) if incident.state in ONGOING else []
    with store.records.transaction():
        kept = [keep_rebased(store, incident, one) for one in rebased]
        facts: dict[str, Json] = {"baselines": {str(one.meta["version"]): one.id for one in kept}}
        return _change(
            store, ref, "accept", ONGOING, "accepted", reason, facts, resolved_at=store.now(), muted_until=None
        )


def resolve(store: Store, ref: str, reason: str = "") -> Incident:
    """Close an incident by hand. Monitoring opens a new one if the deviation is still there.

    Raises:
        NotFoundError: the incident does not exist.
        ConflictError: it is closed already, or another process changed it at the same time.
    """
    return _change(store, ref, "resolve", ONGOING, "resolved", reason, resolved_at=store.now(), muted_until=None)


def is_muted(incident: Incident, now: datetime) -> bool:
    """Whether messages about an incident are held back now."""
    return incident.state == "muted" and (incident.muted_until is None or now < incident.muted_until)


def incident_facts(incident: Incident, reason: str = "") -> dict[str, Json]:
    """Return the fields that every event of an incident has, so that its readers need not look the incident up."""
    return {
        "endpoint": incident.endpoint,
        "incident_kind": incident.kind,
        "severity": incident.severity,
        "state": incident.state,
        "title": incident.title,
        "message": incident.message,
        "subjects": list(incident.subjects[:20]),
        "began_at": incident.began_at.isoformat(),
        "reason": reason,
    }


def _change(
    store: Store,
    ref: str,
    action: IncidentAction,
    allowed: tuple[IncidentState, ...],
    state: IncidentState,
    reason: str,
    more_facts: Mapping[str, Json] | None = None,
    **fields: datetime | None,
) -> Incident:
    with store.records.transaction():
        incident = get_incident(store, ref)
        if incident.state not in allowed:
            raise ConflictError(_wrong_state(incident, action), help=_way_out(incident))
        change = IncidentChange(at=store.now(), action=action, text=reason, actor=store.actor)
        changed = replace(incident, state=state, history=(*incident.history, change), **fields)  # type: ignore[arg-type]
        facts = {**incident_facts(changed, reason), **(more_facts or {})}
        if changed.muted_until is not None:
            facts["muted_until"] = changed.muted_until.isoformat()
        return store.records.update(changed, verb=EVENT_VERBS[action], data=facts)[0]


def _wrong_state(incident: Incident, action: IncidentAction) -> str:
    done = {"acknowledge": "acknowledged", "mute": "muted", "unmute": "unmuted", "accept": "accepted"}
    verb = done.get(action, "resolved")
    return f"The incident {incident.id} is {incident.state}, so it cannot be {verb}."


def _way_out(incident: Incident) -> str:
    if incident.state == "muted":
        return f"Unmute it first: everloop monitor unmute {incident.id}"
    return f"See its history: everloop monitor show {incident.id}"


def _state_before_mute(incident: Incident) -> IncidentState:
    for change in reversed(incident.history):
        if change.action in ("open", "reopen"):
            break
        if change.action == "acknowledge":
            return "acknowledged"
    return "open"


def _nearest(store: Store, ref: str) -> list[Incident]:
    """Return the incidents whose ids are most similar to `ref`, otherwise the newest ongoing ones."""
    from difflib import get_close_matches

    incidents = {one.id: one for one in store.records.find(Incident, order="-id", limit=1000)}
    close = get_close_matches(ref, incidents, n=3, cutoff=0.8)
    return [incidents[each] for each in close] or [one for one in incidents.values() if one.state in ONGOING][:3]
