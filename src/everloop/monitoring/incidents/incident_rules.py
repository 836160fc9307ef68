"""The rule that opens, extends, escalates and resolves incidents. Pure: it changes records in memory only.

There is at most one ongoing incident of a kind at an endpoint. It opens with the first window that gives a reason,
and everything of that kind that happens meanwhile joins it, so a slow change is one incident and not hundreds. It is
over when each watch that contributed to it has seen `CALM_WINDOWS` windows in a row in which none of its subjects was
surprising.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from everloop.monitoring.noise.incident_rate import CALM_WINDOWS
from everloop.records import Incident, IncidentAction, IncidentChange, IncidentSeverity, Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
        restless: subjects that are not calm, whether or not they are a reason.
        severity: how loud an incident with these reasons is.
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
    restless: frozenset[str] = frozenset()
    severity: IncidentSeverity = "notice"
    harm: str = ""
    findings: tuple[str, ...] = ()
    evidence: Mapping[str, Json] = field(default_factory=dict)


def advance(
    incident: Incident | None, news: WindowNews, now: datetime, create: Callable[..., Incident]
) -> tuple[Incident | None, IncidentAction | None]:
    """Apply the news of one window to the ongoing incident of its kind.

    Args:
        incident: the ongoing incident; None if there is none.
        now: the time of the change.
        create: makes a new record from the fields of `Incident` besides those of every record.

    Returns:
        The incident after the window, changed or not, and the action to announce: `open`, `join`, `escalate` or
        `resolve`; None if there is nothing to announce.
    """
    if incident is None:
        return (_opened(news, now, create), "open") if news.reasons else (None, None)
    state = dict(incident.evidence)
    watches: dict[str, Json] = dict(state.get("watches", {}))
    known = watches.get(news.watch)
    if known is None and not news.reasons and watches:
        # Other watches opened this incident.
        return incident, None
    if known is not None and news.until.isoformat() <= known["last_window"]:
        # The window was checked again because predictions came late. It can add subjects, but no calm.
        return _joined(incident, news, now, state) if news.reasons else (incident, None)
    restless = bool(news.restless & set(incident.subjects))
    calm = 0 if news.reasons or restless else (known["calm_windows"] if known is not None else 0) + 1
    watches[news.watch] = _progress(news, calm)
    state["watches"] = watches
    if news.reasons:
        return _joined(incident, news, now, state)
    if restless:
        return replace(incident, seen_at=max(incident.seen_at, news.until), evidence=state), None
    if any(each["calm_windows"] < CALM_WINDOWS for each in watches.values()):
        return replace(incident, evidence=state), None
    return close(replace(incident, evidence=state), now, "Nothing deviates any more."), "resolve"


def contributes(incident: Incident, watch: str) -> bool:
    """Whether a watch has opened or joined an incident."""
    return watch in incident.evidence.get("watches", {})


def close(incident: Incident, now: datetime, text: str) -> Incident:
    """Return the incident resolved by monitoring itself."""
    change = IncidentChange(at=now, action="resolve", text=text)
    return replace(incident, state="resolved", resolved_at=now, history=(*incident.history, change))


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
            "watches": {news.watch: _progress(news, 0)},
        },
    )


def _progress(news: WindowNews, calm: int) -> dict[str, Json]:
    return {"last_window": news.until.isoformat(), "calm_windows": calm}


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
            message=_message(subjects, sentences, str(state.get("text", ""))),
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
