"""The rule that opens, extends, escalates and resolves incidents. Pure: it changes records in memory only.

The first window that gives a reason opens an incident. What deviates later joins the newest ongoing incident, so a slow
change is one incident and not hundreds. Only a strong change opens an incident beside an ongoing one, so that this does
not hide it, and no more than `MOST_ONGOING` at a time. A subject leaves after `CALM_WINDOWS` windows in a row in which
it is not surprising; only windows of the watch that reported it count. An incident that all have left is over.

`noise/incident_rate.py` applies the same rule to simulated streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from everloop.monitoring.noise.incident_rate import CALM_WINDOWS, MOST_ONGOING
from everloop.records import Incident, IncidentAction, IncidentChange, IncidentSeverity, Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set
    from datetime import datetime

    from everloop.records import FindingKind

_MOST_SENTENCES = 5
_MOST_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class WindowNews:
    """What one window says about an endpoint.

    Attributes:
        watch: name of the watch that checked the window. Windows of different watches have different lengths, so the
            calm of one says nothing about what another has seen.
        versions: keys of the versions with a reason; empty if they are not known.
        reasons: subjects that are a reason to open an incident or to join the open one, each with a sentence.
        weights: how important each of them is; the incident names the largest first.
        strong: reasons that may open an incident beside an ongoing one.
        restless: subjects that are not calm, whether or not they are a reason.
        severity: how loud an incident with these reasons is.
        loud: the reasons that make it an alarm; None: all of them. An incident without one of them is a notice.
        harm: what the change does, in sentences for a product owner.
        findings: ids of the findings about the reasons.
    """

    kind: FindingKind
    since: datetime
    until: datetime
    watch: str = ""
    versions: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    strong: frozenset[str] = frozenset()
    restless: frozenset[str] = frozenset()
    severity: IncidentSeverity = "notice"
    loud: frozenset[str] | None = None
    harm: str = ""
    findings: tuple[str, ...] = ()
    evidence: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IncidentStep:
    """An incident after a window, and the action to announce; None if there is nothing to announce."""

    incident: Incident
    action: IncidentAction | None


def advance(
    ongoing: Sequence[Incident],
    news: WindowNews,
    now: datetime,
    create: Callable[..., Incident],
    *,
    elsewhere: Set[str] = frozenset(),
) -> list[IncidentStep]:
    """Apply the news of one window to the ongoing incidents of its kind.

    Args:
        ongoing: the ongoing incidents of this kind, and of this version if there is one; oldest first.
        now: the time of the change.
        create: makes a new record from the fields of `Incident` besides those of every record.
        elsewhere: subjects that deviate in ongoing incidents of others, who have reported them already.

    Returns:
        The incidents that change: updated ones in their order, then the one that opens.
    """
    active = {subject for incident in ongoing for subject in active_subjects(incident)}
    new = [subject for subject in news.reasons if subject not in active | elsewhere]
    own = [subject for subject in new if subject in news.strong] if ongoing else new
    opens = bool(own) and len(ongoing) < MOST_ONGOING
    steps: list[IncidentStep] = []
    for incident in ongoing:
        newest = incident is ongoing[-1]
        joins = new if newest and not opens else []
        step = _pass(incident, news, [*joins, *(one for one in news.reasons if one in active_subjects(incident))], now)
        if step is not None:
            steps.append(step)
    if opens:
        steps.append(IncidentStep(_opened(_only(news, new), now, create), "open"))
    return steps


def active_subjects(incident: Incident) -> dict[str, Json]:
    """Return the subjects that are not calm yet: by subject, the watch that reported it and its calm windows."""
    found: dict[str, Json] = incident.evidence.get("active", {})
    return found


def contributes(incident: Incident, watch: str) -> bool:
    """Whether a watch has reported a subject of the incident that is not calm yet."""
    return any(state["watch"] == watch for state in active_subjects(incident).values())


def _pass(incident: Incident, news: WindowNews, reasons: Sequence[str], now: datetime) -> IncidentStep | None:
    """Apply a window to one incident; None if it says nothing about the incident."""
    last = dict(incident.evidence.get("last_window", {}))
    part = _only(news, reasons)
    if news.until.isoformat() <= last.get(news.watch, ""):
        # The window was checked again because predictions came late. It can add subjects, but no calm.
        if not reasons:
            return None
        active = {**_reported(news, reasons), **active_subjects(incident)}
        changed, action = _joined(incident, part, now, {**incident.evidence, "active": active})
        return IncidentStep(changed, action) if changed != incident else None
    if not reasons and not contributes(incident, news.watch):
        return None
    active = {}
    for subject, state in active_subjects(incident).items():
        own = state["watch"] == news.watch
        calm = int(state["calm"]) + 1 if own else int(state["calm"])
        if own and subject in news.restless:
            calm = 0
        if calm < CALM_WINDOWS:
            active[subject] = {"watch": state["watch"], "calm": calm}
    restless = bool(news.restless & active.keys())
    active |= _reported(news, reasons)
    evidence = {**incident.evidence, "active": active, "last_window": {**last, news.watch: news.until.isoformat()}}
    if reasons:
        return IncidentStep(*_joined(incident, part, now, evidence))
    if not active:
        return IncidentStep(close(replace(incident, evidence=evidence), now, "Nothing deviates any more."), "resolve")
    seen = max(incident.seen_at, news.until) if restless else incident.seen_at
    return IncidentStep(replace(incident, seen_at=seen, evidence=evidence), None)


def _reported(news: WindowNews, subjects: Sequence[str]) -> dict[str, Json]:
    return {subject: {"watch": news.watch, "calm": 0} for subject in subjects}


def _only(news: WindowNews, subjects: Sequence[str]) -> WindowNews:
    chosen = {subject: sentence for subject, sentence in news.reasons.items() if subject in subjects}
    severity = news.severity if news.loud is None or news.loud & chosen.keys() else "notice"
    weights = {name: news.weights.get(name, 0.0) for name in chosen}
    return replace(news, reasons=chosen, weights=weights, severity=severity)


def close(incident: Incident, now: datetime, text: str) -> Incident:
    """Return the incident resolved by monitoring itself."""
    change = IncidentChange(at=now, action="resolve", text=text)
    return replace(incident, state="resolved", resolved_at=now, history=(*incident.history, change))


def with_label_verdict(incident: Incident, verdict: dict[str, Json]) -> Incident:
    """Return the incident with what labels say about the performance that was expected.

    Args:
        verdict: the comparison, with a `text` for people.
    """
    state = {**incident.evidence, "labels": verdict}
    message = _message(list(incident.subjects), state.get("sentences", {}), _harm_of(state))
    return replace(incident, message=message, evidence=state)


def _harm_of(state: Mapping[str, Json]) -> str:
    parts = (str(state.get("text", "")), str((state.get("labels") or {}).get("text", "")))
    return " ".join(part for part in parts if part)


def _opened(news: WindowNews, now: datetime, create: Callable[..., Incident]) -> Incident:
    sentences, weights = dict(news.reasons), dict(news.weights)
    subjects = _ranked(sentences, weights)
    title = _title(subjects, sentences)
    return create(
        endpoint="",
        kind=news.kind,
        severity=news.severity,
        title=title,
        message=_message(subjects, sentences, news.harm),
        subjects=tuple(subjects),
        versions=news.versions,
        began_at=news.since,
        seen_at=news.until,
        history=(IncidentChange(at=now, action="open", text=title),),
        findings=news.findings,
        evidence={
            **news.evidence,
            "sentences": sentences,
            "weights": weights,
            "peak": sum(weights.values()),
            "text": news.harm,
            "active": _reported(news, subjects),
            "last_window": {news.watch: news.until.isoformat()},
        },
    )


def _joined(
    incident: Incident, news: WindowNews, now: datetime, state: dict[str, Json]
) -> tuple[Incident, IncidentAction | None]:
    """Return the incident with the subjects of a window, in the words of the windows that deviated most."""
    added = [subject for subject in news.reasons if subject not in incident.subjects]
    louder = news.severity == "alarm" and incident.severity == "notice"
    sentences, weights = dict(state.get("sentences", {})), dict(state.get("weights", {}))
    for subject, sentence in news.reasons.items():
        # A subject is described by the window in which it deviated most.
        weight = news.weights.get(subject, 0.0)
        if subject not in sentences or weight >= float(weights.get(subject, 0.0)):
            sentences[subject], weights[subject] = sentence, weight
    peak = sum(news.weights.values())
    worst = louder or peak >= float(state.get("peak", 0.0))
    if worst:
        state = {**state, **news.evidence, "peak": peak, "text": news.harm}
        # The verdict of labels was about another window.
        state.pop("labels", None)
    subjects = _ranked(sentences, weights)
    title = _title(subjects, sentences)
    action: IncidentAction | None = "escalate" if louder else "join" if added else None
    history = incident.history
    if action is not None:
        text = news.harm if louder else " ".join(news.reasons[subject] for subject in added[:_MOST_SENTENCES])
        history = (*history, IncidentChange(at=now, action=action, text=text))
    versions = tuple(dict.fromkeys((*incident.versions, *news.versions)))
    return (
        replace(
            incident,
            severity="alarm" if louder else incident.severity,
            title=title,
            message=_message(subjects, sentences, _harm_of(state)),
            subjects=tuple(subjects),
            versions=versions,
            seen_at=max(incident.seen_at, news.until),
            history=history,
            findings=tuple(dict.fromkeys((*incident.findings, *news.findings)))[-_MOST_FINDINGS:],
            evidence={**state, "sentences": sentences, "weights": weights},
        ),
        action,
    )


def _ranked(sentences: Mapping[str, str], weights: Mapping[str, float]) -> list[str]:
    return sorted(sentences, key=lambda subject: -weights.get(subject, 0.0))


def _title(subjects: list[str], sentences: Mapping[str, str]) -> str:
    others = len(subjects) - 1
    title = sentences[subjects[0]]
    if others:
        title += f" {others} more {'has' if others == 1 else 'have'} changed as well."
    return title


def _message(subjects: list[str], sentences: Mapping[str, str], harm: str) -> str:
    more = len(subjects) - _MOST_SENTENCES
    parts = [harm, *(sentences[subject] for subject in subjects[1:_MOST_SENTENCES])]
    if more > 0:
        parts.append(f"And {more} more.")
    return " ".join(part for part in parts if part)
