"""Matches labels with the predictions that they belong to.

A label belongs to the last prediction with its key whose event time is not later than the label's, and no further back
than the endpoint's `label_horizon_days`, if that is set. It counts for that prediction only, not for earlier or later
ones with the same key. If several labels match a prediction, the one that arrived last counts. So a correction is
simply sent as another label.

For each key, the answers to clients (by the champion or a canary) are one history. A shadow scored the same requests,
so its rows share the labels of those answers. Answers to testers and batch jobs are separate histories, so trying out a
key never takes a label away from the answer that a client got.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from everloop.prediction_log.log_settings import read_days

if TYPE_CHECKING:
    import polars as pl

    from everloop.stores import Store

ANSWERED = ("champion", "canary")
"""The roles whose predictions clients have seen."""
SHADOW = "shadow"

_NO_LIMIT = timedelta(days=365 * 5000)


def label_horizon(store: Store, endpoint: str) -> timedelta | None:
    """How long after a prediction a label can still match it, by the endpoint's settings; None: no limit."""
    return read_days(store, endpoint, "label_horizon_days")


def match_labels(predictions: pl.LazyFrame, labels: pl.LazyFrame, horizon: timedelta | None) -> pl.LazyFrame:
    """The label that counts for each prediction that has one.

    Args:
        predictions: columns `id`, `entity`, `event_at`, `arrived_at`, `role`; of all versions, because any may be the
            nearest to a label.
        labels: columns `entity`, `label_event_at`, `label_arrived_at` and any others.
        horizon: a label with a later event time than this after a prediction does not match it; None: no limit.

    Returns:
        The columns of `labels` except `entity`, and `_base`: the id of the prediction (see `base_id`), each once.
    """
    import polars as pl

    answers = predictions.filter(pl.col("entity").is_not_null(), pl.col("role") != SHADOW)
    history = pl.when(pl.col("role").is_in(list(ANSWERED))).then(pl.lit("answered")).otherwise(pl.col("role"))
    # If several predictions have the same event time, the last answer counts.
    ordered = answers.with_columns(history.alias("_history")).sort("event_at", "arrived_at", "id")
    made = ordered.select("entity", "_history", "event_at", pl.col("id").alias("_base"))
    each = labels.join(made.select("_history").unique(), how="cross").sort("label_event_at")
    nearest = each.join_asof(
        made,
        left_on="label_event_at",
        right_on="event_at",
        by=["entity", "_history"],
        strategy="backward",
        tolerance=horizon if horizon is not None else _NO_LIMIT,
        coalesce=False,
        check_sortedness=False,
    )
    about = nearest.filter(pl.col("_base").is_not_null()).drop("entity", "_history", "event_at")
    newest_last = about.sort("label_arrived_at", "label_event_at", maintain_order=True)
    return newest_last.unique("_base", keep="last", maintain_order=True)


def base_id() -> pl.Expr:
    """The id of the answer to a row. A shadow's id is the same with its version appended."""
    import polars as pl

    return pl.col("id").str.split("~").list.first()


def find_unmatched(predictions: pl.DataFrame, labels: pl.DataFrame, horizon: timedelta | None) -> list[str]:
    """The keys of the labels that match no answer to a client, in the order of the labels.

    Args:
        predictions: columns `entity`, `event_at`, `role`.
        labels: columns `entity`, `event_at`.
    """
    import polars as pl

    made = (
        predictions.filter(pl.col("entity").is_not_null(), pl.col("role").is_in(list(ANSWERED)))
        .select("entity", pl.col("event_at").alias("_made"))
        .sort("_made")
    )
    found = (
        labels.with_row_index("_position")
        .sort("event_at")
        .join_asof(
            made,
            left_on="event_at",
            right_on="_made",
            by="entity",
            strategy="backward",
            tolerance=horizon if horizon is not None else _NO_LIMIT,
            coalesce=False,
            check_sortedness=False,
        )
    )
    keys: list[str] = found.filter(pl.col("_made").is_null()).sort("_position")["entity"].to_list()
    return keys


__all__ = ["ANSWERED", "base_id", "find_unmatched", "label_horizon", "match_labels"]
