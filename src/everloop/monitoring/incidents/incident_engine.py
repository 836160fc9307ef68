"""Turn the findings of checked windows into incidents in the store.

A watch stores findings. This module reads the summary of each window and applies the rule of `incident_rules` to the
ongoing incident of the endpoint. Every change of an incident is one event, which webhooks and channels announce.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.monitoring.findings import WINDOW
from everloop.monitoring.incidents.incident_actions import EVENT_VERBS, ONGOING, incident_facts
from everloop.monitoring.incidents.incident_rules import WindowNews, advance, close
from everloop.records import Incident

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from everloop.records import Finding, FindingKind, IncidentAction
    from everloop.stores import Store


def update_incidents(store: Store, endpoint: str, findings: Sequence[Finding]) -> list[Incident]:
    """Apply the findings of checked windows to the endpoint's incidents, and store what changes.

    Args:
        findings: the findings of one or more windows, oldest window first, each with the summary of its window.

    Returns:
        The incidents that were opened, joined, escalated or resolved.
    """
    changed: dict[str, Incident] = {}
    for news in news_of(findings):
        incident, action = _apply(store, endpoint, news)
        if incident is not None and action is not None:
            changed[incident.id] = incident
    return list(changed.values())


def close_replaced(store: Store, endpoint: str, answering: Iterable[str]) -> list[Incident]:
    """Resolve incidents about drift or performance of versions that no longer answer.

    Args:
        answering: keys of the versions that the endpoint's traffic goes to.
    """
    current = set(answering)
    closed: list[Incident] = []
    for incident in _ongoing(store, endpoint):
        if incident.kind in ("drift", "performance") and incident.versions and not current & set(incident.versions):
            text = f"{', '.join(incident.versions)} no longer answers."
            after = close(incident, store.now(), text)
            store.records.update(after, verb=EVENT_VERBS["resolve"], data=incident_facts(after, text))
            closed.append(after)
    return closed


def news_of(findings: Sequence[Finding]) -> list[WindowNews]:
    """Return the news of each checked window, in the order of the findings.

    A summary may say in its evidence which subjects are a reason for an incident (`opens`). Without that, alarms are.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.kind, finding.version, finding.window_from, finding.window_to)
        groups.setdefault(key, []).append(finding)
    return [_news(group) for group in groups.values()]


def _news(group: Sequence[Finding]) -> WindowNews:
    first = group[0]
    summary = next((one for one in group if one.subject == WINDOW and "subjects" in one.evidence), None)
    flagged = [one for one in group if one.severity != "info"]
    states = summary.evidence["subjects"] if summary is not None else {}
    opens = summary.evidence.get("opens") if summary is not None else None
    reasons = [one for one in flagged if (one.severity == "alarm" if opens is None else one.subject in opens)]
    restless = {one.subject for one in flagged}
    restless |= {name for name, state in states.items() if not state.get("calm", state.get("verdict") == "quiet")}
    harm = (summary.evidence.get("harm") if summary is not None else None) or {}
    loud = harm.get("severity") if harm else ("alarm" if any(one.severity == "alarm" for one in reasons) else "notice")
    importance = harm.get("importance", {})
    return WindowNews(
        kind=first.kind,
        since=first.window_from,
        until=first.window_to,
        version=first.version,
        reasons={one.subject: one.message for one in reasons},
        # What the model uses comes first, then what has moved furthest.
        weights={one.subject: importance.get(one.subject, 0.0) + 1e-3 * abs(one.value or 0.0) for one in reasons},
        restless=frozenset(restless),
        severity="alarm" if loud == "alarm" else "notice",
        harm=str(harm.get("text", "")),
        findings=tuple(one.id for one in reasons),
        evidence={"harm": harm} if harm else {},
    )


def ongoing_incident(store: Store, endpoint: str, kind: FindingKind) -> Incident | None:
    """Return the ongoing incident of a kind; None if there is none."""
    return next((one for one in _ongoing(store, endpoint) if one.kind == kind), None)


def _apply(store: Store, endpoint: str, news: WindowNews) -> tuple[Incident | None, IncidentAction | None]:
    def create(**fields: Any) -> Incident:
        return store.new(Incident, **{**fields, "endpoint": endpoint})

    # In one transaction, so that two processes cannot open the same incident twice.
    with store.records.transaction():
        before = ongoing_incident(store, endpoint, news.kind)
        after, action = advance(before, news, store.now(), create)
        if after is not None and before is None:
            store.records.put(after, verb=EVENT_VERBS["open"], data=incident_facts(after))
        elif after is not None and after != before:
            verb = EVENT_VERBS[action] if action is not None else "updated"
            store.records.update(after, verb=verb, data=incident_facts(after) if action is not None else None)
    return after, action


def _ongoing(store: Store, endpoint: str) -> list[Incident]:
    return store.records.find(Incident, ("endpoint", "=", endpoint), ("state", "in", ONGOING), order="id")
