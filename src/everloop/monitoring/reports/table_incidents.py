"""Make incidents of the verdicts on a table's windows: opened once, joined by all that belongs to them, then resolved.

Harm decides how loud a drift incident is. If performance was measured, drift is an alarm only if performance has fallen
as well. If only predictions are known, it is an alarm only if they have moved, or if performance is expected to have
fallen. If neither is known, it is an alarm if a column has moved by more than a small amount.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from everloop.data.sketches.column_sketches import add_all
from everloop.monitoring.incidents.incident_rules import WindowNews, advance
from everloop.monitoring.reports.change_sentences import change_sentence
from everloop.monitoring.reports.table_windows import LARGE_CHANGE
from everloop.records import Incident, IncidentChange, IncidentSeverity
from everloop.stores.clock import EPOCH, SystemClock, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.alarm_budget import Verdict
    from everloop.monitoring.incidents.drift_harm import ExpectedMetric
    from everloop.monitoring.reports.monitoring_report import (
        MetricSeries,
        MonitoredColumn,
        MonitoredPair,
        MonitoringReport,
        TimeWindow,
    )
    from everloop.records import FindingKind

    Expect = Callable[[int, int], ExpectedMetric | None]

SMALL_PSI = 0.1
MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class _Spell:
    """A stretch of windows that belong to one incident.

    Attributes:
        names: its subjects.
        resolved: the window with which it was over; None if it is open.
    """

    first: int
    last: int
    names: tuple[str, ...]
    resolved: int | None = None


def find_incidents(
    report: MonitoringReport, sketches: Sequence[Mapping[str, Sketch]], expect: Expect = lambda first, last: None
) -> MonitoringReport:
    """Return the report with its incidents.

    Args:
        sketches: the distributions of each window, by column.
        expect: returns what the metric is expected to be in the windows from the first to the last of an incident.
    """
    moved: list[MonitoredColumn | MonitoredPair] = [
        column for column in report.columns if column.role != "target" or column.verdict == "alarm"
    ]
    moved += report.pairs
    strong = {one.name: one.strong for one in moved}
    drift = _spells("drift", report.windows, {one.name: one.verdicts for one in moved}, strong)
    incidents = [_drift_incident(report, spell, sketches, expect) for spell in drift]
    if report.performance is not None:
        for spell in _spells("performance", report.windows, {report.performance.metric: report.performance.verdicts}):
            incidents.append(_performance_incident(report, report.performance, spell, drift))
    incidents.sort(key=lambda one: (one.state == "open", one.severity == "alarm", one.seen_at, one.began_at))
    return replace(report, incidents=tuple(reversed(incidents)))


def _spells(
    kind: FindingKind,
    windows: Sequence[TimeWindow],
    verdicts: Mapping[str, Sequence[Verdict]],
    strong: Mapping[str, Sequence[bool]] | None = None,
) -> list[_Spell]:
    """Return the stretches of the incidents that the rule for endpoints opens, oldest first.

    Args:
        verdicts: by subject, the verdict of each window: `alarm` for a reason, `warning` for one that is not calm.
        strong: by subject, whether each window may open an incident beside an ongoing one.
    """
    found: dict[str, Incident] = {}
    resolved: dict[str, int] = {}
    # The rule needs moments in the order of the windows. Without a time column, those of the table are not known.
    starts = [EPOCH + timedelta(days=index) for index in range(len(windows) + 1)]
    for index, (start, end) in enumerate(pairwise(starts)):
        reasons = [name for name, each in verdicts.items() if each[index] == "alarm"]
        if len(windows) == 1 and not reasons:
            # One comparison has no second window that could confirm a warning.
            reasons = [name for name, each in verdicts.items() if each[index] == "warning"]
        news = WindowNews(
            kind=kind,
            since=start,
            until=end,
            reasons=dict.fromkeys(reasons, ""),
            strong=frozenset(name for name in reasons if strong is not None and strong[name][index]),
            restless=frozenset(name for name, each in verdicts.items() if each[index] != "quiet"),
        )
        ongoing = [one for one in found.values() if one.state == "open"]
        for step in advance(ongoing, news, end, lambda end=end, **fields: _new(end, **fields)):
            found[step.incident.id] = step.incident
            if step.action == "resolve":
                resolved[step.incident.id] = index
    return [
        _Spell(starts.index(one.began_at), starts.index(one.seen_at) - 1, one.subjects, resolved.get(key))
        for key, one in found.items()
    ]


def _new(moment: datetime, **fields: Any) -> Incident:
    return Incident(id=new_id(moment), project="", created_at=moment, **fields)


def _drift_incident(
    report: MonitoringReport, spell: _Spell, sketches: Sequence[Mapping[str, Sketch]], expect: Expect
) -> Incident:
    subjects = sorted((column for column in report.columns if column.name in spell.names), key=lambda one: -one.psi)
    # A column that has moved is related to others differently as well, which says nothing more.
    own = {one.name for one in subjects}
    pairs = [pair for pair in report.pairs if pair.name in spell.names and not own & set(pair.names)]
    meanwhile = {column.name: _meanwhile(column, spell, sketches) for column in report.columns}
    sentences = [change_sentence(one.name, one.reference, meanwhile[one.name]) for one in subjects]
    sentences += [pair.message() for pair in pairs]
    title, others = sentences[0], len(sentences) - 1
    if others:
        what = ("column has", "columns have") if not pairs else ("has", "have")
        title += f" {others} more {what[0] if others == 1 else what[1]} changed as well."
    severity, harm = _harm(report, spell, subjects, pairs, meanwhile)
    if not _is_judged(report, spell) and (expected := expect(spell.first, spell.last)) is not None:
        severity = "alarm" if expected.fallen else severity
        harm = " ".join([harm, *expected.sentences()])
    more = len(sentences) - MOST_TOLD
    rest = [f"And {more} more{'' if pairs else ' column' if more == 1 else ' columns'}."] if more > 0 else []
    message = " ".join([harm, *sentences[1:MOST_TOLD], *rest])
    names = [*(one.name for one in subjects), *(pair.name for pair in pairs)]
    return _incident(report, spell, "drift", severity, title, message, names)


def _meanwhile(column: MonitoredColumn, spell: _Spell, sketches: Sequence[Mapping[str, Sketch]]) -> Sketch:
    """Return the distribution of a column in the windows of a spell in which it deviated most.

    A window is judged together with those before it, so a spell continues after the column has come back.
    """
    during = range(spell.first, spell.last + 1)
    highest = max(column.psi_by_window[index] for index in during)
    chosen = [index for index in during if column.psi_by_window[index] >= highest / 2] or during
    return add_all([{column.name: sketches[index][column.name]} for index in chosen])[column.name]


def _is_judged(report: MonitoringReport, spell: _Spell) -> bool:
    """Whether labels show the performance in the windows of an incident."""
    during = slice(spell.first, spell.last + 1)
    return report.performance is not None and any(one.value is not None for one in report.performance.points[during])


def _harm(
    report: MonitoringReport,
    spell: _Spell,
    subjects: list[MonitoredColumn],
    pairs: list[MonitoredPair],
    meanwhile: Mapping[str, Sketch],
) -> tuple[IncidentSeverity, str]:
    """Return how loud a drift incident is, and why."""
    if report.performance is not None:
        during = slice(spell.first, spell.last + 1)
        judged = _is_judged(report, spell)
        if judged and "alarm" in report.performance.verdicts[during]:
            return "alarm", f"Meanwhile {report.performance.metric} became worse than in the reference."
        if judged:
            return "notice", f"{report.performance.metric} has not become worse, so nothing needs to be done now."
    predictions = [column for column in report.columns if column.role == "prediction"]
    if predictions and predictions[0].name in spell.names:
        name = predictions[0].name
        if len(subjects) == 1 and not pairs:
            return "alarm", "The predictions have moved, although no input has."
        moved = change_sentence(name, predictions[0].reference, meanwhile[name])
        return "alarm", f"The predictions have moved as well: {moved}"
    if predictions:
        return "notice", "The predictions have not moved, so the model hardly uses what has changed."
    unknown = "Without predictions or labels it is not known whether a model suffers."
    large = any(one.psi >= SMALL_PSI for one in subjects) or any(pair.change >= LARGE_CHANGE for pair in pairs)
    return ("alarm" if large else "notice"), unknown


def _performance_incident(
    report: MonitoringReport, series: MetricSeries, spell: _Spell, drift: list[_Spell]
) -> Incident:
    values = [point for point in series.points[spell.first : spell.last + 1] if point.value is not None]
    worst = (min if series.greater_is_better else max)(values, key=lambda point: point.value or 0.0)
    verb = "fallen" if series.greater_is_better else "risen"
    known = series.reference
    title = f"{series.metric} has {verb} to {_number(worst.value)}; in the reference it was {_number(known.value)}."
    message = (
        f"The 95 % interval is {_number(worst.low)} to {_number(worst.high)}, from {worst.rows:,} labelled rows; "
        f"in the reference {_number(known.low)} to {_number(known.high)}."
    )
    severity: IncidentSeverity = "alarm" if "alarm" in series.verdicts[spell.first : spell.last + 1] else "notice"
    joined = [one for one in drift if one.first <= spell.last and spell.first <= one.last]
    names = list(dict.fromkeys(name for one in joined for name in one.names))
    if names:
        listed = ", ".join(f"'{name[:40]}'" for name in names[:MOST_TOLD])
        message += f" At the same time these columns changed: {listed}."
    else:
        message += " No column has drifted, so the relation between inputs and target has probably changed."
    return _incident(report, spell, "performance", severity, title, message, [series.metric])


def _incident(
    report: MonitoringReport,
    spell: _Spell,
    kind: FindingKind,
    severity: IncidentSeverity,
    title: str,
    message: str,
    subjects: list[str],
) -> Incident:
    now = SystemClock().now()
    began = report.windows[spell.first].since or now
    seen = report.windows[spell.last].until or now
    resolved = report.windows[spell.resolved].until if spell.resolved is not None else None
    history = [IncidentChange(at=began, action="open", text=title)]
    if resolved is not None:
        history.append(IncidentChange(at=resolved, action="resolve", text="No deviation any more."))
    return Incident(
        id=new_id(now),
        project="",
        created_at=now,
        endpoint="",
        kind=kind,
        severity=severity,
        state="resolved" if spell.resolved is not None else "open",
        title=title,
        message=message,
        subjects=tuple(subjects),
        began_at=began,
        seen_at=seen,
        resolved_at=resolved,
        history=tuple(history),
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
