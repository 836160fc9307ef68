"""The result of monitoring two tables: incidents, and what was measured of each column, window and metric."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from everloop.monitoring.incidents.incident_actions import ONGOING
from everloop.monitoring.pair_shift import pair_sentence

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.alarm_budget import Verdict
    from everloop.monitoring.measures.multivariate import DomainShift, ReconstructionShift
    from everloop.records import Incident, Json

ColumnRole = Literal["input", "prediction", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeWindow:
    """One stretch of time of the current table, `since` included and `until` excluded; both None without a time."""

    since: datetime | None
    until: datetime | None
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoredColumn:
    """A column of both tables.

    Attributes:
        reference: distribution of the reference.
        current: distribution of all rows of the current table.
        verdict: the worst verdict of any window.
        psi: largest PSI of any window, in nats.
        strength: how surprising that window was, as a share of the limit; from 1 on it opens an incident.
        p_value: probability of such a window if nothing has changed.
        statistics: further distances of that window, by name.
        psi_by_window: PSI of each window.
        strengths: how surprising each window was, as a share of the limit.
        verdicts: verdict of each window.
        strong: whether each window was surprising enough to open an incident beside an ongoing one.
    """

    name: str
    role: ColumnRole
    reference: Sketch
    current: Sketch
    verdict: Verdict
    psi: float
    strength: float
    p_value: float
    statistics: dict[str, float] = field(default_factory=dict)
    psi_by_window: tuple[float, ...] = ()
    strengths: tuple[float, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    strong: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoredPair:
    """Two inputs whose correlation has changed; the fields are those of `MonitoredColumn`.

    Attributes:
        before: rank correlation in the reference, -1 to 1.
        now: the same in the most surprising window.
        change: difference of Fisher's z between the two.
    """

    names: tuple[str, str]
    before: float
    now: float
    change: float
    verdict: Verdict
    strength: float
    p_value: float
    verdicts: tuple[Verdict, ...] = ()
    strong: tuple[bool, ...] = ()

    @property
    def name(self) -> str:
        return " and ".join(self.names)

    def message(self) -> str:
        return pair_sentence(self.names, self.before, self.now)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """A metric of one window with its 95 % interval; None where it is undefined, as without labels."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSeries:
    """A metric over the windows of a report.

    Attributes:
        reference: the metric on the reference.
        points: the metric of each window, from labels.
        verdicts: verdict of each window.
        estimates: what the metric is estimated to be without labels, for each window; empty if it was not estimated.
    """

    metric: str
    greater_is_better: bool
    reference: MetricPoint
    points: tuple[MetricPoint, ...]
    verdicts: tuple[Verdict, ...]
    estimates: tuple[MetricPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JointChange:
    """How all inputs together differ from the reference.

    Attributes:
        classifier: how well a classifier tells the tables apart.
        reconstruction: how far rows are from their projections on the reference's components; None without numbers.
    """

    classifier: DomainShift
    reconstruction: ReconstructionShift | None = None

    def sentences(self) -> list[str]:
        """Return the result in words."""
        found = self.classifier
        text = f"A classifier tells the current table from the reference with an area of {found.auc:.3f} under its ROC"
        text += f" curve (95 % interval {found.low:.3f} to {found.high:.3f}); it would be 0.5 if the two were alike."
        sentences = [text]
        if found.low > 0.5:
            named = ", ".join(f"'{name}'" for name in list(found.contributions)[:3])
            sentences.append(f"It mostly uses {named}.")
        if self.reconstruction is not None:
            now = self.reconstruction
            sentences.append(
                f"The mean distance of rows from the main components of the reference is {now.error:.3g}; "
                f"{now.expected:.3g} was expected (p = {now.p_value:.2g})."
            )
        return sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityNote:
    """A remark on the quality of the current data. `grave`: it probably harms a model."""

    column: str | None
    message: str
    grave: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringReport:
    """What monitoring found in a current table, compared with a reference.

    Attributes:
        incidents: newest first.
        columns: the column that has moved most first.
        pairs: pairs of inputs whose correlation has changed in some window, the most surprising first.
        joint: how all inputs together differ from the reference; None if it was not measured.
        skipped: columns that are not monitored, with the reason.
        remarks: what limits the result, such as missing labels.
    """

    reference_name: str
    current_name: str
    reference_rows: int
    current_rows: int
    windows: tuple[TimeWindow, ...]
    columns: tuple[MonitoredColumn, ...]
    pairs: tuple[MonitoredPair, ...] = ()
    joint: JointChange | None = None
    incidents: tuple[Incident, ...] = ()
    performance: MetricSeries | None = None
    quality: tuple[QualityNote, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def open_alarms(self) -> tuple[Incident, ...]:
        return tuple(one for one in self.incidents if one.severity == "alarm" and one.state in ONGOING)

    @property
    def headline(self) -> str:
        """The answer to whether there is anything to worry about, in a sentence or two."""
        alarms = self.open_alarms
        notices = [one for one in self.incidents if one.severity == "notice" and one.state in ONGOING]
        over = len(self.incidents) - len(alarms) - len(notices)
        ended = f" {_counted(over, 'earlier incident is', 'earlier incidents are')} over." if over else ""
        if alarms:
            return f"{_counted(len(alarms), 'alarm needs', 'alarms need')} attention. {alarms[0].title}{ended}"
        if notices:
            return f"No alarm. {_counted(len(notices), 'change', 'changes')} to know about. {notices[0].title}{ended}"
        if ended:
            return f"Nothing to worry about now.{ended}"
        compared = _counted(len(self.columns), "column behaves", "columns behave")
        return f"Nothing to worry about: {compared} as in the reference."

    def to_json(self) -> dict[str, Json]:
        """Return the report as JSON. Distributions are left out; numbers that are not finite are null."""
        return {
            "headline": self.headline,
            "reference": {"name": self.reference_name, "rows": self.reference_rows},
            "current": {"name": self.current_name, "rows": self.current_rows},
            "windows": [
                {"from": _moment(one.since), "to": _moment(one.until), "rows": one.rows} for one in self.windows
            ],
            "incidents": [_incident_json(one) for one in self.incidents],
            "columns": [_column_json(one) for one in self.columns],
            "pairs": [_pair_json(one) for one in self.pairs],
            "joint": asdict(self.joint) if self.joint is not None else None,
            "performance": _series_json(self.performance) if self.performance is not None else None,
            "quality": [{"column": one.column, "message": one.message, "grave": one.grave} for one in self.quality],
            "skipped": dict(self.skipped),
            "remarks": list(self.remarks),
        }


def _incident_json(incident: Incident) -> dict[str, Json]:
    return {
        "kind": incident.kind,
        "severity": incident.severity,
        "state": incident.state,
        "title": incident.title,
        "message": incident.message,
        "subjects": list(incident.subjects),
        "began_at": _moment(incident.began_at),
        "seen_at": _moment(incident.seen_at),
        "resolved_at": _moment(incident.resolved_at),
    }


def _column_json(column: MonitoredColumn) -> dict[str, Json]:
    return {
        "name": column.name,
        "role": column.role,
        "verdict": column.verdict,
        "psi": _finite(column.psi),
        "strength": _finite(column.strength),
        "p_value": _finite(column.p_value),
        **{name: _finite(value) for name, value in column.statistics.items()},
        "missing": [
            sketch.counts[0] / sketch.rows if sketch.rows else None for sketch in (column.reference, column.current)
        ],
        "psi_by_window": [_finite(value) for value in column.psi_by_window],
        "verdicts": list(column.verdicts),
    }


def _pair_json(pair: MonitoredPair) -> dict[str, Json]:
    return {
        "columns": list(pair.names),
        "verdict": pair.verdict,
        "correlation": [_finite(pair.before), _finite(pair.now)],
        "strength": _finite(pair.strength),
        "p_value": _finite(pair.p_value),
        "verdicts": list(pair.verdicts),
    }


def _series_json(series: MetricSeries) -> dict[str, Json]:
    return {
        "metric": series.metric,
        "greater_is_better": series.greater_is_better,
        "reference": _point_json(series.reference),
        "windows": [_point_json(point) for point in series.points],
        "verdicts": list(series.verdicts),
        "estimates": [_point_json(point) for point in series.estimates],
    }


def _point_json(point: MetricPoint) -> dict[str, Json]:
    return {"value": point.value, "low": point.low, "high": point.high, "rows": point.rows}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
