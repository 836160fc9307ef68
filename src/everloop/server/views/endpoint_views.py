"""The pages about endpoints: who answers, how much, how fast, and how a release is going."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from everloop.records import EndpointRecord, Finding, Incident, ModelVersion, Release

if TYPE_CHECKING:
    from everloop.stores import Store

PERIODS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
MOST_PERIODS = 400
_MOST_FINDINGS = 5000


@dataclass(frozen=True, slots=True)
class TrafficPoint:
    """What one version answered in one period."""

    at: datetime
    """Start of the period."""
    version: str
    role: str
    rows: int
    p50_ms: float | None
    p99_ms: float | None
    mean_score: float | None


@dataclass(frozen=True, slots=True)
class MetricWindow:
    """A metric of live predictions in one window, with its 95 % interval."""

    since: datetime
    until: datetime
    metric: str
    version: str | None
    value: float | None
    low: float | None
    high: float | None
    severity: str


@dataclass(frozen=True, slots=True)
class EndpointDetail:
    """An endpoint. `traffic` and `performance` are oldest first; releases and incidents newest first."""

    endpoint: EndpointRecord
    champion: ModelVersion | None
    releases: list[Release]
    incidents: list[Incident]
    traffic: list[TrafficPoint]
    every: str
    """Length of a period of `traffic`: hour, day or week."""
    failures: dict[str, int]
    """Failed requests by HTTP status, in the span of `traffic`."""
    performance: list[MetricWindow]


@dataclass(frozen=True, slots=True)
class HeatCell:
    """How far a subject was from its reference in one window."""

    subject: str
    since: datetime
    value: float
    severity: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Drift of features over time. `windows` are the starts of the windows, oldest first."""

    endpoint: str
    subjects: list[str]
    windows: list[datetime]
    cells: list[HeatCell]


def read_endpoint(store: Store, name: str) -> EndpointDetail:
    """Return one endpoint.

    Raises:
        NotFoundError: the endpoint does not exist.
    """
    records = store.records
    endpoint = records.get(EndpointRecord, name)
    answering = next((route.version for route in endpoint.routes if route.role == "champion"), None)
    champions = records.find(ModelVersion, ("key", "=", answering), limit=1) if answering else []
    traffic, every, since = _traffic(store, name)
    return EndpointDetail(
        endpoint=endpoint,
        champion=champions[0] if champions else None,
        releases=records.find(Release, ("endpoint", "=", name), order="-id", limit=50),
        incidents=records.find(Incident, ("endpoint", "=", name), order="-id", limit=50),
        traffic=traffic,
        every=every,
        failures=_failures(store, name, since),
        performance=read_performance(store, name),
    )


def read_performance(store: Store, endpoint: str) -> list[MetricWindow]:
    """Return the live metric in the windows that a watch has measured, oldest first."""
    found = store.records.find(
        Finding,
        ("kind", "=", "performance"),
        ("endpoint", "=", endpoint),
        ("subject", "!=", "window"),
        order="-id",
        limit=MOST_PERIODS,
    )
    windows = [
        MetricWindow(
            since=one.window_from,
            until=one.window_to,
            metric=one.subject,
            version=one.version,
            value=one.value,
            low=_number(one.evidence.get("low")),
            high=_number(one.evidence.get("high")),
            severity=one.severity,
        )
        for one in found
    ]
    return sorted(windows, key=lambda one: one.since)


def read_heat_map(store: Store, endpoint: str, kind: str = "drift") -> HeatMap:
    """Return how far each feature was from the reference in each window that was checked.

    Raises:
        NotFoundError: the endpoint does not exist.
    """
    store.records.get(EndpointRecord, endpoint)
    found = store.records.find(
        Finding, ("kind", "=", kind), ("endpoint", "=", endpoint), order="-id", limit=_MOST_FINDINGS
    )
    cells: dict[tuple[str, datetime], HeatCell] = {}
    for one in found:
        # How two features move together has no distance that could be compared with those of single features.
        if one.value is not None and one.subject != "window" and " × " not in one.subject:
            cells.setdefault(
                (one.subject, one.window_from), HeatCell(one.subject, one.window_from, one.value, one.severity)
            )
    highest: dict[str, float] = {}
    for cell in cells.values():
        highest[cell.subject] = max(highest.get(cell.subject, 0.0), cell.value)
    windows = sorted({one.window_from for one in found})
    return HeatMap(endpoint, sorted(highest, key=lambda name: -highest[name]), windows, list(cells.values()))


def _traffic(store: Store, name: str) -> tuple[list[TrafficPoint], str, datetime]:
    import polars as pl

    from everloop.prediction_log import read_predictions

    log = read_predictions(store, name)
    span = log.select(pl.col("event_at").min().alias("first"), pl.col("event_at").max().alias("last")).collect().row(0)
    now = store.now()
    if span[0] is None:
        return [], "hour", now - timedelta(days=1)
    first, last = span
    every = next((one for one, length in PERIODS.items() if (last - first) / length <= 120), "week")
    since = max(first, last - PERIODS[every] * MOST_PERIODS)
    columns = log.collect_schema().names()
    score = pl.col("score").mean() if "score" in columns else pl.lit(None, pl.Float64)
    rows = (
        log.filter(pl.col("event_at") >= since)
        .group_by(
            pl.col("event_at").dt.truncate({"hour": "1h", "day": "1d", "week": "1w"}[every]).alias("at"),
            "version",
            "role",
        )
        .agg(
            pl.len().alias("rows"),
            (pl.col("seconds").quantile(0.5) * 1000).alias("p50_ms"),
            (pl.col("seconds").quantile(0.99) * 1000).alias("p99_ms"),
            score.alias("mean_score"),
        )
        .sort("at", "version", "role")
        .collect()
    )
    traffic = [
        TrafficPoint(
            row["at"],
            row["version"],
            row["role"],
            row["rows"],
            row["p50_ms"],
            row["p99_ms"],
            _number(row["mean_score"]),
        )
        for row in rows.iter_rows(named=True)
    ]
    return traffic, every, since


def _failures(store: Store, name: str, since: datetime) -> dict[str, int]:
    import polars as pl

    from everloop.prediction_log.failure_log import client_failures, fold_failures

    if not store.read_only:
        fold_failures(store, name)
    rows = client_failures(store, name, since=since)
    if rows is None:
        return {}
    counts = rows.group_by("status").agg(pl.col("requests").sum()).sort("status").collect()
    return {str(status): int(requests) for status, requests in counts.iter_rows()}


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf"):
        return float(value)
    return None
