"""Metrics by period from the hourly aggregates of the prediction log, without reading its rows.

The aggregates hold counts of scores and labels. These give some metrics with their 95 % intervals: the area under the
ROC curve, and shares of rows such as accuracy. Other metrics are measured on the rows; see `performance_by`.

Source of the interval of the area: E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, Comparing the areas under two or
more correlated receiver operating characteristic curves, Biometrics 44 (1988), computed on the cells of the score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.data.sketches.score_sketches import BinaryLabelSketch, LabelSketch
from everloop.monitoring.performance.sketched_metrics import roc_auc_error, sketched_metric

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from everloop.stores import Store

LARGEST_ERROR = 0.1
"""Scores in one cell count as equal, so the area may differ from that of the rows. It is used if it differs by at most
this share of half its interval."""

_SHARES = ("accuracy", "precision", "recall")
_MOST_PERIODS = 1000


@dataclass(frozen=True, slots=True)
class AggregatedMetric:
    """A metric of a period with its 95 % interval, and its number of labels; None without labels."""

    labelled: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None


def aggregated_performance(
    store: Store,
    endpoint: str,
    metric: str,
    periods: Sequence[tuple[datetime, datetime]],
    *,
    version: str | None = None,
) -> list[AggregatedMetric] | None:
    """Measure a metric in some periods without reading the rows of whole hours.

    Args:
        metric: name of the metric.
        periods: start and end, exclusive, of each.
        version: key of the version whose predictions count. None: all predictions that clients received.

    Returns:
        One result for each period. None if the aggregates do not have the metric or do not give it exactly enough, or
        several versions answered in a period, whose labels cannot be added.
    """
    from everloop.prediction_log.aggregates import read_aggregates

    if (metric != "roc_auc" and metric not in _SHARES) or len(periods) > _MOST_PERIODS:
        return None
    found = []
    for start, end in periods:
        sketches = [one.labels for one in read_aggregates(store, endpoint, start, end, version) if one.labels]
        if len(sketches) > 1:
            return None
        measured = _measured(sketches[0], metric) if sketches else AggregatedMetric()
        if measured is None:
            return None
        found.append(measured)
    return found


def _measured(sketch: LabelSketch, metric: str) -> AggregatedMetric | None:
    """Return a metric of a sketch and its 95 % interval; None if the sketch cannot give both."""
    if not isinstance(sketch, BinaryLabelSketch):
        return None
    value = sketched_metric(sketch, metric)
    if metric == "roc_auc":
        low, high = area_interval(sketch)
        # Without any spread, the interval depends on the rows.
        exact = roc_auc_error(sketch) <= LARGEST_ERROR * (high - low) / 2 and low < high
        return _found(sketch, value, low, high) if exact else None
    from everloop.training.intervals import wilson

    counts = sketch.confusion
    chosen = {"accuracy": counts.trace(), "precision": counts[1, 1], "recall": counts[1, 1]}
    among = {"accuracy": counts.sum(), "precision": counts[:, 1].sum(), "recall": counts[1].sum()}
    rows = int(among[metric])
    return _found(sketch, value, *wilson(int(chosen[metric]), rows)) if rows else None


def _found(sketch: BinaryLabelSketch, value: float, low: float, high: float) -> AggregatedMetric:
    return AggregatedMetric(sketch.rows + sketch.unknown, value, low, high)


def area_interval(sketch: BinaryLabelSketch) -> tuple[float, float]:
    """Return the 95 % interval of the area under the ROC curve; NaN with fewer than two rows of a class."""
    from everloop.training.intervals import area_bounds, delong

    negatives, positives = sketch.ranks.astype(np.float64)
    m, n = positives.sum(), negatives.sum()
    if min(m, n) < 2:
        return math.nan, math.nan
    # For each positive row the share of negatives below it, and for each negative the share of positives above it.
    below = (np.cumsum(negatives) - 0.5 * negatives) / n
    above = (m - np.cumsum(positives) + 0.5 * positives) / m
    area = float((positives * below).sum() / m)
    of_positives = float((positives * (below - area) ** 2).sum())
    of_negatives = float((negatives * (above - area) ** 2).sum())
    if of_positives + of_negatives < 1e-12 or not 0 < area < 1:
        # Completely separated or tied classes have no variance; the numbers of the cells rank their rows as scores do.
        cells = np.arange(len(positives), dtype=np.float64)
        scores = np.concatenate([np.repeat(cells, part.astype(np.intp)) for part in (positives, negatives)])
        exact = delong(np.repeat([1.0, 0.0], [int(m), int(n)]), scores)
        return exact.low, exact.high
    return area_bounds(area, [(of_positives, int(m)), (of_negatives, int(n))])
