"""Make incidents of the verdicts on a table's windows: opened once, joined by all that belongs to them, then resolved.

Harm decides how loud a drift incident is. If performance was measured, drift is an alarm only if performance has fallen
as well. If only predictions are known, it is an alarm only if they have moved, or if performance is expected to have
fallen. If neither is known, it is an alarm if a column has moved by more than a small amount.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from everloop.data.sketches.column_sketches import add_all
from everloop.monitoring.reports.change_sentences import change_sentence
from everloop.records import Incident, IncidentChange, IncidentSeverity
from everloop.stores.clock import SystemClock, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.incidents.drift_harm import ExpectedMetric
    from everloop.monitoring.reports.monitoring_report import MetricSeries, MonitoredColumn, MonitoringReport
    from everloop.records import FindingKind

    Expect = Callable[[int, int], ExpectedMetric | None]

QUIET_WINDOWS = 3
"""An incident is over after this many windows in a row in which none of its subjects was flagged."""
SMALL_PSI = 0.1
MOST_TOLD = 5


@dataclass(slots=True)
class _Spell:
    """A stretch of windows that belong to one incident. `names` has its subjects in the order in which they joined."""

    first: int
    last: int
    names: list[str] = field(default_factory=list)
    over: bool = False


def find_incidents(
    report: MonitoringReport, sketches: Sequence[Mapping[str, Sketch]], expect: Expect = lambda first, last: None
) -> MonitoringReport:
    """Return the report with its incidents.

    Args:
        sketches: the distributions of each window, by column.
        expect: returns what the metric is expected to be in the windows from the first to the last of an incident.
    """
    count = len(report.windows)
    moved = [column for column in report.columns if column.role != "target" or column.verdict == "alarm"]
    drift = _spells({column.name: column.verdicts for column in moved}, count)
    incidents = [_drift_incident(report, spell, sketches, expect) for spell in drift]
    if report.performance is not None:
        for spell in _spells({report.performance.metric: report.performance.verdicts}, count):
            incidents.append(_performance_incident(report, report.performance, spell, drift))
    incidents.sort(key=lambda one: (one.state == "open", one.severity == "alarm", one.seen_at, one.began_at))
    return replace(report, incidents=tuple(reversed(incidents)))


def _spells(verdicts: dict[str, tuple[str, ...]], windows: int) -> list[_Spell]:
    """Return the spells, oldest first. One opens with the first alarm; everything that alarms meanwhile joins it."""
    found: list[_Spell] = []
    current: _Spell | None = None
    for index in range(windows):
        alarmed = [name for name, each in verdicts.items() if each[index] == "alarm"]
        if current is None and alarmed:
            current = _Spell(index, index)
            found.append(current)
        if current is None:
            continue
        current.names += [name for name in alarmed if name not in current.names]
        if any(verdicts[name][index] != "quiet" for name in current.names):
            current.last = index
        elif index - current.last >= QUIET_WINDOWS:
            current.over, current = True, None
    if windows == 1 and not found:
        # One comparison has no second window that could confirm a warning.
        warned = [name for name, each in verdicts.items() if each[0] == "warning"]
        found += [_Spell(0, 0, warned)] if warned else []
    return found


def _drift_incident(
    report: MonitoringReport, spell: _Spell, sketches: Sequence[Mapping[str, Sketch]], expect: Expect
) -> Incident:
    columns = {column.name: column for column in report.columns}
    subjects = sorted((columns[name] for name in spell.names), key=lambda one: -one.psi)
    meanwhile = {column.name: _meanwhile(column, spell, sketches) for column in report.columns}
    sentences = [change_sentence(one.name, one.reference, meanwhile[one.name]) for one in subjects[:MOST_TOLD]]
    title, others = sentences[0], len(subjects) - 1
    if others:
        title += f" {others} more {'column has' if others == 1 else 'columns have'} changed as well."
    severity, harm = _harm(report, spell, subjects, meanwhile)
    if not _is_judged(report, spell) and (expected := expect(spell.first, spell.last)) is not None:
        severity = "alarm" if expected.fallen else severity
        harm = " ".join([harm, *expected.sentences()])
    more = len(subjects) - MOST_TOLD
    rest = [f"And {more} more {'column' if more == 1 else 'columns'}."] if more > 0 else []
    message = " ".join([harm, *sentences[1:], *rest])
    return _incident(report, spell, "drift", severity, title, message, [one.name for one in subjects])


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
    report: MonitoringReport, spell: _Spell, subjects: list[MonitoredColumn], meanwhile: Mapping[str, Sketch]
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
        if len(subjects) == 1:
            return "alarm", "The predictions have moved, although no input has."
        moved = change_sentence(name, predictions[0].reference, meanwhile[name])
        return "alarm", f"The predictions have moved as well: {moved}"
    if predictions:
        return "notice", "The predictions have not moved, so the model hardly uses what has changed."
    unknown = "Without predictions or labels it is not known whether a model suffers."
    return ("alarm" if max(one.psi for one in subjects) >= SMALL_PSI else "notice"), unknown


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
    resolved: datetime | None = None
    if spell.over:
        resolved = report.windows[min(spell.last + QUIET_WINDOWS, len(report.windows) - 1)].until
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
        state="resolved" if spell.over else "open",
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
