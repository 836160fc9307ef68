"""Estimated performance over time beside what labels have shown since, and whether they contradict the estimate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, EmptySampleError
from everloop.monitoring.performance.confidence_estimation import ConfidenceEstimator
from everloop.monitoring.performance.labelled_predictions import read_performance_rows
from everloop.monitoring.performance.metrics_over_time import cut_into_periods
from everloop.monitoring.performance.score_columns import plain_inputs, scores_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import polars as pl

    from everloop.monitoring.performance.label_expectations import Estimator
    from everloop.monitoring.performance.performance_estimates import EstimateCheck, PerformanceEstimate
    from everloop.stores import Store


def estimates_over_time(
    store: Store,
    endpoint: str,
    estimator: Estimator,
    metrics: str | Sequence[str] | None = None,
    every: str = "1mo",
    *,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """Estimate metrics of each period of predictions, and compare them with labels where these have arrived.

    Args:
        estimator: fitted on labelled rows of the same version.
        metrics: names of metrics. Default: all that the estimator knows.
        every: length of a period in Polars' notation, such as `1d`, `1w` or `1mo`.
        version: key of the version whose predictions count. None: all predictions that clients received.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.

    Returns:
        As `estimate_periods`.

    Raises:
        EmptySampleError: there are no predictions.
        NotFoundError: the endpoint does not exist.
        UsageError: a metric cannot be estimated, or the period cannot be read.
    """
    return estimate_periods(
        read_performance_rows(store, endpoint, since, until, version=version), estimator, metrics, every
    )


def estimate_periods(
    rows: pl.DataFrame,
    estimator: Estimator,
    metrics: str | Sequence[str] | None = None,
    every: str = "1mo",
) -> pl.DataFrame:
    """Estimate metrics of each period of any table.

    Args:
        rows: columns `event_at` (date or time), `score` (or `scores`), and the inputs for a `LossEstimator`, under
            their own names or as `input_<name>`. With `actual`, estimates are compared with labels.
        estimator: fitted on labelled rows of the same model.
        metrics: names of metrics. Default: all that the estimator knows.
        every: length of a period.

    Returns:
        One row for each period and metric: `from`, `to`, `metric`, `predictions`, `estimate` with its 95 % interval
        from `low` to `high`, `labelled`, and for the labelled rows alone `estimate_labelled`, `realised`, `p_value`
        (of the hypothesis that the difference is chance). `reason` says why the estimates are not trusted; null if they
        are. Once labels have contradicted the assumption, it stays until most labels of a period agree with it again.

    Raises:
        DataError: a column is missing.
        UsageError: a metric cannot be estimated, or the period cannot be read.
    """
    import polars as pl

    if "event_at" not in rows.columns:
        raise DataError("The rows have no column 'event_at'.", help=f"They have: {', '.join(rows.columns)}")
    found: list[dict[str, Any]] = []
    distrust: str | None = None
    for (start, end), part in cut_into_periods(rows, every).group_by("from", "to", maintain_order=True):
        try:
            estimates = _estimate(estimator, part, metrics)
        except EmptySampleError:
            continue
        labelled = part.filter(pl.col("actual").cast(float).is_finite()) if "actual" in part.columns else part.clear()
        checks = _checks(estimator, labelled, list(estimates))
        # All estimates share one assumption, so the first contradiction is about all of them.
        reasons = [check.reason for check in checks.values() if check.reason is not None]
        if reasons or labelled.height >= part.height / 2:
            distrust = next(iter(reasons), None)
        for name, estimate in estimates.items():
            check = checks.get(name)
            found.append(
                {
                    "from": start,
                    "to": end,
                    "metric": name,
                    "predictions": part.height,
                    "estimate": _finite(estimate.value),
                    "low": _finite(estimate.low),
                    "high": _finite(estimate.high),
                    "labelled": labelled.height,
                    "estimate_labelled": _finite(check.estimated) if check else None,
                    "realised": _finite(check.realised) if check else None,
                    "p_value": check.p_value if check else None,
                    "reason": distrust,
                }
            )
    moment = rows.schema["event_at"]
    schema: dict[str, Any] = {
        "from": moment,
        "to": moment,
        "metric": pl.String(),
        "predictions": pl.Int64(),
        "estimate": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "labelled": pl.Int64(),
        "estimate_labelled": pl.Float64(),
        "realised": pl.Float64(),
        "p_value": pl.Float64(),
        "reason": pl.String(),
    }
    return pl.DataFrame(found, schema=schema)


def _estimate(
    estimator: Estimator, rows: pl.DataFrame, metrics: str | Sequence[str] | None
) -> dict[str, PerformanceEstimate]:
    if isinstance(estimator, ConfidenceEstimator):
        return estimator.estimate(scores_of(rows), metrics)
    return estimator.estimate(plain_inputs(rows), scores_of(rows), metrics)


def _checks(estimator: Estimator, labelled: pl.DataFrame, metrics: Sequence[str]) -> dict[str, EstimateCheck]:
    if labelled.height == 0:
        return {}
    actual = labelled["actual"].cast(float).to_numpy()
    try:
        if isinstance(estimator, ConfidenceEstimator):
            found = estimator.check(scores_of(labelled), actual, list(metrics))
        else:
            found = estimator.check(plain_inputs(labelled), scores_of(labelled), actual, list(metrics))
    except EmptySampleError:
        return {}
    return {check.metric: check for check in found}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
