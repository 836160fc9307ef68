"""What labels say about an endpoint: its metric by period, realised and estimated, and how late labels arrive."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from everloop.errors import EverloopError
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    import polars as pl

    from everloop.stores import Store

_PERIODS = (("1d", 60), ("1w", 420), ("1mo", 1_000_000))
"""The shortest period in which this many days are drawn."""


@dataclass(frozen=True, slots=True)
class MetricPeriod:
    """A metric in one period. `value` is measured with labels, `estimate` without; each with its 95 % interval."""

    since: datetime
    until: datetime
    predictions: int
    labelled: int
    value: float | None
    low: float | None
    high: float | None
    estimate: float | None = None
    estimate_low: float | None = None
    estimate_high: float | None = None
    distrust: str | None = None
    """Why the estimate is not to be trusted; None if labels agree with it."""


@dataclass(frozen=True, slots=True)
class LabelPeriod:
    """How many predictions of a period have a label, and how long labels took, in seconds."""

    since: datetime
    predictions: int
    labelled: int
    coverage: float | None
    delay_p50_s: float | None
    delay_p90_s: float | None


@dataclass(frozen=True, slots=True)
class LabelAge:
    """The share of predictions that have a label when they are this old, among those that are."""

    age: str
    predictions: int
    coverage: float | None


@dataclass(frozen=True, slots=True)
class LabelDetail:
    """Labels of one endpoint, oldest period first. `note` says why there is nothing, or no estimate."""

    endpoint: str
    metric: str | None
    every: str
    periods: list[MetricPeriod]
    labels: list[LabelPeriod]
    ages: list[LabelAge]
    note: str | None


def read_labels_of(store: Store, endpoint: str, *, estimate: bool) -> LabelDetail:
    """Return what labels say about an endpoint.

    Args:
        estimate: whether to estimate the metric as well, which takes seconds for many predictions.

    Raises:
        NotFoundError: the endpoint does not exist.
    """
    from everloop.monitoring import label_coverage, label_coverage_by_age, performance_by, usual_metric

    store.records.get(EndpointRecord, endpoint)
    every = _period(store, endpoint)
    if every is None:
        return LabelDetail(endpoint, None, "1d", [], [], [], "There are no predictions yet.")
    labels = [
        LabelPeriod(
            row["from"],
            row["predictions"],
            row["labelled"],
            row["coverage"],
            row["delay_p50_s"],
            row["delay_p90_s"],
        )
        for row in label_coverage(store, endpoint, every).iter_rows(named=True)
    ]
    ages = [
        LabelAge(row["age"], row["predictions"], row["coverage"])
        for row in label_coverage_by_age(store, endpoint).iter_rows(named=True)
        if row["predictions"]
    ]
    try:
        metric = usual_metric(store, endpoint)
        measured = performance_by(store, endpoint, metric, every, approximate=True)
    except EverloopError as error:
        return LabelDetail(endpoint, None, every, [], labels, ages, error.message)
    estimates, note = _estimates(store, endpoint, metric, every) if estimate else ({}, None)
    return LabelDetail(endpoint, metric, every, _periods(measured, estimates), labels, ages, note)


def _period(store: Store, endpoint: str) -> str | None:
    """Return the length of a period in which the endpoint's whole time fits into one drawing; None without rows."""
    import polars as pl

    from everloop.prediction_log import read_predictions

    at = pl.col("event_at")
    first, last = read_predictions(store, endpoint).select(at.min().alias("a"), at.max().alias("b")).collect().row(0)
    if first is None:
        return None
    return next(every for every, days in _PERIODS if (last - first).days <= days)


def _estimates(
    store: Store, endpoint: str, metric: str, every: str
) -> tuple[dict[datetime, dict[str, Any]], str | None]:
    from everloop.monitoring.performance.learned_estimates import learned_estimates

    try:
        found = learned_estimates(store, endpoint, metric, every)
    except EverloopError as error:
        return {}, f"Without an estimate: {error.message}"
    note = "The estimate is learned from the first half of the labelled predictions, and drawn for those after it."
    return {row["from"]: row for row in found.iter_rows(named=True)}, note


def _periods(measured: pl.DataFrame, estimates: dict[datetime, dict[str, Any]]) -> list[MetricPeriod]:
    found: dict[datetime, MetricPeriod] = {}
    for row in measured.iter_rows(named=True):
        estimate = estimates.get(row["from"], {})
        found[row["from"]] = MetricPeriod(
            since=row["from"],
            until=row["to"],
            predictions=row["predictions"],
            labelled=row["labelled"],
            value=_finite(row["value"]),
            low=_finite(row["low"]),
            high=_finite(row["high"]),
            estimate=_finite(estimate.get("estimate")),
            estimate_low=_finite(estimate.get("low")),
            estimate_high=_finite(estimate.get("high")),
            distrust=cast("str | None", estimate.get("reason")),
        )
    return [found[since] for since in sorted(found)]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else None
