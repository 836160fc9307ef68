"""Turn the findings of checked windows into incidents in the store.

A watch finds something in a window. This module reads the summary of the window and applies the rule of
`incident_rules` to the ongoing incident of the endpoint. Every change of an incident is one event, which webhooks and
channels announce.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.monitoring.findings import WINDOW
from everloop.monitoring.incidents.drift_harm import weight_of
from everloop.monitoring.incidents.incident_actions import EVENT_VERBS, ONGOING, incident_facts
from everloop.monitoring.incidents.incident_rules import (
    WindowNews,
    active_subjects,
    advance,
    close,
    contributes,
    with_label_verdict,
)
from everloop.records import Incident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from everloop.records import Finding, FindingKind, Json
    from everloop.stores import Condition, Store


PER_VERSION: tuple[FindingKind, ...] = ("drift", "performance")
"""Kinds of incidents that concern one version. When it no longer answers, they are over."""

_LEAST_IMPORTANCE = 0.05
"""Share of the spread of the score. An input with less is not a cause of harm if there is another reason."""


def update_incidents(
    store: Store,
    endpoint: str,
    findings: Sequence[Finding],
    *,
    watch: str,
    since: datetime,
    until: datetime,
    loop: str = "",
) -> list[Incident]:
    """Apply what a watch has found in one window to the endpoint's incidents, and store what changes.

    A window without a reason is news as well: it counts as calm for the incidents to which the watch has contributed.
    Call this in the transaction that stores the findings, so that a process that dies leaves both or neither.

    Args:
        findings: the findings of the window, of all versions that answered in it, with their summaries.
        watch: name of the watch.
        since: start of the window.
        until: end of the window, exclusive.
        loop: name of the loop that has the watch. What it finds changes only incidents that it has opened, because
            another loop may watch the same endpoint with other windows and another budget. What another loop's ongoing
            incident reports already is not reported again.

    Returns:
        The incidents that were opened, joined, escalated or resolved.
    """
    changed: list[Incident] = []
    # In one transaction, so that two processes cannot open the same incident twice.
    with store.records.transaction():
        news = news_of(findings, watch, since, until)
        heard = {one.kind for one in news}
        for incident in _of_loop(ongoing_incidents(store, endpoint), loop):
            if incident.kind not in heard and contributes(incident, watch):
                heard.add(incident.kind)
                news.append(WindowNews(incident.kind, since, until, watch))
        for one in news:
            changed += _apply(store, endpoint, one, loop)
        for finding in findings:
            if finding.kind == "performance" and finding.evidence.get("estimates"):
                _add_label_verdict(store, endpoint, finding)
    return changed


def close_replaced(store: Store, endpoint: str, answering: Iterable[str]) -> list[Incident]:
    """Resolve incidents about drift or performance of versions that no longer answer.

    Args:
        answering: keys of the versions that the endpoint's traffic goes to.
    """
    current = set(answering)
    closed: list[Incident] = []
    if not ongoing_incidents(store, endpoint):
        return closed
    with store.records.transaction():
        for incident in ongoing_incidents(store, endpoint):
            versions = set(incident.versions)
            if incident.kind in PER_VERSION and versions and not current & versions:
                text = f"{', '.join(incident.versions)} no longer answers."
                closed.append(resolve_incident(store, incident, text))
    return closed


def close_unwatched(store: Store, endpoint: str, watches: Iterable[str], *, loop: str = "") -> list[Incident]:
    """Let what removed watches have reported leave its incidents, and resolve those in which nothing is left.

    Otherwise nothing could end them, because only windows of the watch that reported a subject count as calm.

    Args:
        watches: names of the watches of the loop.
        loop: name of the loop. Incidents of other loops stay as they are.
    """
    present = set(watches)
    closed: list[Incident] = []
    if not ongoing_incidents(store, endpoint):
        return closed
    with store.records.transaction():
        for incident in _of_loop(ongoing_incidents(store, endpoint), loop):
            states = active_subjects(incident)
            kept = {subject: state for subject, state in states.items() if state["watch"] in present}
            gone = sorted({str(state["watch"]) for state in states.values()} - present)
            if gone and kept:
                # The other subjects still decide when it is over.
                after = replace(incident, evidence={**incident.evidence, "active": kept})
                store.records.update(after, verb="updated")
            elif gone:
                quoted = " and ".join(f"'{name}'" for name in gone)
                text = f"The loop no longer has the watch{'' if len(gone) == 1 else 'es'} {quoted}."
                closed.append(resolve_incident(store, incident, text))
    return closed


def close_of_removed_loops(
    store: Store, endpoints: Mapping[str, str | None], runs_elsewhere: Callable[[str], bool]
) -> list[Incident]:
    """Resolve the incidents of loops that no longer exist, or no longer watch the endpoint.

    Otherwise nothing could end them, because only a loop itself finds out that its incidents are over.

    Args:
        endpoints: by name of each loop of the project, the endpoint that it watches; None if it has none.
        runs_elsewhere: whether another process works on a loop with this name, which then is another project folder's.
    """
    closed: list[Incident] = []
    for incident in ongoing_incidents(store):
        loop = str(incident.evidence.get("loop", ""))
        if not loop or endpoints.get(loop) == incident.endpoint or (loop not in endpoints and runs_elsewhere(loop)):
            continue
        text = (
            f"The loop '{loop}' no longer watches the endpoint '{incident.endpoint}'."
            if loop in endpoints
            else f"The project no longer has the loop '{loop}'."
        )
        closed.append(resolve_incident(store, incident, text))
    return closed


def resolve_incident(store: Store, incident: Incident, text: str) -> Incident:
    """Store that an incident is over, as monitoring itself finds out."""
    after = close(incident, store.now(), text)
    return store.records.update(after, verb=EVENT_VERBS["resolve"], data=incident_facts(after, text))[0]


def news_of(findings: Sequence[Finding], watch: str, since: datetime, until: datetime) -> list[WindowNews]:
    """Return the news of a window for each kind of incident, in the order of the findings.

    A finding may list in its evidence which subjects are a reason for an incident (`opens`). Otherwise, alarms are.
    """
    groups: dict[tuple[FindingKind, str | None], list[Finding]] = {}
    for finding in findings:
        version = finding.version if finding.kind in PER_VERSION else None
        groups.setdefault((finding.kind, version), []).append(finding)
    return [_news(kind, version, group, watch, since, until) for (kind, version), group in groups.items()]


def _news(
    kind: FindingKind, version: str | None, group: Sequence[Finding], watch: str, since: datetime, until: datetime
) -> WindowNews:
    summaries = {one.version: one for one in group if one.subject == WINDOW and "subjects" in one.evidence}
    opens = {one.version: one.evidence["opens"] for one in group if "opens" in one.evidence}
    flagged = [one for one in group if one.severity != "info"]
    reasons = [
        one
        for one in flagged
        if (one.subject in opens[one.version] if one.version in opens else one.severity == "alarm")
    ]
    restless = {one.subject for one in flagged}
    for summary in summaries.values():
        states = summary.evidence["subjects"].items()
        restless |= {name for name, state in states if not state.get("calm", state.get("verdict") == "quiet")}
    harms = {version: one.evidence["harm"] for version, one in summaries.items() if one.evidence.get("harm")}
    sentences: dict[str, str] = {}
    weights: dict[str, float] = {}
    for one in reasons:
        importance = harms.get(one.version, {}).get("importance", {}).get(one.subject)
        weight = weight_of(abs(one.value or 0.0), importance)
        if one.subject not in weights or weight > weights[one.subject]:
            sentences[one.subject], weights[one.subject] = one.message, weight
    loud = {each for each, harm in harms.items() if harm.get("severity") == "alarm"}
    loud |= {one.version for one in reasons if one.severity == "alarm" and one.version not in harms}
    versions = dict.fromkeys([version] if version is not None else [one.version for one in reasons])
    # The version that suffers most describes the harm; otherwise the one with the most predictions.
    harm: Mapping[str, Json] = next((harms[each] for each in sorted(harms, key=lambda each: each not in loud)), {})
    return WindowNews(
        kind=kind,
        since=since,
        until=until,
        watch=watch,
        versions=tuple(each for each in versions if each is not None),
        reasons=sentences,
        weights=weights,
        strong=frozenset(subject for one in summaries.values() for subject in one.evidence.get("strong", ())),
        restless=frozenset(restless),
        severity="alarm" if loud else "notice",
        loud=_loud_reasons([one for one in reasons if one.version in loud], harms) if loud else None,
        harm=str(harm.get("text", "")),
        findings=tuple(one.id for one in reasons),
        evidence={"harm": dict(harm)} if harm else {},
    )


def _loud_reasons(reasons: Sequence[Finding], harms: Mapping[str | None, Mapping[str, Json]]) -> frozenset[str] | None:
    """The reasons that can have done the harm; None if it cannot be attributed.

    An input that the model hardly uses has not moved the predictions if there is another reason.

    Args:
        reasons: those of the versions whose predictions are harmed.
    """
    found = set()
    for one in reasons:
        importance = harms.get(one.version, {}).get("importance", {}).get(one.subject)
        if importance is None or importance >= _LEAST_IMPORTANCE:
            found.add(one.subject)
    return frozenset(found) or None


def ongoing_incidents(store: Store, endpoint: str | None = None, kind: FindingKind | None = None) -> list[Incident]:
    """Return the ongoing incidents, oldest first; of one endpoint or kind if it is passed."""
    where: list[Condition] = [("state", "in", ONGOING)]
    where += [(name, "=", value) for name, value in (("endpoint", endpoint), ("kind", kind)) if value is not None]
    return store.records.find(Incident, *where, order="id")


def _of_loop(incidents: Iterable[Incident], loop: str) -> list[Incident]:
    """Return the incidents of a loop, and those that were opened before incidents belonged to loops."""
    return [incident for incident in incidents if incident.evidence.get("loop", "") in ("", loop)]


def _apply(store: Store, endpoint: str, news: WindowNews, loop: str) -> list[Incident]:
    """Store what a window changes; return the incidents about which there is something to announce."""

    def create(**fields: Any) -> Incident:
        evidence = {**fields["evidence"], **({"loop": loop} if loop else {})}
        return store.new(Incident, **{**fields, "endpoint": endpoint, "evidence": evidence})

    known = ongoing_incidents(store, endpoint, news.kind)
    if news.kind in PER_VERSION and news.versions:
        # Each version has a reference of its own, so what deviates from one says nothing about another.
        known = [one for one in known if not one.versions or set(one.versions) & set(news.versions)]
    ongoing = _of_loop(known, loop)
    elsewhere = frozenset(name for one in known if one not in ongoing for name in active_subjects(one))
    announced: list[Incident] = []
    for step in advance(ongoing, news, store.now(), create, elsewhere=elsewhere):
        after = step.incident
        if step.action == "open":
            store.records.put(after, verb=EVENT_VERBS["open"], data=incident_facts(after))
        else:
            verb = EVENT_VERBS[step.action] if step.action is not None else "updated"
            facts = incident_facts(after) if step.action is not None else None
            after = store.records.update(after, verb=verb, data=facts)[0]
        if step.action is not None:
            announced.append(after)
    return announced


def _add_label_verdict(store: Store, endpoint: str, summary: Finding) -> None:
    """Say in the ongoing incidents about drift whether labels confirm what was expected of the metric."""
    verdict = summary.evidence["estimates"]
    for incident in ongoing_incidents(store, endpoint, "drift"):
        expected = (incident.evidence.get("harm") or {}).get("expected") or {}
        about = expected.get("metric") == verdict["metric"] and summary.version in incident.versions
        if about and summary.window_to > incident.began_at:
            after = with_label_verdict(incident, verdict)
            if after != incident:
                store.records.update(after, verb="updated")
