"""Estimated metrics of an endpoint by period, learned from its own labelled predictions.

Source of the two estimators: see `confidence_estimation` (CBPE, for classes) and `loss_estimation` (DLE, for numbers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.monitoring.performance.confidence_estimation import ConfidenceEstimator
from everloop.monitoring.performance.estimates_over_time import estimate_periods
from everloop.monitoring.performance.labelled_predictions import read_performance_rows, task_of_rows
from everloop.monitoring.performance.loss_estimation import LossEstimator
from everloop.monitoring.performance.score_columns import plain_inputs, scores_of

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl

    from everloop.stores import Store

LEAST_ROWS = 100
"""Fewer labelled predictions than this teach nothing that could be trusted."""


def learned_estimates(
    store: Store,
    endpoint: str,
    metric: str,
    every: str = "1mo",
    *,
    version: str | None = None,
    learn_until: datetime | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """Learn an estimator from earlier labelled predictions, and estimate a metric of the later ones by period.

    Args:
        metric: name of a metric that the estimator for the model's task knows.
        every: length of a period in Polars' notation, such as `1d`, `1w` or `1mo`.
        version: key of the version whose predictions count. None: all predictions that clients received.
        learn_until: labelled predictions before this moment teach the estimator; the others are estimated. Default:
            the moment before which half of the labelled predictions were made.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.

    Returns:
        As `estimate_periods`.

    Raises:
        EmptySampleError: there are no predictions, fewer than 100 labelled ones to learn from, or none to estimate.
        NotFoundError: the endpoint does not exist.
        UsageError: the metric cannot be estimated, or the period cannot be read.
    """
    rows = read_performance_rows(store, endpoint, since, until, version=version)
    task = task_of_rows(store, rows)
    labelled = rows.filter(rows["actual"].is_finite())
    split = learn_until
    if split is None and labelled.height:
        split = labelled["event_at"].sort()[labelled.height // 2]
    known = labelled.filter(labelled["event_at"] < split) if split is not None else labelled
    if known.height < LEAST_ROWS:
        raise EmptySampleError(
            f"'{endpoint}' has {known.height:,} labelled predictions to learn from; at least {LEAST_ROWS} are needed.",
            help="Send more labels, or let the estimator learn until a later moment (--learn-until).",
        )
    later = rows.filter(rows["event_at"] >= split)
    if later.height == 0:
        raise EmptySampleError(
            f"'{endpoint}' has no predictions after {split:%Y-%m-%d %H:%M} UTC to estimate.",
            help="Let the estimator learn until an earlier moment (--learn-until).",
        )
    actual, times = known["actual"].to_numpy(), known["event_at"].to_numpy()
    estimator: ConfidenceEstimator | LossEstimator
    if task == "regression":
        estimator = LossEstimator.fit(plain_inputs(known), scores_of(known), actual, [metric], times=times)
    else:
        decided = "predicted" in known.columns and known["predicted"].null_count() == 0
        predicted = known["predicted"].to_numpy() if decided else None
        estimator = ConfidenceEstimator.fit(scores_of(known), actual, predicted=predicted, times=times)
    return estimate_periods(later, estimator, metric, every)
