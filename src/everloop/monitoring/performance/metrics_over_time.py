"""Any metrics over time with their intervals, by version and by slice of an input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, UsageError
from everloop.monitoring.performance.custom_metrics import RowMetric
from everloop.monitoring.performance.labelled_predictions import input_of, read_performance_rows, task_of_rows
from everloop.monitoring.performance.performance_checks import measure_labelled, usual_metric
from everloop.training.metrics import Metric, get_metric

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.stores import Store

AnyMetric = str | Metric | RowMetric


def performance_over_time(
    store: Store,
    endpoint: str,
    metrics: AnyMetric | Sequence[AnyMetric] | None = None,
    every: str = "1mo",
    *,
    by: str | Sequence[str] = (),
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    labels_after: str | timedelta = "0s",
) -> pl.DataFrame:
    """Measure metrics for each period of predictions, and optionally for each slice.

    Args:
        metrics: names in `everloop.training.METRICS`, `cost_metric(...)`, `custom_metric(...)` or a `RowMetric`.
            Default: the usual metric of the model's task.
        every: length of a period in Polars' notation, such as `1d`, `1w` or `1mo`.
        by: inputs, or `version`, whose values define slices. Numbers and times with many values are divided into
            quarters of the whole period; of many categories, the 20 most frequent have a slice of their own.
        version: key of the version whose predictions count. None: all predictions that clients received.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.
        labels_after: predictions younger than this are left out.

    Returns:
        One row for each period, slice and metric: `from`, `to`, the columns of `by`, `metric`, `predictions`,
        `labelled`, `value`, and the 95 % interval from `low` to `high` (null if undefined).

    Raises:
        EmptySampleError: there are no predictions.
        NotFoundError: the endpoint does not exist.
        UsageError: a metric does not exist or does not fit the model's task, an input does not exist, or the period
            cannot be read.
    """
    rows = read_performance_rows(store, endpoint, since, until, version=version, labels_after=labels_after)
    given = metrics if metrics is not None else usual_metric(store, endpoint, version=version)
    task = task_of_rows(store, rows)
    for one in _listed(given):
        if not isinstance(one, RowMetric):
            get_metric(one, task)
    return measure_over_time(rows, given, every, by=by)


def measure_over_time(
    rows: pl.DataFrame,
    metrics: AnyMetric | Sequence[AnyMetric],
    every: str = "1mo",
    *,
    by: str | Sequence[str] = (),
) -> pl.DataFrame:
    """Measure metrics of any table, as `performance_over_time` does.

    Args:
        rows: columns `event_at` (date or time), `score` (or `scores`, a list for each row), `actual` (0/1, index of the
            class, or number; null if unknown), and those of `by`.
        metrics: as in `performance_over_time`.
        every: as in `performance_over_time`.
        by: columns whose values define slices.

    Raises:
        DataError: a column is missing.
        UsageError: a metric or a column of `by` does not exist, or the period cannot be read.
    """
    import polars as pl

    for name in ("event_at", "actual"):
        if name not in rows.columns:
            raise DataError(f"The rows have no column '{name}'.", help=f"They have: {', '.join(rows.columns)}")
    named = {one if isinstance(one, str) else one.name: one for one in _listed(metrics)}
    for one in named.values():
        if not isinstance(one, RowMetric):
            get_metric(one)
    slices = [by] if isinstance(by, str) else list(by)
    cut = _cut(rows, every, slices)
    found: list[dict[str, Any]] = []
    keys = ["from", "to", *(_key(name) for name in slices)]
    for key, part in cut.group_by(keys, maintain_order=True):
        labelled = part.filter(pl.col("actual").is_not_null() | _has_label(part))
        for name, metric in named.items():
            measured = measure_labelled(labelled, metric) if labelled.height else None
            numbers = (measured.value, measured.low, measured.high) if measured else (None,) * 3
            found.append(
                {
                    **dict(zip(keys, key, strict=True)),
                    "metric": name,
                    "predictions": part.height,
                    "labelled": labelled.height,
                    **dict(zip(("value", "low", "high"), map(_finite, numbers), strict=True)),
                }
            )
    schema: dict[str, Any] = {
        **{name: cut.schema[name] for name in keys},
        "metric": pl.String(),
        "predictions": pl.Int64(),
        "labelled": pl.Int64(),
        **dict.fromkeys(("value", "low", "high"), pl.Float64()),
    }
    return pl.DataFrame(found, schema=schema).rename(dict(zip(keys[2:], slices, strict=True)))


def cut_into_periods(rows: pl.DataFrame, every: str) -> pl.DataFrame:
    """Add the columns `from` and `to`, the period of each row, and sort by it. Rows without a time are left out.

    Raises:
        UsageError: the period cannot be read, or `event_at` is not a date or a time.
    """
    import polars as pl

    if rows.schema["event_at"] not in (pl.Date, pl.Datetime):
        raise UsageError(
            f"'event_at' is {rows.schema['event_at']}, not a date or a time.", help="Parse it, as with str.to_datetime."
        )
    try:
        started = rows.filter(pl.col("event_at").is_not_null()).with_columns(
            pl.col("event_at").dt.truncate(every).alias("from")
        )
        return started.with_columns(pl.col("from").dt.offset_by(every).alias("to")).sort("from", maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"'{every}' is not a period: {error}", help="Write 1d, 1w, 1mo or 1q.") from error


def _cut(rows: pl.DataFrame, every: str, slices: Sequence[str]) -> pl.DataFrame:
    from everloop.training.evaluation import slice_labels

    columns = {_key(name): slice_labels(rows[input_of(rows, name)]) for name in slices}
    cut = cut_into_periods(rows.with_columns(series.alias(key) for key, series in columns.items()), every)
    return cut.sort("from", *columns, maintain_order=True)


def _key(name: str) -> str:
    """Return the column of a slice while measuring; a row metric may need the column with the name itself."""
    return f"slice {name}"


def _has_label(rows: pl.DataFrame) -> pl.Expr:
    import polars as pl

    # A label that is not a class of the model has no number.
    return pl.col("actual_text").is_not_null() if "actual_text" in rows.columns else pl.lit(False)


def _listed(metrics: AnyMetric | Sequence[AnyMetric]) -> list[AnyMetric]:
    return [metrics] if isinstance(metrics, str | Metric | RowMetric) else list(metrics)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
