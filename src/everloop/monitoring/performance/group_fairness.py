"""Fairness between groups over time: how often each is selected, and how often rightly.

For a model of two classes, each group is compared with all other rows of the period. The interval of a rate is
Wilson's, that of a difference Newcombe's hybrid of both: "Interval estimation for the difference between independent
proportions", Statistics in Medicine 17 (1998), method 10. The measures are those of Hardt, Price and Srebro, "Equality
of opportunity in supervised learning" (NIPS 2016); the selection rate is demographic parity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, UsageError
from everloop.monitoring.performance.labelled_predictions import input_of, read_performance_rows, task_of_rows
from everloop.monitoring.performance.metrics_over_time import cut_into_periods
from everloop.records import ModelVersion
from everloop.training.intervals import newcombe, wilson

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.stores import Store

_MEASURES = ("selection_rate", "true_positive_rate", "false_positive_rate", "precision")


def fairness_over_time(
    store: Store,
    endpoint: str,
    by: str,
    every: str = "1mo",
    *,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    labels_after: str | timedelta = "0s",
) -> pl.DataFrame:
    """Measure fairness between the groups that an input defines, for each period of predictions.

    Args:
        by: an input, or `version`. Numbers with many values are divided into quarters.
        every: length of a period in Polars' notation, such as `1d`, `1w` or `1mo`.
        version: key of the version whose predictions count. None: all predictions that clients received.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.
        labels_after: predictions younger than this are left out.

    Returns:
        As `measure_fairness`.

    Raises:
        EmptySampleError: there are no predictions.
        NotFoundError: the endpoint does not exist.
        UsageError: the model does not predict two classes, the input does not exist, or the period cannot be read.
    """
    import polars as pl

    rows = read_performance_rows(store, endpoint, since, until, version=version, labels_after=labels_after)
    task = task_of_rows(store, rows)
    if task not in (None, "binary"):
        raise UsageError(
            f"Fairness is measured for models of two classes, and '{endpoint}' is {task}.",
            help="Compare its groups with: everloop monitor performance ENDPOINT --by COLUMN",
        )
    column = input_of(rows, by)
    decided = _decisions(store, rows).cast(pl.Float64).alias("predicted")
    return measure_fairness(rows.with_columns(decided), column, every).rename({column: by})


def measure_fairness(rows: pl.DataFrame, by: str, every: str = "1mo") -> pl.DataFrame:
    """Measure fairness between groups in any table.

    Args:
        rows: columns `event_at` (date or time), `actual` (0/1, null if unknown), `predicted` (0/1) or else `score`
            (positive from one half), and `by`.
        by: column whose values define the groups.
        every: length of a period, such as `1d`, `1w` or `1mo`.

    Returns:
        One row for each period, group and measure: `from`, `to`, the column `by`, `measure` (selection_rate,
        true_positive_rate, false_positive_rate or precision), `rows` (the ones that the rate is a share of), `value`,
        `low`, `high`, `rest` (the rate of all other groups), and `gap` (`value` - `rest`) from `gap_low` to `gap_high`.
        Rates without rows are null.

    Raises:
        DataError: a column is missing, or a value is not 0 or 1.
        UsageError: the period cannot be read.
    """
    import polars as pl

    from everloop.training.evaluation import slice_labels

    for name in ("event_at", "actual", by):
        if name not in rows.columns:
            raise DataError(f"The rows have no column '{name}'.", help=f"They have: {', '.join(rows.columns)}")
    if "predicted" in rows.columns:
        decided = pl.col("predicted").cast(pl.Float64)
    elif "score" in rows.columns:
        decided = (pl.col("score").cast(pl.Float64).fill_nan(None) >= 0.5).cast(pl.Float64)
    else:
        raise DataError("The rows have neither 'predicted' nor 'score'.", help="Add the predicted class.")
    plain = rows.select(
        "event_at",
        slice_labels(rows[by]).alias("group"),
        decided.fill_nan(None).alias("predicted"),
        pl.col("actual").cast(pl.Float64).fill_nan(None).alias("actual"),
    )
    for name in ("predicted", "actual"):
        strange = plain[name].drop_nulls().filter(~plain[name].drop_nulls().is_in([0.0, 1.0]))
        if len(strange):
            raise DataError(
                f"'{name}' has the value {strange[0]:g}, not 0 or 1.", help="Encode the classes as 0 and 1."
            )
    counted = _count(cut_into_periods(plain, every))
    found: list[dict[str, Any]] = []
    for period in counted.partition_by("from", maintain_order=True):
        sums = period.select(pl.exclude("from", "to", "group").sum()).row(0, named=True)
        for group in period.sort("group").iter_rows(named=True):
            for measure in _MEASURES:
                hits, cases = group[f"{measure} hits"], group[f"{measure} rows"]
                rest_hits, rest_cases = sums[f"{measure} hits"] - hits, sums[f"{measure} rows"] - cases
                found.append(
                    {
                        "from": group["from"],
                        "to": group["to"],
                        by: group["group"],
                        "measure": measure,
                        "rows": cases,
                        **_compared(hits, cases, rest_hits, rest_cases),
                    }
                )
    numbers = ("value", "low", "high", "rest", "gap", "gap_low", "gap_high")
    schema: dict[str, Any] = {
        "from": counted.schema["from"],
        "to": counted.schema["to"],
        by: pl.String(),
        "measure": pl.String(),
        "rows": pl.Int64(),
        **dict.fromkeys(numbers, pl.Float64()),
    }
    return pl.DataFrame(found, schema=schema)


def _count(rows: pl.DataFrame) -> pl.DataFrame:
    """Return for each period and group the numerator and denominator of each measure."""
    import polars as pl

    predicted, actual = pl.col("predicted"), pl.col("actual")
    cases = {
        "selection_rate": (predicted == 1, predicted.is_not_null()),
        "true_positive_rate": ((predicted == 1) & (actual == 1), (actual == 1) & predicted.is_not_null()),
        "false_positive_rate": ((predicted == 1) & (actual == 0), (actual == 0) & predicted.is_not_null()),
        "precision": ((predicted == 1) & (actual == 1), (predicted == 1) & actual.is_not_null()),
    }
    sums = [
        expression.sum().cast(pl.Int64).alias(f"{measure} {what}")
        for measure, pair in cases.items()
        for what, expression in zip(("hits", "rows"), pair, strict=True)
    ]
    return rows.group_by("from", "to", "group", maintain_order=True).agg(sums).sort("from", "group")


def _compared(hits: int, rows: int, rest_hits: int, rest_rows: int) -> dict[str, float | None]:
    value = hits / rows if rows else None
    rest = rest_hits / rest_rows if rest_rows else None
    low, high = wilson(hits, rows) if rows else (None, None)
    gap_low, gap_high = newcombe(hits, rows, rest_hits, rest_rows)
    known = value is not None and rest is not None
    return {
        "value": value,
        "low": low,
        "high": high,
        "rest": rest,
        "gap": value - rest if value is not None and rest is not None else None,
        "gap_low": gap_low if known else None,
        "gap_high": gap_high if known else None,
    }


def _decisions(store: Store, rows: pl.DataFrame) -> pl.Expr:
    """Return the predicted class: as logged, else by the score."""
    import polars as pl

    from everloop.prediction_log.prediction_log import label_text

    decided = (pl.col("score").fill_nan(None) >= 0.5).cast(pl.Float64)
    if "label" not in rows.columns:
        return decided
    for version in rows["version"].unique().to_list():
        found = store.records.find(ModelVersion, ("key", "=", version), limit=1)
        classes = list(found[0].signature.get("classes", ())) if found and found[0].signature else []
        if len(classes) == 2:
            logged = (pl.col("version") == version) & pl.col("label").is_not_null()
            positive = (pl.col("label") == label_text(classes[1])).cast(pl.Float64)
            decided = pl.when(logged).then(positive).otherwise(decided)
    return decided
