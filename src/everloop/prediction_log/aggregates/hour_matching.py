"""Matches the labels of some hours of predictions, reading as little of the log as that takes.

The result is that of `read_labelled` for these hours. Only the columns that label sketches need are read, the rows of
the hours are read once, and predictions are compared by their row numbers instead of their ids.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from everloop.prediction_log.label_matching import SHADOW, base_id, label_horizon, match_labels
from everloop.prediction_log.log_reading import encoded_label, label_rows, newest_labels
from everloop.prediction_log.prediction_log import PREDICTIONS, table_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.stores import Store

HOUR = timedelta(hours=1)
_LAST_YEAR = 5000
"""Times after it are not added to, because the sum may not exist."""
_MATCHED = ("id", "entity", "event_at", "arrived_at", "role")
_SKETCHED = ("version", "score", "scores", "label")


def match_hours(store: Store, endpoint: str, hours: Sequence[datetime]) -> pl.LazyFrame | None:
    """Match the labels of the predictions of some hours, in any role.

    Args:
        hours: beginnings of hours, in UTC; at least one. They should be near each other.

    Returns:
        The predictions with a label: `event_at`, `arrived_at`, `version`, `role`, `score`, `scores` and `label` if
        these were logged, `actual`, `predicted`, `label_arrived_at`; ordered by `event_at` and `id`. None if there are
        none.
    """
    import polars as pl

    since, until = min(hours), max(hours) + HOUR
    horizon = label_horizon(store, endpoint)
    table = table_name(store, PREDICTIONS, endpoint)
    at = pl.col("event_at")
    rows = store.tables.scan(table, since=since, until=until)
    present = rows.collect_schema().names()
    kept = [name for name in (*_MATCHED, *_SKETCHED) if name in present]
    own = rows.select(kept).collect()
    if own.is_empty():
        return None
    latest = until + horizon if horizon is not None and until.year < _LAST_YEAR else None
    stored = label_rows(store, endpoint, since, latest)
    later = store.tables.scan(table, since=until).select(_MATCHED).filter(pl.col("entity").is_not_null())
    simple = _match_single(own, stored, later, until, horizon)
    if simple is not None:
        known, matched = simple
    else:
        several = _match_several(own, stored, later, until, horizon)
        if several is None:
            return None
        known, matched = several
    wanted = known.filter(at < until, at.dt.truncate("1h").is_in(list(hours)))
    joined = _with_answers(wanted, known).join(matched, on="_base", how="inner").sort("event_at", "id")
    if joined.is_empty():
        return None
    numbers = [encoded_label(store, joined.lazy()).alias("actual")]
    if "label" in joined.columns:
        numbers.append(encoded_label(store, joined.lazy(), "label").alias("predicted"))
    return joined.lazy().with_columns(numbers)


def _match_single(
    own: pl.DataFrame, stored: pl.LazyFrame, later: pl.LazyFrame, until: datetime, horizon: timedelta | None
) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """Match labels if each key has one answer, which needs one join. None if a key has several.

    The arguments and results are those of `_match_several`.
    """
    import polars as pl

    known = own.with_row_index("_row")
    answers = known.filter(pl.col("entity").is_not_null(), pl.col("role") != SHADOW)
    if answers["entity"].n_unique() < answers.height:
        return None
    made, at = pl.col("event_at"), pl.col("label_event_at")
    labels = stored.select(
        "entity",
        pl.col("event_at").alias("label_event_at"),
        pl.col("value").alias("_value"),
        pl.col("text").alias("actual_text"),
        pl.col("arrived_at").alias("label_arrived_at"),
    )
    keyed = answers.lazy().select("entity", "event_at", pl.col("_row").alias("_base"))
    found = labels.join(keyed, on="entity", how="inner", maintain_order="left").filter(at >= made).collect()
    last: datetime | None = found["label_event_at"].max()  # type: ignore[assignment]
    if last is not None and last >= until:
        # A later prediction with the same key may be nearer to a label.
        others = later.filter(made <= last).join(keyed.select("entity"), on="entity", how="semi").limit(1).collect()
        if others.height:
            return None
    if horizon is not None:
        found = found.filter(at - made <= horizon)
    newest_last = found.drop("entity", "event_at").sort("label_arrived_at", "label_event_at", maintain_order=True)
    return known, newest_last.unique("_base", keep="last", maintain_order=True)


def _match_several(
    own: pl.DataFrame, stored: pl.LazyFrame, later: pl.LazyFrame, until: datetime, horizon: timedelta | None
) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """Match labels where a key may have several answers. None if there are no labels.

    Args:
        own: the predictions of the hours.
        stored: the labels that may belong to them.
        later: predictions that were made after them.
        until: end of the hours.

    Returns:
        The predictions with their number `_row`, and the label of each number `_base` that has one.
    """
    import polars as pl

    # In the order of the table, because of two labels that arrived together the last one counts.
    found = stored.join(
        own.lazy().select("entity").drop_nulls().unique(), on="entity", how="semi", maintain_order="left"
    ).collect()
    if found.is_empty():
        return None
    last: datetime = found["event_at"].max()  # type: ignore[assignment]
    known = own
    if last >= until:
        # A later prediction with the same key may be nearer to a label.
        others = later.filter(pl.col("event_at") <= last)
        known = pl.concat(
            [own, others.join(found.lazy().select("entity").unique(), on="entity", how="semi").collect()],
            how="diagonal",
        )
    # If several predictions have the same event time, the last of this order counts.
    known = known.sort("event_at", "arrived_at", "id").with_row_index("_row")
    labels = newest_labels(found.lazy()).select(
        "entity",
        pl.col("event_at").alias("label_event_at"),
        pl.col("value").alias("_value"),
        pl.col("text").alias("actual_text"),
        pl.col("arrived_at").alias("label_arrived_at"),
    )
    answers = known.select(pl.col("_row").alias("id"), *_MATCHED[1:])
    return known, match_labels(answers.lazy(), labels, horizon).collect()


def _with_answers(rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Add `_base`: the row number of the answer whose labels each row shares."""
    import polars as pl

    shadow = pl.col("role") == SHADOW
    answered = rows.filter(~shadow).with_columns(pl.col("_row").alias("_base"))
    shadows = rows.filter(shadow)
    if shadows.is_empty():
        return answered
    answers = known.filter(~shadow).select(pl.col("id").alias("_answer"), pl.col("_row").alias("_base"))
    named = shadows.with_columns(base_id().alias("_answer"))
    return pl.concat([answered, named.join(answers, on="_answer", how="inner").select(answered.columns)])


__all__ = ["HOUR", "match_hours"]
