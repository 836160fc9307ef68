"""How many predictions have a label yet, and how long labels take.

If a label was sent several times for the same event time, its first arrival counts.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.monitoring.performance.labelled_predictions import read_performance_rows
from everloop.monitoring.performance.metrics_over_time import cut_into_periods
from everloop.prediction_log.prediction_log import LABELS, table_name
from everloop.stores.durations import parse_duration
from everloop.training.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import polars as pl

    from everloop.stores import Store

AGES = ("1h", "6h", "1d", "3d", "7d", "14d", "30d", "60d", "90d")
_QUANTILES = {"delay_p50_s": 0.5, "delay_p90_s": 0.9, "delay_p99_s": 0.99}


def label_coverage(
    store: Store,
    endpoint: str,
    every: str = "1mo",
    *,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """Return for each period of predictions the share with a label, and how long labels took to arrive.

    Args:
        every: length of a period in Polars' notation, such as `1d`, `1w` or `1mo`.
        version: key of the version whose predictions count. None: all predictions that clients received.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.

    Returns:
        One row for each period: `from`, `to`, `predictions`, `without_key` (they can never have a label), `labelled`,
        `coverage` (`labelled` of all predictions, with its 95 % interval from `low` to `high`), `delay_p50_s`,
        `delay_p90_s` and `delay_p99_s` (quantiles of the time from `event_at` of the prediction to the arrival of the
        label, in seconds; null without labels), and `early` (labels that arrived before `event_at`).

    Raises:
        EmptySampleError: there are no predictions.
        NotFoundError: the endpoint does not exist.
        UsageError: the period cannot be read.
    """
    import polars as pl

    rows = _with_first_arrivals(store, endpoint, since, until, version)
    delay = (pl.col("label_arrived_at") - pl.col("event_at")).dt.total_microseconds() / 1e6
    found: pl.DataFrame = (
        cut_into_periods(rows, every)
        .group_by("from", "to", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("predictions"),
            pl.col("entity").null_count().cast(pl.Int64).alias("without_key"),
            pl.col("label_arrived_at").count().cast(pl.Int64).alias("labelled"),
            *(delay.quantile(q, "linear").alias(name) for name, q in _QUANTILES.items()),
            (delay < 0).sum().cast(pl.Int64).alias("early"),
        )
    )
    return _with_share(found, "labelled", "predictions").select(
        "from", "to", "predictions", "without_key", "labelled", "coverage", "low", "high", *_QUANTILES, "early"
    )


def label_coverage_by_age(
    store: Store,
    endpoint: str,
    ages: Sequence[str] = AGES,
    *,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """Return which share of the predictions has its label within an age, among predictions that are that old.

    Predictions that are younger do not count for an age, because their labels may still arrive.

    Args:
        ages: durations such as `6h` or `30d`.
        version: key of the version whose predictions count. None: all predictions that clients received.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.

    Returns:
        One row for each age: `age`, `age_s`, `predictions` (that are at least that old), `labelled` (within the age),
        `coverage` and its 95 % interval from `low` to `high` (null without predictions).

    Raises:
        EmptySampleError: there are no predictions.
        NotFoundError: the endpoint does not exist.
        UsageError: an age is not a duration above zero.
    """
    import polars as pl

    spans = {parse_duration(age): age for age in reversed(ages)}
    if not spans or min(spans) <= timedelta(0):
        raise UsageError(f"Ages must be durations above zero, not {list(ages)}.", help="Write 6h, 1d or 30d.")
    rows = _with_first_arrivals(store, endpoint, since, until, version)
    now = store.now()
    found: list[dict[str, Any]] = []
    for span, age in sorted(spans.items()):
        due = rows.filter(pl.col("event_at") <= now - span)
        labelled = due.filter(pl.col("label_arrived_at") - pl.col("event_at") <= span).height
        found.append({"age": age, "age_s": span.total_seconds(), "predictions": due.height, "labelled": labelled})
    schema = {"age": pl.String, "age_s": pl.Float64, "predictions": pl.Int64, "labelled": pl.Int64}
    return _with_share(pl.DataFrame(found, schema=schema), "labelled", "predictions")


def _with_first_arrivals(
    store: Store, endpoint: str, since: datetime | None, until: datetime | None, version: str | None
) -> pl.DataFrame:
    import polars as pl

    rows = read_performance_rows(store, endpoint, since, until, version=version)
    table = table_name(store, LABELS, endpoint)
    if rows["label_arrived_at"].null_count() == rows.height:
        return rows
    arrivals = (
        store.as_of(store.now())
        .tables.scan(table)
        .group_by("entity", pl.col("event_at").alias("label_event_at"))
        .agg(pl.col("arrived_at").min().alias("_first"))
        .collect()
    )
    joined = rows.join(arrivals, on=["entity", "label_event_at"], how="left", maintain_order="left")
    return joined.with_columns(pl.min_horizontal("_first", "label_arrived_at").alias("label_arrived_at"))


def _with_share(counts: pl.DataFrame, some: str, all_: str) -> pl.DataFrame:
    import polars as pl

    pairs = list(zip(counts[some].to_list(), counts[all_].to_list(), strict=True))
    bounds = [wilson(part, whole) if whole else (None, None) for part, whole in pairs]
    return counts.with_columns(
        pl.Series("coverage", [part / whole if whole else None for part, whole in pairs], dtype=pl.Float64),
        pl.Series("low", [low for low, _ in bounds], dtype=pl.Float64),
        pl.Series("high", [high for _, high in bounds], dtype=pl.Float64),
    )
