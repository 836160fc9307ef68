"""Champion against challenger on the same traffic: on the same rows where both scored them, else on their own rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.baseline import answered, score_array
from everloop.monitoring.logged_windows import due_until, read_labels
from everloop.monitoring.measures.tail_probabilities import normal_quantile, normal_tail
from everloop.monitoring.performance.performance_checks import measure_labelled, usual_metric
from everloop.records import ModelVersion
from everloop.stores.durations import parse_duration
from everloop.training.intervals import paired_bootstrap
from everloop.training.metrics import Metric, get_metric, scores_for

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.stores import Store

LEAST_PAIRS = 30
"""With fewer rows that both scored, each version is measured on all its own rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionComparison:
    """Two versions on labelled live predictions. Numbers are NaN if they are undefined.

    Attributes:
        metric: name of the metric.
        paired: both scored the same rows (a shadow); else each has its own share of the traffic (a canary).
        champion_value: the metric of the champion.
        challenger_value: the metric of the challenger.
        gain: by how much the challenger is better, in the unit of the metric; below zero it is worse.
        low: lower end of the 95 % interval of the gain.
        high: upper end of the 95 % interval of the gain.
        p_worse: probability that the challenger is worse: the share of resamples, or from the normal distribution.
        champion_rows: labelled rows of the champion.
        challenger_rows: labelled rows of the challenger.
    """

    metric: str
    paired: bool
    champion_value: float
    challenger_value: float
    gain: float
    low: float
    high: float
    p_worse: float
    champion_rows: int
    challenger_rows: int


def compare_versions(
    store: Store,
    endpoint: str,
    champion: str,
    challenger: str,
    metric: str | Metric | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    labels_after: str | timedelta = "0s",
) -> VersionComparison:
    """Compare two versions on the labelled predictions of a period.

    Args:
        champion: key of a version, such as `delays@3`.
        challenger: key of another version with the same classes.
        metric: a name in `everloop.training.METRICS`, or a metric. Default: the usual one of the task.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.
        labels_after: predictions younger than this are left out.

    Raises:
        EmptySampleError: one of them has no labelled predictions.
        NotFoundError: the endpoint does not exist.
        UsageError: the versions predict different classes, or the metric does not fit them.
    """
    from everloop.prediction_log.label_matching import base_id

    _check_comparable(store, champion, challenger)
    one = get_metric(metric if metric is not None else usual_metric(store, endpoint, version=champion))
    wait = parse_duration(labels_after) if isinstance(labels_after, str) else labels_after
    end = due_until(store, until if until is not None else store.now(), wait)
    rows: dict[str, pl.DataFrame] = {}
    for version in (champion, challenger):
        found = answered(read_labels(store, endpoint, since, end, version=version))
        if found.height == 0:
            raise EmptySampleError(
                f"'{version}' has no labelled predictions in this period.",
                help="Send labels with the keys of its predictions, or choose a longer period.",
            )
        rows[version] = found.with_columns(base_id().alias("_base")).unique("_base", keep="last", maintain_order=True)
    common = rows[champion].select("_base").join(rows[challenger].select("_base"), on="_base")
    if common.height >= LEAST_PAIRS:
        pair = [rows[version].join(common, on="_base", how="semi").sort("_base") for version in (champion, challenger)]
        return _compare_pairs(one, *pair)
    return _compare_samples(one, rows[champion], rows[challenger])


def _compare_pairs(metric: Metric, champion: pl.DataFrame, challenger: pl.DataFrame) -> VersionComparison:
    labels = champion["actual"].cast(float).to_numpy()
    old, new = _judged(metric, champion), _judged(metric, challenger)
    difference = paired_bootstrap(labels, new, old, metric)
    sign = 1 if metric.greater_is_better else -1
    ends = sorted((sign * difference.low, sign * difference.high))
    return VersionComparison(
        metric=metric.name,
        paired=True,
        champion_value=metric.prepare(labels, old)(None),
        challenger_value=metric.prepare(labels, new)(None),
        gain=sign * difference.value,
        low=ends[0],
        high=ends[1],
        p_worse=difference.p_worse,
        champion_rows=champion.height,
        challenger_rows=challenger.height,
    )


def _compare_samples(metric: Metric, champion: pl.DataFrame, challenger: pl.DataFrame) -> VersionComparison:
    old, new = measure_labelled(champion, metric), measure_labelled(challenger, metric)
    gain = metric.gain(new.value, old.value)
    error = math.hypot(old.standard_error, new.standard_error)
    half = normal_quantile(0.025) * error
    p_worse = math.nan
    if not math.isnan(error) and not math.isnan(gain):
        p_worse = normal_tail(gain / error) if error > 0 else 0.5 * (1 - (gain > 0) + (gain < 0))
    return VersionComparison(
        metric=metric.name,
        paired=False,
        champion_value=old.value,
        challenger_value=new.value,
        gain=gain,
        low=gain - half,
        high=gain + half,
        p_worse=p_worse,
        champion_rows=champion.height,
        challenger_rows=challenger.height,
    )


def _judged(metric: Metric, rows: pl.DataFrame) -> NDArray[np.float64]:
    decided = "predicted" in rows.columns and rows["predicted"].null_count() == 0
    return scores_for(metric, score_array(rows), rows["predicted"].to_numpy() if decided else None)


def _check_comparable(store: Store, champion: str, challenger: str) -> None:
    if champion == challenger:
        raise UsageError(f"'{champion}' cannot be compared with itself.", help="Name two versions.")
    kinds = {}
    for version in (champion, challenger):
        found = store.records.find(ModelVersion, ("key", "=", version), limit=1)
        if found and found[0].signature:
            kinds[version] = found[0].signature.get("task"), list(found[0].signature.get("classes", ()))
    if len(kinds) == 2 and kinds[champion] != kinds[challenger]:
        raise UsageError(
            f"'{champion}' predicts {kinds[champion][0]} {kinds[champion][1] or ''}, but '{challenger}' predicts "
            f"{kinds[challenger][0]} {kinds[challenger][1] or ''}. No metric can compare them.",
            help="Compare versions of the same task and classes.",
        )
